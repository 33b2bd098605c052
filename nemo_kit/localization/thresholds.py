"""Localization under several thresholds at once, sharing what they have in common.

Scope: every sensible pair of a threshold of initial selection and one of refinement, for one
prompt. Noise differences and activations are computed once, and a neuron set is scored once on a
seed, however many pairs ask for it. Each pair asks what it would ask by itself, so its result is
that of `localize`, and so is the number of samples that it would have taken alone.
Source: "Finding NeMo" (arXiv 2406.02366), Algorithms 3 and 4; figures 14 and 15 vary their
thresholds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nemo_kit.calibration import Calibration
from nemo_kit.checks import check_choice, check_number, check_seeds, check_text
from nemo_kit.localization.candidates import candidates, text_activations, z_scores
from nemo_kit.localization.detection import check_threshold, kept, resolve, upper
from nemo_kit.localization.differences import Differences
from nemo_kit.localization.scoring import Score
from nemo_kit.localization.search import Propose, Refinement, Search, Selection, find_search
from nemo_kit.localization.verdicts import Verdicts
from nemo_kit.memory import BatchSize, fitting
from nemo_kit.neurons import NeuronSet
from nemo_kit.settings import LocalizationSettings
from nemo_kit.similarity import pairwise

if TYPE_CHECKING:
    from nemo_kit.models import DiffusionModel

Memory = dict[tuple[NeuronSet, int], float]  # (set, seed) -> score
MODES = ("speculative", "sequential", "bisect")  # those that ask nothing but scores
DEVIATIONS = (-1.0, 0.0, 1.0)  # figures 14 and 15: μ − σ, μ, μ + σ


class Recalled(Verdicts):
    """A score with a memory of its own over a common one, counting as if it were alone.

    It asks what a search by itself would ask, in the same order; answers that another search has
    paid for come from the common memory.
    Parameters: `score`, which answers what nobody has asked yet; `memory`, (set, seed) -> score,
    filled on the way.
    Attribute: `samples`, pairs of a seed and a set that a score of its own would have drawn.
    """

    def __init__(self, score: Score, memory: Memory) -> None:
        super().__init__(score.seeds, together=score.settings.data_range == "batch")
        self._score, self._memory = score, memory
        self.samples = 0

    def __call__(self, sets: Sequence[NeuronSet]) -> Tensor:
        return torch.tensor([self.exact(one) for one in sets])

    def evaluate(self, sets: Sequence[NeuronSet], seeds: Sequence[int]) -> list[float]:
        """The score of each pair of a set and a seed."""
        pairs = list(zip(sets, seeds, strict=True))
        self.samples += sum(bool(one) for one, _ in pairs)  # the empty set costs nothing
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self._memory]
        if new:
            found = self._score.evaluate(*zip(*new, strict=True))
            self._memory.update(zip(new, found, strict=True))
        return [self._memory[pair] for pair in pairs]


@dataclass(frozen=True)
class Pair:
    """What one pair of thresholds, in deviations from the mean, ended with."""

    initial: float
    refinement: float
    selection: Selection
    refined: Refinement
    draws: int  # of a seed under a neuron set, that this pair by itself would have taken


@dataclass(frozen=True)
class ThresholdGrid:
    """All pairs of thresholds for one prompt; none where it does not count as memorized.

    `score`, the memorization score; `kept_seeds`, those that memorize; `samples`, denoiser samples
    evaluated for all pairs together; `sample_cost`, of one seed under one set (2 with guidance).
    """

    prompt: str
    score: float
    seeds: int
    kept_seeds: tuple[int, ...]
    pairs: tuple[Pair, ...]
    samples: int
    sample_cost: int = 1

    def samples_alone(self, pair: Pair) -> int:
        """Denoiser samples that this pair takes when it starts from the beginning."""
        return self.sample_cost * (self.seeds + pair.draws)

    def to_rows(self) -> list[dict[str, Any]]:
        """A row for each pair, sets as JSON; one row without a pair where there is none."""
        about = {
            "prompt": self.prompt,
            "memorized": bool(self.pairs),
            "score": self.score,
            "samples": self.samples,
        }
        if not self.pairs:
            return [about]
        return [about | self._row(pair) for pair in self.pairs]

    def _row(self, pair: Pair) -> dict[str, Any]:
        return {
            "initial_deviations": pair.initial,
            "refinement_deviations": pair.refinement,
            "theta": pair.selection.theta,
            "initial_score": pair.selection.score,
            "refined_score": pair.refined.score,
            "initial": pair.selection.candidates.to_json(),
            "refined": pair.refined.neurons.to_json(),
            "n_initial": len(pair.selection.candidates),
            "n_refined": len(pair.refined.neurons),
            "samples_alone": self.samples_alone(pair),
        }


def localize_thresholds(
    model: DiffusionModel,
    prompt: str,
    deviations: Sequence[float] = DEVIATIONS,
    seeds: Iterable[int] = range(1, 11),
    settings: LocalizationSettings | None = None,
    search: str = "speculative",
) -> ThresholdGrid:
    """Localize one prompt for every sensible pair of an initial and a refinement threshold.

    Returns a `ThresholdGrid`. A pair makes sense where the refinement threshold is not below the
    initial one: selection stops at the first score that is not above its own threshold; under a
    lower one refinement would ask for less memorization than selection has reached, and where it
    has not, could drop nothing. Detection keeps the model's own threshold, so that all pairs
    are about the same seeds.
    Parameters: `deviations`, thresholds as multiples of σ from μ of the model's calibration;
    `seeds`, for detection; `settings`, as for `localize`; `search`, a name in `MODES`.
    Raises TypeError or ValueError for a bad prompt, seeds or deviations, and where the model has no
    calibration with statistics.
    Source: Algorithms 1 to 4; figures 14 and 15.
    """
    text, numbers = check_text(prompt), check_seeds(seeds, least=2, distinct=True)
    known, steps = _calibration(model), _ascending(deviations)
    check_choice("search", search, MODES)
    mode = find_search(search)
    before = model.samples_evaluated
    run = _Prompt(model, text, numbers, settings or LocalizationSettings())
    pairs: tuple[Pair, ...] = ()
    if run.mask.any():
        limits = {step: known.mean + step * known.std for step in steps}
        pairs = tuple(run.pairs(known, limits, mode))
    return ThresholdGrid(
        prompt=text,
        score=run.score,
        seeds=len(numbers),
        kept_seeds=tuple(s for s, keep in zip(numbers, run.mask.tolist(), strict=True) if keep),
        pairs=pairs,
        samples=model.samples_evaluated - before,
        sample_cost=run.cost,
    )


class _Prompt:
    """One prompt: what all thresholds share."""

    def __init__(
        self, model: DiffusionModel, text: str, seeds: list[int], settings: LocalizationSettings
    ) -> None:
        detection, self.similarity = resolve(model, settings.detection, settings.similarity)
        limit = check_threshold(model, None, detection, self.similarity)
        self.model, self.text, self.settings = model, text, settings
        self.draw = Differences(
            model, detection, settings.factor, settings.halves, settings.precision
        )
        self.batch = BatchSize(settings.batch_size) if settings.batch_size else fitting(model)
        self.cost = self.draw.per_item
        noise, self.embedding = model.noise(seeds), model.embed(text)
        rows = self.embedding.expand(len(noise), -1, -1)
        drawn = self.draw.in_batches(noise, rows, None, self.batch)
        scores = pairwise(drawn, self.similarity).cpu()
        self.score, self.mask = upper(scores).max().item(), kept(scores, limit)
        where = self.mask.to(noise.device)
        self.noise, self.unblocked = noise[where], drawn[where]

    def pairs(self, known: Calibration, limits: dict[float, float], mode: Search) -> Iterator[Pair]:
        """Every pair of an initial threshold and one of refinement that is not below it."""
        score = Score(
            self._blocked, self.unblocked, self.similarity, self.batch, per_pair=self.cost,
        )  # fmt: skip
        memory: Memory = {}
        propose = self._propose(known)
        for initial, refinement in combinations_with_replacement(limits, 2):
            ask = Recalled(score, memory)
            selection = self._select(mode, ask, propose, limits[initial])
            refined = self._refine(mode, ask, selection, limits[refinement])
            yield Pair(initial, refinement, selection, refined, ask.samples)

    def _select(self, mode: Search, ask: Recalled, propose: Propose, limit: float) -> Selection:
        widest = max(layer.width for layer in self.model.searched)
        return mode.select(ask, propose, limit, settings=self.settings, widest=widest)

    def _propose(self, known: Calibration) -> Propose:
        found = text_activations(self.model, [self.text])
        activations = {layer: values[0] for layer, values in found.items()}
        z = z_scores(activations, known.statistics)  # type: ignore[arg-type]
        two_sided = self.settings.two_sided
        return lambda theta, k: candidates(activations, z, theta, k, two_sided)

    def _refine(
        self, mode: Search, ask: Recalled, selection: Selection, limit: float
    ) -> Refinement:
        """Where θ ran out above the limit, the score reached is the threshold (Algorithm 3)."""
        if not self.settings.refine:
            return Refinement(selection.candidates, selection.score, 0)
        threshold, start = max(limit, selection.score), selection.score
        return mode.refine(ask, selection.candidates, threshold, initial_score=start)

    def _blocked(self, places: list[int], sets: list[NeuronSet]) -> Tensor:
        return self.draw(self.noise[places], self.embedding.expand(len(places), -1, -1), sets)


def _calibration(model: DiffusionModel) -> Calibration:
    known = model.calibration
    if known is None or known.statistics is None:
        raise ValueError(
            f"model: {model.name!r} needs a calibration with activation statistics; "
            "compute it with calibrate(model, prompts)"
        )
    return known


def _ascending(deviations: Sequence[float]) -> list[float]:
    for one in deviations:
        check_number("deviations", one)
    found = sorted({float(one) for one in deviations})
    if not found:
        raise ValueError("deviations must hold at least one multiple of σ, got none")
    return found
