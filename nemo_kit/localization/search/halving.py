"""The search mode `bisect`: runs of parts to drop are found by doubling and halving.

Scope: Algorithms 3 and 4 in the order of the paper, where a run of parts that can be dropped is
tried whole, and so is twice the run, until one is too long; then halving finds its end.

The sets are those of `sequential` where the score never falls as neurons are re-activated along
the chain. Where it does, a run may be dropped over a part that alone would have stayed; so every
result is verified: every neuron left is necessary, and all of them together suffice.
Source: "Finding NeMo" (arXiv 2406.02366), Algorithms 3 and 4; doubling and halving are ours, and so
is the verification, of what Algorithm 4 claims about the set that is returned in the end.
"""

from __future__ import annotations

from collections.abc import Sequence

from nemo_kit.localization.search.speculative import Chain
from nemo_kit.localization.search.steps import First, Walk, joined, neuron_parts
from nemo_kit.localization.verdicts import Verdicts
from nemo_kit.neurons import NeuronSet

VERSION = 1  # raised where results change (see nemo_kit.keys)


def bisected(count: int, first: First) -> int:
    """The first place that holds, or `count`: by doubling, then halving.

    Looks at places 0, 1, 3, 7, … and the last, two at once, then half-way between the last that
    does not hold and the first that does. It is the first of all only where each place behind one
    that holds does, too.
    Parameters: `first`, called with places, returns how many of them don't hold before one does.
    """
    places = [2**i - 1 for i in range(count.bit_length()) if 2**i - 1 < count - 1] + [count - 1]
    low, high = -1, count
    for start in range(0, len(places), 2):
        pair = places[start : start + 2]
        found = first(pair)
        low = pair[found - 1] if found else low
        if found < len(pair):
            high = pair[found]
            break
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if first([middle]) == 0 else (middle, high)
    return high


class Halving(Walk):
    """Tries 1, 2, 4, … parts together until they are too many, and halves between."""

    margin, stretch = 0.0, 64  # less care on the way: the result is verified
    find = staticmethod(bisected)

    def run(self, rest: Sequence[NeuronSet], ahead: int) -> tuple[int, int]:
        def above(places: Sequence[int]) -> int:
            chain = [self.neurons - joined(rest[: place + 1]) for place in places]
            return self.ask.first_above(chain, self.limit, self.watch)

        return bisected(len(rest), above), len(rest)

    def verify(self) -> NeuronSet:
        """Drop the neurons that are not needed; returns those, and each neuron left is necessary.

        What the leading seed doesn't prove necessary is walked as in `sequential`, one neuron after
        the other and with all seeds looked at; then all is looked at again, as it may hold no
        longer. It ends: a walk that drops nothing has seen each of its neurons above the limit.
        """
        ask, start = self.ask, self.neurons
        while loose := unnecessary(
            ask, self.neurons, self.limit, ask.near(self.neurons, self.limit)
        ):
            again = Chain(ask, self.neurons, self.limit, self.report)
            again.through(loose)
            self.neurons = again.neurons
        return start - self.neurons


def unnecessary(
    ask: Verdicts, neurons: NeuronSet, limit: float, watch: Sequence[int] | None = None
) -> list[NeuronSet]:
    """The neurons that, re-activated alone, leave the score below the limit, last layer first.

    Parameters: `watch`, the seeds to look at, by default all.
    """
    parts = neuron_parts(neurons)
    needed = ask.above([neurons - part for part in parts], limit, watch)
    return [part for part, above in zip(parts, needed, strict=True) if not above]
