"""Frames of the threshold notebook: medians over prompts for each pair of thresholds, and cost.

Source: Hintersdorf et al., "Finding NeMo", NeurIPS 2024, figures 14 and 15.
"""

from __future__ import annotations

import pandas as pd

from nemo_kit.frames.prompts import need

PAIR = ["initial_deviations", "refinement_deviations"]
MEASURES = ("n_initial", "n_refined", "gen", "orig")


def medians(swept: pd.DataFrame, group: str, measure: str) -> pd.DataFrame:
    """Median over a group's prompts of one number, for each pair of thresholds (F14, F15).

    Returns a frame with `group`, `initial`, `refinement` (names of the thresholds, "μ − σ"),
    `measure`, `median`, `mad` (median absolute deviation), `prompts`; NaN where no prompt has the
    number, no row where the group has no prompt.
    Parameters: `swept`, from `sensitivity.thresholds_all`, grouped, with the measure; `group`, VM
    or TM; `measure`, a name in `MEASURES`.
    Raises ValueError for a missing column or another group.
    """
    need(swept, "prompt", "group", measure, *PAIR)
    if group not in ("VM", "TM"):
        raise ValueError(f"group must be VM or TM, got {group!r}")
    rows = swept[swept["group"] == group]
    found = rows.groupby(PAIR)[measure].agg(median="median", mad=_mad, prompts="count")
    named = found.reset_index()
    named[PAIR] = named[PAIR].map(threshold_name)
    named.columns = ["initial", "refinement", *found.columns]
    named.insert(0, "group", group)
    named.insert(3, "measure", measure)
    return named


def _mad(values: pd.Series) -> float:
    return (values - values.median()).abs().median()


def threshold_name(deviations: float) -> str:
    """A threshold as text: ``μ − σ``, ``μ``, ``μ + 0.5σ``."""
    if deviations == 0:
        return "μ"
    size = "" if abs(deviations) == 1 else f"{abs(deviations):g}"
    return f"μ {'−' if deviations < 0 else '+'} {size}σ"


def with_effects(swept: pd.DataFrame, measured: pd.DataFrame) -> pd.DataFrame:
    """The rows of a sweep beside what each pair's neurons do to pictures (F15).

    Returns the sweep with `gen` and `orig`, NaN where a prompt's pictures failed.
    Parameters: `swept`, from `thresholds_all`; `measured`, from `threshold_effects` on it.
    Raises ValueError for a missing column.
    """
    need(swept, "prompt", *PAIR)
    need(measured, "prompt", "gen", "orig", *PAIR)
    return swept.merge(measured, "left", ["prompt", *PAIR], validate="one_to_one")


def saved(swept: pd.DataFrame) -> pd.DataFrame:
    """Denoiser samples of all pairs together, against each pair started from the beginning.

    Returns a frame with `group` (and "all"), `prompts`, `pairs` (of thresholds), `samples_alone`,
    `samples_shared`, `saved` (share of the samples, in [0, 1]).
    Parameters: `swept`, from `thresholds_all`, grouped. Raises ValueError for a missing column.
    """
    need(swept, "prompt", "group", "samples", "samples_alone")
    by_prompt = swept.groupby(["group", "prompt"], sort=False)
    costs = by_prompt.agg(
        pairs=("samples_alone", "size"),
        samples_alone=("samples_alone", "sum"),
        samples_shared=("samples", "first"),
    ).reset_index()
    both = pd.concat([costs, costs.assign(group="all")])
    table = both.groupby("group", sort=False).agg(
        prompts=("prompt", "nunique"),
        pairs=("pairs", "max"),
        samples_alone=("samples_alone", "sum"),
        samples_shared=("samples_shared", "sum"),
    )
    table = table.astype({"samples_alone": int, "samples_shared": int})
    return table.assign(saved=1 - table["samples_shared"] / table["samples_alone"]).reset_index()
