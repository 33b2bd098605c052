"""The verification pass: every neuron left is necessary, and all of them together suffice.

Scope: checks a result, and walks what fails once more in the paper's way, until nothing fails.
Source: ours; the claim is Algorithm 4's, made about the set that is returned in the end.
"""

from __future__ import annotations

from collections.abc import Sequence

from nemo_kit.localization.search.speculative import Chain
from nemo_kit.localization.search.steps import Walk, neuron_parts
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


def verified(walk: Walk) -> tuple[NeuronSet, NeuronSet]:
    """The walk's neurons without those they do not need, and what failed on the way there.

    Every neuron is necessary then. What the leading seed doesn't prove necessary is walked as in
    `sequential`, one neuron after the other and with all seeds looked at; then all is looked at
    again, as it may hold no longer. It ends: a walk that drops nothing has seen each of its neurons
    above the limit.
    """
    ask, neurons, failed = walk.ask, walk.neurons, NeuronSet()
    while loose := unnecessary(ask, neurons, walk.limit, ask.near(neurons, walk.limit)):
        again = Chain(ask, neurons, walk.limit, walk.report)
        again.through(loose)
        failed |= neurons - again.neurons
        neurons = again.neurons
    return neurons, failed
