"""What all search modes share: the schedule, the results, and the walk over a chain of parts.

Scope: values; `Walk`, a mode that asks for many sets at once. These modes differ in how many parts
they try at once and in which order.
Source: "Finding NeMo" (arXiv 2406.02366), Algorithms 3 and 4, and the authors' released code.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from nemo_kit.localization.verdicts import Verdicts, finite
from nemo_kit.neurons import Neuron, NeuronSet
from nemo_kit.settings import LocalizationSettings

Propose = Callable[[float, int], NeuronSet]
Report = Callable[[int, int | None], None]
First = Callable[[Sequence[int]], int]  # of places, how many don't hold before one does
Order = Mapping[int, Sequence[int]]  # layer -> indices, as `candidate_lists` gives them
_RELEASED_K = 1280


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
    """The neurons that are left, their score, and how many sets were scored for it.

    `verified`: every neuron left was found necessary at the end (None where the mode doesn't
    look); `fell_back`: neurons that were not, and were dropped by walking in the paper's way.
    """

    neurons: NeuronSet
    score: float
    checks: int
    verified: bool | None = None
    fell_back: NeuronSet = field(default_factory=NeuronSet)


def schedule(settings: LocalizationSettings, widest: int) -> list[tuple[float, int]]:
    """Every (θ, k) the initial selection may try, in order; at least one.

    Parameters: `widest`, neurons of the widest layer: a larger k adds nothing.
    Source: Algorithm 3; difference 6: the code stops before it scores θ_min, and at k = 1280, the
    widest layer of Stable Diffusion.
    """
    pairs, step = [], 0
    while True:
        theta = settings.theta - step * settings.theta_step
        k = settings.k + step * settings.k_step
        over = theta < settings.theta_min or k > widest
        if not settings.score_theta_min:
            over = theta <= settings.theta_min or k >= _RELEASED_K
        if over and pairs:
            return pairs
        pairs.append((theta, min(k, widest)))
        step += 1


def layer_parts(neurons: NeuronSet) -> list[NeuronSet]:
    """Its layers, last to first."""
    return [neurons.only(layer) for layer in reversed(neurons.layers)]


def neuron_parts(neurons: NeuronSet) -> list[NeuronSet]:
    """Its neurons, last layer first, inside a layer by index."""
    layers = neurons.layers
    return [NeuronSet({layer: [i]}) for layer in reversed(layers) for i in layers[layer]]


def released_walk(
    ask: Verdicts, neurons: NeuronSet, limit: float, order: Order
) -> tuple[NeuronSet, list[NeuronSet]]:
    """What the released code walks of lists with doubles: (neurons still off, parts to try).

    Its walk removes one copy of a list's entry at a time. The first copy of a double changes
    nothing, so it goes exactly where the score is below the limit already, and the neuron is then
    tried at its second place; where the score still is at the limit (as it is when θ ran out),
    the copy stays, and so does the neuron. The score is below from the first drop on.
    Parameters: `neurons`, what is left of the lists; `order`, the lists.
    Source: the released code (difference 9).
    """
    entries = [
        (layer, index)
        for layer in reversed(neurons.layers)
        for index in order[layer]
        if (layer, index) in neurons
    ]
    seen: set[Neuron] = set()
    if ask.exact(neurons) >= limit:
        start = _first_drop(ask, neurons, limit, entries)
        neurons, seen = neurons - NeuronSet.of(entries[start - 1 : start]), set(entries[:start])
    last = [entry for entry in dict.fromkeys(reversed(entries)) if entry not in seen]
    return neurons, [NeuronSet.of([entry]) for entry in reversed(last)]


def _first_drop(ask: Verdicts, neurons: NeuronSet, limit: float, entries: list[Neuron]) -> int:
    """How many entries come up to the first that, alone, brings the score below; else past all."""
    count = Counter(entries)
    singles = [place for place, entry in enumerate(entries) if count[entry] == 1]
    for begin in range(0, len(singles), Walk.most):
        part = singles[begin : begin + Walk.most]
        alone = [neurons - NeuronSet.of([entries[place]]) for place in part]
        first = ask.first_below(alone, limit)
        if first < len(part):
            return part[first] + 1
    return len(entries) + 1


def joined(parts: Sequence[NeuronSet]) -> NeuronSet:
    """All neurons of the parts."""
    return NeuronSet.of(neuron for part in parts for neuron in part)


class Walk(ABC):
    """A search mode that asks for many sets at once; an instance is one walk over a set's parts.

    A walk re-activates parts in turn, for good where the score stays below the limit. Runs of parts
    that can be dropped alternate with runs that must stay: after a part that stays, the next ones
    are tried alone, all in one go, until one can be dropped. Verdicts up to the first surprise are
    those that trying one part after the other would give.

    Not all seeds are looked at on the way: only those whose score came near the limit when all
    were looked at last, and the leading one. After every few drops all seeds are looked at; where
    one that was not watched is above, it is watched from then on and the stretch walked again
    (what is known is not scored again).
    Attribute: `neurons`, what is still deactivated.
    """

    first, most = 2, 16  # parts tried at once: at first, and after runs without a surprise
    margin = 0.05  # a seed this close to the limit is watched; infinity: all of them, always
    stretch = 16  # parts dropped before all seeds are looked at

    def __init__(
        self, ask: Verdicts, neurons: NeuronSet, limit: float, report: Report | None = None
    ) -> None:
        self.ask, self.neurons, self.limit, self.report = ask, neurons, limit, report
        self.watch: list[int] = []
        self.done = self.total = 0
        self._dropping, self._ahead = True, self.first

    @classmethod
    def select(
        cls,
        ask: Verdicts,
        propose: Propose,
        threshold: float,
        settings: LocalizationSettings | None = None,
        widest: int = 1280,
        report: Report | None = None,
    ) -> Selection:
        """Algorithm 3; parameters and errors as `select_initial`, but for the verdicts it asks."""
        limit = math.nextafter(finite("threshold", threshold), math.inf)
        steps = schedule(settings or LocalizationSettings(), widest)

        def below(places: Sequence[int]) -> int:
            first = ask.first_below([propose(*steps[place]) for place in places], limit)
            if report:
                report([*places, places[-1]][first] + 1, len(steps))
            return first

        found = cls.find(len(steps), below)
        step = steps[min(found, len(steps) - 1)]
        proposed = propose(*step)
        reached = ask.exact(proposed)
        return Selection(proposed, *step, reached, threshold if found < len(steps) else reached)

    @classmethod
    def refine(
        cls,
        ask: Verdicts,
        candidates: NeuronSet,
        threshold: float,
        report: Report | None = None,
        initial_score: float = math.nan,
        order: Order | None = None,
    ) -> Refinement:
        """Algorithm 4; parameters and errors as `refine`, but for the verdicts it asks."""
        before = ask.asked
        walk = cls(ask, candidates, finite("threshold", threshold), report).over(order)
        failed = walk.verify()
        neurons, verified = walk.neurons, None if failed is None else True
        reached = initial_score if neurons == candidates else ask.exact(neurons)
        return Refinement(neurons, reached, ask.asked - before, verified, failed or NeuronSet())

    def over(self, order: Order | None) -> Walk:
        """Walk over the layers, then over the neurons of those left; returns the walk it ends with.

        Parameters: `order`, lists that the released code's walk follows, None: by index.
        """
        self.through(layer_parts(self.neurons))
        parts = neuron_parts(self.neurons)
        if order is not None:
            self.neurons, parts = released_walk(self.ask, self.neurons, self.limit, order)
        self.through(parts)
        return self

    @staticmethod
    @abstractmethod
    def find(count: int, first: First) -> int:
        """The first place of the schedule that holds, or `count`."""

    @abstractmethod
    def run(self, rest: Sequence[NeuronSet], ahead: int) -> tuple[int, int]:
        """How many parts of `rest` can be dropped before one must stay, and of how many tried."""

    def verify(self) -> NeuronSet | None:
        """Drop what the others make needless, and return that; None where a mode doesn't look."""
        return None

    def through(self, parts: Sequence[NeuronSet]) -> None:
        """Walk over these parts, in their order."""
        self.total, place = self.done + len(parts), 0
        while place < len(parts):
            place += self._sure(parts[place:])
            self.done = self.total - len(parts) + place
            if self.report:
                self.report(self.done, self.total)

    def _sure(self, parts: Sequence[NeuronSet]) -> int:
        """Walk a stretch, again with more seeds watched while one proves it wrong; its length."""
        before = self.neurons
        self.watch = self.ask.near(before, self.limit - self.margin)
        while True:
            walked = self._stretch(parts)
            if self.neurons == before or self.ask.exact(self.neurons) < self.limit:
                return walked
            self.watch = [*self.watch, self.ask.worst(self.neurons)]
            self.neurons = before

    def _stretch(self, parts: Sequence[NeuronSet]) -> int:
        """Walk until enough parts are dropped, on the seeds watched; how many were looked at."""
        place = dropped = 0
        while place < len(parts) and dropped < self.stretch:
            rest = parts[place:]
            run, looked = self.run(rest, self._ahead) if self._dropping else self._stay(rest)
            surprise = run < looked
            gone = rest[:run] if self._dropping else rest[run : run + surprise]
            self.neurons -= joined(gone)
            dropped, place = dropped + len(gone), place + run + surprise
            self._ahead = self.first if surprise else min(2 * self._ahead, self.most)
            self._dropping ^= surprise
        return place

    def _stay(self, rest: Sequence[NeuronSet]) -> tuple[int, int]:
        """How many parts must stay before one can be dropped, and of how many tried."""
        alone = [self.neurons - part for part in rest[: self._ahead]]
        return self.ask.first_below(alone, self.limit, self.watch), len(alone)
