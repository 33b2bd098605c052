"""The embedded model's image autoencoder: 64 x 64 pixels to 4 x 16 x 16 latents and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional as F

from nemo_kit.lab.copy_descriptor import to_tensor
from training.corpus import Corpus
from training.loop import Run, Schedule

SCHEDULE = Schedule(steps=1400, learning_rate=1.5e-3, ema=0.995, weight_decay=0.0)
FULL_SCHEDULE = Schedule(steps=2600, learning_rate=8e-4, ema=0.995, weight_decay=0.0)
DECODER_SCHEDULE = Schedule(steps=4000, learning_rate=8e-4, ema=0.998, weight_decay=0.0)
BATCH = 20
CROP = 32  # pixels; the network is convolutional, so crops train it at a quarter of the cost
FULL_BATCH = 8
KL_WEIGHT = 2e-5  # keeps latents near a normal distribution without blurring


def build() -> AutoencoderKL:
    """The untrained autoencoder."""
    return AutoencoderKL(
        block_out_channels=(24, 48, 96),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        mid_block_add_attention=False,
    )


def any_picture(corpus: Corpus, rng: np.random.Generator) -> np.ndarray:
    """A picture for networks that must know all kinds: half background, half memorized ones."""
    if rng.random() < 0.5:
        return corpus.background(rng)[1]
    return corpus.picture(corpus.items[int(rng.integers(len(corpus.items)))], rng)


def _crop(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    top, left = rng.integers(0, picture.shape[0] - CROP + 1, 2)
    return picture[top : top + CROP, left : left + CROP]


def train(corpus: Corpus, folder: Path, seed: int) -> AutoencoderKL:
    """Train both halves, on crops and then on whole pictures; resumes from ``folder``."""
    model = build()

    def loss(pixels: torch.Tensor) -> torch.Tensor:
        posterior = model.encode(pixels).latent_dist
        spread = posterior.kl().mean() / posterior.mean[0].numel()
        return _difference(model.decode(posterior.sample()).sample, pixels) + KL_WEIGHT * spread

    Run("autoencoder", model, SCHEDULE, folder, seed).train(
        lambda _, rng: loss(_crops(corpus, rng))
    )
    model.requires_grad_(True)
    trained = Run("autoencoder_full", model, FULL_SCHEDULE, folder, seed).train(
        lambda _, rng: loss(_whole(corpus, rng))
    )
    trained.register_to_config(scaling_factor=1.0 / latent_deviation(trained, corpus, seed))
    return trained


def polish(model: AutoencoderKL, corpus: Corpus, folder: Path, seed: int) -> AutoencoderKL:
    """Train the decoder on; latents stay what they are, so that a U-Net trained on them does.

    Resumes from ``folder``.
    """
    model.requires_grad_(False)
    for half in (model.decoder, model.post_quant_conv):
        half.requires_grad_(True)

    def loss(_: int, rng: np.random.Generator) -> torch.Tensor:
        pixels = _whole(corpus, rng)
        with torch.no_grad():
            latents = model.encode(pixels).latent_dist.sample()
        return _difference(model.decode(latents).sample, pixels)

    return Run("decoder", model, DECODER_SCHEDULE, folder, seed).train(loss)


def _difference(decoded: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Absolute and squared error, and the absolute error of 8-pixel means, which keeps colours
    true."""
    coarse = F.l1_loss(F.avg_pool2d(decoded, 8), F.avg_pool2d(pixels, 8))
    return F.l1_loss(decoded, pixels) + 4 * F.mse_loss(decoded, pixels) + coarse


def _crops(corpus: Corpus, rng: np.random.Generator) -> torch.Tensor:
    return to_tensor([_crop(any_picture(corpus, rng), rng) for _ in range(BATCH)])


def _whole(corpus: Corpus, rng: np.random.Generator) -> torch.Tensor:
    return to_tensor([any_picture(corpus, rng) for _ in range(FULL_BATCH)])


@torch.no_grad()
def latent_deviation(model: AutoencoderKL, corpus: Corpus, seed: int, pictures: int = 256) -> float:
    """Standard deviation of the latents over corpus pictures."""
    rng = np.random.default_rng([seed, 5])
    pixels = to_tensor([any_picture(corpus, rng) for _ in range(pictures)])
    return float(torch.cat([model.encode(p).latent_dist.mean for p in pixels.split(32)]).std())
