"""The search mode `speculative`: the sets of `sequential` from batched chains; the default.

Scope: Algorithms 3 and 4 by guessing verdicts ahead. While parts are being dropped, the chain
"first j parts re-activated" is scored in one go, and all verdicts up to the first set above the
threshold are exactly the sequential ones; while parts stay, the next ones are tried alone in one
go, exact up to the first that can be dropped. A chain that held doubles in length, a surprise
makes it short. A wrong guess costs one sample a set, as it is dropped after its leading seed.

The sets may differ from those of `sequential` in two ways, both rare: a score that equals the
threshold to the last digits, where a batch of another size rounds differently; and a seed far
below the threshold, not watched at the time (`Walk`), that rises above it and falls back within
one stretch. `Chain.margin = math.inf` watches all seeds always, for nearly twice the samples.
Source: "Finding NeMo" (arXiv 2406.02366), Algorithms 3 and 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

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
    """Widen the candidates as `sequential` does, scoring steps ahead: 1, then 2, 4, 8 …

    Returns, takes and raises what `sequential.select_initial` does.
    Source: Algorithm 3.
    """
    ask, limit = verdicts(score), above_threshold(finite("threshold", threshold))
    steps = schedule(settings or LocalizationSettings(), widest)
    start = 0
    while start < len(steps):
        ahead = [propose(*step) for step in steps[start : 2 * start + 1]]
        found = ask.first_below(ahead, limit)
        start += found
        if report:
            report(min(start + 1, len(steps)), len(steps))
        if found < len(ahead):
            return ended(ask, propose, steps[start], threshold)
    return ended(ask, propose, steps[-1], None)


def ended(
    ask: Verdicts, propose: Propose, step: tuple[float, int], threshold: float | None
) -> Selection:
    """The selection that ends at this step; without a threshold its score becomes the next one."""
    proposed = propose(*step)
    reached = ask.exact(proposed)
    return Selection(proposed, *step, reached, reached if threshold is None else threshold)


def refine(
    score: ScoreFunction | Verdicts,
    candidates: NeuronSet,
    threshold: float,
    report: Report | None = None,
    initial_score: float = math.nan,
    order: Order | None = None,
) -> Refinement:
    """Re-activate layers, then neurons, with the verdicts of `sequential`, in batches.

    Returns, takes and raises what `sequential.refine` does.
    Source: Algorithm 4.
    """
    ask = verdicts(score)
    before = ask.asked
    walk = Chain(ask, candidates, finite("threshold", threshold), report)
    walk.through(layer_parts(candidates))
    walk.neurons_through(order)
    reached = initial_score if walk.neurons == candidates else ask.exact(walk.neurons)
    return Refinement(walk.neurons, reached, ask.asked - before)


class Chain(Walk):
    """Tries the next parts in all lengths at once: exact, whatever the score does between."""

    def run(self, rest: Sequence[NeuronSet], ahead: int) -> tuple[int, int]:
        chain = [self.neurons - joined(rest[: n + 1]) for n in range(len(rest[:ahead]))]
        return self.ask.first_above(chain, self.limit, self.watch), len(chain)
