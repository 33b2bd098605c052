"""How results depend on the two thresholds: neuron sets and pictures for each pair, over prompts.

Scope: `thresholds_all` of the store, and what deactivating each
pair's neurons does to pictures. Nothing here draws.
Source: Hintersdorf et al., "Finding NeMo", NeurIPS 2024, figures 14 and 15.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from nemo_kit import effects, metrics
from nemo_kit.originals import TrainingImages
from nemo_kit.store import Keyed, generate_all, thresholds_all

if TYPE_CHECKING:
    from nemo_kit.models import DiffusionModel

__all__ = ["PAIR", "threshold_effects", "thresholds_all"]
PAIR = ["initial_deviations", "refinement_deviations"]


def threshold_effects(
    model: DiffusionModel,
    swept: pd.DataFrame,
    seeds: Sequence[int],
    *,
    store: str | Path,
    training: TrainingImages | None = None,
    progress: bool = True,
    **options: Any,
) -> pd.DataFrame:
    """SSCD_gen and SSCD_orig of each prompt with each pair's refined neurons deactivated.

    Returns a frame with `prompt`, the two columns of deviations, `gen` and `orig` (medians over
    seeds; `orig` is NaN for a prompt without a training image). A prompt whose pictures failed,
    undisturbed or with a pair's neurons deactivated, has no row for that pair.
    Parameters: `swept`, from `thresholds_all`; `seeds`, none of detection's; `training`,
    by default the lab's; `options`, of `generate`. Pairs that ended with the same neurons share
    their pictures.
    Raises what `generate_all` raises, and ValueError where a pair has no prompt with both pictures.
    Source: figure 15; section 4 for the measures.
    """
    names = list(dict.fromkeys(swept["prompt"]))
    options |= {"store": store, "progress": progress}
    keyed, known = Keyed.of(model), training or TrainingImages()
    before = generate_all(keyed, names, seeds, **options)
    parts = []
    for pair, rows in swept.groupby(PAIR):
        sets = dict(zip(rows["prompt"], rows["refined"], strict=True))
        after = generate_all(keyed, rows["prompt"], seeds, sets, **options)
        kept = effects.with_pictures(rows, before, after)["prompt"]
        measured = [_similarities(prompt, before, after, known) for prompt in kept]
        parts.append(pd.DataFrame(measured).assign(**dict(zip(PAIR, pair, strict=True))))
    return pd.concat(parts, ignore_index=True)


def _similarities(
    prompt: str, before: pd.DataFrame, after: pd.DataFrame, training: TrainingImages
) -> dict[str, Any]:
    first, second = (effects.pictures(frame, [prompt])[0] for frame in (before, after))
    original = training.one(prompt)
    known = original is not None
    return {
        "prompt": prompt,
        "gen": metrics.sscd_gen(second, first, effects.look),
        "orig": metrics.sscd_orig(second, original, effects.look) if known else np.nan,
    }
