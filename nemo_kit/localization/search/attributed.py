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

from nemo_kit.localization.search.halving import Halving, doubled, halved, select
from nemo_kit.localization.search.steps import Order, Refinement, Report, Walk, joined
from nemo_kit.localization.search.verification import unnecessary, verified
from nemo_kit.localization.verdicts import ScoreFunction, Verdicts, finite, verdicts
from nemo_kit.neurons import NeuronSet

VERSION = 1  # raised where results change (see nemo_kit.keys)
__all__ = ["refine", "select"]

GRADIENTS = 2  # leading seeds whose gradient is taken


def refine(
    score: ScoreFunction | Verdicts,
    candidates: NeuronSet,
    threshold: float,
    report: Report | None = None,
    initial_score: float = math.nan,
    order: Order | None = None,
) -> Refinement:
    """Keep the fewest of the strongest candidates that suffice, then drop what is not needed.

    Returns, takes and raises what `sequential.refine` does; its `verified` is True; `order` is
    not followed, as this mode has its own. `score` must have `effects(neurons, seeds)`, as `Score`
    has: ValueError otherwise.
    Source: ours.
    """
    ask, limit = verdicts(score), finite("threshold", threshold)
    if not candidates:
        return Refinement(candidates, initial_score, 0, True)
    before = ask.asked
    walk = Fewest(ask, candidates, limit, report)
    walk.through(by_effect(score, candidates))
    loose = _by_measure(ask, walk)
    walk = Halving(ask, walk.neurons, limit, report)
    walk.through(loose)
    return verified(ask, walk, candidates, initial_score, before)


def by_effect(score: object, candidates: NeuronSet) -> list[NeuronSet]:
    """Each candidate as a set of its own, that of the least effect first."""
    if not hasattr(score, "effects"):
        raise ValueError("search 'attributed' needs a Score with effects=…, got none")
    effects = score.effects(candidates, GRADIENTS)
    ranked = sorted(candidates, key=lambda neuron: (effects[neuron], neuron))
    return [NeuronSet.of([neuron]) for neuron in ranked]


class Fewest(Walk):
    """Finds how few of the last parts are enough, by keeping 1, 2, 4, … and halving between."""

    def _stretch(self, parts: Sequence[NeuronSet]) -> int:
        run, looked = self.run(parts, len(parts))
        self.neurons -= joined(parts[:run])
        return looked

    def run(self, rest: Sequence[NeuronSet], ahead: int) -> tuple[int, int]:
        def below(places: Sequence[int]) -> int:
            kept = [self.neurons - joined(rest[: ahead - 1 - place]) for place in places]
            return self.ask.first_below(kept, self.limit, self.watch)

        kept = halved(*doubled(ahead, below), below)
        return max(ahead - 1 - kept, 0), ahead


def _by_measure(ask: Verdicts, walk: Walk) -> list[NeuronSet]:
    """The neurons left that prove unnecessary, by the score each leaves when re-activated alone."""
    loose = unnecessary(ask, walk.neurons, walk.limit, walk.watch)
    return sorted(loose, key=lambda part: ask.highest(walk.neurons - part))
