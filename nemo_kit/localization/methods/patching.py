"""Activation patching: each neuron switched off by itself; the exact single effect."""

import numpy as np
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
    model: DiffusionModel,
    prompt: str,
    seeds: list[int],
    budget: int | None = None,
    loss: str = "score",
    image: np.ndarray | None = None,
) -> dict[int, Tensor]:
    """Memory with all neurons less memory without this one, mean over seeds.

    One denoiser sample a neuron and seed; a smaller budget takes fewer seeds, and below one sample
    a neuron only those of the largest |z|: the others rank behind, by it. Blind to redundancy:
    where each of two neurons is enough for the copy, neither has an effect alone.
    Parameters: `loss`, a name in `LOSSES`.
    Raises ValueError for another loss, and a budget below one neuron.
    Source: activation patching; the patch is 0, as NeMo's deactivation (section 3.2).
    """
    neurons = sum(layer.width for layer in model.searched)
    kept, most = rounds(budget, list(seeds), loss, neurons, each=1)
    if most < neurons:  # one seed after another, rather than few neurons of all
        kept = kept[: max(1, len(kept) * most // neurons)]
        most = min(neurons, rounds(budget, kept, loss, neurons, each=1)[1])
    memory = Memory(model, prompt, kept, loss, image)
    chosen, behind = torch.arange(neurons), torch.zeros(neurons)
    if most < neurons:
        z = torch.cat(list(squashed(absolute_z(model, prompt)).values()))
        chosen, behind = z.topk(most).indices, z - 3  # an effect lies above −1
    gates = 1 - torch.eye(neurons)[chosen].repeat(len(kept), 1)
    places = torch.arange(len(kept)).repeat_interleave(most).tolist()
    values = fitting(model).run(lambda part: memory(gates[part], places[part]), len(places))
    left = torch.cat(values).reshape(len(kept), most).mean(dim=0).cpu()
    behind[chosen] = (-1 if loss == "image" else 1) - left
    return by_layer(behind, model.searched)
