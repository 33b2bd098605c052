"""Mitigations of memorization behind one interface, NeMo among those it is compared with.

Scope: each is a frozen dataclass with `.name`, `.source`, `.protocol` and `.permanent`, applied by
`generate(model, prompts, seeds, mitigation=m)` and nothing left behind.
- `nemo`: NeMo, random neurons
- `prompts`: random tokens, random numbers, word repetition
- `embedding`: prompt embedding adjustment, embedding noise
- `attention`: attention scaling, attention masking, both together
- `noise`: initial-noise optimisation
- `wanda`: pruning of feed-forward weights
- `base`: what each is, and the rows of comparisons; `audit`: does an image come back
- `export`: a permanent one written into the weights
Source: "Finding NeMo" (arXiv 2406.02366), section 4; every mitigation names its own.
"""

from nemo_kit.mitigation.attention import (
    AttentionMasking,
    AttentionMaskingAndScaling,
    AttentionScaling,
)
from nemo_kit.mitigation.base import MITIGATIONS, Found, Mitigation, Neurons, table_rows
from nemo_kit.mitigation.embedding import EmbeddingAdjustment, EmbeddingNoise
from nemo_kit.mitigation.export import export
from nemo_kit.mitigation.nemo import NeMo, RandomNeurons
from nemo_kit.mitigation.noise import NoiseOptimisation
from nemo_kit.mitigation.prompts import RandomNumbers, RandomTokens, WordRepetition
from nemo_kit.mitigation.wanda import WandaPruning
