"""Tidy frames of activations: z-scores of value neurons, from the text side of a model alone.

Scope: one row a prompt and neuron, or a neuron and what became of it.
Source: Hintersdorf et al., "Finding NeMo", NeurIPS 2024, Algorithm 2, figures 1 and 2b.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nemo_kit.frames.prompts import need
from nemo_kit.neurons import NeuronSet

if TYPE_CHECKING:
    from nemo_kit.calibration import ActivationStatistics
    from nemo_kit.models import DiffusionModel


def z_table(
    model: DiffusionModel, prompts: pd.DataFrame, statistics: ActivationStatistics | None = None
) -> pd.DataFrame:
    """z-scores of all searched value neurons for each prompt, from the text side alone (F2b).

    Returns a frame with `prompt`, `group`, `layer`, `neuron`, `z`.

    Parameters: `model`; `prompts`, with `prompt` and `group`; `statistics`, by default those of the
    model's calibration.
    Raises ValueError for a missing column, or where there are no statistics.
    Source: paper, Algorithm 2.
    """
    from nemo_kit.localization.candidates import text_activations, z_scores

    need(prompts, "prompt", "group")
    known = statistics or (model.calibration and model.calibration.statistics)
    if known is None:
        raise ValueError(f"statistics must be given: the model {model.name!r} has none")
    scores = z_scores(text_activations(model, list(prompts["prompt"])), known)
    return pd.concat([_long(prompts, layer, z.numpy()) for layer, z in scores.items()])


def _long(prompts: pd.DataFrame, layer: int, z: np.ndarray) -> pd.DataFrame:
    count, width = z.shape
    repeated = prompts[["prompt", "group"]].iloc[np.repeat(np.arange(count), width)]
    neurons = np.tile(np.arange(width), count)
    return repeated.assign(layer=layer, neuron=neurons, z=z.ravel())


def layer_rows(z: pd.DataFrame, layer: int) -> pd.DataFrame:
    """The rows of one value layer of a `z_table`, z to four decimals; ValueError for none."""
    need(z, "layer", "z")
    rows = z[z["layer"] == layer]
    if rows.empty:
        raise ValueError(f"layer must be one of {sorted(z['layer'].unique())}, got {layer}")
    return rows.assign(z=rows["z"].round(4)).reset_index(drop=True)


def workflow_neurons(
    model: DiffusionModel, prompt: str, initial: NeuronSet, refined: NeuronSet
) -> pd.DataFrame:
    """All searched neurons of one prompt with z and what became of them (F1).

    Returns a frame with `layer`, `neuron`, `z`, `stage` (other, candidate, refined).

    Parameters: `model`; `prompt`; `initial` and `refined`, as `localize` found them.
    Raises ValueError as `z_table`.
    """
    table = z_table(model, pd.DataFrame({"prompt": [prompt], "group": ["VM"]}))
    pairs = list(zip(table["layer"], table["neuron"], strict=True))
    stages = [
        "refined" if p in refined else "candidate" if p in initial else "other" for p in pairs
    ]
    return table[["layer", "neuron", "z"]].assign(stage=stages).reset_index(drop=True)
