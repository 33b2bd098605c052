"""The search mode `attributed`: what must stay is guessed from gradients, then measured.

Scope: Algorithm 4 in another order. One backward pass at the state "all candidates deactivated"
gives each candidate's first-order effect: how fast the score rises as its gate opens. Candidates
are re-activated in the order of least effect, so that what must stay gathers at the end of the
chain: doubling and halving find how few of the strongest suffice. Of these, each is re-activated
alone; those that prove unnecessary are walked in the order of that measured effect.

The sets differ from those of `sequential` where several sets would do, and are mostly smaller; each
is verified. The initial selection and the verification are those of `bisect`.
Source: ours; Algorithm 4 of "Finding NeMo" (arXiv 2406.02366) in the order of attribution.
"""

from __future__ import annotations

from collections.abc import Sequence

from nemo_kit.localization.search.halving import Halving, bisected, unnecessary
from nemo_kit.localization.search.steps import Order, Walk, joined
from nemo_kit.localization.verdicts import Verdicts
from nemo_kit.neurons import NeuronSet

VERSION = 1  # raised where results change (see nemo_kit.keys)

GRADIENTS = 2  # leading seeds whose gradient is taken


class Fewest(Walk):
    """Finds how few of the last parts are enough, by keeping 1, 2, 4, … and halving between."""

    find = staticmethod(bisected)

    def over(self, order: Order | None) -> Halving:
        """Keep the fewest of the strongest that suffice, then drop what proves unnecessary.

        `order` is not followed, as this mode has its own. Raises ValueError where `ask` has no
        `effects(neurons, seeds)`, as `Score` has.
        """
        self.through(by_effect(self.ask, self.neurons) if self.neurons else [])
        left = self.neurons
        loose = unnecessary(self.ask, left, self.limit, self.watch)
        loose.sort(key=lambda part: self.ask.highest(left - part))
        walk = Halving(self.ask, left, self.limit, self.report)
        walk.through(loose)
        return walk

    def _stretch(self, parts: Sequence[NeuronSet]) -> int:
        run, looked = self.run(parts, len(parts))
        self.neurons -= joined(parts[:run])
        return looked

    def run(self, rest: Sequence[NeuronSet], ahead: int) -> tuple[int, int]:
        def below(places: Sequence[int]) -> int:
            kept = [self.neurons - joined(rest[: ahead - 1 - place]) for place in places]
            return self.ask.first_below(kept, self.limit, self.watch)

        return max(ahead - 1 - bisected(ahead, below), 0), ahead


def by_effect(ask: Verdicts, candidates: NeuronSet) -> list[NeuronSet]:
    """Each candidate as a set of its own, that of the least effect first."""
    if not hasattr(ask, "effects"):
        raise ValueError("search 'attributed' needs a Score with effects=…, got none")
    effects = ask.effects(candidates, GRADIENTS)
    ranked = sorted(candidates, key=lambda neuron: (effects[neuron], neuron))
    return [NeuronSet.of([neuron]) for neuron in ranked]
