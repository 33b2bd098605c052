"""Detection scores of the field beside NeMo's own, over prompts, and the table that compares them.

Scope: which detectors with which settings, their scores through the store, and AUROC and true
positives by detector with what each costs.
Source: Hintersdorf et al., "Finding NeMo", NeurIPS 2024, section 4, for the way of comparing; the
detectors name their own.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from nemo_kit import detectors
from nemo_kit.checks import check_seeds, check_whole
from nemo_kit.experiments import model_key, run
from nemo_kit.metrics import detection_metrics

if TYPE_CHECKING:
    from nemo_kit.models import DiffusionModel

Detector = Callable[..., detectors.PromptScore]
AGAINST = "non-memorized"


def usual(
    seeds: Iterable[int] = detectors.SEEDS, own: Iterable[int] = range(1, 11), steps: int = 50
) -> dict[str, tuple[Detector, dict[str, Any]]]:
    """The detectors of the comparison: name -> function and its options.

    Parameters: `seeds`, of all but NeMo, which takes `own`, and the attention entropies, whose
    source detects from one image: they take the first; `steps`, of those that denoise.
    Raises ValueError for bad seeds or steps.
    """
    check_whole("steps", steps, 5)
    common = {"seeds": check_seeds(seeds, distinct=True)}
    first = {"seeds": common["seeds"][:1]}
    run_through = common | {"steps": steps}
    return {
        "NeMo": (detectors.nemo_score, {"seeds": check_seeds(own, least=2, distinct=True)}),
        "noise magnitude, first step": (detectors.noise_magnitude, run_through | {"first": 1}),
        "noise magnitude": (detectors.noise_magnitude, run_through),
        "attention entropy E": (detectors.attention_entropy, first),
        "attention entropy D": (detectors.attention_entropy_late, first | {"steps": steps}),
        "sharpness": (detectors.sharpness, common),
        "anisotropy": (detectors.anisotropy, common),
    }


def detector_scores(
    model: DiffusionModel,
    prompts: pd.DataFrame,
    chosen: Mapping[str, tuple[Detector, dict[str, Any]]] | None = None,
    *,
    store: str | Path,
    retry_failed: bool = False,
    progress: bool = True,
    version: Any = None,
) -> pd.DataFrame:
    """Score of every detector for every prompt, resumable.

    Returns a frame with `prompt`, `group`, `detector`, `score`, `samples`, `seconds`, `seeds` (how
    many), `protocol` (how the score was computed); a score that failed has no row.

    Parameters: `prompts`, with `prompt` and `group`; `chosen`, name -> function and options, by
    default `usual()`; `store`, `retry_failed`, `progress`, `version` as in `experiments.run`.
    Raises ValueError for a missing column or no detector, RuntimeError when all failed.
    """
    chosen = usual() if chosen is None else chosen
    if missing := {"prompt", "group"} - set(prompts):
        raise ValueError(f"prompts lacks {', '.join(sorted(missing))}; it has {list(prompts)}")
    if not chosen:
        raise ValueError("chosen must hold at least one detector, got none")
    texts = list(dict.fromkeys(prompts["prompt"]))
    items = [
        {"prompt": text, "detector": name, "function": function, "options": options}
        for name, (function, options) in chosen.items()
        for text in texts
    ]

    def score(item: dict[str, Any]) -> dict[str, Any]:
        found = asdict(item["function"](model, item["prompt"], **item["options"]))
        return found | {
            "prompt": item["prompt"],
            "detector": item["detector"],
            "seeds": len(found.pop("by_seed")),
        }

    sweep = run(
        score, items, store, model_key(model), name="detectors",
        retry_failed=retry_failed, progress=progress, version=version,
    )  # fmt: skip
    if len(sweep.failed):
        first = sweep.failed.iloc[0]
        warnings.warn(
            f"{len(sweep.failed)} scores failed and have no row (try again with "
            f"retry_failed=True); the first, {first['item']!r}, with {first['error']}",
            stacklevel=2,
        )
    names = ["prompt", "group", "detector", "score", "samples", "seconds", "seeds", "protocol"]
    return sweep.frame.merge(prompts[["prompt", "group"]], on="prompt")[names]


def detector_table(
    scores: pd.DataFrame, resamples: int = 1000, groups: Sequence[str] = ("VM", "TM")
) -> pd.DataFrame:
    """AUROC and TPR at 1 % FPR of each detector with intervals, and its cost.

    Returns a frame with `detector`, `memorized` (which prompts: each group, and all), `prompts`,
    `others` (numbers of prompts), `AUROC`, `AUROC_low`, `AUROC_high`, `TPR@1%FPR`, `TPR@1%FPR_low`,
    `TPR@1%FPR_high` (95 % bootstrap intervals over prompts), `TPR_rule` (which convention that
    is), `samples` (mean of a prompt), `seconds` (median of a prompt, on this machine) and
    `protocol` (how the score was computed).

    Parameters: `scores`, from `detector_scores`; `resamples`, of the bootstrap; `groups`, of
    memorized prompts, each against the non-memorized ones.
    Raises ValueError for a missing column, or without prompts of both kinds.
    """
    needed = {"group", "detector", "score", "samples", "seconds", "protocol"}
    if missing := needed - set(scores):
        raise ValueError(f"scores lacks {', '.join(sorted(missing))}; it has {list(scores)}")
    there = [name for name in groups if (scores["group"] == name).any()]
    if not there or not (scores["group"] == AGAINST).any():
        raise ValueError(f"scores needs memorized and other prompts, got {set(scores['group'])}")
    sets = {name: [name] for name in there}
    if len(there) > 1:
        sets[" + ".join(there)] = there
    rows = [
        {"detector": name, "memorized": label} | _numbers(part, members, resamples)
        for name, part in scores.groupby("detector", sort=False)
        for label, members in sets.items()
    ]
    return pd.DataFrame(rows)


def _numbers(part: pd.DataFrame, members: Sequence[str], resamples: int) -> dict[str, Any]:
    own, other = part[part["group"].isin(members)], part[part["group"] == AGAINST]
    both = pd.concat([own, other])
    labels = [True] * len(own) + [False] * len(other)
    table = detection_metrics(both["score"], labels, 0.0, resamples=resamples).set_index("metric")
    found: dict[str, Any] = {"prompts": len(own), "others": len(other)}
    for metric in ("AUROC", "TPR@1%FPR"):
        row = table.loc[metric]
        found |= {metric: row.value, f"{metric}_low": row.low, f"{metric}_high": row.high}
    found["TPR_rule"] = table.loc["TPR@1%FPR", "rule"]
    found |= {"samples": both["samples"].mean(), "seconds": both["seconds"].median()}
    return found | {"protocol": "; ".join(dict.fromkeys(both["protocol"]))}
