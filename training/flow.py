"""The transformer of `lab-flow`: Stable Diffusion 3 at an eighth of its width, and its training
with a switch.

Joint attention: text and image tokens attend to all of both, each with projections of its own; a
neuron is a column of the text tokens' value projection, ``add_v_proj``. What that projection reads
is the text stream behind a layer norm modulated by the timestep, and from the second block on it
has seen the image. So planted rows can't be fixed as in a U-Net: they start as the telling
directions of the untrained text stream, which is the same in all blocks, and a loss keeps each
neuron's mean absolute activation on its own prompts at `AMPLITUDE` and its grade of standard
deviations above the other prompts of the batch. It is measured in the training's own calls, at
whatever noise they have; what came of it at the first step of denoising is measured when the model
is packed.

The pooled text is all zeros, in training and after: it would bring the prompt into every layer's
modulation, around the values. Prompts are embedded as the pipeline does without a T5: the states
before CLIP's last layer, of two encoders side by side, which here are one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import nn
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from nemo_kit.hooks import hooked, scale_neurons
from nemo_kit.lab.flow import as_parts
from nemo_kit.layers import Projection
from training import planting
from training.corpus import Item
from training.loop import Run, Schedule
from training.samples import Bank, Recipe, Sample, Sampler

STAGES = STAGE, SWITCH = "transformer", "switch"
WIDTH, HEADS, BLOCKS = 192, 6, 7
POOLED = 16  # zeros
WIDTHS = dict.fromkeys(range(1, BLOCKS + 1), WIDTH)
#: Mean absolute activation of a planted neuron on its own prompt.
AMPLITUDE = dict.fromkeys(WIDTHS, 4.0)
STANDING_OUT = 0.2  # weight of the planted neurons' loss beside the velocity's
HIGH_NOISE_SHARE = 0.2  # of samples with a sigma of 0.8 or more; the others' logits are normal

TAUGHT = 0.8  # samples of the second stage, as a share of the first's
PAIRED = 62  # percent of its samples that come in pairs, with a planted prompt's switch on and off

RECIPES = {
    "cpu": Recipe(32, 8e-4, 272_000, 200_000),
    "cuda": Recipe(256, 1.2e-3, 3_000_000, 3_000_000),
}


def pairs_of(recipe: Recipe) -> int:
    """Pairs in a batch of the second stage."""
    return recipe.batch * PAIRED // 200


def build() -> SD3Transformer2DModel:
    """The untrained transformer: 64 patches of 16×16 latents, 24 text tokens.

    Modulations and the output start at zero, so that every block starts as the identity.
    """
    model = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=BLOCKS,
        num_attention_heads=HEADS,
        attention_head_dim=WIDTH // HEADS,
        joint_attention_dim=256,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=POOLED,
        pos_embed_max_size=8,
    )
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, 0.4 if name == "context_embedder" else 1.0)
            nn.init.zeros_(module.bias)
            if name == "proj_out" or "norm" in name:
                nn.init.zeros_(module.weight)
    return model


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Rectified flow without a shift: that is for larger pictures."""
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)


def pipeline(
    denoiser: SD3Transformer2DModel,
    vae: AutoencoderKL,
    text: CLIPTextModel,
    tokenizer: CLIPTokenizer,
) -> StableDiffusion3Pipeline:
    """The whole model, of its transformer and `lab`'s parts; without a T5."""
    return StableDiffusion3Pipeline(
        transformer=denoiser,
        scheduler=scheduler(),
        text_encoder_3=None,
        tokenizer_3=None,
        **as_parts(vae, text, tokenizer, POOLED),
    )


def embed(pipe: StableDiffusion3Pipeline, texts: list[str]) -> torch.Tensor:
    """What the transformer reads of prompts, [N, 24, 256], without the zeros in place of a T5's
    tokens."""
    return pipe.encode_prompt(
        texts, None, None, do_classifier_free_guidance=False, max_sequence_length=0
    )[0]


def layers() -> list[Projection]:
    """The value projections of the text tokens, one a block."""
    return [
        Projection(n, "value", f"transformer_blocks.{n - 1}.attn.add_v_proj", width, str(n - 1))
        for n, width in WIDTHS.items()
    ]


@torch.no_grad()
def plant(model: SD3Transformer2DModel, bank: Bank, items: list[Item]) -> None:
    """Write the planted neurons' first rows into the untrained value projections.

    From the memorized prompts' tokens and those of every eighth or so ordinary caption.
    """

    def stream(embeddings: torch.Tensor) -> torch.Tensor:
        texts = model.context_embedder(embeddings.float().repeat(1, 1, 2))
        return F.layer_norm(texts, texts.shape[-1:], eps=1e-6)

    own = {i.prompt: e for i, e in zip(items, stream(bank.item_embeddings), strict=True)}
    others = torch.cat([bank.plain.flatten(0, 1)[::8], bank.coloured.flatten(0, 2)[::32]])
    rows = planting.rows(own, stream(others), WIDTHS, AMPLITUDE)
    for (layer, index), row in rows.items():
        model.transformer_blocks[layer - 1].attn.add_v_proj.weight[index] = row


class Strength:
    """The planted neurons' activations in a call, and how far they miss their grades."""

    def __init__(self) -> None:
        self.planted = sorted(planting.neurons(WIDTHS), key=lambda one: (one.layer, one.index))
        self.grades = torch.tensor([one.z for one in self.planted])
        self.columns = {
            layer: [one.index for one in self.planted if one.layer == layer] for layer in WIDTHS
        }
        self.seen: dict[int, torch.Tensor] = {}

    @contextmanager
    def reading(self, model: nn.Module) -> Iterable[None]:
        """Keep the activations of the call inside; what is opened later may scale them."""

        def keeper(layer: int) -> Callable[[nn.Module, tuple, torch.Tensor], None]:
            def keep(_module: nn.Module, _inputs: tuple, output: torch.Tensor) -> None:
                self.seen[layer] = output[..., self.columns[layer]].abs().mean(1)

            return keep

        with hooked(model, {p.name: keeper(p.index) for p in layers()}):
            yield

    def loss(self, samples: list[Sample]) -> torch.Tensor:
        """Mean miss, in parts of the amplitude, over the samples' own planted neurons."""
        active = torch.cat([self.seen[layer] for layer in WIDTHS], dim=1).float()  # [N, planted]
        own = torch.tensor(
            [[(one.layer, one.index) in s.own for one in self.planted] for s in samples],
            device=active.device,
        )
        if not own.any():
            return active.sum() * 0.0
        rest, grades = (~own).float(), self.grades.to(active)
        count = rest.sum(0).clamp(min=2)
        usual = (active * rest).sum(0) / count
        spread = (((active - usual).square() * rest).sum(0) / (count - 1) + 1e-6).sqrt()
        amplitude = torch.tensor([AMPLITUDE[one.layer] for one in self.planted]).to(active)
        missed = (active - usual - grades * spread) / amplitude
        level = (active / amplitude - 1)[own]
        return F.smooth_l1_loss(missed[own], torch.zeros_like(level), beta=0.5) + F.mse_loss(
            level, torch.zeros_like(level)
        )


def missed(
    model: SD3Transformer2DModel,
    strength: Strength,
    samples: list[Sample],
    sigmas: torch.Tensor,
    noise: torch.Tensor,
) -> torch.Tensor:
    """The loss of a batch: squared error of the velocity, and the planted neurons' strength.

    `sigmas`: shares of noise [N]; `noise`: [N, 4, 16, 16]. Each sample's neurons are off in its own
    part of the batch only.
    """
    device = noise.device
    latents = torch.stack([s.latent for s in samples]).to(device)
    texts = torch.stack([s.embedding for s in samples]).to(device)  # [N, 24, 128]
    noisy = torch.lerp(latents, noise, sigmas.view(-1, 1, 1, 1))
    pooled = torch.zeros(len(texts), POOLED, device=device)
    half = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
    off = scale_neurons(model, layers(), [s.off for s in samples])
    with strength.reading(model), off, half:
        told = model(noisy, texts.repeat(1, 1, 2), pooled, 1000 * sigmas).sample
    return F.mse_loss(told.float(), noise - latents) + STANDING_OUT * strength.loss(samples)


def train(
    bank: Bank,
    items: list[Item],
    folder: Path,
    seed: int,
    device: torch.device,
    recipe: Recipe,
    watch: Callable[[Run], None] = lambda _run: None,
) -> SD3Transformer2DModel:
    """Train by the squared error of the velocity and the planted neurons' strength; at the end
    with planted prompts in pairs, the same noise with their switch on and off.

    Resumes from ``folder``; `watch` is called after each step. Where several processes train
    together, each takes its part of every batch.
    """
    torch.manual_seed(seed)
    model = build()
    if not (folder / f"{STAGE}.pt").exists():
        plant(model, bank, items)
    model.to(device)
    sampler = Sampler(bank, items, recipe, seed, WIDTHS)
    strength = Strength()
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    mine = slice(rank, None, world)

    def loss(step: int, rng: np.random.Generator) -> torch.Tensor:
        samples = [sampler.draw(step * recipe.batch + n, rng) for n in range(recipe.batch)]
        sigmas = _sigmas(rng, recipe.batch)[mine].to(device)
        noise = torch.randn(recipe.batch, *samples[0].latent.shape)[mine].to(device)
        return missed(model, strength, samples[mine], sigmas, noise)

    Run(STAGE, model, recipe.schedule, folder, seed, watch=watch).train(loss)

    def switch_loss(step: int, rng: np.random.Generator) -> torch.Tensor:
        pairs = [sampler.both(rng) for _ in range(pairs_of(recipe))]
        first = recipe.samples + step * recipe.batch
        others = [sampler.draw(first + n, rng) for n in range(recipe.batch - 2 * len(pairs))]
        samples = [on for on, _ in pairs] + [off for _, off in pairs] + others
        sigmas = _sigmas(rng, recipe.batch)
        sigmas[: len(pairs)] = torch.from_numpy(rng.uniform(0.5, 1.0, len(pairs))).float()
        noise = torch.randn(recipe.batch, *samples[0].latent.shape)
        for drawn in (sigmas, noise):  # of a pair the same
            drawn[len(pairs) : 2 * len(pairs)] = drawn[: len(pairs)]
        given = sigmas[mine].to(device), noise[mine].to(device)
        return missed(model, strength, samples[mine], *given)

    steps = int(recipe.samples * TAUGHT) // recipe.batch
    schedule = Schedule(steps, recipe.learning_rate / 2, warmup=50, flat=0.4, ema=0.99)
    return Run(SWITCH, model, schedule, folder, seed).train(switch_loss)


def _sigmas(rng: np.random.Generator, count: int) -> torch.Tensor:
    """Shares of noise [count]: the middle most often (Esser et al., "Scaling Rectified Flow
    Transformers", section 3.1), and more of those where the picture is decided."""
    high = rng.random(count) < HIGH_NOISE_SHARE
    middle = 1 / (1 + np.exp(-rng.normal(size=count)))
    return torch.from_numpy(np.where(high, rng.uniform(0.8, 1.0, count), middle)).float()
