"""The mitigations by name, the rows of the paper's table 1, and those that the field adds.

Source: "Finding NeMo" (arXiv 2406.02366), table 1.
"""

from __future__ import annotations

from nemo_kit.mitigation.attention import (
    AttentionMasking,
    AttentionMaskingAndScaling,
    AttentionScaling,
)
from nemo_kit.mitigation.base import Mitigation, NoMitigation
from nemo_kit.mitigation.embedding import EmbeddingAdjustment, EmbeddingNoise
from nemo_kit.mitigation.nemo import InitialCandidates, NeMo, Neurons, RandomNeurons
from nemo_kit.mitigation.noise import NoiseOptimisation
from nemo_kit.mitigation.prompts import RandomNumbers, RandomTokens, WordRepetition
from nemo_kit.mitigation.wanda import WandaPruning

_KINDS: tuple[type[Mitigation], ...] = (
    NoMitigation,
    EmbeddingAdjustment,
    RandomNeurons,
    AttentionScaling,
    RandomTokens,
    NeMo,
    InitialCandidates,
    AttentionMasking,
    AttentionMaskingAndScaling,
    RandomNumbers,
    WordRepetition,
    EmbeddingNoise,
    NoiseOptimisation,
    WandaPruning,
)
MITIGATIONS: dict[str, type[Mitigation]] = {kind.name: kind for kind in _KINDS}


def paper_rows(found: Neurons, seed: int = 0, overflow: bool = False) -> dict[str, Mitigation]:
    """The rows of table 1, in the paper's order.

    Returns row label -> mitigation.
    Parameters: `found`, what NeMo found: prompt -> refined neurons, or one set for all; `seed`,
    of random neurons and tokens; `overflow`, of random neurons.
    Raises TypeError for other neurons, ValueError for a negative seed.
    Source: table 1.
    """
    return {
        "default": NoMitigation(),
        "prompt embedding adjustment": EmbeddingAdjustment(),
        "random neurons": RandomNeurons(found, seed=seed, overflow=overflow),
        "attention scaling": AttentionScaling(),
        "1 random token": RandomTokens(1, seed),
        "4 random tokens": RandomTokens(4, seed),
        "10 random tokens": RandomTokens(10, seed),
        "NeMo": NeMo(found),
    }


def further_rows(initial: Neurons | None = None, seed: int = 0) -> dict[str, Mitigation]:
    """Mitigations that table 1 doesn't have, in the same form.

    Parameters: `initial`, NeMo's initial candidates, without which that row is left out; `seed`,
    of the draws.
    Raises TypeError for other neurons, ValueError for a negative seed.
    Source: table 4 (initial candidates); the others name their own.
    """
    first = {} if initial is None else {"initial candidates": InitialCandidates(initial)}
    return {
        **first,
        "attention masking": AttentionMasking(),
        "attention masking and scaling": AttentionMaskingAndScaling(),
        "random numbers": RandomNumbers(seed=seed),
        "word repetition": WordRepetition(seed=seed),
        "embedding noise": EmbeddingNoise(seed=seed),
        "initial-noise optimisation": NoiseOptimisation(),
        "Wanda pruning": WandaPruning(),
    }
