"""Learned gates: which closed neurons lose the memory at the least price?

Source: Chang et al., NAACL 2024. They learn the mask that keeps a text; what is asked here is what
to switch off, so the mask that loses the picture is learned, and the price is on closed neurons.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from nemo_kit.localization.methods.memory import Memory


def learn(
    memory: Memory,
    start: Tensor,
    closed: Callable[[Tensor], Tensor],
    price: Callable[[Tensor], Tensor],
    steps: int,
    rate: float,
) -> tuple[Tensor, Tensor]:
    """Parameters after so many steps of Adam on memory + price, and memory's first slopes.

    Returns [neurons] and, mean over seeds, [neurons].
    Parameters: `start`, [neurons]; `closed`, parameters -> how far each neuron is closed in each
    seed, [seeds, neurons]; `price`, parameters -> a number; `rate` of Adam.
    """
    parameters = start.clone().requires_grad_()
    adam = torch.optim.Adam([parameters], lr=rate)
    places, first = list(range(len(memory.seeds))), None
    for _ in range(steps):
        with torch.enable_grad():
            shut, cost = closed(parameters), price(parameters)
            _, slopes = memory.slopes(1 - shut, places)
            first = slopes.mean(dim=0) if first is None else first
            adam.zero_grad()
            # memory's part comes as its derivative by the gates, mean over seeds
            (cost - (slopes * shut).sum() / len(places)).backward()
        adam.step()
    return parameters.detach(), first
