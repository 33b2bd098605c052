"""One batch of a generation, and the one denoising loop.

Scope: DDIM sampling with classifier-free guidance; one denoiser call a step for both halves. A
change of results here raises the VERSION of `generation`.
Source: "Finding NeMo" (arXiv 2406.02366), section 4: 50 DDIM steps, guidance 7.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from nemo_kit.checks import check_number, check_seeds, check_whole
from nemo_kit.models.base import DiffusionModel
from nemo_kit.settings import Halves

Row = TypeVar("Row")


@dataclass(frozen=True)
class Run:
    """One batch of a generation: what a mitigation sees and may replace.

    `prompts`, `texts` (the prompts as rewritten) and `seeds` of the N samples; `noise`, the
    initial one, [N, C, H, W]; `embeddings` of the texts, [N, tokens, dim]; `empty`, that of the
    empty prompt, [1 or N, tokens, dim], or None without guidance; `memo`, what mitigations keep
    from one batch of a generation to the next; `every`, the initial noise of all images of a
    prompt, [seeds, C, H, W], None where the batch is all there is.
    """

    model: DiffusionModel
    prompts: tuple[str, ...]
    texts: tuple[str, ...]
    seeds: tuple[int, ...]
    noise: Tensor
    embeddings: Tensor
    empty: Tensor | None
    guidance: float
    steps: int
    halves: Halves
    memo: dict[Any, Any] = field(default_factory=dict)
    every: Tensor | None = None

    @classmethod
    def of(
        cls,
        model: DiffusionModel,
        prompt: str,
        seeds: Iterable[int],
        steps: int = 50,
        guidance: float | None = None,
        text: str | None = None,
    ) -> Self:
        """One prompt's images, undisturbed; `empty` is there whatever the guidance.

        Parameters: `guidance`, by default the model's own; `text`, embedded in the prompt's place.
        Raises TypeError or ValueError for bad seeds and numbers.
        """
        numbers = check_seeds(seeds, distinct=True)
        guidance = model.guidance if guidance is None else guidance
        check_number("guidance", guidance, 0)
        check_whole("steps", steps, 1)
        samples, text = len(numbers), prompt if text is None else text
        return cls(
            model=model, prompts=(prompt,) * samples, texts=(text,) * samples, seeds=tuple(numbers),
            noise=model.noise(numbers), embeddings=model.embed(text).repeat(samples, 1, 1),
            empty=model.embed(""), guidance=guidance, steps=steps, halves="conditional",
        )  # fmt: skip

    def rows(self, each: Sequence[Row], neutral: Row) -> list[Row]:
        """One value for each sample of a denoiser call: [N], with guidance [2N].

        The second half, the empty prompt's, is the same again where `halves` is "both", and
        `neutral` otherwise.
        """
        if self.empty is None:
            return list(each)
        return [*each, *(each if self.halves == "both" else [neutral] * len(each))]


@torch.no_grad()
def denoise(
    run: Run,
    report: Callable[[], None] | None = None,
    last: int = 0,
    look: Callable[[Tensor, Tensor, Tensor, Tensor], None] | None = None,
) -> Tensor:
    """Follow the guided DDIM trajectory from the run's noise.

    Returns the latents at its end (or after `last` steps, where that is not 0), [N, C, H, W].
    Parameters: `report`, called after each step; `look`, of a guided run,
    with timestep, latents, the text's and the empty prompt's output at each.
    Source: section 4.
    """
    scheduler = copy.deepcopy(run.model.scheduler)  # its state is not the model's
    scheduler.set_timesteps(run.steps)
    latents = run.noise
    for timestep in scheduler.timesteps[: last or None]:
        if run.empty is None:
            output = run.model.predict(latents, timestep, run.embeddings)
        else:
            halves = both_outputs(run.model.predict, latents, timestep, run.embeddings, run.empty)
            if look:
                look(timestep, latents, *halves)
            output = halves[1] + run.guidance * (halves[0] - halves[1])
        latents = scheduler.step(output, timestep, latents, return_dict=False)[0]
        if report:
            report()
    return latents


def both_outputs(
    predict: Callable[..., Tensor],
    latents: Tensor,
    timestep: Tensor | int,
    text: Tensor,
    empty: Tensor,
) -> tuple[Tensor, ...]:
    """What the text and the empty prompt give, [N, C, H, W] each; one denoiser call.

    Parameters: `predict`, the model's `predict` or `predict_noise`; `latents`, [N, C, H, W];
    `text`, [N, tokens, dim]; `empty`, [1 or N, tokens, dim].
    """
    both = torch.cat([text, empty.to(text).expand_as(text)])
    return predict(torch.cat([latents, latents]), timestep, both).chunk(2)
