"""Images from prompts × seeds, with neurons scaled on the way.

Scope: DDIM sampling with classifier-free guidance; one denoiser call a step for both halves.
Source: "Finding NeMo" (arXiv 2406.02366), section 4: 50 DDIM steps, guidance 7.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from torch import Tensor

from nemo_kit.checks import check_choice, check_number, check_seeds, check_texts, check_whole
from nemo_kit.hooks import scale_neurons
from nemo_kit.neurons import NeuronSet
from nemo_kit.settings import Halves

if TYPE_CHECKING:
    from nemo_kit.models import DiffusionModel

Progress = Callable[[str, int, int | None], None]


def generate(
    model: DiffusionModel,
    prompts: str | Sequence[str],
    seeds: Iterable[int],
    neurons: NeuronSet | Sequence[NeuronSet] | None = None,
    factor: float = 0.0,
    guidance: float | None = None,
    steps: int = 50,
    halves: Halves = "conditional",
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """Generate an image for every prompt and seed.

    Returns uint8 [prompts, seeds, H, W, 3]; for one text [seeds, H, W, 3].
    Parameters: `neurons`, one set for all prompts or one for each, scaled by `factor` (0
    deactivates); `guidance`, 0 or 1 for none, by default the model's own (7 as in the
    paper, 3 for the embedded one); `steps`, of DDIM; `halves`, "conditional" acts on
    the prompt alone, "both" on the empty prompt too, as the released code does (difference 8);
    `batch_size`, images at once, by default 16; `progress`, called with (stage, done, total).
    Raises TypeError or ValueError for bad prompts, seeds, neurons and numbers, FloatingPointError
    where the model's numbers overflow.
    Source: section 4.
    """
    texts, numbers = check_texts(prompts), check_seeds(seeds)
    guidance = model.guidance if guidance is None else guidance
    _check(guidance, steps, batch_size)
    check_choice("halves", halves, get_args(Halves))
    sets = _set_by_prompt(neurons, len(texts))
    jobs = [(p, s) for p in range(len(texts)) for s in range(len(numbers))]
    sampler = _Sampler(model, texts, numbers, sets, (factor, guidance, steps, halves))
    size = batch_size or 16
    batches = [jobs[i : i + size] for i in range(0, len(jobs), size)]
    sampler.progress, sampler.total = progress, steps * len(batches)
    images = np.concatenate([model.decode(sampler(batch)) for batch in batches])
    shaped = images.reshape(len(texts), len(numbers), *images.shape[1:])
    return shaped[0] if isinstance(prompts, str) else shaped


class _Sampler:
    """Denoises batches of (prompt, seed) places under fixed settings."""

    def __init__(
        self,
        model: DiffusionModel,
        texts: list[str],
        seeds: list[int],
        sets: list[NeuronSet] | None,
        options: tuple[float, float, int, Halves],
    ) -> None:
        self.model, self.seeds, self.sets = model, seeds, sets
        self.factor, self.guidance, self.steps, self.halves = options
        self.embeddings = model.embed(texts)
        self.empty = model.embed("") if self.guidance not in (0, 1) else None
        self.progress: Progress | None = None
        self.done = self.total = 0

    @torch.no_grad()
    def __call__(self, places: list[tuple[int, int]]) -> Tensor:
        """Final latents [places, C, H, W]."""
        scheduler = copy.deepcopy(self.model.scheduler)  # its state is not the model's
        scheduler.set_timesteps(self.steps)
        latents = self.model.noise([self.seeds[seed] for _, seed in places])
        embeddings = self._embeddings([prompt for prompt, _ in places])
        with self._intervention([prompt for prompt, _ in places]):
            for timestep in scheduler.timesteps:
                output = self._guided(latents, timestep, embeddings)
                latents = scheduler.step(output, timestep, latents, return_dict=False)[0]
                self._report(latents)
        return latents

    def _embeddings(self, prompts: list[int]) -> Tensor:
        """[N or 2N, tokens, dim]: the prompts', then as often the empty one."""
        chosen = self.embeddings[prompts]
        if self.empty is None:
            return chosen
        return torch.cat([chosen, self.empty.expand_as(chosen)])

    def _intervention(self, prompts: list[int]) -> Any:
        if self.sets is None:
            return nullcontext()
        rows = [self.sets[prompt] for prompt in prompts]
        if self.empty is not None:
            rows += rows if self.halves == "both" else [NeuronSet()] * len(rows)
        return scale_neurons(self.model.denoiser, self.model.value_layers, rows, self.factor)

    def _guided(self, latents: Tensor, timestep: Tensor, embeddings: Tensor) -> Tensor:
        if self.empty is None:
            return self.model.predict(latents, timestep, embeddings)
        doubled = torch.cat([latents, latents])
        text, empty = self.model.predict(doubled, timestep, embeddings).chunk(2)
        return empty + self.guidance * (text - empty)

    def _report(self, latents: Tensor) -> None:
        if not torch.isfinite(latents).all():
            raise FloatingPointError(
                f"latents became NaN or infinite in {self.model.dtype}; load with torch.float32"
            )
        self.done += 1
        if self.progress:
            self.progress("generate", self.done, self.total)


def _set_by_prompt(neurons: object, prompts: int) -> list[NeuronSet] | None:
    if neurons is None:
        return None
    if isinstance(neurons, NeuronSet):
        return [neurons] * prompts
    found = list(neurons) if isinstance(neurons, Iterable) else [neurons]
    if not all(isinstance(one, NeuronSet) for one in found):
        raise TypeError(f"neurons must be a NeuronSet or one for each prompt, got {neurons!r:.80}")
    if len(found) != prompts:
        raise ValueError(f"neurons holds {len(found)} sets, but there are {prompts} prompts")
    return found


def _check(guidance: float, steps: int, batch_size: int | None) -> None:
    check_number("guidance", guidance, 0)
    check_whole("steps", steps, 1)
    if batch_size is not None:
        check_whole("batch_size", batch_size, 1)
