"""Numbers over prompts: medians with intervals, shares, detection curves, localization quality.

Source: Hintersdorf et al., "Finding NeMo", NeurIPS 2024, section 4 and table 1;
the bootstrap intervals and the comparison with known neurons are additions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from nemo_kit.metrics._checks import finite, interval
from nemo_kit.neurons import NeuronSet

VERSION = 1  # raised where results change (see nemo_kit.keys)
COPY_THRESHOLD = 0.7  # SSCD above it counts as a verbatim copy (paper, section 4)
TPR_RULE = "FPR at most 0.01"  # others: below 0.01 (Wen et al.), nearest to it (Ren, Jeon)


@dataclass(frozen=True)
class Summary:
    """Median, median absolute deviation and a bootstrap interval of the median."""

    median: float
    mad: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        """Text in the paper's form, e.g. ``0.83 ± 0.16 [0.80, 0.86]``."""
        return f"{self.median:.2f} ± {self.mad:.2f} [{self.low:.2f}, {self.high:.2f}]"

    def to_row(self) -> dict[str, float]:
        """The columns of a table: `prompts`, `median`, `mad`, `low`, `high`."""
        numbers = {key: getattr(self, key) for key in ("median", "mad", "low", "high")}
        return {"prompts": self.count} | numbers


def summarize(
    values: Sequence[float] | np.ndarray, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Summary:
    """Median ± median absolute deviation over prompts, with a percentile bootstrap interval.

    Returns a `Summary` in the unit of the values.

    Parameters: `values`, one number a prompt; `level`, coverage of the interval, in (0, 1);
    `resamples` and `seed` of the bootstrap.
    Raises ValueError for empty or non-finite values or a level outside (0, 1).
    Source: paper, table 1 (median ± MAD); the interval is an addition.
    """
    values = finite("values", values)
    centre = float(np.median(values))
    draws = np.random.default_rng(seed).choice(values, (resamples, len(values)))
    low, high = interval(np.median(draws, axis=1), level)
    return Summary(centre, float(np.median(np.abs(values - centre))), low, high, len(values))


def share_above(values: Sequence[float] | np.ndarray, threshold: float = COPY_THRESHOLD) -> float:
    """Share of values strictly above a threshold, in [0, 1]: the memorization rate for 0.7.

    Parameters: `values`, similarities; `threshold`, 0.7 is the paper's bound for verbatim copies.
    Raises ValueError for empty or non-finite values.
    Source: paper, section 4 (VM where the maximum SSCD exceeds 0.7).
    """
    return float(np.mean(finite("values", values) > threshold))


def roc_curve(scores: Sequence[float] | np.ndarray, labels: Sequence[bool]) -> pd.DataFrame:
    """ROC curve: one row for each distinct score taken as threshold, from the strictest down.

    Returns a frame with `threshold`, `fpr`, `tpr` (both in [0, 1]); the first row is (inf, 0, 0).

    Parameters: `scores`, higher means memorized; `labels`, True for memorized.
    Raises ValueError for different lengths, non-finite scores, or only one class.
    """
    from sklearn.metrics import roc_curve as curve

    scores, labels = _classes(scores, labels)
    fpr, tpr, thresholds = curve(labels, scores, drop_intermediate=False)
    return pd.DataFrame({"threshold": thresholds, "fpr": fpr, "tpr": tpr})


def detection_metrics(
    scores: Sequence[float] | np.ndarray,
    labels: Sequence[bool],
    threshold: float,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """AUROC, TPR at 1 % FPR and accuracy at a threshold, each with a bootstrap interval.

    Returns a frame with `metric`, `value`, `low`, `high`, all in [0, 1], and `rule`, at which
    threshold. The bootstrap resamples each class by itself. TPR at 1 % FPR is the highest TPR
    whose FPR is at most 0.01, without interpolation: below 100 negatives that means no false alarm
    at all. Other codes take an FPR below 0.01 (Wen et al.) or the nearest to it, which may lie
    above (Ren et al., Jeon et al.).

    Parameters: `scores`, higher means memorized; `labels`, True for memorized; `threshold`, a
    score above it counts as memorized; `level`, `resamples` and `seed` of the interval.
    Raises ValueError as `roc_curve`, or for a level outside (0, 1).
    Source: paper, section 4 (detection from the score alone).
    """
    scores, labels = _classes(scores, labels)
    positive, negative = scores[labels], scores[~labels]
    rng = np.random.default_rng(seed)
    draws = [
        _detection(
            rng.choice(positive, len(positive)), rng.choice(negative, len(negative)), threshold
        )
        for _ in range(resamples)
    ]
    low, high = interval(np.array(draws), level)
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


def _classes(scores: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    scores, labels = finite("scores", scores), np.asarray(labels, dtype=bool).ravel()
    if len(scores) != len(labels):
        raise ValueError(f"labels must be one for each score, got {len(labels)} for {len(scores)}")
    if labels.all() or not labels.any():
        raise ValueError(f"labels must hold both classes, got only {bool(labels[0])}")
    return scores, labels


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
