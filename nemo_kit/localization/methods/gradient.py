"""Gradient × activation: how fast memory goes as a neuron's gate begins to close."""

import numpy as np
import torch
from torch import Tensor

from nemo_kit.localization.methods.base import by_layer, method
from nemo_kit.localization.methods.memory import LOSSES, Memory, rounds
from nemo_kit.models.base import DiffusionModel

VERSION = 1  # raised where results change (see nemo_kit.keys)


@method("gradient × activation", LOSSES["gap"])
@method("gradient × activation, image", LOSSES["image"], loss="image")
def gradient(
    model: DiffusionModel,
    prompt: str,
    seeds: list[int],
    budget: int | None = None,
    loss: str = "gap",
    image: np.ndarray | None = None,
) -> dict[int, Tensor]:
    """∂memory/∂gate at open gates, mean over seeds: to first order, what closing one takes away.

    A gate multiplies an output, so that this is the gradient times the activation, summed over
    tokens. 5 denoiser samples a seed (image: 4).
    Parameters: `loss`, "gap" or "image" (the score has no slope at open gates).
    Raises ValueError for another loss, and a budget below one seed.
    Source: attribution patching (Nanda 2023); MemPi's "activations × gradients".
    """
    if loss == "score":
        raise ValueError("loss must be gap or image at open gates, where the score has no slope")
    kept, _ = rounds(budget, list(seeds), loss, 1)
    memory = Memory(model, prompt, kept, loss, image)
    slopes = memory.slopes(torch.ones(len(kept), memory.neurons), list(range(len(kept))))
    return by_layer(slopes.mean(dim=0), model.searched)
