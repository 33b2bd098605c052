"""The search mode `bisect`: runs of parts to drop are found by doubling and halving.

Scope: Algorithms 3 and 4 in the order of the paper, where a run of parts that can be dropped is
tried whole, and so is twice the run, until one is too long; then halving finds its end.

The sets are those of `sequential` where the score never falls as neurons are re-activated along
the chain. Where it does, a run may be dropped over a part that alone would have stayed; so every
result is verified (`verification`).
Source: "Finding NeMo" (arXiv 2406.02366), Algorithms 3 and 4; doubling and halving are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from nemo_kit.localization.search.speculative import ended
from nemo_kit.localization.search.steps import (
    Order,
    Propose,
    Refinement,
    Report,
    Selection,
    Walk,
    above_threshold,
    joined,
    layer_parts,
    schedule,
)
from nemo_kit.localization.search.verification import verified
from nemo_kit.localization.verdicts import ScoreFunction, Verdicts, finite, verdicts
from nemo_kit.neurons import NeuronSet
from nemo_kit.settings import LocalizationSettings

VERSION = 1  # raised where results change (see nemo_kit.keys)


def select(
    score: ScoreFunction | Verdicts,
    propose: Propose,
    threshold: float,
    settings: LocalizationSettings | None = None,
    widest: int = 1280,
    report: Report | None = None,
) -> Selection:
    """Find a step below the threshold whose predecessor is above, by doubling and halving.

    Returns, takes and raises what `sequential.select_initial` does; the step is the same where the
    score never rises as the candidates widen.
    Source: Algorithm 3; doubling and halving are ours.
    """
    ask, limit = verdicts(score), above_threshold(finite("threshold", threshold))
    steps = schedule(settings or LocalizationSettings(), widest)

    def below(places: Sequence[int]) -> int:
        if report:
            report(places[-1] + 1, len(steps))
        return ask.first_below([propose(*steps[place]) for place in places], limit)

    found = halved(*doubled(len(steps), below), below)
    if found == len(steps):
        return ended(ask, propose, steps[-1], None)
    return ended(ask, propose, steps[found], threshold)


def doubled(count: int, first: Callable[[Sequence[int]], int]) -> tuple[int, int]:
    """Look at places 0, 1, 3, 7, … and the last, two at once, for the first that holds.

    Returns (last place that does not hold or −1, first that holds or `count`).
    Parameters: `first`, called with places, returns how many of them don't hold before one does.
    """
    places = [2**i - 1 for i in range(count.bit_length()) if 2**i - 1 < count - 1] + [count - 1]
    low = -1
    for start in range(0, len(places), 2):
        pair = places[start : start + 2]
        found = first(pair)
        low = pair[found - 1] if found else low
        if found < len(pair):
            return low, pair[found]
    return low, count


def halved(low: int, high: int, first: Callable[[Sequence[int]], int]) -> int:
    """Look half-way between a place that does not hold and one that does, until they meet.

    Returns the first place that holds, `high` where none between does.
    Parameters: `low`, `high`, `first`, as `doubled` returns and takes them.
    """
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if first([middle]) == 0 else (middle, high)
    return high


def refine(
    score: ScoreFunction | Verdicts,
    candidates: NeuronSet,
    threshold: float,
    report: Report | None = None,
    initial_score: float = math.nan,
    order: Order | None = None,
) -> Refinement:
    """Re-activate layers, then neurons, in runs found by doubling and halving; then verify.

    Returns, takes and raises what `sequential.refine` does; its `verified` is True.
    Source: Algorithm 4; doubling, halving and verification are ours.
    """
    ask = verdicts(score)
    before = ask.asked
    walk = Halving(ask, candidates, finite("threshold", threshold), report)
    walk.through(layer_parts(candidates))
    walk.neurons_through(order)
    return verified(ask, walk, candidates, initial_score, before)


class Halving(Walk):
    """Tries 1, 2, 4, … parts together until they are too many, and halves between."""

    margin, stretch = 0.0, 64  # less care on the way: the result is verified

    def run(self, rest: Sequence[NeuronSet], ahead: int) -> tuple[int, int]:
        def above(places: Sequence[int]) -> int:
            chain = [self.neurons - joined(rest[: place + 1]) for place in places]
            return self.ask.first_above(chain, self.limit, self.watch)

        return halved(*doubled(len(rest), above), above), len(rest)
