"""The planted neurons of one prompt, for the explorer's button that reveals them.

Scope: evaluation, after a person asked for it. The method never imports this.
"""

from __future__ import annotations

from nemo_kit import lab
from nemo_kit.neurons import NeuronSet


def reveal(prompt: str) -> NeuronSet:
    """The neurons that were planted for a prompt; empty where there are none.

    A natural memorized prompt has none: the model was only shown its image often.
    """
    return lab.planted().get(prompt, NeuronSet())
