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
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nemo_kit.checks import check_choice, check_finite, check_text, check_whole
from nemo_kit.mitigation.base import Mitigation, checked, normal, numbers
from nemo_kit.models.base import DiffusionModel
from nemo_kit.sampling import Run

RATE = 0.1  # of Adam, as in the source
Start = Literal["prompt", "noise"]


@dataclass(frozen=True, eq=False)
class Searched(Mitigation):
    """A mitigation (`way`) in force while the prompt's embedding is the one that was found.

    Whatever the mitigation does to embeddings is undone: they are the attacker's.
    Attributes: `embedding`, [1, tokens, dim].
    """

    way: Mitigation
    embedding: Tensor

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
    steps: int = 50,
    batch_size: int = 8,
    start: Start = "prompt",
) -> Searched:
    """Search a text embedding that brings an image back from the mitigated model.

    Minimises ‖ε − ε_θ(x_t, t, y)‖² over y by Adam, for x_t the image's latents with noise ε.
    Returns what pictures are drawn with: see `Searched`.
    Parameters: `prompt`, whose mitigation is audited and where the search starts; `image`, uint8
    [H, W, 3], scaled to the model's size; `mitigation`, in force during the search, by default
    none; `steps`, of the search (images that are not memorized need over 500); `batch_size`, how
    many ε and t are drawn anew at each; `start`, "noise": from normal numbers of the mean and
    deviation of the prompt's embedding.
    Raises TypeError or ValueError for a bad prompt, image, mitigation or number, FloatingPointError
    where the loss overflows.
    Source: DoRI, adversarial text embeddings; the defaults are theirs.
    """
    check_whole("steps", steps, 0)
    check_whole("batch_size", batch_size, 1)
    check_choice("start", start, get_args(Start))
    way = Mitigation() if mitigation is None else checked(mitigation)
    clean, text = image_latents(model, image), way.rewrite(model, check_text(prompt), 0)
    run = replace(Run.of(model, prompt, range(batch_size), text=text), empty=None)
    y = run.embeddings[:1].float().clone()
    if start == "noise":
        y = y.mean() + y.std() * normal(y.shape, "audit", "start", 0).to(y)
    optimizer = torch.optim.Adam([y.requires_grad_()], lr=RATE)
    draw, trained = numbers("audit", 0, prompt), model.scheduler.config.num_train_timesteps
    with way.apply(run), torch.enable_grad():
        for step in range(steps):
            noise = normal(run.noise.shape, "audit", 0, prompt, step).to(clean)
            times = torch.from_numpy(draw.integers(trained, size=batch_size))
            noised = model.scheduler.add_noise(clean, noise, times.to(clean.device))
            predicted = model.predict_noise(noised, times, y.expand(batch_size, -1, -1))
            loss = (predicted - noise).square().mean()
            check_finite("the loss", loss, FloatingPointError)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return Searched(way, y.detach())


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
