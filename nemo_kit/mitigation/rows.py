"""The mitigations by name, and the rows of the paper's table 1.

Source: "Finding NeMo" (arXiv 2406.02366), table 1.
"""

from __future__ import annotations

from nemo_kit.mitigation.base import Mitigation, NoMitigation
from nemo_kit.mitigation.nemo import InitialCandidates, NeMo, Neurons, RandomNeurons
from nemo_kit.mitigation.prompts import RandomNumbers, RandomTokens, WordRepetition

_KINDS: tuple[type[Mitigation], ...] = (
    NoMitigation,
    RandomNeurons,
    RandomTokens,
    NeMo,
    InitialCandidates,
    RandomNumbers,
    WordRepetition,
)
MITIGATIONS: dict[str, type[Mitigation]] = {kind.name: kind for kind in _KINDS}


def paper_rows(found: Neurons, seed: int = 0) -> dict[str, Mitigation]:
    """The rows of table 1, in the paper's order.

    Returns row label -> mitigation.
    Parameters: `found`, what NeMo found: prompt -> refined neurons, or one set for all; `seed`,
    of random neurons and tokens.
    Raises TypeError for other neurons, ValueError for a negative seed.
    Source: table 1.
    """
    return {
        "default": NoMitigation(),
        "random neurons": RandomNeurons(found, seed=seed),
        "1 random token": RandomTokens(1, seed),
        "4 random tokens": RandomTokens(4, seed),
        "10 random tokens": RandomTokens(10, seed),
        "NeMo": NeMo(found),
    }
