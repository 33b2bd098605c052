"""Which of the method's choices matter: localization under other settings, other scaling factors.

Scope: the settings of table 4 as options of `localize_all`, the runs over prompts, and the sets
and factors as settings of pictures.
Source: Hintersdorf et al., "Finding NeMo", NeurIPS 2024, table 4 and figure 5b.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from nemo_kit.frames.evaluation import Setting, over_prompts
from nemo_kit.localization import calibrate
from nemo_kit.neurons import NeuronSet
from nemo_kit.settings import LocalizationSettings
from nemo_kit.store import Keyed, localize_all

if TYPE_CHECKING:
    from nemo_kit.models import DiffusionModel

NEMO = "NeMo"
DEVIATIONS = {"τ = μ − σ": -1.0, "τ = μ": 0.0, "τ = μ + 2σ": 2.0}


def variants(
    model: DiffusionModel,
    held: Sequence[str],
    seeds: Iterable[int],
    guidance: float | None = None,
    swapped: bool = True,
) -> dict[str, dict[str, Any]]:
    """The settings of table 4: name -> options of `localize_all`.

    Returns the default first, then detection with guidance, three other thresholds, no refinement,
    no top-k. With guidance the scores are others, so their threshold is computed anew from the
    hold-out prompts.

    Parameters: `model`, calibrated; `held`, at least 2 prompts that it does not memorize;
    `seeds` of detection; `guidance`, by default that of the model's pictures; `swapped`, guidance
    as the released code has it, text and empty prompt exchanged and neurons off in both halves, of
    which the paper's row came; False: as the text says. The row's name tells which.
    Raises ValueError for a model without calibration, or too few hold-out prompts.
    Source: paper, table 4, and the released third script.
    """
    known = model.calibration
    if known is None:
        raise ValueError(f"the model {model.name!r} has no calibration: calibrate it first")
    strength = model.guidance if guidance is None else guidance
    guided = replace(
        known.detection, guidance=strength, swapped=swapped,
        calibration_guidance=strength, calibration_swapped=swapped,
    )  # fmt: skip
    again = calibrate(model, held, seeds, guided, known.similarity)
    levels = {
        name: {"threshold": known.mean + times * known.std} for name, times in DEVIATIONS.items()
    }
    return {
        NEMO: {},
        "with guidance, swapped" if swapped else "with guidance": {
            "settings": LocalizationSettings(
                detection=guided, halves="both" if swapped else "conditional"
            ),
            "threshold": again.threshold,
        },
        **levels,
        "no refinement": {"settings": LocalizationSettings(refine=False)},
        "no top-k": {"settings": LocalizationSettings(k_step=0)},
    }


def localized(
    model: DiffusionModel,
    rows: pd.DataFrame,
    chosen: Mapping[str, Mapping[str, Any]],
    seeds: Iterable[int],
    *,
    store: str | Path,
) -> pd.DataFrame:
    """Localization of every prompt under every variant, resumable.

    Returns a frame with `setting`, `prompt`, `group`, `memorized`, `refined`, `neurons` (NaN where
    detection did not flag the prompt), `samples` (denoiser samples).

    Parameters: `rows`, with `prompt` and `group`; `chosen`, from `variants`; `seeds` of detection.
    Raises what `localize_all` raises.
    """
    numbers, keyed, parts = list(seeds), Keyed.of(model), []
    for name, options in chosen.items():
        found = localize_all(keyed, rows["prompt"], numbers, store=store, **options)
        told = rows[["prompt", "group"]].merge(found, on="prompt", validate="one_to_one")
        counted = told["refined"].map(len).where(told["memorized"].astype(bool))
        samples = [name for name in told if name.startswith("samples_") and "eval" not in name]
        told = told.assign(setting=name, neurons=counted, samples=told[samples].sum(axis=1))
        parts.append(
            told[["setting", "prompt", "group", "memorized", "refined", "neurons", "samples"]]
        )
    return pd.concat(parts, ignore_index=True)


def sets(found: pd.DataFrame, setting: str = NEMO) -> dict[str, NeuronSet]:
    """Prompt -> refined neurons under one variant, empty for a prompt that was not flagged.

    Raises ValueError where the frame does not have the variant.
    """
    rows = found[found["setting"] == setting]
    if rows.empty:
        known = ", ".join(found["setting"].unique())
        raise ValueError(f"setting must be one of {known}; got {setting!r}")
    return dict(zip(rows["prompt"], rows["refined"], strict=True))


def picture_settings(found: pd.DataFrame, factors: Sequence[float] = ()) -> list[Setting]:
    """What the pictures of table 4 are drawn under: each variant's neurons off, then NeMo's scaled.

    Returns pairs for `evaluation.measured`: undisturbed, each variant, each factor but 0 and 1.
    Parameters: `found`, from `localized`; `factors`, of the scaling.
    """
    off: list[Setting] = [
        (name, {"neurons": sets(found, name)}) for name in found["setting"].unique()
    ]
    return [("default", {}), *off, *scaled(sets(found), [f for f in factors if f not in (0, 1)])]


def scaled(neurons: Mapping[str, NeuronSet], factors: Sequence[float]) -> list[Setting]:
    """One setting for each factor: these neurons multiplied by it."""
    return [(factor_name(f), {"neurons": dict(neurons), "factor": float(f)}) for f in factors]


def factor_name(factor: float) -> str:
    """`× 0.25`, as the tables write a scaling factor."""
    return f"× {factor:g}".replace("-", "−")


def scaling(measured: pd.DataFrame, factors: Sequence[float]) -> pd.DataFrame:
    """Similarities at every factor, prompt by prompt (F5b): NeMo is factor 0, undisturbed is 1.

    Returns a frame with `factor`, `prompt`, `group`, `orig`, `gen`.
    Parameters: `measured`, from `evaluation.measured` on `picture_settings`; `factors`.
    Source: paper, figure 5b.
    """
    names = {factor_name(f): f for f in factors} | {NEMO: 0.0, "default": 1.0}
    wanted = [0.0, 1.0, *map(float, factors)]
    rows = measured.assign(factor=measured["setting"].map(names))
    rows = rows[rows["factor"].isin(wanted)]
    return rows[["factor", "prompt", "group", "orig", "gen"]].sort_values(
        ["factor", "group"], kind="stable", ignore_index=True
    )


def table_4(found: pd.DataFrame, measured: pd.DataFrame) -> pd.DataFrame:
    """Neurons, and what pictures without them show, of every variant and factor (T4).

    Returns a frame as `evaluation.over_prompts`, with the measure `neurons` first.
    Parameters: `found`, from `localized`; `measured`, from `evaluation.measured`.
    Source: paper, table 4.
    """
    pictures = over_prompts(measured)
    counts = over_prompts(found, ["neurons"])
    order = {name: place for place, name in enumerate(dict.fromkeys(measured["setting"]))}
    both = pd.concat([counts, pictures], ignore_index=True)
    first = np.where(both["measure"] == "neurons", 0, 1)
    ranked = both.assign(place=both["setting"].map(order), first=first)
    ranked = ranked.sort_values(["place", "group", "first"], kind="stable", ignore_index=True)
    return ranked.drop(columns=["place", "first"])
