"""Initial selection and refinement as pure logic over `score(sets)`, in named search modes.

Scope: Algorithms 3 and 4. Each entry of `SEARCHES` has the same two functions; "sequential"
follows the paper call by call.
Source: "Finding NeMo" (arXiv 2406.02366), Algorithms 3 and 4, and the authors' released code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from nemo_kit.neurons import NeuronSet
from nemo_kit.settings import LocalizationSettings

ScoreFunction = Callable[[Sequence[NeuronSet]], Tensor]
Propose = Callable[[float, int], NeuronSet]
Report = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Selection:
    """What the initial selection ended with: the last candidates tried, and their score."""

    candidates: NeuronSet
    theta: float
    k: int
    score: float
    refinement_threshold: float  # the memorization threshold, or the score where θ ran out


@dataclass(frozen=True)
class Refinement:
    """The neurons that are left, their score, and how many sets were scored for it."""

    neurons: NeuronSet
    score: float
    checks: int


def schedule(settings: LocalizationSettings, widest: int) -> list[tuple[float, int]]:
    """Every (θ, k) the initial selection may try, in order; at least one.

    Parameters: `widest`, neurons of the widest layer: a larger k adds nothing.
    Source: Algorithm 3; difference 6: the code stops before it scores θ_min.
    """
    pairs, step = [], 0
    while True:
        theta = settings.theta - step * settings.theta_step
        k = settings.k + step * settings.k_step
        over = theta < settings.theta_min or k > widest
        if not settings.score_theta_min:
            over = theta <= settings.theta_min or k >= widest
        if over and pairs:
            return pairs
        pairs.append((theta, min(k, widest)))
        step += 1


def select_initial(
    score: ScoreFunction,
    propose: Propose,
    threshold: float,
    settings: LocalizationSettings | None = None,
    widest: int = 1280,
    report: Report | None = None,
) -> Selection:
    """Widen the candidates until the prompt no longer looks memorized.

    Returns a `Selection`.
    Parameters: `score`, [sets] scores of neuron sets; `propose`, the candidates for (θ, k);
    `threshold`, of memorization; `widest`, neurons of the widest layer; `report`, called with
    (done, total).
    Raises ValueError for a score or threshold that is not finite.
    Source: Algorithm 3: θ from 5 by −0.25, k from 0 by +1, while the score is above; where θ runs
    out, the score reached is the threshold of refinement.
    """
    steps = schedule(settings or LocalizationSettings(), widest)
    for done, (theta, k) in enumerate(steps, start=1):
        proposed = propose(theta, k)
        reached = score_one(score, proposed)
        if report:
            report(done, len(steps))
        if reached <= _finite("threshold", threshold):
            return Selection(proposed, theta, k, reached, threshold)
    return Selection(proposed, theta, k, reached, reached)


def refine(
    score: ScoreFunction,
    candidates: NeuronSet,
    threshold: float,
    report: Report | None = None,
    initial_score: float = math.nan,
) -> Refinement:
    """Re-activate layers, then single neurons, and drop them where the score stays below.

    Returns a `Refinement`; its neurons are a subset of the candidates.
    Parameters: `score`, [sets] scores; `threshold`, of refinement; `initial_score`, that of all
    candidates, returned where none is dropped; `report`, called with (done, total).
    Raises ValueError for a score or threshold that is not finite.
    Source: Algorithm 4: layers last to first, then the neurons of those left, again last layer
    first; inside a layer by index.
    """
    walk = _Walk(score, candidates, _finite("threshold", threshold), report, initial_score)
    layers = list(candidates.layers)
    walk.total = len(layers) + len(candidates)  # at most; fewer once layers are dropped
    for layer in reversed(layers):
        walk.drop(candidates.only(layer))
    remaining = walk.neurons.layers
    walk.total = len(layers) + len(walk.neurons)
    for layer in reversed(remaining):
        for index in remaining[layer]:
            walk.drop(NeuronSet({layer: [index]}))
    return Refinement(walk.neurons, walk.score, walk.checks)


class _Walk:
    """The state of refinement: what is still deactivated, and the score of that."""

    def __init__(
        self,
        score: ScoreFunction,
        neurons: NeuronSet,
        threshold: float,
        report: Report | None,
        initial_score: float,
    ) -> None:
        self._score, self._threshold, self._report = score, threshold, report
        self.neurons, self.score = neurons, initial_score
        self.checks = self.total = 0

    def drop(self, part: NeuronSet) -> None:
        """Re-activate `part`, for good where the score stays below the threshold."""
        trial = self.neurons - part
        reached = score_one(self._score, trial)
        if reached < self._threshold:
            self.neurons, self.score = trial, reached
        self.checks += 1
        if self._report:
            self._report(self.checks, self.total)


def score_one(score: ScoreFunction, neurons: NeuronSet) -> float:
    """The score of one set; raises ValueError where it is not finite."""
    return _finite("score", float(score([neurons])[0]))


def _finite(name: str, value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value!r}")
    return value


@dataclass(frozen=True)
class Search:
    """A search mode: functions with the parameters of `select_initial` and `refine`."""

    select: Callable[..., Selection]
    refine: Callable[..., Refinement]


SEARCHES: dict[str, Search] = {"sequential": Search(select_initial, refine)}


def find_search(name: str) -> Search:
    """The search mode of that name; raises ValueError that lists them."""
    if name not in SEARCHES:
        raise ValueError(f"search must be one of {', '.join(sorted(SEARCHES))}; got {name!r}")
    return SEARCHES[name]
