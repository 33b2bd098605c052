"""Random numbers that belong to a prompt and a seed, on any machine and in any batch."""

from __future__ import annotations

import numpy as np
import torch

from nemo_kit.keys import value_digest


def draw_seed(*parts: int | str) -> int:
    """A seed below 2⁶³ that follows from these parts alone."""
    return int(value_digest(list(parts))[:16], 16) >> 1


def numbers(*parts: int | str) -> np.random.Generator:
    """NumPy's generator for these parts."""
    return np.random.default_rng(draw_seed(*parts))


def normal(shape: tuple[int, ...], *parts: int | str) -> torch.Tensor:
    """Standard normal numbers for these parts, float32 on the CPU."""
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(draw_seed(*parts)))
