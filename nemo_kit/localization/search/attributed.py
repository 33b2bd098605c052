"""The search mode `attributed`: what must stay is guessed from gradients, then measured.

Scope: Algorithm 4 in another order. One backward pass at the state "all candidates deactivated"
gives each candidate's first-order effect: how fast the score rises as its gate opens. Candidates
are re-activated in the order of least effect, so that what must stay gathers at the end of the
chain: doubling and halving find how few of the strongest suffice. Of these, each is re-activated
alone; those that prove unnecessary are walked in the order of that measured effect.

The sets differ from those of `sequential` where several sets would do, and are mostly smaller; each
is verified (`verification`). The initial selection is that of `bisect`.
Source: ours; Algorithm 4 of "Finding NeMo" (arXiv 2406.02366) in the order of attribution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from nemo_kit.localization.search.halving import Halving, confirmed, doubled, select
from nemo_kit.localization.search.steps import Refinement, Report, joined
from nemo_kit.localization.verdicts import ScoreFunction, Verdicts, finite, verdicts
from nemo_kit.neurons import NeuronSet

__all__ = ["refine", "select"]

GRADIENTS = 2  # leading seeds whose gradient is taken


def refine(
    score: ScoreFunction | Verdicts,
    candidates: NeuronSet,
    threshold: float,
    report: Report | None = None,
    initial_score: float = math.nan,
) -> Refinement:
    """Keep the fewest of the strongest candidates that suffice, then drop what is not needed.

    Returns, takes and raises what `sequential.refine` does; its `verified` is True. `score` must
    have `effects(neurons, seeds)`, as `Score` has: ValueError otherwise.
    Source: ours.
    """
    ask, limit = verdicts(score), finite("threshold", threshold)
    if not candidates:
        return Refinement(candidates, initial_score, 0, True)
    order = by_effect(score, candidates)

    def find(watch: Sequence[int]) -> NeuronSet:
        strongest = _fewest(ask, order, limit, watch)
        if report:
            report(len(candidates) - len(strongest), len(candidates))
        return _pruned(ask, strongest, limit, watch, report)

    return confirmed(ask, candidates, limit, find, initial_score)


def by_effect(score: object, candidates: NeuronSet) -> list[NeuronSet]:
    """Each candidate as a set of its own, the strongest effect first."""
    if not hasattr(score, "effects"):
        raise ValueError("search 'attributed' needs a Score with effects=…, got none")
    effects = score.effects(candidates, GRADIENTS)
    ranked = sorted(candidates, key=lambda neuron: (-effects[neuron], neuron))
    return [NeuronSet.of([neuron]) for neuron in ranked]


def _fewest(
    ask: Verdicts, order: Sequence[NeuronSet], limit: float, watch: Sequence[int]
) -> NeuronSet:
    """The strongest of the order, as few as are below the limit when deactivated."""

    def below(places: Sequence[int]) -> int:
        return ask.first_below([joined(order[: p + 1]) for p in places], limit, watch)

    low, high = doubled(len(order), below)
    while high - low > 1 and high < len(order):
        middle = (low + high) // 2
        low, high = (low, middle) if below([middle]) == 0 else (middle, high)
    return joined(order[: high + 1])


def _pruned(
    ask: Verdicts, neurons: NeuronSet, limit: float, watch: Sequence[int], report: Report | None
) -> NeuronSet:
    """Without those that prove unnecessary, tried in the order of the score each leaves alone."""
    parts = [NeuronSet.of([neuron]) for neuron in neurons]
    needed = ask.above([neurons - part for part in parts], limit, watch)
    loose = [part for part, above in zip(parts, needed, strict=True) if not above]
    walk = Halving(ask, neurons, limit, watch, report)
    walk.through(sorted(loose, key=lambda part: ask.highest(neurons - part)))
    return walk.neurons
