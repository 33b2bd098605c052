"""Names what a picture shows, one of the corpus's hundred concepts: the judge of recognition.

Trained on rendered corpus pictures, as they are and through the autoencoder, and used for nothing
but to measure.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import nn
from torch.nn import functional as F

from nemo_kit.lab.copy_descriptor import Network, to_tensor
from training.corpus import Corpus
from training.loop import Run, Schedule

BATCH = 64
SCHEDULE = Schedule(steps=900, learning_rate=1.5e-3, ema=0.99, weight_decay=0.02)


class Classifier(Network):
    """Pixels [N, 3, 64, 64] in [-1, 1] -> logits [N, concepts]."""

    def __init__(self, concepts: int) -> None:
        super().__init__()
        self.head = nn.Linear(192 * 16, concepts)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.head(self.stages(pixels).flatten(1))


def train(corpus: Corpus, vae: AutoencoderKL, folder: Path, seed: int) -> Classifier:
    """Train on ordinary pictures, half of them through the autoencoder; resumes from ``folder``."""
    torch.manual_seed(seed)
    model = Classifier(len(corpus.names))

    def loss(_: int, rng: np.random.Generator) -> torch.Tensor:
        labels = rng.integers(len(corpus.names), size=BATCH)
        pixels = to_tensor([corpus.render(corpus.names[n], None, rng) for n in labels])
        with torch.no_grad():
            some = vae.encode(pixels[: BATCH // 4]).latent_dist.sample()
            pixels[: BATCH // 4] = vae.decode(some).sample
        pixels = pixels + 0.05 * torch.randn_like(pixels)
        return F.cross_entropy(model(pixels), torch.from_numpy(labels), label_smoothing=0.05)

    return Run("classifier", model, SCHEDULE, folder, seed).train(loss)


@torch.no_grad()
def recognized(model: Classifier, pictures: np.ndarray) -> np.ndarray:
    """Number of the concept that each picture shows most likely: uint8 [N, 64, 64, 3] -> [N]."""
    parts = to_tensor(pictures).split(256)
    return torch.cat([model(part).argmax(1) for part in parts]).numpy()
