"""Audit after a mitigation: is there an embedding that still brings the image back?

Scope: a search over text embeddings for one image, with the mitigation in force; pictures drawn
from what it finds. A mitigation that only hides an image from its prompt fails this audit.
Source: "Finding Dori: Memorization in Text-to-Image Diffusion Models Is Not Local" (arXiv
2507.16880).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from nemo_kit.checks import (
    HALF_PRECISION,
    check_choice,
    check_number,
    check_seeds,
    check_text,
    check_whole,
)
from nemo_kit.generation import Run, denoise, generate
from nemo_kit.mitigation.base import Mitigation
from nemo_kit.mitigation.draws import normal, numbers

if TYPE_CHECKING:
    from nemo_kit.models import DiffusionModel

Start = Literal["prompt", "noise"]


@dataclass(frozen=True)
class AuditSettings:
    """How the search goes; the defaults are the source's."""

    steps: int = 50  # Adam steps; images that are not memorized need over 500
    batch_size: int = 8  # noises and timesteps drawn anew at each step
    rate: float = 0.1  # learning rate
    start: Start = "prompt"  # "noise": from normal numbers of the prompt's mean and deviation
    seed: int = 0  # of the draws

    def __post_init__(self) -> None:
        check_whole("steps", self.steps, 0)
        check_whole("batch_size", self.batch_size, 1)
        check_number("rate", self.rate, 0.0)
        check_choice("start", self.start, get_args(Start))
        check_whole("seed", self.seed, 0)


@dataclass(frozen=True)
class Audit:
    """What a search found: `embedding`, [1, tokens, dim]; `losses`, of each step."""

    embedding: Tensor
    losses: tuple[float, ...]


def search_embedding(
    model: DiffusionModel,
    prompt: str,
    image: np.ndarray,
    mitigation: Mitigation | None = None,
    settings: AuditSettings | None = None,
) -> Audit:
    """Search a text embedding that brings an image back from the mitigated model.

    Minimises ‖ε − ε_θ(x_t, t, y)‖² over y, for x_t the image's latents with noise ε; ε and t are
    drawn anew at each step.
    Returns an `Audit`.
    Parameters: `prompt`, whose mitigation is audited and where the search starts; `image`, uint8
    [H, W, 3], scaled to the model's size; `mitigation`, in force during the search, by default
    none; `settings`.
    Raises TypeError or ValueError for a bad prompt, image or mitigation, FloatingPointError where
    the loss overflows.
    Source: DoRI, adversarial text embeddings.
    """
    chosen = settings or AuditSettings()
    way = _checked(mitigation)
    clean = image_latents(model, image)
    run = _run(model, check_text(prompt), chosen.batch_size, way)
    y = _start(run, chosen).requires_grad_()
    optimizer = torch.optim.Adam([y], lr=chosen.rate)
    draw = numbers("audit", chosen.seed, prompt)
    losses = []
    with way.apply(run), torch.enable_grad():
        for step in range(chosen.steps):
            noise = normal(tuple(run.noise.shape), "audit", chosen.seed, prompt, step)
            loss = _loss(run, clean, noise.to(clean), draw, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return Audit(y.detach(), tuple(losses))


def draw_from(
    model: DiffusionModel,
    prompt: str,
    embedding: Tensor,
    seeds: Iterable[int],
    mitigation: Mitigation | None = None,
    steps: int = 50,
    guidance: float | None = None,
) -> np.ndarray:
    """Pictures from an embedding in the prompt's place, the mitigation in force.

    Returns uint8 [seeds, H, W, 3].
    Parameters: `embedding`, [1, tokens, dim]; `seeds`; `steps`, of DDIM; `guidance`, by default
    the model's own.
    Raises TypeError or ValueError for bad arguments.
    """
    chosen, way = check_seeds(seeds), _checked(mitigation)
    check_whole("steps", steps, 1)
    run = _run(model, check_text(prompt), len(chosen), way)
    scale = model.guidance if guidance is None else guidance
    check_number("guidance", scale, 0.0)
    run = replace(
        run, seeds=tuple(chosen), noise=model.noise(chosen), steps=steps, guidance=scale,
        embeddings=embedding.to(run.embeddings).expand_as(run.embeddings),
        empty=None if scale in (0, 1) else model.embed(""),
    )  # fmt: skip
    with _kept_embedding(way, run) as changed:
        return model.decode(denoise(changed))


def audit(
    model: DiffusionModel,
    prompt: str,
    image: np.ndarray,
    mitigation: Mitigation,
    seeds: Iterable[int] = range(101, 111),
    steps: int = 50,
    settings: AuditSettings | None = None,
    embedder: Any = None,
) -> pd.DataFrame:
    """Whether a mitigation still holds when the embedding is searched.

    Returns a frame with a row for each `stage` ("unmitigated", "mitigated", "mitigated, searched",
    and "unmitigated, searched" as control): `orig` (median cosine to the image, in [-1, 1]),
    `above` (share of pictures above 0.7), `loss` (last of the search, NaN without one), and the
    names of what measured.
    Parameters: `image`, the training image, uint8 [H, W, 3]; `seeds` and `steps` of the pictures;
    `settings`, of the search; `embedder`, a copy descriptor, by default the embedded model's.
    Raises as `search_embedding` and `draw_from`.
    Source: DoRI: SSCD and the share above 0.7, before and after the search.
    """
    from nemo_kit.metrics import as_embedder, lab_descriptor, share_above

    look, chosen = as_embedder(embedder) if embedder else lab_descriptor(), check_seeds(seeds)
    target = look(np.asarray(image)[None])[0]
    rows = []
    for stage, way, searched in _stages(mitigation):
        found = search_embedding(model, prompt, image, way, settings) if searched else None
        if found is None:
            shots = generate(model, prompt, chosen, steps=steps, mitigation=way)
        else:
            shots = draw_from(model, prompt, found.embedding, chosen, way, steps)
        cosines = look(shots) @ target
        loss = found.losses[-1] if found and found.losses else math.nan
        numbers = {"orig": float(np.median(cosines)), "above": share_above(cosines), "loss": loss}
        rows.append({"stage": stage, "prompt": prompt, **numbers, **look.labels})
    return pd.DataFrame(rows)


def _stages(mitigation: Mitigation) -> list[tuple[str, Mitigation, bool]]:
    """What is drawn: name, mitigation in force, whether the embedding is searched."""
    return [
        ("unmitigated", Mitigation(), False),
        ("mitigated", mitigation, False),
        ("mitigated, searched", mitigation, True),
        ("unmitigated, searched", Mitigation(), True),
    ]


def image_latents(model: DiffusionModel, image: np.ndarray) -> Tensor:
    """The mean latents of an image, scaled as the denoiser sees them: [1, C, h, w].

    Raises ValueError for an image that is no uint8 [H, W, 3].
    """
    from PIL import Image

    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape[2:] != (3,):
        got = f"{getattr(image, 'dtype', type(image).__name__)} {getattr(image, 'shape', '')}"
        raise ValueError(f"image must be uint8 [H, W, 3], got {got}")
    factor = 2 ** (len(model.vae.config.block_out_channels) - 1)
    height, width = (factor * side for side in model.latent_shape[1:])
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        found = model.vae.encode(pixels.to(model.device, model.vae.dtype)).latent_dist.mean
    return found.float() * model.vae.config.scaling_factor


def _loss(run: Run, clean: Tensor, noise: Tensor, draw: np.random.Generator, y: Tensor) -> Tensor:
    """Mean squared error of the predicted noise, each sample at a timestep of its own."""
    scheduler = run.model.scheduler
    timesteps = draw.integers(scheduler.config.num_train_timesteps, size=len(noise))
    places = torch.from_numpy(timesteps)
    kept = scheduler.alphas_cumprod[places].reshape(-1, 1, 1, 1).to(clean)
    noised = kept.sqrt() * clean + (1 - kept).sqrt() * noise
    predicted = run.model.predict_noise(noised, places, y.expand(len(noise), -1, -1))
    loss = (predicted - noise).square().mean()
    if not torch.isfinite(loss):
        raise FloatingPointError(f"the loss became NaN or infinite ({HALF_PRECISION})")
    return loss


def _run(model: DiffusionModel, prompt: str, count: int, way: Mitigation) -> Run:
    """A batch of one prompt without the empty one's half; each sample sees the mitigation as its
    images would.
    """
    seeds = tuple(range(count))
    texts = (way.rewrite(model, prompt, 0),) * count
    return Run(
        model=model, prompts=(prompt,) * count, texts=texts, seeds=seeds, noise=model.noise(seeds),
        embeddings=model.embed(texts[0]).repeat(count, 1, 1), empty=None, steps=50,
        guidance=model.guidance, halves="conditional",
    )  # fmt: skip


@contextmanager
def _kept_embedding(way: Mitigation, run: Run) -> Iterator[Run]:
    """The mitigation without what it would do to embeddings: they are the attacker's."""
    with way.apply(run) as changed:
        yield replace(changed, embeddings=run.embeddings, empty=run.empty)


def _start(run: Run, settings: AuditSettings) -> Tensor:
    own = run.embeddings[:1].float().clone()
    if settings.start == "prompt":
        return own
    drawn = normal(tuple(own.shape), "audit", "start", settings.seed).to(own)
    return own.mean() + own.std() * drawn


def _checked(mitigation: object) -> Mitigation:
    if mitigation is None:
        return Mitigation()
    if not isinstance(mitigation, Mitigation):
        raise TypeError(f"mitigation must be a Mitigation, got {mitigation!r:.80}")
    return mitigation
