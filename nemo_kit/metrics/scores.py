"""Numbers over prompts: medians with intervals, shares, detection curves, localization quality.

Source: Hintersdorf et al., "Finding NeMo", NeurIPS 2024, section 4 and table 1;
the bootstrap intervals and the comparison with known neurons are additions.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from nemo_kit.checks import check_columns
from nemo_kit.metrics._checks import finite
from nemo_kit.neurons import NeuronSet

VERSION = 1  # raised where results change (see nemo_kit.keys)
COPY_THRESHOLD = 0.7  # SSCD above it counts as a verbatim copy (paper, section 4)
LEVEL = 0.95  # of the intervals
TPR_RULE = "FPR at most 0.01"  # others: below 0.01 (Wen et al.), nearest to it (Ren, Jeon)


def summarize(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Median ± median absolute deviation over prompts, with a 95 % percentile bootstrap interval.

    Returns `prompts` (how many), `median`, `mad`, `low`, `high`, in the unit of the values; of one
    prompt only the median, as it tells no spread (NaN).

    Parameters: `values`, one number a prompt. Raises ValueError for empty or non-finite values.
    Source: paper, table 1 (median ± MAD); the interval is an addition.
    """
    from scipy.stats import bootstrap, median_abs_deviation

    values = finite("values", values)
    low = high = deviation = float("nan")
    if len(values) > 1:
        deviation = float(median_abs_deviation(values))
        low, high = bootstrap(
            (values,), np.median, n_resamples=2000, confidence_level=LEVEL,
            method="percentile", rng=np.random.default_rng(0),
        ).confidence_interval  # fmt: skip
    numbers = {"median": float(np.median(values)), "mad": deviation}
    return {"prompts": len(values), **numbers, "low": float(low), "high": float(high)}


def summary(
    frame: pd.DataFrame, measures: Sequence[str], by: Sequence[str] = ("setting", "group")
) -> pd.DataFrame:
    """Median ± median absolute deviation over prompts of each measure, with its interval.

    Returns a frame with the columns of `by`, `measure`, `prompts`, `median`, `mad`, `low`, `high`
    (as `summarize`), groups in their order. Several rows of a prompt (repeats) count as one, their
    mean. A number that is NaN for a prompt leaves the prompt out, a measure without any is left
    out; a group without pictures (`images` 0) has 0 prompts and no numbers.

    Parameters: `frame`, with `prompt`; `measures`, its columns to tell; `by`, columns that tell
    groups apart.
    Raises ValueError for a missing column.
    Source: paper, table 1.
    """
    keys, names = list(by), list(measures)
    check_columns("frame", frame, "prompt", *names, *keys)
    single = frame.groupby([*keys, "prompt"], sort=False, as_index=False)[names].mean()
    told = ["measure", "prompts", "median", "mad", "low", "high"]
    none = frame[frame["images"] == 0] if "images" in frame else frame[:0]
    undrawn = {key for key, _ in none.groupby(keys)}
    found = [
        dict(zip(keys, key, strict=True))
        | {"measure": name}
        | (summarize(known) if len(known) else {"prompts": 0})
        for key, part in single.groupby(keys, sort=False)
        for name in names
        if len(known := part[name].dropna()) or (key in undrawn and frame[name].notna().any())
    ]
    return pd.DataFrame(found, columns=[*keys, *told])


def orders(here: pd.DataFrame, there: pd.DataFrame, margin: float = 0.05) -> pd.DataFrame:
    """Pairs of settings that another table (the paper's) tells apart, and how they come out here.

    Returns a frame with `group`, `measure`, `lower`, `higher` (settings, as there), `paper` and
    `here` (higher minus lower), `verdict`: "same" or "reversed", or "tied" where the difference
    here is within the margin. Pairs within the margin there are left out.

    Parameters: `here` and `there`, with `setting`, `group`, `measure`, `median`; `margin`, the
    difference that counts, in the unit of the measure.
    """
    keys, found = ["group", "measure"], []
    known = {key: part.set_index("setting")["median"] for key, part in there.groupby(keys)}
    for key, part in here.groupby(keys, sort=False):
        own, paper = part.set_index("setting")["median"].dropna(), known.get(key, pd.Series())
        for one, two in combinations([name for name in paper.index if name in own.index], 2):
            low, high = (one, two) if paper[one] < paper[two] else (two, one)
            gap, ours = paper[high] - paper[low], own[high] - own[low]
            if gap > margin:
                verdict = "tied" if abs(ours) <= margin else "same" if ours > 0 else "reversed"
                found.append((*key, low, high, gap, ours, verdict))
    names = [*keys, "lower", "higher", "paper", "here", "verdict"]
    return pd.DataFrame(found, columns=names)


def detection_metrics(
    scores: Sequence[float] | np.ndarray,
    labels: Sequence[bool],
    threshold: float,
    resamples: int = 1000,
) -> pd.DataFrame:
    """AUROC, TPR at 1 % FPR and accuracy at a threshold, each with a 95 % bootstrap interval.

    Returns a frame with `metric`, `value`, `low`, `high`, all in [0, 1], and `rule`, at which
    threshold. The bootstrap resamples each class by itself. TPR at 1 % FPR is the highest TPR
    whose FPR is at most 0.01, without interpolation: below 100 negatives that means no false alarm
    at all. Other codes take an FPR below 0.01 (Wen et al.) or the nearest to it, which may lie
    above (Ren et al., Jeon et al.).

    Parameters: `scores`, higher means memorized; `labels`, True for memorized; `threshold`, a
    score above it is flagged; `resamples`, of the interval.
    Raises ValueError for different lengths, non-finite scores, or only one class.
    Source: paper, section 4 (detection from the score alone).
    """
    scores, labels = finite("scores", scores), np.asarray(labels, dtype=bool).ravel()
    if len(scores) != len(labels):
        raise ValueError(f"labels must be one for each score, got {len(labels)} for {len(scores)}")
    if labels.all() or not labels.any():
        raise ValueError(f"labels must hold both classes, got only {bool(labels[0])}")
    positive, negative = scores[labels], scores[~labels]
    rng = np.random.default_rng(0)
    draws = [
        _detection(
            rng.choice(positive, len(positive)), rng.choice(negative, len(negative)), threshold
        )
        for _ in range(resamples)
    ]
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    value = _detection(positive, negative, threshold)
    names = ["AUROC", "TPR@1%FPR", "accuracy"]
    rules = ["", TPR_RULE, f"score above {threshold:.4g}"]
    return pd.DataFrame({"metric": names, "value": value, "low": low, "high": high, "rule": rules})


def localization_quality(found: NeuronSet, truth: NeuronSet) -> dict[str, float]:
    """Precision and recall of found neurons against known ones.

    Returns `hit`, `missed`, `extra` (counts), `precision` and `recall` in [0, 1]; precision is NaN
    where nothing was found, recall where there is nothing to find.

    Parameters: `found`, what localization gave; `truth`, e.g. the planted neurons of `lab`.
    Source: an addition; no public model has known memorization neurons.
    """
    hit = len(found & truth)
    return {
        "hit": hit,
        "missed": len(truth) - hit,
        "extra": len(found) - hit,
        "precision": hit / len(found) if found else float("nan"),
        "recall": hit / len(truth) if truth else float("nan"),
    }


def _detection(positive: np.ndarray, negative: np.ndarray, threshold: float) -> np.ndarray:
    """AUROC, TPR at 1 % FPR, accuracy from ranks: a bootstrap by scikit-learn takes 100 times
    as long; the tests hold the two together."""
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, "left") + np.searchsorted(ordered, positive, "right")
    auroc = below.mean() / (2 * len(negative))
    allowed = len(negative) // 100  # false alarms that 1 % FPR permits
    tpr = np.mean(positive > ordered[len(ordered) - 1 - allowed])
    right = np.sum(positive > threshold) + np.sum(negative <= threshold)
    return np.array([auroc, tpr, right / (len(positive) + len(negative))])
