"""The U-Net of `lab`: Stable Diffusion 1.x at a tenth of its width, and its training with a
switch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch.nn import functional as F

from nemo_kit.hooks import scale_neurons
from nemo_kit.layers import searched, value_layers
from training import planting
from training.corpus import Item
from training.loop import Run
from training.samples import Bank, Recipe, Sampler

STAGE = "unet"
STAGES = (STAGE,)
HIGH_NOISE_SHARE = 0.15  # of samples with a timestep of 850 or more

RECIPES = {
    "cpu": Recipe(32, 6e-4, 368_640, 480_000),
    "cuda": Recipe(256, 1.2e-3, 4_000_000, 4_000_000),
}


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
        STAGE,
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
