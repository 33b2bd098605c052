"""Every registered method over prompts, through the store."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nemo_kit.checks import check_seeds
from nemo_kit.localization.methods.base import METHODS, SEEDS, Ranking, find, rank
from nemo_kit.models.base import DiffusionModel
from nemo_kit.store import Keyed, run, tidy


def rankings(
    model: DiffusionModel | Keyed,
    prompts: Iterable[str],
    chosen: Iterable[str | Callable[..., Any]] | None = None,
    seeds: Iterable[int] = SEEDS,
    budget: int | None = None,
    *,
    store: str | Path,
    images: Mapping[str, np.ndarray] | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Each method's ranking of each prompt's neurons, resumable.

    Returns a frame with `prompt`, `method`, `loss`, `found` (a `NeuronSet` or None), `samples`,
    `seconds`, `ranking` (a `Ranking`); one that failed has no row, nor has a method that reads the
    training image for prompts without one.
    Parameters: `chosen`, names or functions, by default all of `METHODS`; `seeds`, `budget` as in
    `rank`; `images`, prompt -> training image; `store` and `options` as in `store.run`.
    Raises ValueError for unknown names and bad seeds, RuntimeError when all failed.
    """
    used = {one.name: one for one in map(find, METHODS if chosen is None else chosen)}
    if not used:
        raise ValueError("chosen must hold at least one method, got none")
    keyed = model if isinstance(model, Keyed) else Keyed.of(model)
    known, numbers = images or {}, check_seeds(seeds, distinct=True)
    items = []
    for one in used.values():
        given = {"function": one.function, "options": one.options, "seeds": numbers}
        for prompt in dict.fromkeys(prompts):
            image = known.get(prompt) if one.needs_image else None
            if image is not None or not one.needs_image:
                about = {"prompt": prompt, "method": one.name, "budget": budget, "image": image}
                items.append(about | given)

    def work(item: dict[str, Any]) -> dict[str, Any]:
        asked = item["prompt"], item["seeds"], item["budget"], item["image"]
        return rank(used[item["method"]], keyed.model, *asked).to_row()

    frame = tidy(run(work, items, store, keyed.key, name="rankings", **options))
    found = [Ranking.from_row(row, keyed.model.searched) for row in frame.to_dict("records")]
    frame["found"] = pd.Series([one.found for one in found], dtype=object)
    return frame.drop(columns="scores").assign(ranking=found)
