"""The search mode `sequential`: the paper's Algorithms 3 and 4, call by call.

Scope: the reference the other modes are held against; one set a call, all its seeds.
Source: "Finding NeMo" (arXiv 2406.02366), Algorithms 3 and 4, and the authors' released code.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from nemo_kit.localization.search.steps import (
    Order,
    Propose,
    Refinement,
    Report,
    Selection,
    layer_parts,
    neuron_parts,
    schedule,
)
from nemo_kit.localization.verdicts import finite
from nemo_kit.neurons import NeuronSet
from nemo_kit.settings import LocalizationSettings

VERSION = 1  # raised where results change (see nemo_kit.keys)
ScoreFunction = Callable[[Sequence[NeuronSet]], Tensor]


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
    order: Order | None = None,
) -> Refinement:
    """Re-activate layers, then single neurons, and drop them where the score stays below.

    Returns a `Refinement`; its neurons are a subset of the candidates.
    Parameters: `score`, [sets] scores; `threshold`, of refinement; `initial_score`, that of all
    candidates, returned where none is dropped; `report`, called with (done, total); `order`, the
    released code's lists (`candidate_lists`), in place of by index: one entry is taken out at a
    time, so a neuron that stands there twice is tried at its second place.
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
    if order is None:
        for part in neuron_parts(walk.neurons):
            walk.drop(part)
    else:
        walk.drop_entries(order)
    return Refinement(walk.neurons, walk.score, walk.checks)


@dataclass
class _OneByOne:
    """The state of refinement: what is still deactivated, and the score of that."""

    ask: ScoreFunction
    neurons: NeuronSet
    threshold: float
    report: Report | None
    score: float
    checks: int = 0
    total: int = 0

    def drop_entries(self, order: Order) -> None:
        """Take out one entry of the lists at a time, for good where the score stays below."""
        left = Counter(
            (layer, index)
            for layer, indices in order.items()
            for index in indices
            if (layer, index) in self.neurons
        )
        self.total = self.checks + left.total()
        for layer in reversed(self.neurons.layers):
            for entry in ((layer, index) for index in order[layer]):
                last = NeuronSet.of([entry] if left[entry] == 1 else [])
                left[entry] -= self.drop(last)

    def drop(self, part: NeuronSet) -> bool:
        """Re-activate `part`, for good where the score stays below; returns whether it did."""
        trial = self.neurons - part
        reached = score_one(self.ask, trial)
        below = reached < self.threshold
        if below:
            self.neurons, self.score = trial, reached
        self.checks += 1
        if self.report:
            self.report(self.checks, self.total)
        return below


def score_one(score: ScoreFunction, neurons: NeuronSet) -> float:
    """The score of one set; raises ValueError where it is not finite."""
    return finite("score", float(score([neurons])[0]))


class Sequential:
    """The two functions as a search mode, whose `ask` may be any function of sets."""

    select, refine = staticmethod(select_initial), staticmethod(refine)
