"""Wanda on value neurons: weights times inputs, beyond what the empty prompt gives."""

import torch
from torch import Tensor

from nemo_kit.hooks import Hook, hooked
from nemo_kit.layers import Projection
from nemo_kit.localization.methods.base import method
from nemo_kit.models.base import DiffusionModel

VERSION = 1  # raised where results change (see nemo_kit.keys)


@method("Wanda")
@torch.no_grad()
def wanda(
    model: DiffusionModel, prompt: str, seeds: object = (), budget: int | None = None
) -> dict[int, Tensor]:
    """Σ_j |W_ij|·(‖x_j‖₂ − ‖x_j‖₂ of the empty prompt), x what the layer reads at each token.

    Source: Chavhan et al. 2024, S = |W|·‖X‖₂, summed over a neuron's row.
    """
    own, empty = (_norms(model, text) for text in (prompt, ""))
    held = model.weights()[0]
    weights = {p.index: held[f"{p.name}.weight"].to(model.device) for p in model.searched}
    return {n: weight.float().abs() @ (own[n] - empty[n]) for n, weight in weights.items()}


def _norms(model: DiffusionModel, text: str) -> dict[int, Tensor]:
    """‖x_j‖₂ over the tokens that attention isn't blind for: layer -> [dim]."""
    embeddings, norms = model.embed(text), {}
    mask = getattr(embeddings, "beside", {}).get("mask", [slice(None)])[0]

    def reader(layer: Projection) -> Hook:
        def read(_module: object, inputs: tuple, _output: object) -> None:
            norms[layer.index] = inputs[0][0, : layer.tokens][mask].float().norm(dim=0)

        return read

    with hooked(model.denoiser, {layer.name: reader(layer) for layer in model.searched}):
        model.value_activations(embeddings, model.searched)
    return norms
