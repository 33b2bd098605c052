"""A mitigation that looks for initial noise from which the prompt does not lead to a copy.

Source: Jeon et al., "Understanding and Mitigating Memorization in Generative Models via Sharpness
of Probability Landscapes", ICML 2025 (arXiv 2412.04140): SAIL.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from nemo_kit.checks import check_choice, check_number, check_whole
from nemo_kit.mitigation.base import Mitigation, normal
from nemo_kit.mitigation.gap import SAMPLES_AT_ONCE, SD2_WIDTH, first_gap, norms, relative_size
from nemo_kit.models.base import DiffusionModel
from nemo_kit.sampling import Run

VERSION = 2  # raised where results change (see nemo_kit.keys)
_SD_ACCEPTED, _SD_RISE = 8.2, 0.1
Form = Literal["code", "paper"]


@dataclass(frozen=True)
class NoiseOptimisation(Mitigation):
    """Optimise the initial noise towards a flat place of the text's influence (SAIL).

    Adam on x_T, minimising ‖Δε(x + Δε/‖Δε‖)‖ + weight · ‖x‖ at the first timestep. An image's
    candidates are its own noise and others drawn for it, taken in turn until the loss of one is
    accepted; else the one with the lowest loss is used.
    Two forms. "code": the step Δε/‖Δε‖ is that at the candidate's start throughout, and part of the
    gradient; `steps` losses; where none of the candidates is accepted, others are drawn and the
    accepted loss rises by 0.1, `rounds` times in all (the released code goes on without end, and
    looks at each draw three times, to the same result; it takes a prompt's images from one pool of
    8 candidates, here each image has its own). "paper": the step is that at the current x and a
    constant of the gradient, as in sharpness-aware minimisation; `steps` + 1 losses; one round.
    Parameters: `accept`, the loss to stop at, by default 8.2 · √(numbers in a latent / 16384),
    since both terms are norms, as is the rise; `weight`, by default 0.05, for SD 2.x 0.01; `steps`,
    at most, for each of `candidates`; `rate`, the learning rate; `form`; `rounds`, of "code".
    Raises ValueError for bad numbers and forms, FloatingPointError, on use, where Δε overflows.
    Source: Jeon et al., Algorithm 2, and their released code, with its defaults.
    """

    name = "initial-noise optimisation"
    place = 13
    accept: float | None = None
    weight: float | None = None
    steps: int = 10
    candidates: int = 8
    rate: float = 0.05
    form: Form = "code"
    rounds: int = 2
    source = "Jeon et al., ICML 2025 (arXiv 2412.04140)"

    def __post_init__(self) -> None:
        for key in ("accept", "weight"):
            if getattr(self, key) is not None:
                check_number(key, getattr(self, key), 0.0)
        check_number("rate", self.rate, 0.0)
        for key in ("steps", "candidates", "rounds"):
            check_whole(key, getattr(self, key), 1)
        check_choice("form", self.form, get_args(Form))

    @property
    def protocol(self) -> str:  # type: ignore[override]
        """Which form it has."""
        return f"the {self.form}'s form"

    @contextmanager
    def apply(self, run: Run) -> Iterator[Run]:
        """Find each sample's noise, then leave the model alone."""
        parts = torch.arange(len(run.noise)).split(SAMPLES_AT_ONCE)
        yield replace(run, noise=torch.cat([self._found(run, part.tolist()) for part in parts]))

    def _found(self, run: Run, places: list[int]) -> Tensor:
        """[n, C, H, W]: the first accepted noise of each of these samples, or its best."""
        best = {place: (run.noise[place], torch.inf) for place in places}  # and its loss
        left, size = list(places), relative_size(run.model)
        first = _SD_ACCEPTED * size if self.accept is None else self.accept
        for candidate in range(self.candidates * (self.rounds if self.form == "code" else 1)):
            accept = first + candidate // self.candidates * _SD_RISE * size
            start = torch.stack([_candidate(run, place, candidate) for place in left])
            found = self._optimised(run, start, run.embeddings[left], accept)
            for place, noise, loss in zip(list(left), *found, strict=True):
                if loss <= accept:
                    left.remove(place)
                if loss <= accept or loss < best[place][1]:
                    best[place] = noise, loss
            if not left:
                break
        return torch.stack([noise for noise, _ in best.values()])

    @torch.enable_grad()
    def _optimised(
        self, run: Run, start: Tensor, text: Tensor, accept: float
    ) -> tuple[Tensor, Tensor]:
        """Noise of the lowest loss on each sample's way, [n, C, H, W], and that loss, [n]."""
        x, origin = (start.clone().requires_grad_() for _ in range(2))
        ahead = self._ahead(run, origin, text) if self.form == "code" else None
        optimizer = torch.optim.Adam([x], lr=self.rate)
        best, least = start.clone(), torch.full((len(start),), torch.inf, device=start.device)
        last = self.steps - (self.form == "code")
        for step in range(last + 1):
            loss = self._loss(run, x, text, ahead)
            better = (loss.detach() < least) & (least > accept)  # an accepted one is final
            best = torch.where(better[:, None, None, None], x.detach(), best)
            least = torch.where(better, loss.detach(), least)
            if step == last or (least <= accept).all():
                break
            optimizer.zero_grad()
            origin.grad = None
            loss.sum().backward(retain_graph=ahead is not None)
            if origin.grad is not None:
                x.grad += origin.grad
            optimizer.step()
        return best, least

    def _ahead(self, run: Run, x: Tensor, text: Tensor) -> Tensor:
        """Δε/‖Δε‖ at x: [n, C, H, W]."""
        gap = first_gap(run, x, text)
        return gap / norms(gap).clamp(min=1e-12)[:, None, None, None]

    def _loss(self, run: Run, x: Tensor, text: Tensor, ahead: Tensor | None) -> Tensor:
        """[n]: the size of Δε at x + `ahead` (None: the step at x), and that of the noise."""
        if ahead is None:
            with torch.no_grad():
                ahead = self._ahead(run, x, text)
        gap = first_gap(run, x + ahead, text)
        return norms(gap) + self._weight(run.model) * x.flatten(1).norm(dim=1)

    def _weight(self, model: DiffusionModel) -> float:
        width = getattr(model.denoiser.config, "cross_attention_dim", None)
        usual = 0.01 if width == SD2_WIDTH else 0.05
        return usual if self.weight is None else self.weight


def _candidate(run: Run, sample: int, number: int) -> Tensor:
    """The sample's own noise, then others that follow from its seed: [C, H, W]."""
    own = run.noise[sample]
    if number == 0:
        return own
    drawn = normal(tuple(own.shape), "SAIL", run.prompts[sample], run.seeds[sample], number)
    return drawn.to(own)
