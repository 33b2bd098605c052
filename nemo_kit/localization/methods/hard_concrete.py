"""Hard-concrete gates: stochastic switches, learned with a price on their expected number (L0)."""

import math

import torch
from torch import Tensor

from nemo_kit.localization.methods.base import by_layer, method
from nemo_kit.localization.methods.memory import LOSSES, Memory, rounds
from nemo_kit.mitigation.base import draw_seed
from nemo_kit.models.base import DiffusionModel
from nemo_kit.neurons import NeuronSet

VERSION = 1  # raised where results change (see nemo_kit.keys)
STEPS, RATE = 100, 0.2
TEMPERATURE, LOW, HIGH = 2 / 3, -0.1, 1.1  # Louizos et al.
START = -4.0  # log α: 8 % of the switches are a little closed at first
_SHIFT = TEMPERATURE * math.log(-LOW / HIGH)


@method("hard concrete", LOSSES["gap"] + " + λ·E‖1 − g‖₀")
def hard_concrete(
    model: DiffusionModel,
    prompt: str,
    seeds: list[int],
    budget: int | None = None,
    price: float = 0.02,
) -> tuple[dict[int, Tensor], NeuronSet]:
    """log α of each neuron's switch, after Adam on memory + price · expected number of closed ones.

    Returns scores and the neurons whose switch is mostly closed without noise. A smaller budget
    takes fewer steps, then seeds.
    Parameters: `price` of a closed neuron, where open memory is 1.
    Raises ValueError for a budget below one seed and step.
    Source: Louizos et al. 2018 (temperature 2/3, stretch −0.1 to 1.1).
    """
    kept, steps = rounds(budget, list(seeds), "gap", STEPS)
    memory = Memory(model, prompt, kept, "gap")
    drawn = torch.Generator().manual_seed(draw_seed("hard concrete", prompt, *kept))

    def closed(alpha: Tensor) -> Tensor:
        noise = torch.rand(len(kept), len(alpha), generator=drawn).clamp(1e-6, 1 - 1e-6)
        return _stretched(torch.sigmoid((noise.logit() + alpha) / TEMPERATURE))

    def cost(alpha: Tensor) -> Tensor:
        return price * torch.sigmoid(alpha - _SHIFT).sum()

    alpha, _ = memory.learn(torch.full((memory.neurons,), START), closed, cost, steps, RATE)
    scores = by_layer(alpha, model.searched)
    mostly = {k: _stretched(torch.sigmoid(v)) > 0.5 for k, v in scores.items()}
    return scores, NeuronSet({k: v.nonzero().flatten().tolist() for k, v in mostly.items()})


def _stretched(share: Tensor) -> Tensor:
    return (share * (HIGH - LOW) + LOW).clamp(0, 1)
