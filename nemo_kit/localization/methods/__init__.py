"""Localization methods of the field behind one interface, beside NeMo: who finds the neurons?

Scope: each is one file with a function under `@method("its name")`, called with model, prompt,
seeds and a budget of denoiser samples; it scores each searched neuron. `rank` calls one. A file or
notebook cell of one's own adds one. `z_score` and `activation` are the two halves of NeMo's
Algorithm 2 alone, `patching` is the exact reference, `chance` what all must beat; `base` and
`memory` (their losses) are what they share.
Source: each names its own.
"""

from nemo_kit.localization.methods import (
    activation,
    chance,
    gradient,
    hard_concrete,
    integrated,
    nemo,
    patching,
    slimming,
    wanda,
    z_score,
)
from nemo_kit.localization.methods.base import METHODS, Method, Ranking, method, rank
from nemo_kit.localization.methods.memory import LOSSES, Memory
