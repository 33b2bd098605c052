"""Integrated gradients of memory along gates that open together from 0 to 1."""

import numpy as np
import torch
from torch import Tensor

from nemo_kit.localization.methods.base import by_layer, method
from nemo_kit.localization.methods.memory import LOSSES, Memory, rounds
from nemo_kit.models.base import DiffusionModel

VERSION = 1  # raised where results change (see nemo_kit.keys)
STEPS = 10


@method("integrated gradients", LOSSES["gap"])
@method("integrated gradients, score", LOSSES["score"], loss="score")
def integrated(
    model: DiffusionModel,
    prompt: str,
    seeds: list[int],
    budget: int | None = None,
    loss: str = "gap",
    image: np.ndarray | None = None,
) -> dict[int, Tensor]:
    """Mean of ∂memory/∂gate at gates of 0.05, 0.15, … 0.95 in all searched neurons at once.

    Summed over neurons it is what opening all of them brings (completeness). A smaller budget takes
    fewer steps, then fewer seeds.
    Parameters: `loss`, a name in `LOSSES`.
    Raises ValueError for another loss, and a budget below one seed and step.
    Source: Sundararajan et al. 2017, with the midpoint rule.
    """
    kept, steps = rounds(budget, list(seeds), loss, STEPS)
    memory = Memory(model, prompt, kept, loss, image)
    heights = (torch.arange(steps) + 0.5) / steps
    gates = heights.repeat_interleave(len(kept))[:, None].expand(-1, memory.neurons)
    slopes = memory.slopes(gates, list(range(len(kept))) * steps)
    return by_layer(slopes.mean(dim=0), model.searched)
