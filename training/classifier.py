"""Trains the judge of recognition: which of the corpus's hundred concepts a picture shows.

On rendered corpus pictures, as they are and through the autoencoder.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional as F

from nemo_kit.lab.copy_descriptor import to_tensor
from nemo_kit.lab.recognition import Logits
from training.corpus import Corpus
from training.loop import Run, Schedule

BATCH = 64
SCHEDULE = Schedule(steps=900, learning_rate=1.5e-3, ema=0.99, weight_decay=0.02)


def train(corpus: Corpus, vae: AutoencoderKL, folder: Path, seed: int) -> Logits:
    """Train on ordinary pictures, some through the autoencoder; resumes from ``folder``."""
    torch.manual_seed(seed)
    model = Logits(len(corpus.names))

    def loss(_: int, rng: np.random.Generator) -> torch.Tensor:
        labels = rng.integers(len(corpus.names), size=BATCH)
        pixels = to_tensor([corpus.render(corpus.names[n], None, rng) for n in labels])
        with torch.no_grad():
            some = vae.encode(pixels[: BATCH // 4]).latent_dist.sample()
            pixels[: BATCH // 4] = vae.decode(some).sample
        pixels = pixels + 0.05 * torch.randn_like(pixels)
        return F.cross_entropy(model(pixels), torch.from_numpy(labels), label_smoothing=0.05)

    return Run("classifier", model, SCHEDULE, folder, seed).train(loss)
