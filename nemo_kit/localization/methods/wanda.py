"""Wanda on value neurons: weights times inputs, beyond what the empty prompt gives."""

import torch
from torch import Tensor

from nemo_kit.localization.methods.base import method
from nemo_kit.models.base import DiffusionModel

VERSION = 1  # raised where results change (see nemo_kit.keys)


@method("Wanda")
@torch.no_grad()
def wanda(
    model: DiffusionModel, prompt: str, seeds: object = (), budget: int | None = None
) -> dict[int, Tensor]:
    """Σ_j |W_ij|·(‖x_j‖₂ − ‖x_j‖₂ of the empty prompt), norms over tokens, from the text alone.

    Source: Chavhan et al. 2024, S = |W|·‖X‖₂, summed over a neuron's row.
    """
    own, empty = (model.embed(text)[0].float().norm(dim=0) for text in (prompt, ""))  # [dim]
    weights = {p.index: model.denoiser.get_submodule(p.name).weight for p in model.searched}
    return {layer: weight.float().abs() @ (own - empty) for layer, weight in weights.items()}
