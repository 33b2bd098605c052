"""Frames of the neuron atlas: large sets, shared neurons, who uses which neuron, who drives one.

Scope: from results per prompt; `neuron_prompts` asks a model, and only its text side.
Source: Hintersdorf et al., "Finding NeMo", NeurIPS 2024, figures 9 to 12.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from nemo_kit.frames import found
from nemo_kit.frames.prompts import need
from nemo_kit.neurons import Neuron, NeuronSet, frequency

if TYPE_CHECKING:
    from nemo_kit.models import DiffusionModel

LINKS = ["prompt", "group", "layer", "neuron"]


def largest(localized: pd.DataFrame, most: int = 6) -> pd.DataFrame:
    """The prompts with the most refined neurons, most first (F9).

    Returns up to so many rows of the results.
    Parameters: `localized`, from `localize_all`, grouped.
    Raises ValueError as `frames.found`, and where no prompt has a neuron.
    Source: figure 9 (prompts with over 100 neurons).
    """
    rows = _with_neurons(localized)
    order = rows["refined"].map(len).sort_values(ascending=False, kind="stable").index
    return rows.loc[order[:most]].reset_index(drop=True)


def links(localized: pd.DataFrame) -> pd.DataFrame:
    """One row for each memorized prompt and refined neuron of it: the bipartite graph.

    Returns a frame with `prompt`, `group`, `layer`, `neuron`.
    Parameters and errors as `largest`.
    """
    rows = [
        (row.prompt, row.group, layer, index)
        for row in _with_neurons(localized).itertuples()
        for layer, index in row.refined
    ]
    return pd.DataFrame(rows, columns=LINKS)


def shared_neurons(localized: pd.DataFrame) -> pd.DataFrame:
    """Refined neurons by the number of prompts they serve, most first.

    Returns a frame with `layer`, `neuron`, `prompts`.
    Parameters: `localized`, from `localize_all`, grouped. Raises ValueError as `frames.found`.
    Source: section 4 and figures 10 to 12.
    """
    return frequency(found(localized)["refined"])


def shared_groups(localized: pd.DataFrame, groups: int = 3) -> list[tuple[NeuronSet, list[str]]]:
    """Neurons that are most of what several prompts need, with these prompts (F10 to F12).

    A neuron counts for each prompt with the share it is of the prompt's neurons: one that is all of
    seven prompts' sets comes before one among dozens in ten. Each entry holds the first by this
    count with all others that serve exactly the same prompts, and the prompts, smallest sets first;
    the next entry is found among the prompts that are left, so its neurons may also serve prompts
    of earlier entries, which it does not name.
    Returns up to `groups` entries, none where no neuron serves two prompts.
    Parameters: `localized`, from `localize_all`, grouped. Raises ValueError as `frames.found`.
    """
    rows = found(localized)
    entries: list[tuple[NeuronSet, list[str]]] = []
    while len(entries) < groups and (entry := _most_shared(rows)):
        entries.append(entry)
        rows = rows[~rows["prompt"].isin(entry[1])]
    return entries


def _most_shared(rows: pd.DataFrame) -> tuple[NeuronSet, list[str]] | None:
    sizes = dict(zip(rows["prompt"], rows["refined"].map(len), strict=True))
    owners: dict[Neuron, list[str]] = {}
    for row in rows.itertuples():
        for neuron in row.refined:
            owners.setdefault(neuron, []).append(row.prompt)
    several = [who for who in owners.values() if len(who) > 1]
    if not several:
        return None
    prompts = max(several, key=lambda who: sum(1 / sizes[prompt] for prompt in who))
    neurons = NeuronSet.of(neuron for neuron, who in owners.items() if who == prompts)
    return neurons, sorted(prompts, key=sizes.__getitem__)


def chosen_neuron(localized: pd.DataFrame, name: str = "") -> Neuron:
    """A neuron by name, ``3:63`` for neuron 63 of layer 3; without one the first of F10.

    Returns (layer, index). Raises ValueError for another form, and as `links`.
    """
    if match := re.fullmatch(r"(\d+):(\d+)", name.strip()):
        return int(match[1]), int(match[2])
    if name.strip():
        raise ValueError(f'neuron must be "LAYER:INDEX", as "3:63", or empty; got {name!r}')
    first = shared_groups(localized, 1)
    table = links(localized)
    return next(iter(first[0][0])) if first else (table["layer"][0], table["neuron"][0])


def neuron_prompts(
    model: DiffusionModel,
    prompts: pd.DataFrame,
    localized: pd.DataFrame,
    neuron: Neuron,
    most: int = 12,
) -> pd.DataFrame:
    """The prompts that drive a neuron most, and its part of its layer there.

    Returns a frame with `layer`, `neuron`, `prompt`, `group`, `activation` (mean over tokens of
    |output|), `z`, `share` (of the layer's summed activation, in [0, 1]), `serves` (whether it is
    among the prompt's refined neurons), strongest first.
    Parameters: `model`, with a calibration; `prompts`, those to compare, with `prompt` and `group`;
    `localized`, from `localize_all`; `neuron`, (layer, index); `most`, rows.
    Raises ValueError for a neuron that doesn't exist, or without statistics.
    Source: Algorithm 2.
    """
    from nemo_kit.localization.candidates import text_activations, z_scores

    need(prompts, "prompt", "group")
    layer, index = neuron
    NeuronSet({layer: [index]}).check({p.index: p.width for p in model.searched})
    known = model.calibration and model.calibration.statistics
    if known is None:
        raise ValueError(f"model: {model.name!r} has no activation statistics; calibrate it")
    all_activations = text_activations(model, list(prompts["prompt"]))
    activations = all_activations[layer]  # [prompts, width]
    sets = dict(zip(localized["prompt"], localized["refined"], strict=True))
    table = prompts[["prompt", "group"]].assign(
        activation=activations[:, index].numpy(),
        z=z_scores(all_activations, known)[layer][:, index].numpy(),
        share=(activations[:, index] / activations.sum(dim=1)).numpy(),
        serves=[neuron in sets.get(prompt, NeuronSet()) for prompt in prompts["prompt"]],
    )
    table.insert(0, "layer", layer)
    table.insert(1, "neuron", index)
    order = table["activation"].sort_values(ascending=False, kind="stable").index
    return table.loc[order[:most]].reset_index(drop=True)


def layer_shares(
    localized: pd.DataFrame, widths: Sequence[int], neuron: Neuron | None = None
) -> pd.DataFrame:
    """How much of each layer memorizes, and how much of that one neuron makes up.

    Returns a frame with `layer`, `neurons` (the layer has), `one` and `several` (of them, those
    that serve one prompt or more), `links` (prompt–neuron pairs), `chosen` (of these, the chosen
    neuron's), `share` (chosen of links, in [0, 1]).
    Parameters: `localized`, from `localize_all`, grouped; `widths`, neurons of layers 1, 2, …;
    `neuron`, (layer, index). Raises ValueError as `links`.
    """
    table = links(localized)
    served = table.groupby(["layer", "neuron"]).size()
    rows = []
    for layer, width in enumerate(widths, start=1):
        here = served[served.index.get_level_values("layer") == layer]
        chosen = int(served.get(neuron, 0)) if neuron and neuron[0] == layer else 0
        one, several = int((here == 1).sum()), int((here > 1).sum())
        rows.append((layer, width, one, several, int(here.sum()), chosen))
    frame = pd.DataFrame(rows, columns=["layer", "neurons", "one", "several", "links", "chosen"])
    return frame.assign(share=frame["chosen"] / np.maximum(frame["links"], 1))


def _with_neurons(localized: pd.DataFrame) -> pd.DataFrame:
    rows: Any = found(localized)
    rows = rows[rows["refined"].map(bool)].reset_index(drop=True)
    if rows.empty:
        raise ValueError("localized has no prompt with refined neurons")
    return rows
