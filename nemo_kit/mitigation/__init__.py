"""Mitigations of memorization behind one interface, NeMo among those it is compared with.

Scope: each is a frozen dataclass with `.name`, `.source` and `.permanent`, applied by
`generate(model, prompts, seeds, mitigation=m)` and nothing left behind.
- `nemo`: NeMo, its candidates, random neurons
- `prompts`: random tokens, random numbers, word repetition
- `rows`: the rows of the paper's table 1
Source: "Finding NeMo" (arXiv 2406.02366), section 4; every mitigation names its own.
"""

from nemo_kit.mitigation.base import Mitigation, NoMitigation
from nemo_kit.mitigation.nemo import InitialCandidates, NeMo, Neurons, RandomNeurons
from nemo_kit.mitigation.prompts import RandomNumbers, RandomTokens, WordRepetition
from nemo_kit.mitigation.rows import MITIGATIONS, paper_rows

__all__ = [
    "MITIGATIONS",
    "InitialCandidates",
    "Mitigation",
    "NeMo",
    "Neurons",
    "NoMitigation",
    "RandomNeurons",
    "RandomNumbers",
    "RandomTokens",
    "WordRepetition",
    "paper_rows",
]
