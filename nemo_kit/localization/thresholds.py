"""Localization under several thresholds at once, sharing what they have in common.

Scope: every sensible pair of a threshold of initial selection and one of refinement, for one
prompt. Noise differences and activations are computed once, and a neuron set is scored once on a
seed, however many pairs ask for it. Each pair asks what it would ask by itself, so its result is
that of `localize`, and so is the number of samples that it would have taken alone.
Source: "Finding NeMo" (arXiv 2406.02366), Algorithms 3 and 4; figures 14 and 15 vary their
thresholds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, Any

from nemo_kit.calibration import ActivationStatistics, check_statistics, check_threshold
from nemo_kit.checks import check_choice, check_number, check_seeds, check_text
from nemo_kit.localization.nemo import Run
from nemo_kit.localization.scoring import Score
from nemo_kit.localization.verdicts import Verdicts
from nemo_kit.models.base import DiffusionModel
from nemo_kit.neurons import NeuronSet
from nemo_kit.settings import LocalizationSettings

if TYPE_CHECKING:
    import pandas as pd

VERSION = 2  # raised where results change (see nemo_kit.keys)
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

    def evaluate(self, sets: Sequence[NeuronSet], seeds: Sequence[int]) -> list[float]:
        """The score of each pair of a set and a seed."""
        pairs = list(zip(sets, seeds, strict=True))
        self.samples += sum(bool(one) for one, _ in pairs)  # the empty set costs nothing
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self._memory]
        if new:
            found = self._score.evaluate(*zip(*new, strict=True))
            self._memory.update(zip(new, found, strict=True))
        return [self._memory[pair] for pair in pairs]


def localize_thresholds(
    model: DiffusionModel,
    prompt: str,
    deviations: Sequence[float] = DEVIATIONS,
    seeds: Iterable[int] = range(1, 11),
    settings: LocalizationSettings | None = None,
    search: str = "speculative",
) -> pd.DataFrame:
    """Localize one prompt for every sensible pair of an initial and a refinement threshold.

    Returns a frame, a row for each pair: prompt, flagged, score (of detection), samples (denoiser
    samples of all pairs together), initial_deviations, refinement_deviations, theta, initial_score,
    refined_score, initial and refined (sets as JSON), n_initial, n_refined, samples_alone (of this
    pair by itself). A prompt that is not flagged has one row, without a pair.
    A pair makes sense where the refinement threshold is not below the
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
    import pandas as pd

    text, numbers = check_text(prompt), check_seeds(seeds, least=2, distinct=True)
    steps = _ascending(deviations)
    check_choice("search", search, MODES)
    before, statistics = model.samples_evaluated, check_statistics(model)
    run = Run(model, text, numbers, search, settings)
    score = run.detect(check_threshold(model, None, run.detection, run.similarity))
    rows: list[dict[str, Any]] = [{}]
    if run.kept_seeds:
        known = model.calibration
        rows = list(_pairs(run, statistics, {d: known.mean + d * known.std for d in steps}))  # type: ignore[union-attr]
    about = {"prompt": text, "flagged": bool(run.kept_seeds), "score": score}
    samples = model.samples_evaluated - before
    return pd.DataFrame([about | {"samples": samples} | row for row in rows])


def _pairs(
    run: Run, statistics: ActivationStatistics, limits: Mapping[float, float]
) -> Iterator[dict[str, Any]]:
    """Every pair of an initial threshold and one of refinement that is not below it.

    Where θ ran out above the limit, the score reached is the threshold (Algorithm 3).
    """
    score, propose = run.score(), run.propose(statistics)
    memory: Memory = {}
    for initial, refinement in combinations_with_replacement(limits, 2):
        ask = Recalled(score, memory)
        selection = run.select(ask, propose, limits[initial])
        refined = run.refine(ask, selection, max(limits[refinement], selection.score))
        yield {
            "initial_deviations": initial,
            "refinement_deviations": refinement,
            "theta": selection.theta,
            "initial_score": selection.score,
            "refined_score": refined.score,
            "initial": selection.candidates.to_json(),
            "refined": refined.neurons.to_json(),
            "n_initial": len(selection.candidates),
            "n_refined": len(refined.neurons),
            "samples_alone": run.draw.per_item * (len(run.seeds) + ask.samples),
        }


def _ascending(deviations: Sequence[float]) -> list[float]:
    for one in deviations:
        check_number("deviations", one)
    found = sorted({float(one) for one in deviations})
    if not found:
        raise ValueError("deviations must hold at least one multiple of σ, got none")
    return found
