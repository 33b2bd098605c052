"""The embedded model's copy descriptor: a small stand-in for SSCD, trained by SSCD's own recipe.

Contrastive loss between two augmented views with a differential-entropy term that spreads the
vectors of different pictures over the sphere (Pizzi et al., "A Self-Supervised Descriptor for Image
Copy Detection", CVPR 2022). Its numbers are not SSCD's: the network, its data and its scale are the
lab's own.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

DIMENSIONS = 128


def to_tensor(pictures: np.ndarray | list[np.ndarray]) -> torch.Tensor:
    """uint8 pictures [N, H, W, 3] to float [N, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.stack(list(pictures))).permute(0, 3, 1, 2).float() / 127.5 - 1


class Network(nn.Module):
    """Pixels [N, 3, 64, 64] in [-1, 1] -> unit vectors [N, 128]."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 96, 192)
        self.stages = nn.Sequential(*(_stage(a, b) for a, b in pairwise(widths)))
        self.head = nn.Linear(192 * 16, DIMENSIONS)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        features = self.stages(pixels)  # [N, 192, 4, 4]
        return F.normalize(self.head(features.flatten(1)), dim=1)


def _stage(inside: int, outside: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, stride=2, padding=1),
        nn.GroupNorm(8, outside),
        nn.GELU(),
        nn.Conv2d(outside, outside, 3, padding=1),
        nn.GroupNorm(8, outside),
        nn.GELU(),
    )


class Descriptor:
    """uint8 pictures [N, 64, 64, 3] -> unit vectors [N, 128]; equal pictures have a cosine of 1.

    Raises ValueError for pictures of another shape or type.
    """

    name = "lab descriptor"

    def __init__(self, network: Network) -> None:
        self.network = network.eval()

    @torch.no_grad()
    def __call__(self, pictures: np.ndarray) -> torch.Tensor:
        pictures = np.asarray(pictures)
        if pictures.ndim != 4 or pictures.shape[1:] != (64, 64, 3) or pictures.dtype != np.uint8:
            raise ValueError(
                f"pictures must be uint8 [N, 64, 64, 3]; got {pictures.dtype} {pictures.shape}"
            )
        return torch.cat([self.network(part) for part in to_tensor(pictures).split(256)])

    @classmethod
    def load(cls, file: Path) -> Descriptor:
        """Read weights of any precision."""
        network = Network()
        network.load_state_dict({k: v.float() for k, v in load_file(file).items()})
        return cls(network)
