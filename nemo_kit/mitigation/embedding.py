"""Mitigations that change the embedding of the prompt.

Source: Wen et al., "Detecting, Explaining, and Mitigating Memorization in Diffusion Models",
ICLR 2024 (arXiv 2407.21720), and their `local_sd_pipeline.py`; Somepalli et al., NeurIPS 2023.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nemo_kit.checks import check_number, check_whole
from nemo_kit.mitigation.base import Mitigation, normal
from nemo_kit.mitigation.gap import SAMPLES_AT_ONCE, first_gap, norms, relative_size
from nemo_kit.sampling import Run

VERSION = 2  # raised where results change (see nemo_kit.keys)
_SD_TARGET = 3 / 4**0.5  # released: 3 for one norm over a batch of 4 images


@dataclass(frozen=True)
class EmbeddingAdjustment(Mitigation):
    """Adjust the prompt's embedding until the text makes little difference to the first step.

    One embedding for all images of a prompt: AdamW, the first token's (BOS) gradient zeroed, at the
    images' own noise and the first timestep; minimises one norm ‖Δε‖₂ over all of them and stops
    where it is at most `target`, which is told for one image: the norm over n images is held
    against target · √n. So an image depends on which seeds are drawn with it.

    The released target is 3 over 4 images; for one that is 3/√4 = 1.5 on latents of 4×64×64, and
    √(numbers/16384) times as much on others.
    Parameters: `target`, of ‖Δε‖₂ an image, by default as above; `steps`, at most; `rate`, the
    learning rate.
    Raises ValueError for negative numbers, FloatingPointError, on use, where Δε overflows.
    Source: Wen et al., section 5.1; released defaults 3, 10, 0.05.
    """

    name = "prompt embedding adjustment"
    place = 2
    target: float | None = None
    steps: int = 10
    rate: float = 0.05
    source = "Wen et al., ICLR 2024 (arXiv 2407.21720)"
    protocol = "one embedding for all images of a prompt"

    def __post_init__(self) -> None:
        if self.target is not None:
            check_number("target", self.target, 0.0)
        check_whole("steps", self.steps, 1)
        check_number("rate", self.rate, 0.0)

    @contextmanager
    def apply(self, run: Run) -> Iterator[Run]:
        """Adjust each prompt's embedding, then leave the model alone."""
        known = run.memo.setdefault(self, {})
        for place, prompt in enumerate(run.prompts):
            if prompt not in known:
                own = run.every
                if own is None:
                    own = run.noise[[one == prompt for one in run.prompts]]
                known[prompt] = self._adjusted(run, own, run.embeddings[place : place + 1])
        yield replace(run, embeddings=torch.cat([known[prompt] for prompt in run.prompts]))

    @torch.enable_grad()
    def _adjusted(self, run: Run, noise: Tensor, embedding: Tensor) -> Tensor:
        """[1, tokens, dim]: the embedding adjusted at the noise of all images, [n, C, H, W]."""
        text = embedding.detach().float().clone().requires_grad_()
        optimizer = torch.optim.AdamW([text], lr=self.rate)
        limit = self._target(run) * len(noise) ** 0.5
        for _ in range(self.steps):
            sizes, slopes = [], []
            for part in noise.split(SAMPLES_AT_ONCE):
                size = norms(first_gap(run, part, text)).norm()
                sizes.append(size.item())
                slopes.append(torch.autograd.grad(size, text)[0])
            whole = math.hypot(*sizes)
            if whole <= limit:
                break
            text.grad = sum(s / whole * slope for s, slope in zip(sizes, slopes, strict=True))
            text.grad[:, 0] = 0
            optimizer.step()
        return text.detach().to(run.embeddings.dtype)

    def _target(self, run: Run) -> float:
        return _SD_TARGET * relative_size(run.model) if self.target is None else self.target


@dataclass(frozen=True)
class EmbeddingNoise(Mitigation):
    """Add normal noise to the embeddings of the prompt and the empty prompt, anew for each image.

    Both guidance halves get a draw of their own, whatever the run's `halves`.
    Parameters: `scale`, of the noise; `seed`, of the draws. Raises ValueError for bad numbers.
    Source: Somepalli et al., Gaussian noise in the embedding, 0.1 times N(0, 1).
    """

    name = "embedding noise"
    place = 12
    scale: float = 0.1
    seed: int = 0
    source = "Somepalli et al., NeurIPS 2023 (arXiv 2305.20086)"
    protocol = "noise on both guidance halves"

    def __post_init__(self) -> None:
        check_number("scale", self.scale, 0.0)
        check_whole("seed", self.seed, 0)

    @contextmanager
    def apply(self, run: Run) -> Iterator[Run]:
        """Add each sample's own noise."""
        empty = run.empty
        if empty is not None:
            empty = self._noised(run, empty.expand_as(run.embeddings), "empty")
        yield replace(run, embeddings=self._noised(run, run.embeddings), empty=empty)

    def _noised(self, run: Run, embeddings: Tensor, *half: str) -> Tensor:
        shape = tuple(embeddings.shape[1:])
        places = zip(run.prompts, run.seeds, strict=True)
        noise = [normal(shape, self.name, self.seed, *place, *half) for place in places]
        return embeddings + self.scale * torch.stack(noise).to(embeddings)
