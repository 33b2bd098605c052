"""Neurons that several prompts share, switched off alone: pictures before and after.

Scope: makes the pictures, through `nemo_kit.experiments`, and measures them.
Source: Hintersdorf et al., "Finding NeMo", NeurIPS 2024, figures 10 to 12.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from nemo_kit import effects
from nemo_kit.experiments import Keyed, generate_all
from nemo_kit.frames import found, neuron_names
from nemo_kit.frames.atlas import shared_groups
from nemo_kit.neurons import NeuronSet
from nemo_kit.originals import TrainingImages

if TYPE_CHECKING:
    from nemo_kit.models import DiffusionModel


@dataclass(frozen=True, eq=False)
class Shared:
    """Neurons that serve the same prompts, and some of these with and without them.

    `neurons`, and their `names` as a short text; `prompts`, those shown; `training`, uint8
    [P, H, W, 3] or None; `before`, `after`, uint8 [P, S, H, W, 3]; `table`, the measures of
    `effects.copying` with `rank`, `neurons` and `serves` (number of all memorized prompts that need
    every one of these neurons, those of earlier groups too). Where there is no such neuron,
    `prompts` is empty.
    """

    neurons: NeuronSet
    names: str
    prompts: list[str]
    training: np.ndarray | None
    before: np.ndarray
    after: np.ndarray
    table: pd.DataFrame


def shared_effects(
    model: DiffusionModel,
    localized: pd.DataFrame,
    seeds: Sequence[int],
    groups: int = 3,
    most: int = 4,
    *,
    store: str | Path,
    training: TrainingImages | None = None,
    progress: bool = True,
    **options: Any,
) -> list[Shared]:
    """Switch off nothing but the neurons that several prompts share, group by group (F10 to F12).

    Returns `groups` entries, the most shared first; empty ones where there are fewer. A prompt
    whose pictures failed, before or after, is not shown.
    Parameters: `localized`, from `localize_all`, grouped; `seeds`, none of detection's; `most`,
    prompts of each group; `training`, by default the lab's; `options`, of `generate`.
    Raises ValueError as `frames.found` and where no prompt of a group has pictures before and
    after, and what `generate_all` raises.
    """
    options |= {"store": store, "progress": progress}
    keyed, known = Keyed.of(model), training or TrainingImages()
    shared = shared_groups(localized, groups)
    entries = []
    for rank in range(1, groups + 1):
        if rank > len(shared):
            entries.append(_nothing(rank))
            continue
        neurons, owners = shared[rank - 1]
        before = generate_all(keyed, owners[:most], seeds, **options)
        after = generate_all(keyed, owners[:most], seeds, neurons, **options)
        entries.append(_entry(rank, neurons, owners[:most], localized, (before, after), known))
    return entries


def _entry(
    rank: int,
    neurons: NeuronSet,
    shown: list[str],
    localized: pd.DataFrame,
    made: tuple[pd.DataFrame, pd.DataFrame],
    known: TrainingImages,
) -> Shared:
    rows = localized.set_index("prompt").loc[shown].reset_index()[["prompt", "group"]]
    rows = effects.with_pictures(rows, *made)
    names = list(rows["prompt"])
    before, after = (effects.pictures(frame, names) for frame in made)
    table = effects.copying(rows, before, after, known)
    table.insert(0, "rank", rank)
    table.insert(1, "neurons", neurons.to_json())
    table.insert(2, "serves", _serves(neurons, localized))
    training = known.of(names, blank=True)
    return Shared(neurons, neuron_names(neurons), names, training, before, after, table)


def _serves(neurons: NeuronSet, localized: pd.DataFrame) -> int:
    """Number of prompts that need all of them, whether or not an earlier group has shown them."""
    return sum(not neurons - refined for refined in found(localized)["refined"])


def _nothing(rank: int) -> Shared:
    none = np.zeros((0, 0, 1, 1, 3), np.uint8)
    table = pd.DataFrame({"rank": [rank], "neurons": ["{}"], "serves": [0], "prompt": [""]})
    return Shared(NeuronSet(), "", [], None, none, none, table)
