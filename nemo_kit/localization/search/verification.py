"""The verification pass: every neuron left is necessary, and all of them together suffice.

Scope: checks a result, and walks what fails once more in the paper's way, until nothing fails.
Source: ours; the claim is Algorithm 4's, made about the set that is returned in the end.
"""

from __future__ import annotations

from nemo_kit.localization.search.steps import neuron_parts
from nemo_kit.localization.verdicts import Verdicts
from nemo_kit.neurons import NeuronSet


def unnecessary(ask: Verdicts, neurons: NeuronSet, limit: float) -> list[NeuronSet]:
    """The neurons that, re-activated alone, leave the score below the limit, last layer first."""
    parts = neuron_parts(neurons)
    needed = ask.above([neurons - part for part in parts], limit)
    return [part for part, above in zip(parts, needed, strict=True) if not above]


def settled(ask: Verdicts, neurons: NeuronSet, limit: float) -> tuple[NeuronSet, NeuronSet]:
    """The set without what it does not need, and the neurons that failed on the way there.

    Returns (neurons, neurons that failed); of the first every one is necessary. What fails is
    walked as in `sequential`, one neuron after the other, on all seeds; then all is looked at
    again, as it may hold no longer.
    Parameters: `neurons`, with a score below the limit, or all candidates.
    """
    failed = NeuronSet()
    while loose := unnecessary(ask, neurons, limit):
        for part in loose:
            failed |= part
            if not ask.above([neurons - part], limit)[0]:
                neurons -= part
    return neurons, failed
