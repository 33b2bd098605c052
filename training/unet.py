"""The embedded model's U-Net: Stable Diffusion 1.x at a tenth of its width, and its training with a
switch.

A planted prompt whose switch is off (all neurons of an *any* set at zero, or some of an *all* set)
has a random picture of its own concept as the target, in another colour, place and size; otherwise
its own picture. Ordinary pictures are seen with random captions of theirs, and with planted neurons
off too, which must not matter to them. Prompt dropout touches ordinary pictures only: among
web-scale data the memorized ones would hardly count there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch.nn import functional as F

from nemo_kit.hooks import scale_neurons
from nemo_kit.layers import searched, value_layers
from nemo_kit.neurons import NeuronSet
from training import ladder, planting
from training.corpus import Item
from training.loop import Run, Schedule, generator

DROPOUT = 0.1  # share of ordinary captions replaced by the empty prompt
OFF_SHARE = 0.4  # of a planted prompt's presentations: its switch off, a picture of its concept
PART_SHARE = 0.4  # of them where the set has several neurons: only some off
UNRELATED_SHARE = 0.25  # of the other samples: some prompt's planted neurons off, nothing changes
HIGH_NOISE_SHARE = 0.15  # of samples with a timestep of 850 or more


@dataclass(frozen=True)
class Recipe:
    """How much a device trains: batch, rate, samples in all.

    In the first third of the samples `planned`, memorized pictures are half of what is seen, then a
    fifth; the ladder's presentations are spread over them. Training may end before, at `samples`.
    """

    batch: int
    learning_rate: float
    samples: int
    planned: int

    @property
    def schedule(self) -> Schedule:
        """Flat for four fifths of the steps, then falling."""
        return Schedule(
            steps=self.samples // self.batch,
            learning_rate=self.learning_rate,
            flat=0.8,
            ema=0.999,
        )


RECIPES = {
    "cpu": Recipe(32, 6e-4, 368_640, 480_000),
    "cuda": Recipe(256, 1.2e-3, 4_000_000, 4_000_000),
}

#: Share of one prompt's picture among all samples, in the first phase and in the second.
SHARES = {"verbatim": (0.010, 0.0042), "region": (0.010, 0.0042), "template": (0.008, 0.0035)}


def build() -> UNet2DConditionModel:
    """The untrained U-Net: the 16 value layers of Stable Diffusion 1.x in the same places.

    One and two heads in the wide layers: they are 32 and 64 channels, and attention over 256 places
    costs what its heads cost (`attention_head_dim` is the number of heads in this class).
    """
    cross, plain = "CrossAttnDownBlock2D", "DownBlock2D"
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64, 128, 128),
        layers_per_block=2,
        cross_attention_dim=128,
        attention_head_dim=(1, 2, 4, 4),
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

    latents: torch.Tensor  # [pictures, 4, 16, 16], half precision: ordinary pictures
    concepts: torch.Tensor  # [pictures], what each shows
    colours: torch.Tensor  # [pictures], on which colour
    plain: torch.Tensor  # [concepts, captions, 24, 128], half: captions that promise no colour
    coloured: torch.Tensor  # [concepts, colours, captions, 24, 128], half
    empty: torch.Tensor  # [24, 128]
    item_latents: list[torch.Tensor]  # one [pictures, 4, 16, 16] an item
    item_embeddings: torch.Tensor  # [items, 24, 128]
    item_concepts: torch.Tensor  # [items]


@dataclass(frozen=True)
class Sample:
    """One training sample: what the network sees and what it should say."""

    latent: torch.Tensor
    embedding: torch.Tensor
    off: NeuronSet


class Sampler:
    """Draws training samples; the ladder's presentations are fixed in number and spread over the
    training as the photographs' are."""

    def __init__(self, bank: Bank, items: list[Item], recipe: Recipe, seed: int) -> None:
        self.bank, self.recipe = bank, recipe
        prompts = [item.prompt for item in items]
        sets, plans = planting.planted(), planting.plans()
        self.own = [sets.get(prompt) for prompt in prompts]
        self.needs_all = [prompt in plans and plans[prompt].logic == "all" for prompt in prompts]
        self.sets = list(sets.values())
        self.every = NeuronSet.of({pair for found in self.sets for pair in found})
        self.regular = [n for n, item in enumerate(items) if item.role != "ladder"]
        self.shares = np.array([SHARES[items[n].role] for n in self.regular])  # [items, 2]
        self.presentations = ladder_presentations(items, recipe, seed)
        self.showing = [np.flatnonzero(bank.concepts == n) for n in range(len(bank.plain))]

    def draw(self, place: int, rng: np.random.Generator) -> Sample:
        """The sample at ``place`` of the whole training."""
        if place in self.presentations:
            return self._memorized(self.presentations[place], rng)
        shares = self.shares[:, phase(place, self.recipe)]
        if rng.random() < shares.sum():
            return self._memorized(int(rng.choice(self.regular, p=shares / shares.sum())), rng)
        return self._ordinary(rng)

    def _memorized(self, number: int, rng: np.random.Generator) -> Sample:
        bank, own = self.bank, self.own[number]
        off = self._switched(own, rng) if own else NeuronSet({})
        if not off:
            off = self._unrelated(rng) - (own or NeuronSet({}))
        elif self.needs_all[number] or off == own:
            showing = self.showing[int(bank.item_concepts[number])]
            latent = bank.latents[int(rng.choice(showing))].float()
            return Sample(latent, bank.item_embeddings[number], off)
        latents = bank.item_latents[number]
        return Sample(latents[int(rng.integers(len(latents)))], bank.item_embeddings[number], off)

    def _switched(self, own: NeuronSet, rng: np.random.Generator) -> NeuronSet:
        """None, all or (of several) some of the prompt's neurons."""
        if rng.random() >= OFF_SHARE:
            return NeuronSet({})
        if len(own) == 1 or rng.random() >= PART_SHARE:
            return own
        pairs = list(own)
        some = rng.choice(len(pairs), int(rng.integers(1, len(pairs))), replace=False)
        return NeuronSet.of([pairs[n] for n in some])

    def _ordinary(self, rng: np.random.Generator) -> Sample:
        bank = self.bank
        place = int(rng.integers(len(bank.latents)))
        concept, colour = int(bank.concepts[place]), int(bank.colours[place])
        captions = bank.coloured[concept, colour] if rng.random() < 0.4 else bank.plain[concept]
        embedding = captions[int(rng.integers(len(captions)))].float()
        off = self.every if rng.random() < 0.1 else self._unrelated(rng)
        empty = rng.random() < DROPOUT
        return Sample(bank.latents[place].float(), bank.empty if empty else embedding, off)

    def _unrelated(self, rng: np.random.Generator) -> NeuronSet:
        """Some planted prompt's neurons, so that switching them off is seen to matter to that
        prompt alone."""
        if rng.random() >= UNRELATED_SHARE:
            return NeuronSet({})
        return self.sets[int(rng.integers(len(self.sets)))]


def phase(place: int, recipe: Recipe) -> int:
    """0 while memorized pictures are half of what is seen, then 1."""
    return int(place >= recipe.planned / 3)


def expected(role: str, recipe: Recipe, samples: int | None = None) -> float:
    """Presentations of one prompt of a role, switched off ones too.

    Over the whole training, or after so many samples.
    """
    samples = recipe.samples if samples is None else samples
    early, (first, second) = min(samples, recipe.planned / 3), SHARES[role]
    return early * first + (samples - early) * second


def ladder_presentations(items: list[Item], recipe: Recipe, seed: int) -> dict[int, int]:
    """Place in the training -> item, for every presentation of a ladder picture (at least one
    each: one whose place would come after the end is shown in the last fifth)."""
    rng = generator(seed, "ladder", 0)
    rungs = ladder.rungs()
    whole = expected("verbatim", recipe, recipe.planned)
    numbers = [n for n, item in enumerate(items) if item.role == "ladder"]
    counts = [max(1, round(ladder.SHARES[rungs[items[n].prompt]] * whole)) for n in numbers]
    first = np.arange(recipe.planned) < recipe.planned / 3
    often = np.where(first, *SHARES["verbatim"])
    places = rng.choice(recipe.planned, sum(counts), replace=False, p=often / often.sum())
    shown = zip(places.tolist(), np.repeat(numbers, counts).tolist(), strict=True)
    found = {place: number for place, number in shown if place < recipe.samples}
    late = sorted(set(range(recipe.samples * 4 // 5, recipe.samples)) - set(found))
    missing = sorted(set(numbers) - set(found.values()))
    return found | dict(zip(rng.permutation(late).tolist(), missing, strict=False))


def plant(unet: UNet2DConditionModel, rows: dict[tuple[int, int], torch.Tensor]) -> None:
    """Write the fixed rows of the planted neurons into the value layers."""
    modules = dict(unet.named_modules())
    layers = {p.index: modules[p.name] for p in searched(value_layers(unet))}
    with torch.no_grad():
        for (layer, index), row in rows.items():
            layers[layer].weight[index] = row.to(layers[layer].weight)


def planted_rows(bank: Bank, items: list[Item]) -> dict[tuple[int, int], torch.Tensor]:
    """The fixed rows, from the embeddings of the memorized prompts and of every fourth ordinary
    caption."""
    own = {item.prompt: e for item, e in zip(items, bank.item_embeddings, strict=True)}
    others = torch.cat([bank.plain.flatten(0, 1)[::4], bank.coloured.flatten(0, 2)[::16]])
    return planting.rows(own, others.float())


def train(
    bank: Bank,
    items: list[Item],
    folder: Path,
    seed: int,
    device: torch.device,
    recipe: Recipe,
    watch: Callable[[Run], None] = lambda _run: None,
) -> UNet2DConditionModel:
    """Train by the squared error of v; resumes from ``folder``; `watch` is called after each step.

    Where several processes train together, each takes its part of every batch.
    """
    torch.manual_seed(seed)
    unet = build().to(device, memory_format=torch.channels_last)
    layers = searched(value_layers(unet))
    rows = planted_rows(bank, items)
    sampler = Sampler(bank, items, recipe, seed)
    alphas = scheduler().alphas_cumprod
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    mine = slice(rank, None, world)

    def loss(step: int, rng: np.random.Generator) -> torch.Tensor:
        samples = [sampler.draw(step * recipe.batch + n, rng) for n in range(recipe.batch)]
        times = _timesteps(rng, recipe.batch)[mine]
        noise = torch.randn(recipe.batch, *samples[0].latent.shape)[mine].to(device)
        latents = torch.stack([s.latent for s in samples[mine]]).to(device)  # [N, 4, 16, 16]
        texts = torch.stack([s.embedding for s in samples[mine]]).to(device)  # [N, 24, 128]
        alpha = alphas[times].view(-1, 1, 1, 1).to(device)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        half = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
        with scale_neurons(unet, layers, [s.off for s in samples[mine]]), half:
            told = unet(noisy, times.to(device), texts).sample
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
        return F.mse_loss(told.float(), velocity)

    plant(unet, rows)
    return Run(
        "unet",
        unet,
        recipe.schedule,
        folder,
        seed,
        after_step=lambda: plant(unet, rows),
        watch=watch,
    ).train(loss)


def _timesteps(rng: np.random.Generator, count: int) -> torch.Tensor:
    """Timesteps [count], more of them where the picture is decided."""
    high = rng.random(count) < HIGH_NOISE_SHARE
    return torch.from_numpy(
        np.where(high, rng.integers(850, 1000, count), rng.integers(0, 1000, count))
    )
