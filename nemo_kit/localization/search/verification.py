"""The verification pass: every neuron left is necessary, and all of them together suffice.

Scope: checks a result, and walks what fails once more in the paper's way, until nothing fails.
Source: ours; the claim is Algorithm 4's, made about the set that is returned in the end.
"""

from __future__ import annotations

from collections.abc import Sequence

from nemo_kit.localization.search.speculative import Chain
from nemo_kit.localization.search.steps import Refinement, Walk, neuron_parts
from nemo_kit.localization.verdicts import Verdicts
from nemo_kit.neurons import NeuronSet


def unnecessary(
    ask: Verdicts, neurons: NeuronSet, limit: float, watch: Sequence[int] | None = None
) -> list[NeuronSet]:
    """The neurons that, re-activated alone, leave the score below the limit, last layer first.

    Parameters: `watch`, the seeds to look at, by default all.
    """
    parts = neuron_parts(neurons)
    needed = ask.above([neurons - part for part in parts], limit, watch)
    return [part for part, above in zip(parts, needed, strict=True) if not above]


def verified(
    ask: Verdicts, walk: Walk, candidates: NeuronSet, initial_score: float, before: int
) -> Refinement:
    """The walk's result without what it does not need, and what failed on the way there.

    Returns a `Refinement` whose every neuron is necessary and whose score is below the limit
    (or all candidates). What the leading seed doesn't prove necessary is walked as in `sequential`,
    one neuron after the other and with all seeds looked at; then all is looked at again, as it may
    hold no longer. It ends: a walk that drops nothing has seen each of its neurons above the limit.
    Parameters: `initial_score`, that of the candidates; `before`, sets asked before refinement.
    """
    neurons, failed = walk.neurons, NeuronSet()
    while loose := unnecessary(ask, neurons, walk.limit, ask.near(neurons, walk.limit)):
        again = Chain(ask, neurons, walk.limit, walk.report)
        again.through(loose)
        failed |= neurons - again.neurons
        neurons = again.neurons
    reached = initial_score if neurons == candidates else ask.exact(neurons)
    return Refinement(neurons, reached, ask.asked - before, True, failed)
