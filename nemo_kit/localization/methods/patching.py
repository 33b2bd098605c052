"""Activation patching: each neuron switched off by itself; the exact single effect."""

import torch
from torch import Tensor

from nemo_kit.localization.methods.base import by_layer, method, squashed
from nemo_kit.localization.methods.memory import LOSSES, Memory, rounds
from nemo_kit.localization.methods.z_score import absolute_z
from nemo_kit.memory import fitting
from nemo_kit.models.base import DiffusionModel

VERSION = 1  # raised where results change (see nemo_kit.keys)


@method("patching", LOSSES["score"])
@torch.no_grad()
def patching(
    model: DiffusionModel, prompt: str, seeds: list[int], budget: int | None = None
) -> dict[int, Tensor]:
    """Memorization score with all neurons less that without this one, mean over seeds.

    One denoiser sample a neuron and seed; a smaller budget takes fewer seeds, and below one sample
    a neuron only those of the largest |z|: the others rank behind, by it. Blind to redundancy:
    where each of two neurons is enough for the copy, neither has an effect alone.
    Raises ValueError for a budget below one neuron.
    Source: activation patching; the patch is 0, as NeMo's deactivation (section 3.2).
    """
    neurons = sum(layer.width for layer in model.searched)
    kept, most = rounds(budget, list(seeds), "score", neurons, each=1)
    if most < neurons:  # one seed after another, rather than few neurons of all
        kept = kept[: max(1, len(kept) * most // neurons)]
        most = min(neurons, rounds(budget, kept, "score", neurons, each=1)[1])
    memory = Memory(model, prompt, kept, "score")
    chosen, behind = torch.arange(neurons), torch.zeros(neurons)
    if most < neurons:
        z = torch.cat(list(squashed(absolute_z(model, prompt)).values()))
        chosen, behind = z.topk(most).indices, z - 3  # an effect lies above −1
    gates = 1 - torch.eye(neurons)[chosen].repeat(len(kept), 1)
    places = torch.arange(len(kept)).repeat_interleave(most).tolist()
    values = fitting(model).run(lambda part: memory(gates[part], places[part]), len(places))
    left = torch.cat(values).reshape(len(kept), most).mean(dim=0).cpu()
    behind[chosen] = 1 - left
    return by_layer(behind, model.searched)
