"""Mitigations that change the embedding of the prompt.

Source: Wen et al., "Detecting, Explaining, and Mitigating Memorization in Diffusion Models",
ICLR 2024 (arXiv 2407.21720), and their `local_sd_pipeline.py`; Somepalli et al., NeurIPS 2023.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from nemo_kit.checks import check_number, check_whole
from nemo_kit.mitigation.base import Mitigation
from nemo_kit.mitigation.draws import normal
from nemo_kit.mitigation.gap import SAMPLES_AT_ONCE, norms, predicted_gap, relative_size

if TYPE_CHECKING:
    from nemo_kit.generation import Run

VERSION = 1  # raised where results change (see nemo_kit.keys)
_SD_TARGET = 3 / 4**0.5  # released: 3 for one norm over a batch of 4 images


@dataclass(frozen=True)
class EmbeddingAdjustment(Mitigation):
    """Adjust the prompt's embedding until the text makes little difference to the first step.

    AdamW on the embedding of each image, the first token (BOS) left as it is, at the image's own
    noise and the first timestep; minimises ‖Δε‖₂ and stops where it is at most `target`.

    The released target is 3 for one norm over a whole batch of 4 images; for the norm of one
    image that is 3/√4 = 1.5 on latents of 4×64×64, and √(numbers/16384) times as much on others.
    Parameters: `target`, of ‖Δε‖₂ of one image, by default as above; `steps`, at most; `rate`, the
    learning rate.
    Raises ValueError for negative numbers, FloatingPointError, on use, where Δε overflows.
    Source: Wen et al., section 5.1; released defaults 3, 10, 0.05.
    """

    name: str = field(init=False, default="prompt embedding adjustment")
    target: float | None = None
    steps: int = 10
    rate: float = 0.05
    source: ClassVar[str] = "Wen et al., ICLR 2024 (arXiv 2407.21720)"

    def __post_init__(self) -> None:
        if self.target is not None:
            check_number("target", self.target, 0.0)
        check_whole("steps", self.steps, 1)
        check_number("rate", self.rate, 0.0)

    @contextmanager
    def apply(self, run: Run) -> Iterator[Run]:
        """Adjust each sample's embedding, then leave the model alone."""
        size = SAMPLES_AT_ONCE
        parts = [self._adjusted(run, slice(i, i + size)) for i in range(0, len(run.noise), size)]
        yield replace(run, embeddings=torch.cat(parts))

    @torch.enable_grad()
    def _adjusted(self, run: Run, part: slice) -> Tensor:
        text = run.embeddings[part].detach().float()
        rest = text[:, 1:].clone().requires_grad_()  # all but BOS
        optimizer = torch.optim.AdamW([rest], lr=self.rate)
        for _ in range(self.steps):
            size = norms(self._gap(run, part, torch.cat([text[:, :1], rest], dim=1)))  # [n]
            active = size > self._target(run)
            if not active.any():
                break
            before = rest.detach().clone()
            optimizer.zero_grad()
            size.sum().backward()
            optimizer.step()
            with torch.no_grad():
                rest.copy_(torch.where(active[:, None, None], rest, before))
        return torch.cat([text[:, :1], rest.detach()], dim=1).to(run.embeddings.dtype)

    def _gap(self, run: Run, part: slice, text: Tensor) -> Tensor:
        model = run.model
        timestep = model.timesteps(run.steps)[0]
        empty = model.embed("") if run.empty is None else run.empty
        return predicted_gap(model, run.noise[part], timestep, text, empty)

    def _target(self, run: Run) -> float:
        return _SD_TARGET * relative_size(run.model) if self.target is None else self.target


@dataclass(frozen=True)
class EmbeddingNoise(Mitigation):
    """Add normal noise to the prompt's embedding, another draw for each image.

    Parameters: `scale`, of the noise; `seed`, of the draws. Raises ValueError for bad numbers.
    Source: Somepalli et al., Gaussian noise in the embedding, 0.1 times N(0, 1).
    """

    name: str = field(init=False, default="embedding noise")
    scale: float = 0.1
    seed: int = 0
    source: ClassVar[str] = "Somepalli et al., NeurIPS 2023 (arXiv 2305.20086)"

    def __post_init__(self) -> None:
        check_number("scale", self.scale, 0.0)
        check_whole("seed", self.seed, 0)

    @contextmanager
    def apply(self, run: Run) -> Iterator[Run]:
        """Add each sample's own noise."""
        shape = tuple(run.embeddings.shape[1:])
        places = zip(run.prompts, run.seeds, strict=True)
        noise = torch.stack([normal(shape, self.name, self.seed, *place) for place in places])
        yield replace(run, embeddings=run.embeddings + self.scale * noise.to(run.embeddings))
