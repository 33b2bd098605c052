"""Tidy frames of localization: neurons by prompt and layer, cost, verdicts, comparison with truth.

Scope: reshaping what `localize_all` gave; no model is asked.
Source: Hintersdorf et al., "Finding NeMo", NeurIPS 2024, figures 3, 4 and 7, table 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from nemo_kit.frames.prompts import need
from nemo_kit.metrics import localization_quality
from nemo_kit.neurons import NeuronSet

ALGORITHMS = {
    "detect": "1 noise differences",
    "activations": "2 activations",
    "select": "3 initial selection",
    "refine": "4 refinement",
}


def found(localized: pd.DataFrame) -> pd.DataFrame:
    """The VM and TM prompts that were taken for memorized; ValueError where there is none.

    Others that were flagged are false alarms: `verdicts` counts them.
    """
    need(localized, "prompt", "group", "memorized", "initial", "refined")
    rows = localized[localized["memorized"] & localized["group"].isin(["VM", "TM"])]
    if rows.empty:
        raise ValueError("localized has no VM or TM prompt that was taken for memorized")
    return rows.reset_index(drop=True)


def neuron_counts(localized: pd.DataFrame) -> pd.DataFrame:
    """Numbers of initial and refined neurons of each memorized prompt (F4a, F7).

    Returns a frame with `prompt`, `group`, `initial`, `refined`, `theta`.
    Parameters: `localized`, from `localize_all`, grouped. Raises ValueError as `found`.
    """
    rows = found(localized)
    counts = {name: rows[name].map(len) for name in ("initial", "refined")}
    return rows[["prompt", "group", "theta"]].assign(**counts)


def neurons_by_layer(localized: pd.DataFrame, layers: int = 7) -> pd.DataFrame:
    """Numbers of refined neurons of each memorized prompt and layer (F4b).

    Returns a frame with `prompt`, `group`, `layer` (1 to `layers`), `neurons` (0 or more).
    Parameters: `localized`, from `localize_all`, grouped. Raises ValueError as `found`.
    """
    rows = [
        (row.prompt, row.group, layer, row.refined.counts().get(layer, 0))
        for row in found(localized).itertuples()
        for layer in range(1, layers + 1)
    ]
    return pd.DataFrame(rows, columns=["prompt", "group", "layer", "neurons"])


def costs(localized: pd.DataFrame) -> pd.DataFrame:
    """Seconds and denoiser samples of each algorithm for each memorized prompt (T2).

    Returns a frame with `prompt`, `group`, `algorithm`, `seconds`, `samples`.
    Parameters: `localized`, from `localize_all`, grouped. Raises ValueError as `found`.
    Source: paper, table 2.
    """
    rows = found(localized)
    parts = [
        rows[["prompt", "group"]].assign(
            algorithm=name, seconds=rows[f"seconds_{key}"], samples=rows[f"samples_{key}"]
        )
        for key, name in ALGORITHMS.items()
    ]
    return pd.concat(parts, ignore_index=True)


def verdicts(localized: pd.DataFrame) -> pd.DataFrame:
    """For each group, how many prompts count as memorized and how many yield neurons.

    Returns a frame with `group`, `prompts`, `memorized`, `with_neurons`, `median_neurons` (of
    those that yield any).
    Parameters: `localized`, from `localize_all`, grouped.
    Source: paper, section 4 (442 of 500 unseen non-memorized prompts yield no neuron).
    """
    need(localized, "group", "memorized", "n_refined")
    rows = localized.assign(some=localized["n_refined"].where(localized["n_refined"] > 0))
    table = rows.groupby("group", sort=False).agg(
        prompts=("memorized", "size"),
        memorized=("memorized", "sum"),
        with_neurons=("some", "count"),
        median_neurons=("some", "median"),
    )
    return table.reset_index()


def neuron_names(neurons: NeuronSet) -> str:
    """Neurons as a short text, a line for each layer: ``layer 3`` over ``#57, #12``."""
    lines = [f"layer {k}\n" + ", ".join(f"#{i}" for i in v) for k, v in neurons.layers.items()]
    return "\n".join(lines)


def example(localized: pd.DataFrame, measured: pd.DataFrame | None = None) -> Any:
    """The row to show the method on: the clearest VM prompt that all steps acted on.

    Returns a named tuple of the row (`prompt`, `initial`, `refined`, …): a prompt with neurons
    where refinement dropped some, VM before TM; where there is none, a prompt with neurons.
    Parameters: `localized`, from `localize_all`, grouped; `measured`, from `effects.copying`: the
    clearest is then the one whose pictures come closest to its training image (`orig_before`),
    else the one of highest score.
    Raises ValueError as `found`, and where no prompt has neurons.
    """
    rows = found(localized)
    rows = rows[rows["refined"].map(bool)]
    if rows.empty:
        raise ValueError("localized has no prompt with refined neurons")
    clear = rows["score"]
    if measured is not None:
        clear = rows["prompt"].map(measured.set_index("prompt")["orig_before"]).fillna(clear)
    dropped = rows["initial"].map(len) > rows["refined"].map(len)
    rank = rows.assign(dropped=dropped, own=rows["group"] == "VM", clear=clear)
    order = rank.sort_values(["dropped", "own", "clear"], ascending=False, kind="stable").index
    return next(rows.loc[order].itertuples())


def rows_for_grid(localized: pd.DataFrame, each: int) -> pd.DataFrame:
    """The first `each` prompts with neurons of each group, VM first (F3).

    Raises ValueError as `found`, and where no prompt has neurons.
    """
    rows = found(localized)
    rows = rows[rows["refined"].map(bool)]
    if rows.empty:
        raise ValueError("localized has no prompt with refined neurons")
    return pd.concat([rows[rows["group"] == group][:each] for group in ("VM", "TM")])


def refined_sets(localized: pd.DataFrame) -> dict[str, NeuronSet]:
    """Prompt -> refined neurons, of the prompts taken for memorized."""
    rows = found(localized)
    return dict(zip(rows["prompt"], rows["refined"], strict=True))


def against_truth(localized: pd.DataFrame, truth: Mapping[str, NeuronSet]) -> pd.DataFrame:
    """Found neurons against known ones, for the prompts whose neurons are known.

    Returns a frame with `prompt`, `group`, `memorized`, `hit`, `missed`, `extra`, `precision`,
    `recall`; empty where none of the prompts is in `truth`. A prompt not taken for memorized
    counts with all its neurons missed.
    Parameters: `localized`, from `localize_all`, grouped; `truth`, prompt -> known neurons.
    """
    need(localized, "prompt", "group", "memorized", "refined")
    rows = localized[localized["prompt"].isin(list(truth))]
    parts = [
        {"prompt": row.prompt, "group": row.group, "memorized": row.memorized}
        | localization_quality(row.refined, truth[row.prompt])
        for row in rows.itertuples()
    ]
    names = ["prompt", "group", "memorized", "hit", "missed", "extra", "precision", "recall"]
    return pd.DataFrame(parts, columns=names)
