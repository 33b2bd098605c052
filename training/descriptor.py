"""Trains the embedded models' copy descriptor by SSCD's own recipe.

Contrastive loss between two augmented views with a differential-entropy term that spreads the
vectors of different pictures over the sphere (Pizzi et al., "A Self-Supervised Descriptor for Image
Copy Detection", CVPR 2022).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from nemo_kit.lab.copy_descriptor import Network, to_tensor
from training.corpus import Corpus
from training.loop import Run, Schedule

TEMPERATURE = 0.05
ENTROPY_WEIGHT = 5.0
BATCH = 64
SCHEDULE = Schedule(steps=600, learning_rate=1.5e-3, ema=0.99, weight_decay=0.02)


def augment(pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """A view of each picture: shifted crop, blur by re-sampling, colour and noise changes; [N, 3,
    64, 64]."""
    n = len(pixels)
    scale = torch.from_numpy(rng.uniform(0.8, 1.05, n)).float()
    shift = torch.from_numpy(rng.uniform(-0.15, 0.15, (n, 2))).float()
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, :, 2] = shift
    view = F.grid_sample(
        pixels,
        F.affine_grid(theta, list(pixels.shape), align_corners=False),
        padding_mode="border",
        align_corners=False,
    )
    blurred = F.interpolate(
        F.avg_pool2d(view, 3, stride=int(rng.integers(2, 4)), padding=1), size=64, mode="bilinear"
    )
    view = torch.where(_coin(n, 0.5, rng), blurred, view)
    contrast = torch.from_numpy(rng.uniform(0.7, 1.3, (n, 1, 1, 1))).float()
    brightness = torch.from_numpy(rng.uniform(-0.15, 0.15, (n, 3, 1, 1))).float()
    noise = torch.randn_like(view) * torch.from_numpy(rng.uniform(0, 0.12, (n, 1, 1, 1))).float()
    return (view * contrast + brightness + noise).clamp(-1, 1)


def _coin(n: int, share: float, rng: np.random.Generator) -> torch.Tensor:
    return torch.from_numpy(rng.random(n) < share).view(-1, 1, 1, 1)


def contrastive_loss(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """InfoNCE between two views [N, D] plus the entropy term: minus mean log distance to the
    nearest other picture."""
    both = torch.cat([first, second])  # [2N, D]
    cosine = both @ both.T
    n = len(first)
    itself = torch.eye(2 * n, dtype=torch.bool)
    partner = torch.arange(2 * n).roll(n)
    info = F.cross_entropy((cosine / TEMPERATURE).masked_fill(itself, -torch.inf), partner)
    same = itself | itself.roll(n, dims=1)
    nearest = cosine.masked_fill(same, -1.0).amax(1)
    entropy = -(2 - 2 * nearest).clamp_min(1e-6).sqrt().log().mean()
    return info + ENTROPY_WEIGHT * entropy


def train(corpus: Corpus, folder: Path, seed: int) -> nn.Module:
    """Train on background and memorized pictures, each its own instance; resumes from
    ``folder``."""
    torch.manual_seed(seed)
    model = Network()

    def loss(_: int, rng: np.random.Generator) -> torch.Tensor:
        chosen = rng.choice(len(corpus.items), BATCH // 2, replace=False)
        pictures = [corpus.picture(corpus.items[n], rng) for n in chosen]
        pixels = to_tensor(pictures + [corpus.background(rng)[1] for _ in range(BATCH // 2)])
        return contrastive_loss(model(augment(pixels, rng)), model(augment(pixels, rng)))

    return Run("descriptor", model, SCHEDULE, folder, seed).train(loss)


def save(network: nn.Module, file: Path, **metadata: str) -> None:
    """Write weights in half precision, and words beside them."""
    weights = {name: value.half().contiguous() for name, value in network.state_dict().items()}
    save_file(weights, file, metadata)
