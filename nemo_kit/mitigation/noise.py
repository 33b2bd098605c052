"""A mitigation that looks for initial noise from which the prompt does not lead to a copy.

Source: Jeon et al., "Understanding and Mitigating Memorization in Generative Models via Sharpness
of Probability Landscapes", ICML 2025 (arXiv 2412.04140): SAIL.
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
from nemo_kit.mitigation.gap import SAMPLES_AT_ONCE, is_sd2, norms, predicted_gap, relative_size

if TYPE_CHECKING:
    from nemo_kit.generation import Run
    from nemo_kit.models import DiffusionModel

VERSION = 1  # raised where results change (see nemo_kit.keys)
_SD_ACCEPTED = 8.2


@dataclass(frozen=True)
class NoiseOptimisation(Mitigation):
    """Optimise the initial noise towards a flat place of the text's influence (SAIL).

    Adam on x_T, minimising ‖Δε(x + Δε/‖Δε‖)‖ + weight · ‖x‖ at the first timestep. An image's
    candidates are its own noise and others drawn for it, taken in turn until the loss of one is
    accepted; else the one with the lowest loss is used. The step Δε/‖Δε‖ is a constant of the
    gradient, as in sharpness-aware minimisation.
    Parameters: `accept`, the loss to stop at, by default 8.2 · √(numbers in a latent / 16384),
    since both terms are norms; `weight`, by default 0.05, for SD 2.x 0.01; `steps`, at most, for
    each of `candidates`; `rate`, the learning rate.
    Raises ValueError for bad numbers, FloatingPointError, on use, where Δε overflows.
    Source: Jeon et al., with their defaults.
    """

    name: str = field(init=False, default="initial-noise optimisation")
    accept: float | None = None
    weight: float | None = None
    steps: int = 10
    candidates: int = 8
    rate: float = 0.05
    source: ClassVar[str] = "Jeon et al., ICML 2025 (arXiv 2412.04140)"

    def __post_init__(self) -> None:
        for key in ("accept", "weight"):
            if getattr(self, key) is not None:
                check_number(key, getattr(self, key), 0.0)
        check_number("rate", self.rate, 0.0)
        check_whole("steps", self.steps, 1)
        check_whole("candidates", self.candidates, 1)

    @contextmanager
    def apply(self, run: Run) -> Iterator[Run]:
        """Find each sample's noise, then leave the model alone."""
        size = SAMPLES_AT_ONCE
        parts = [self._found(run, slice(i, i + size)) for i in range(0, len(run.noise), size)]
        yield replace(run, noise=torch.cat(parts))

    def _found(self, run: Run, part: slice) -> Tensor:
        """[n, C, H, W]: the first accepted noise of each sample, or its best."""
        accept = self._accepted(run.model)
        best = run.noise[part].clone()
        least = torch.full((len(best),), torch.inf, device=best.device)
        for candidate in range(self.candidates):
            places = (least > accept).nonzero().flatten().tolist()
            if not places:
                break
            start = torch.stack([_candidate(run, part.start + i, candidate) for i in places])
            noise, loss = self._optimised(run, part.start, places, start, accept)
            for place, one, value in zip(places, noise, loss, strict=True):
                if value < least[place]:
                    best[place], least[place] = one, value
        return best

    @torch.enable_grad()
    def _optimised(
        self, run: Run, first: int, places: list[int], start: Tensor, accept: float
    ) -> tuple[Tensor, Tensor]:
        """Noise of the lowest loss on each sample's way, [n, C, H, W], and that loss, [n]."""
        text = run.embeddings[[first + place for place in places]]
        x = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([x], lr=self.rate)
        best, least = start.clone(), torch.full((len(start),), torch.inf, device=start.device)
        for step in range(self.steps + 1):
            loss = self._loss(run, x, text)
            better = (loss.detach() < least) & (least > accept)  # an accepted one is final
            best = torch.where(better[:, None, None, None], x.detach(), best)
            least = torch.where(better, loss.detach(), least)
            if step == self.steps or (least <= accept).all():
                break
            optimizer.zero_grad()
            loss.sum().backward()
            optimizer.step()
        return best, least

    def _loss(self, run: Run, x: Tensor, text: Tensor) -> Tensor:
        """[n]: the size of Δε one unit along itself, and that of the noise."""
        model, timestep = run.model, run.model.timesteps(run.steps)[0]
        empty = model.embed("") if run.empty is None else run.empty
        with torch.no_grad():
            gap = predicted_gap(model, x, timestep, text, empty)
            step = gap / norms(gap).clamp(min=1e-12)[:, None, None, None]
        ahead = predicted_gap(model, x + step, timestep, text, empty)
        return norms(ahead) + self._weight(model) * x.flatten(1).norm(dim=1)

    def _accepted(self, model: DiffusionModel) -> float:
        return _SD_ACCEPTED * relative_size(model) if self.accept is None else self.accept

    def _weight(self, model: DiffusionModel) -> float:
        if self.weight is not None:
            return self.weight
        return 0.01 if is_sd2(model) else 0.05


def _candidate(run: Run, sample: int, number: int) -> Tensor:
    """The sample's own noise, then others that follow from its seed: [C, H, W]."""
    own = run.noise[sample]
    if number == 0:
        return own
    drawn = normal(tuple(own.shape), "SAIL", run.prompts[sample], run.seeds[sample], number)
    return drawn.to(own) * run.model.scheduler.init_noise_sigma
