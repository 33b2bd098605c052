"""The search mode `sequential`: the paper's Algorithms 3 and 4, call by call.

Scope: the reference the other modes are held against; one set a call, all its seeds.
Source: "Finding NeMo" (arXiv 2406.02366), Algorithms 3 and 4, and the authors' released code.
"""

from __future__ import annotations

import math

from nemo_kit.localization.search.steps import (
    Propose,
    Refinement,
    Report,
    Selection,
    layer_parts,
    neuron_parts,
    schedule,
)
from nemo_kit.localization.verdicts import ScoreFunction, finite
from nemo_kit.neurons import NeuronSet
from nemo_kit.settings import LocalizationSettings

VERSION = 1  # raised where results change (see nemo_kit.keys)


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
        if reached <= finite("threshold", threshold):
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
    walk = _OneByOne(score, candidates, finite("threshold", threshold), report, initial_score)
    layers = layer_parts(candidates)
    walk.total = len(layers) + len(candidates)  # at most; fewer once layers are dropped
    for part in layers:
        walk.drop(part)
    walk.total = len(layers) + len(walk.neurons)
    for part in neuron_parts(walk.neurons):
        walk.drop(part)
    return Refinement(walk.neurons, walk.score, walk.checks)


class _OneByOne:
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
    return finite("score", float(score([neurons])[0]))
