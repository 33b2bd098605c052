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

from collections.abc import Sequence

from nemo_kit.localization.search.steps import First, Walk, joined
from nemo_kit.neurons import NeuronSet

VERSION = 1  # raised where results change (see nemo_kit.keys)


class Chain(Walk):
    """Tries the next parts in all lengths at once: exact, whatever the score does between."""

    @staticmethod
    def find(count: int, first: First) -> int:
        """The first place that holds, or `count`, looking at 1, then 2, 4, 8 … places at once."""
        start = 0
        while start < count:
            places = range(start, min(2 * start + 1, count))
            found = first(places)
            start += found
            if found < len(places):
                break
        return start

    def run(self, rest: Sequence[NeuronSet], ahead: int) -> tuple[int, int]:
        chain = [self.neurons - joined(rest[: n + 1]) for n in range(len(rest[:ahead]))]
        return self.ask.first_above(chain, self.limit, self.watch), len(chain)
