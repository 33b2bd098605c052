"""Audit after a mitigation: is there an embedding that still brings the image back?

Scope: a search over text embeddings for one image, with the mitigation in force. A mitigation that
only hides an image from its prompt fails this audit: what is found is a mitigation itself, whose
pictures `generate(model, prompt, seeds, mitigation=found)` draws and `metrics.copy_similarities`
holds against the image. The same search on the unmitigated model is the control.
Source: "Finding Dori: Memorization in Text-to-Image Diffusion Models Is Not Local" (arXiv
2507.16880).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nemo_kit.checks import (
    HALF_PRECISION,
    check_choice,
    check_number,
    check_text,
    check_whole,
)
from nemo_kit.mitigation.base import Mitigation, checked, normal, numbers
from nemo_kit.models.base import DiffusionModel
from nemo_kit.sampling import Run

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


@dataclass(frozen=True, eq=False)
class Searched(Mitigation):
    """A mitigation (`way`) in force while the prompt's embedding is the one that was found.

    Whatever the mitigation does to embeddings is undone: they are the attacker's.
    Attributes: `embedding`, [1, tokens, dim]; `losses`, of each step of the search.
    """

    way: Mitigation = field(default_factory=Mitigation)
    embedding: Tensor = field(default_factory=lambda: torch.empty(0))
    losses: tuple[float, ...] = ()

    def rewrite(self, model: DiffusionModel, prompt: str, seed: int) -> str:
        """As the mitigation does."""
        return self.way.rewrite(model, prompt, seed)

    @contextmanager
    def apply(self, run: Run) -> Iterator[Run]:
        """Put the embedding in the prompt's place, and the mitigation in force."""
        own = replace(run, embeddings=self.embedding.to(run.embeddings).expand_as(run.embeddings))
        with self.way.apply(own) as changed:
            yield replace(changed, embeddings=own.embeddings, empty=own.empty)


def search_embedding(
    model: DiffusionModel,
    prompt: str,
    image: np.ndarray,
    mitigation: Mitigation | None = None,
    settings: AuditSettings | None = None,
) -> Searched:
    """Search a text embedding that brings an image back from the mitigated model.

    Minimises ‖ε − ε_θ(x_t, t, y)‖² over y, for x_t the image's latents with noise ε; ε and t are
    drawn anew at each step.
    Returns what pictures are drawn with: see `Searched`.
    Parameters: `prompt`, whose mitigation is audited and where the search starts; `image`, uint8
    [H, W, 3], scaled to the model's size; `mitigation`, in force during the search, by default
    none.
    Raises TypeError or ValueError for a bad prompt, image or mitigation, FloatingPointError where
    the loss overflows.
    Source: DoRI, adversarial text embeddings.
    """
    chosen = settings or AuditSettings()
    way = Mitigation() if mitigation is None else checked(mitigation)
    clean, text = image_latents(model, image), way.rewrite(model, check_text(prompt), 0)
    run = replace(Run.of(model, prompt, range(chosen.batch_size), text=text), empty=None)
    y = _start(run.embeddings[:1].float(), chosen).requires_grad_()
    optimizer = torch.optim.Adam([y], lr=chosen.rate)
    draw = numbers("audit", chosen.seed, prompt)
    losses = []
    with way.apply(run), torch.enable_grad():
        for step in range(chosen.steps):
            noise = normal(run.noise.shape, "audit", chosen.seed, prompt, step).to(clean)
            loss = _loss(model, clean, noise, draw, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return Searched(way, y.detach(), tuple(losses))


def image_latents(model: DiffusionModel, image: np.ndarray) -> Tensor:
    """The mean latents of an image, scaled as the denoiser sees them: [1, C, h, w].

    Raises ValueError for an image that is no uint8 [H, W, 3].
    """
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape[2:] != (3,):
        got = f"{getattr(image, 'dtype', type(image).__name__)} {getattr(image, 'shape', '')}"
        raise ValueError(f"image must be uint8 [H, W, 3], got {got}")
    height, width = model.image_size
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None] / 127.5 - 1
    return model.encode(pixels)


def _loss(
    model: DiffusionModel, clean: Tensor, noise: Tensor, draw: np.random.Generator, y: Tensor
) -> Tensor:
    """Mean squared error of the predicted noise, each sample at a timestep of its own."""
    trained = model.scheduler.config.num_train_timesteps
    places = torch.from_numpy(draw.integers(trained, size=len(noise)))
    noised = model.scheduler.add_noise(clean, noise, places.to(clean.device))
    predicted = model.predict_noise(noised, places, y.expand(len(noise), -1, -1))
    loss = (predicted - noise).square().mean()
    if not torch.isfinite(loss):
        raise FloatingPointError(f"the loss became NaN or infinite ({HALF_PRECISION})")
    return loss


def _start(own: Tensor, settings: AuditSettings) -> Tensor:
    if settings.start == "prompt":
        return own.clone()
    drawn = normal(own.shape, "audit", "start", settings.seed).to(own)
    return own.mean() + own.std() * drawn
