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
from nemo_kit.frames import neuron_names
from nemo_kit.frames.atlas import shared_groups
from nemo_kit.neurons import NeuronSet

if TYPE_CHECKING:
    from nemo_kit.models import DiffusionModel


@dataclass(frozen=True, eq=False)
class Shared:
    """Neurons that serve the same prompts, and some of these with and without them.

    `neurons`, and their `names` as a short text; `prompts`, those shown; `training`, uint8
    [P, H, W, 3] or None; `before`, `after`, uint8 [P, S, H, W, 3]; `table`, the measures of
    `effects.copying` with `rank`, `neurons` and `serves` (number of prompts). Where there is no
    such neuron, `prompts` is empty.
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
    progress: bool = True,
    **options: Any,
) -> list[Shared]:
    """Switch off nothing but the neurons that several prompts share, group by group (F10 to F12).

    Returns `groups` entries, the most shared first; empty ones where there are fewer.
    Parameters: `localized`, from `localize_all`, grouped; `seeds`, none of detection's; `most`,
    prompts of each group; `options`, of `generate`.
    Raises ValueError as `frames.found`, and what `generate_all` raises.
    """
    options |= {"store": store, "progress": progress}
    keyed = Keyed.of(model)
    found = shared_groups(localized, groups)
    entries = []
    for rank in range(1, groups + 1):
        if rank > len(found):
            entries.append(_nothing(rank))
            continue
        neurons, owners = found[rank - 1]
        before = generate_all(keyed, owners[:most], seeds, **options)
        after = generate_all(keyed, owners[:most], seeds, neurons, **options)
        entries.append(_entry(rank, neurons, owners, localized, (before, after), most))
    return entries


def _entry(
    rank: int,
    neurons: NeuronSet,
    owners: list[str],
    localized: pd.DataFrame,
    made: tuple[pd.DataFrame, pd.DataFrame],
    most: int,
) -> Shared:
    names = owners[:most]
    before, after = (effects.pictures(frame, names) for frame in made)
    rows = localized.set_index("prompt").loc[names].reset_index()[["prompt", "group"]]
    table = effects.copying(rows, before, after)
    table.insert(0, "rank", rank)
    table.insert(1, "neurons", neurons.to_json())
    table.insert(2, "serves", len(owners))
    training = effects.training_images(names, blank=True)
    return Shared(neurons, neuron_names(neurons), names, training, before, after, table)


def _nothing(rank: int) -> Shared:
    none = np.zeros((0, 0, 1, 1, 3), np.uint8)
    table = pd.DataFrame({"rank": [rank], "neurons": ["{}"], "serves": [0], "prompt": [""]})
    return Shared(NeuronSet(), "", [], None, none, none, table)
