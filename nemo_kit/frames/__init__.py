"""Tidy frames behind the figures: from results per prompt to what `nemo_kit.plots` takes.

Scope: choosing prompts, naming their groups, reshaping what `nemo_kit.experiments` gave. Only
`z_table` and `workflow_neurons` ask a model, and only its text side. Nothing here draws.
Source: Hintersdorf et al., "Finding NeMo", NeurIPS 2024, figures 1, 2, 4, 7 and table 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from nemo_kit.metrics import detection_metrics, localization_quality
from nemo_kit.neurons import NeuronSet

if TYPE_CHECKING:
    from nemo_kit.calibration import ActivationStatistics
    from nemo_kit.models import DiffusionModel

GROUP_OF_ROLE = {
    "verbatim": "VM",
    "template": "TM",
    "non_memorized": "non-memorized",
    "holdout": "hold-out",
}
MEASURES = {"ms_ssim": "MS-SSIM", "ssim": "SSIM"}  # names of the similarity settings' kinds
UNITS = {"pairs": "pair of seeds", "maxima": "prompt"}  # what a threshold is computed from
ALGORITHMS = {
    "detect": "1 noise differences",
    "activations": "2 activations",
    "select": "3 initial selection",
    "refine": "4 refinement",
}


def choose(
    table: pd.DataFrame,
    memorized: int | None = None,
    non_memorized: int | None = None,
    holdout: int | None = 0,
) -> pd.DataFrame:
    """Prompts to work on, so many of each group, spread evenly over the table.

    Returns the chosen rows of the table with a column `group`: VM, TM, non-memorized, hold-out.

    Parameters: `table`, with `prompt` and `role`, as `experiments.prompt_table` gives;
    `memorized`, prompts of each type VM and TM; `non_memorized`, `holdout`, prompts of that role;
    None takes all, 0 none.
    Raises ValueError for a missing column, a negative number, or when no prompt is left.
    """
    _need(table, "prompt", "role")
    counts = {
        "verbatim": memorized,
        "template": memorized,
        "non_memorized": non_memorized,
        "holdout": holdout,
    }
    parts = [_spread(table[table["role"] == role], count) for role, count in counts.items()]
    chosen = pd.concat(parts, ignore_index=True)
    if chosen.empty:
        raise ValueError(f"table has no prompt of the roles asked for; roles: {set(table['role'])}")
    return chosen.assign(group=chosen["role"].map(GROUP_OF_ROLE))


def choose_ladder(table: pd.DataFrame, per_rate: int | None = None) -> pd.DataFrame:
    """Prompts of the repetition ladder, so many at each rate, by rate.

    Returns the chosen rows of the table, their `group` VM as each has one fixed picture.

    Parameters: `table`, with `prompt`, `role`, `repetitions`; `per_rate`, None takes all.
    Raises ValueError for a missing column or when no prompt has the role ladder.
    """
    _need(table, "prompt", "role", "repetitions")
    rows = table[table["role"] == "ladder"].sort_values("repetitions", kind="stable")
    if rows.empty:
        raise ValueError("table has no prompt of the role ladder; only the model `lab` has them")
    parts = [_spread(part, per_rate) for _, part in rows.groupby("repetitions")]
    return pd.concat(parts, ignore_index=True).assign(group="VM")


def _spread(rows: pd.DataFrame, count: int | None) -> pd.DataFrame:
    if count is not None and count < 0:
        raise ValueError(f"numbers of prompts must be 0 or more, or None for all, got {count}")
    if count is None or count >= len(rows):
        return rows
    return rows.iloc[np.linspace(0, len(rows) - 1, count).round().astype(int)]


def first_prompt(table: pd.DataFrame, prompt: str = "") -> str:
    """The prompt itself, or where it is empty the table's first verbatim one.

    Raises ValueError where the table has none.
    """
    verbatim = table.loc[table["role"] == "verbatim", "prompt"]
    if not prompt.strip() and verbatim.empty:
        raise ValueError("prompt must be given: the prompt table has none of the role verbatim")
    return prompt if prompt.strip() else verbatim.iloc[0]


def grouped(results: pd.DataFrame, prompts: pd.DataFrame) -> pd.DataFrame:
    """Results with the group of their prompt as second column, in the order of the prompts.

    Raises ValueError for a missing column; prompts without a result have no row.
    """
    _need(results, "prompt")
    _need(prompts, "prompt", "group")
    return prompts[["prompt", "group"]].merge(results, on="prompt", validate="one_to_many")


def pairwise(detected: pd.DataFrame, seeds: Sequence[int]) -> pd.DataFrame:
    """One row for each prompt and pair of seeds (F2a).

    Returns a frame with `prompt`, `group`, `seed_a`, `seed_b`, `score`.

    Parameters: `detected`, from `detect_all`, grouped; `seeds`, those it was called with.
    Raises ValueError for a missing column or scores of another number of seeds.
    """
    _need(detected, "prompt", "group", "pairwise")
    pairs = list(combinations(seeds, 2))
    if (detected["pairwise"].map(len) != len(pairs)).any():
        raise ValueError(f"seeds must be those of detection: {len(pairs)} pairs don't fit it")
    long = detected[["prompt", "group", "pairwise"]].explode("pairwise", ignore_index=True)
    first, second = np.tile(np.array(pairs), (len(detected), 1)).T
    score = long.pop("pairwise").astype(float)
    return long.assign(seed_a=first, seed_b=second, score=score)


def calibration_scores(
    detected: pd.DataFrame, held: pd.DataFrame, threshold_from: str = "pairs"
) -> pd.DataFrame:
    """The scores a threshold is computed from beside those it is applied to (calibration).

    Returns a frame with `prompt`, `group`, `score`: hold-out prompts with every pair of seeds
    ("pairs"), or with their largest ("maxima"); all other prompts with their largest.

    Parameters: `detected` and `held` (hold-out prompts), from `detect_all`, grouped;
    `threshold_from`, of the detection settings.
    Source: paper, section 3.1 and the released code, which differ here.
    """
    _need(detected, "prompt", "group", "score")
    _need(held, "prompt", "group", "score", "pairwise")
    names = ["prompt", "group", "score"]
    rows = held[names]
    if threshold_from == "pairs":
        rows = held[names[:2]].assign(score=held["pairwise"]).explode("score")
    return pd.concat([rows, detected[names]], ignore_index=True).astype({"score": float})


def detection_numbers(
    detected: pd.DataFrame, threshold: float, resamples: int = 1000
) -> pd.DataFrame:
    """AUROC, TPR at 1 % FPR and accuracy for VM, TM and both, against non-memorized prompts.

    Returns a frame with `memorized` (which prompts), `prompts`, `others` (numbers of prompts),
    `metric`, `value`, `low`, `high` (95 % bootstrap interval).

    Parameters: `detected`, from `detect_all`, grouped; `threshold`, τ; `resamples`, of the
    bootstrap.
    Raises ValueError for a missing column, or without memorized or non-memorized prompts.
    Source: paper, section 4 (detection from the score alone).
    """
    _need(detected, "group", "score")
    other = detected.loc[detected["group"] == "non-memorized", "score"]
    parts = []
    for name, groups in {"VM": ["VM"], "TM": ["TM"], "VM + TM": ["VM", "TM"]}.items():
        own = detected.loc[detected["group"].isin(groups), "score"]
        if len(own):
            labels = [True] * len(own) + [False] * len(other)
            table = detection_metrics([*own, *other], labels, threshold, resamples=resamples)
            table.insert(0, "memorized", name)
            parts.append(table.assign(prompts=len(own), others=len(other)))
    if not parts:
        raise ValueError("detected needs rows of group VM or TM, got none")
    return pd.concat(parts, ignore_index=True)


def clearest(detected: pd.DataFrame) -> tuple[str, str]:
    """A memorized and a non-memorized prompt to show side by side (F13).

    Returns the memorized prompt of the highest score, VM before TM, and the non-memorized prompt
    of the median score.
    Raises ValueError for a missing column, or without prompts of both kinds.
    """
    _need(detected, "prompt", "group", "score")
    rows = detected.sort_values("score", kind="stable")
    own = rows[rows["group"] == "VM"]
    own = rows[rows["group"] == "TM"] if own.empty else own
    other = rows[rows["group"] == "non-memorized"]
    if own.empty or other.empty:
        raise ValueError(f"detected needs memorized and other prompts, got {set(rows['group'])}")
    return own["prompt"].iloc[-1], other["prompt"].iloc[len(other) // 2]


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

    _need(prompts, "prompt", "group")
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
    _need(z, "layer", "z")
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


def found(localized: pd.DataFrame) -> pd.DataFrame:
    """The VM and TM prompts that were taken for memorized; ValueError where there is none.

    Others that were flagged are false alarms: `verdicts` counts them.
    """
    _need(localized, "prompt", "group", "memorized", "initial", "refined")
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
    _need(localized, "group", "memorized", "n_refined")
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
    _need(localized, "prompt", "group", "memorized", "refined")
    rows = localized[localized["prompt"].isin(list(truth))]
    parts = [
        {"prompt": row.prompt, "group": row.group, "memorized": row.memorized}
        | localization_quality(row.refined, truth[row.prompt])
        for row in rows.itertuples()
    ]
    names = ["prompt", "group", "memorized", "hit", "missed", "extra", "precision", "recall"]
    return pd.DataFrame(parts, columns=names)


def _need(frame: pd.DataFrame, *columns: str) -> None:
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise ValueError(f"frame lacks {', '.join(missing)}; it has {', '.join(map(str, frame))}")
