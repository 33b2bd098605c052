"""Questions about neuron sets, answered from as few seeds as the answer needs.

Scope: what the search modes ask. A set is above a limit where one seed's score is at least the
limit, below where all of them are below, so seeds are asked in the order of their last score and
the asking stops at the first one above. What was scored once is kept.
Source: "Finding NeMo" (arXiv 2406.02366), Algorithms 3 and 4: a set's score is the maximum over
the seeds that memorize.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from nemo_kit.neurons import NeuronSet


class Verdicts(ABC):
    """Yes-or-no questions about neuron sets, over seeds numbered from 0.

    Called with a list of sets it returns their scores, [sets], all seeds scored.
    Parameters: `seeds`, how many there are; `together`, a set's seeds can't be scored apart.
    """

    def __init__(self, seeds: int, together: bool = False) -> None:
        self.seeds, self._together = seeds, together
        self._known: dict[NeuronSet, dict[int, float]] = {}  # set -> seed -> score
        self._last = [-math.inf] * seeds

    @abstractmethod
    def evaluate(self, sets: Sequence[NeuronSet], seeds: Sequence[int]) -> list[float]:
        """The score of each pair of a set and a seed."""

    def __call__(self, sets: Sequence[NeuronSet]) -> Tensor:
        return self.per_seed(sets).amax(dim=1)

    def per_seed(self, sets: Sequence[NeuronSet]) -> Tensor:
        """The score of each set and seed: [sets, seeds], float32 on the CPU."""
        self._fill(sets, range(self.seeds))
        rows = [[self._known[one][seed] for seed in range(self.seeds)] for one in sets]
        return torch.tensor(rows).reshape(len(sets), self.seeds)

    @property
    def asked(self) -> int:
        """Different sets scored so far, on one seed at least."""
        return len(self._known)

    def leading(self, watch: Sequence[int] | None = None) -> list[int]:
        """The seeds (of `watch`, by default all) by their last score, highest first."""
        return sorted(range(self.seeds) if watch is None else watch, key=lambda i: -self._last[i])

    def exact(self, neurons: NeuronSet) -> float:
        """The set's score: the maximum over all seeds."""
        self._fill([neurons], range(self.seeds))
        return max(self._known[neurons].values())

    def worst(self, neurons: NeuronSet) -> int:
        """The seed with the set's highest score, all of them scored."""
        self.exact(neurons)
        return max(self._known[neurons], key=self._known[neurons].__getitem__)

    def highest(self, neurons: NeuronSet) -> float:
        """The highest score of the set so far, −∞ where none is known; asks nothing."""
        return max(self._known.get(neurons, {}).values(), default=-math.inf)

    def near(self, neurons: NeuronSet, bound: float) -> list[int]:
        """The leading seed, and all that score the set at the bound or above, or not at all yet.

        Asks nothing.
        """
        known = self._known.get(neurons, {})
        first, *others = self.leading()
        return [first, *(i for i in others if known.get(i, bound) >= bound)]

    def above(
        self, sets: Sequence[NeuronSet], limit: float, watch: Sequence[int] | None = None
    ) -> list[bool]:
        """Of each set, whether a seed's score is at least the limit.

        Parameters: `watch`, the seeds to look at, by default all; "above" is then still certain,
        "below" holds for the seeds watched.
        """
        for group in self._groups(watch):
            self._fill([one for one in sets if self.highest(one) < limit], group)
        return [self.highest(one) >= limit for one in sets]

    def first_above(
        self, chain: Sequence[NeuronSet], limit: float, watch: Sequence[int] | None = None
    ) -> int:
        """The place of the first set above the limit, or the chain's length.

        Sets behind one that is known to be above are asked no further. `watch` as in `above`.
        """
        end = len(chain)
        for group in self._groups(watch):
            self._fill([one for one in chain[:end] if self.highest(one) < limit], group)
            end = next((i for i in range(end) if self.highest(chain[i]) >= limit), end)
        return end

    def first_below(
        self, sets: Sequence[NeuronSet], limit: float, watch: Sequence[int] | None = None
    ) -> int:
        """The place of the first set below the limit, or their number.

        The leading seed is asked for all sets at once, the others only for sets it leaves open
        and that come before the first one below. `watch` as in `above`.
        """
        self._fill([one for one in sets if self.highest(one) < limit], self._groups(watch)[0])
        return next(
            (i for i, s in enumerate(sets) if not self.above([s], limit, watch)[0]), len(sets)
        )

    def _groups(self, watch: Sequence[int] | None) -> list[list[int]]:
        """Seeds in the order they are asked: one first, then the others, as one often decides."""
        if self._together:
            return [list(range(self.seeds))]
        order = self.leading(watch)
        return [group for group in (order[:1], order[1:]) if group]

    def _fill(self, sets: Sequence[NeuronSet], seeds: Sequence[int]) -> None:
        """Score what is not known yet of these sets and seeds, all in one go."""
        todo = [
            (one, seed)
            for one in dict.fromkeys(sets)
            for seed in seeds
            if seed not in self._known.get(one, {})
        ]
        if not todo:
            return
        for (one, seed), score in zip(todo, self.evaluate(*zip(*todo, strict=True)), strict=True):
            self._known.setdefault(one, {})[seed] = self._last[seed] = finite("score", score)


def finite(name: str, value: float) -> float:
    """The value; raises ValueError where it is not finite."""
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value!r}")
    return value
