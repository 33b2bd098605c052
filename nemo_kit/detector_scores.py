"""Scores of every registered detector over prompts, through the store.

Source: Hintersdorf et al., "Finding NeMo", NeurIPS 2024, section 4, for the way of comparing; the
detectors name their own.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from nemo_kit.checks import check_choice, check_columns, check_seeds, check_whole
from nemo_kit.detectors import DETECTORS, SEEDS, find, score
from nemo_kit.models.base import DiffusionModel
from nemo_kit.store import model_key, run, tidy


def detector_scores(
    model: DiffusionModel,
    prompts: pd.DataFrame,
    chosen: Iterable[str | Callable[..., Any]] | None = None,
    *,
    store: str | Path,
    seeds: Iterable[int] = SEEDS,
    steps: int = 50,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    **running: Any,
) -> pd.DataFrame:
    """Score of every detector for every prompt, resumable.

    Returns a frame with `prompt`, `group`, `detector`, `score`, `samples`, `seconds`, `seeds` (how
    many), `protocol` (how the score was computed); a score that failed has no row.

    Parameters: `prompts`, with `prompt` and `group`; `chosen`, names or functions, by default all
    that are registered; `seeds` and `steps` (of those that denoise, at least 5), where a detector
    is not registered with its own; `options`, name -> further ones, which count before these;
    `store` and `running` (`retry_failed`, `progress`, `version`) as in `store.run`.
    Raises ValueError for a missing column, bad seeds, steps or names, RuntimeError when all failed.
    """
    check_columns("prompts", prompts, "prompt", "group")
    used = {one.name: one for one in map(find, DETECTORS if chosen is None else chosen)}
    if not used:
        raise ValueError("chosen must hold at least one detector, got none")
    check_whole("steps", steps, 5)
    further = dict(options or {})
    for name in further:
        check_choice("options", name, used)
    items = []
    for name, one in used.items():
        common = {"seeds": seeds} | ({"steps": steps} if "steps" in one.defaults else {})
        given = {**common, **one.options, **further.get(name, {})}
        given["seeds"] = check_seeds(given["seeds"], distinct=True)
        about = {"detector": name, "function": one.function, "options": given}
        items += [{"prompt": text, **about} for text in dict.fromkeys(prompts["prompt"])]

    def work(item: dict[str, Any]) -> dict[str, Any]:
        told = score(used[item["detector"]], model, item["prompt"], **item["options"])
        return {"prompt": item["prompt"], **asdict(told)}

    sweep = run(work, items, store, model_key(model), name="detectors", **running)
    names = ["prompt", "group", "detector", "score", "samples", "seconds", "seeds", "protocol"]
    return tidy(sweep).merge(prompts[["prompt", "group"]], on="prompt")[names]
