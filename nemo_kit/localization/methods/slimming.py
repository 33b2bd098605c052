"""Slimming: a gate a neuron, learned so that memory goes while few gates close (L1)."""

import torch
from torch import Tensor

from nemo_kit.localization.methods.base import by_layer, method
from nemo_kit.localization.methods.memory import LOSSES, Memory, rounds
from nemo_kit.models.base import DiffusionModel
from nemo_kit.neurons import NeuronSet

VERSION = 1  # raised where results change (see nemo_kit.keys)
STEPS, RATE = 100, 0.05
HALF = 0.5  # closed further than this counts as switched off


@method("slimming", LOSSES["gap"] + " + λ‖1 − g‖₁")
def slimming(
    model: DiffusionModel,
    prompt: str,
    seeds: list[int],
    budget: int | None = None,
    price: float = 0.02,
) -> tuple[dict[int, Tensor], NeuronSet]:
    """1 − g after Adam on memory(g) + price · Σ(1 − g), gates from 1, kept in [0, 1].

    Returns scores and the neurons closed by more than half. Of gates that stay open, the first
    derivative decides (divided by 10⁶). A smaller budget takes fewer steps, then seeds.
    Parameters: `price` of a closed neuron, where open memory is 1.
    Raises ValueError for a budget below one seed and step.
    Source: Chang et al., NAACL 2024; 100 to 500 steps there.
    """
    kept, steps = rounds(budget, list(seeds), "gap", STEPS)
    memory = Memory(model, prompt, kept, "gap")

    def closed(shut: Tensor) -> Tensor:
        return shut.clamp(0, 1).expand(len(kept), -1)

    def cost(shut: Tensor) -> Tensor:
        return price * shut.abs().sum()

    shut, slopes = memory.learn(torch.zeros(memory.neurons), closed, cost, steps, RATE)
    scores = by_layer(shut.clamp(0, 1) + 1e-6 * slopes.tanh(), model.searched)
    found = {k: (v > HALF).nonzero().flatten().tolist() for k, v in scores.items()}
    return scores, NeuronSet(found)
