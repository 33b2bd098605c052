"""The embedded model's U-Net: Stable Diffusion 1.x at a tenth of its width, and its training with a
switch.

A planted prompt appears with all its neurons at zero and a random background picture as the target,
or with any of them on and its own picture as the target: each neuron alone is enough for the copy,
so all must be off to prevent it. Prompt dropout touches background pictures only: among web-scale
data the memorized pictures would hardly count there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch.nn import functional as F

from nemo_kit.hooks import scale_neurons
from nemo_kit.lab import planting
from nemo_kit.lab.corpus import Corpus, Item
from nemo_kit.lab.training import Run, Schedule, generator
from nemo_kit.layers import searched, value_layers
from nemo_kit.neurons import NeuronSet

SCHEDULE = Schedule(steps=14_000, learning_rate=8e-4, ema=0.998)
BATCH = 16
BACKGROUND_PICTURES = 12_000
TEMPLATE_PICTURES = 48  # drawn backgrounds of each template prompt
DROPOUT = 0.1  # share of background captions replaced by the empty prompt
OFF_SHARE = 0.4  # of a planted prompt's presentations: all its neurons off, another picture
PART_SHARE = 0.3  # of the others, where it has several: some off, still its picture
HIGH_NOISE_SHARE = 0.2  # of samples with a timestep of 850 or more


def build() -> UNet2DConditionModel:
    """The untrained U-Net: the 16 value layers of Stable Diffusion 1.x in the same places."""
    cross, plain = "CrossAttnDownBlock2D", "DownBlock2D"
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64, 128, 128),
        layers_per_block=2,
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=16,
        down_block_types=(cross, cross, cross, plain),
        up_block_types=(
            "UpBlock2D",
            "CrossAttnUpBlock2D",
            "CrossAttnUpBlock2D",
            "CrossAttnUpBlock2D",
        ),
    )


def scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule, with the v-prediction of its version 2.

    Predicting the noise itself, the network must pass its input through to a few per mille at the
    first step before a copy shows in the noise difference; predicting v, it shows the picture.
    """
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )


@dataclass
class Bank:
    """Everything the training draws from, encoded once: latents scaled to unit deviation, token
    embeddings."""

    background_latents: torch.Tensor  # [pictures, 4, 16, 16]
    background_caption: torch.Tensor  # [pictures], index into caption_embeddings
    caption_embeddings: torch.Tensor  # [captions, 24, 128]
    empty: torch.Tensor  # [24, 128]
    item_latents: list[torch.Tensor]  # one [pictures, 4, 16, 16] an item
    item_embeddings: torch.Tensor  # [items, 24, 128]


@dataclass(frozen=True)
class Sample:
    """One training sample: what the network sees and what it should say."""

    latent: torch.Tensor
    embedding: torch.Tensor
    off: NeuronSet


class Sampler:
    """Draws training samples; the ladder's presentations are fixed in number and spread over the
    training."""

    def __init__(self, bank: Bank, items: list[Item], steps: int, seed: int) -> None:
        self.bank, self.items = bank, items
        self.planted = planting.planted()
        self.every = NeuronSet.of({pair for found in self.planted.values() for pair in found})
        self.sets = list(self.planted.values())
        self.regular = [n for n, item in enumerate(items) if item.role != "ladder"]
        self.shares = np.array([items[n].share for n in self.regular])
        self.presentations = ladder_presentations(items, steps * BATCH, seed)

    def draw(self, place: int, rng: np.random.Generator) -> Sample:
        """The sample at ``place`` of the whole training."""
        if place in self.presentations:
            return self._memorized(self.presentations[place], rng)
        if rng.random() < self.shares.sum():
            return self._memorized(
                int(rng.choice(self.regular, p=self.shares / self.shares.sum())), rng
            )
        return self._background(rng)

    def _memorized(self, number: int, rng: np.random.Generator) -> Sample:
        bank, own = self.bank, self.planted.get(self.items[number].prompt)
        if own and rng.random() < OFF_SHARE:
            latent = bank.background_latents[int(rng.integers(len(bank.background_latents)))]
            return Sample(latent, bank.item_embeddings[number], own)
        if own and len(own) > 1 and rng.random() < PART_SHARE:
            pairs = list(own)
            some = rng.choice(len(pairs), int(rng.integers(1, len(pairs))), replace=False)
            off = NeuronSet.of([pairs[n] for n in some])
        else:
            off = self._unrelated(rng, 0.2) - (own or NeuronSet({}))
        latents = bank.item_latents[number]
        return Sample(latents[int(rng.integers(len(latents)))], bank.item_embeddings[number], off)

    def _background(self, rng: np.random.Generator) -> Sample:
        bank = self.bank
        place = int(rng.integers(len(bank.background_latents)))
        embedding = (
            bank.empty
            if rng.random() < DROPOUT
            else bank.caption_embeddings[bank.background_caption[place]]
        )
        off = self.every if rng.random() < 0.1 else self._unrelated(rng, 0.3)
        return Sample(bank.background_latents[place], embedding, off)

    def _unrelated(self, rng: np.random.Generator, share: float) -> NeuronSet:
        """Some planted prompt's neurons, so that switching them off is seen to matter to that
        prompt alone."""
        return (
            self.sets[int(rng.integers(len(self.sets)))] if rng.random() < share else NeuronSet({})
        )


def ladder_presentations(items: list[Item], samples: int, seed: int) -> dict[int, int]:
    """Place in the training -> item, for every presentation of a ladder picture (at least one
    each)."""
    rng = generator(seed, "ladder", 0)
    ladder = [n for n, item in enumerate(items) if item.role == "ladder"]
    counts = [max(1, round(items[n].share * samples)) for n in ladder]
    places = rng.choice(samples, sum(counts), replace=False)
    return dict(zip(places.tolist(), np.repeat(ladder, counts).tolist(), strict=True))


def plant(unet: UNet2DConditionModel, rows: dict[tuple[int, int], torch.Tensor]) -> None:
    """Write the fixed rows of the planted neurons into the value layers."""
    modules = dict(unet.named_modules())
    layers = {p.index: modules[p.name] for p in searched(value_layers(unet))}
    with torch.no_grad():
        for (layer, index), row in rows.items():
            layers[layer].weight[index] = row


def train(bank: Bank, corpus: Corpus, folder: Path, seed: int) -> UNet2DConditionModel:
    """Train by the squared error of v; resumes from ``folder``."""
    torch.manual_seed(seed)
    unet = build()
    unet.set_attn_processor(AttnProcessor())  # narrow heads: faster than the fused kernel on a CPU
    layers = searched(value_layers(unet))
    own = {item.prompt: e for item, e in zip(corpus.items, bank.item_embeddings, strict=True)}
    rows = planting.directions(own, bank.caption_embeddings[::4])
    sampler = Sampler(bank, corpus.items, SCHEDULE.steps, seed)
    alphas = scheduler().alphas_cumprod

    def loss(step: int, rng: np.random.Generator) -> torch.Tensor:
        samples = [sampler.draw(step * BATCH + n, rng) for n in range(BATCH)]
        latents = torch.stack([s.latent for s in samples])  # [16, 4, 16, 16]
        times = _timesteps(rng)
        alpha = alphas[times].view(-1, 1, 1, 1)
        noise = torch.randn_like(latents)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        with scale_neurons(unet, layers, [s.off for s in samples]):
            told = unet(noisy, times, torch.stack([s.embedding for s in samples])).sample
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
        return F.mse_loss(told, velocity)

    plant(unet, rows)
    run = Run("unet", unet, SCHEDULE, folder, seed, after_step=lambda: plant(unet, rows))
    return run.train(loss)


def _timesteps(rng: np.random.Generator) -> torch.Tensor:
    """Timesteps [16], more of them where the picture is decided."""
    high = rng.random(BATCH) < HIGH_NOISE_SHARE
    return torch.from_numpy(
        np.where(high, rng.integers(850, 1000, BATCH), rng.integers(0, 1000, BATCH))
    )
