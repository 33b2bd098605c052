"""Detection scores of the field beside NeMo's own, over prompts.

Scope: which detectors with which settings, and their scores through the store.
Source: Hintersdorf et al., "Finding NeMo", NeurIPS 2024, section 4, for the way of comparing; the
detectors name their own.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from nemo_kit import detectors
from nemo_kit.checks import check_seeds, check_whole
from nemo_kit.store import model_key, run

if TYPE_CHECKING:
    from nemo_kit.models import DiffusionModel

Detector = Callable[..., detectors.PromptScore]


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
    default `usual()`; `store`, `retry_failed`, `progress`, `version` as in `store.run`.
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
