"""Verbatim or template: each prompt's largest similarity to its training image (figure 6).

Scope: measures pictures that `generate_all` made; types are told from them and set against the
prompt list's labels.
Source: Hintersdorf et al., "Finding NeMo", NeurIPS 2024, figure 6 (VM: the largest of ten pictures'
similarities exceeds 0.7).
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from nemo_kit import effects, metrics
from nemo_kit.originals import TrainingImages


def maxima(
    rows: pd.DataFrame,
    generated: pd.DataFrame,
    threshold: float = metrics.COPY_THRESHOLD,
    embedder: metrics.Embedder | None = None,
    training: TrainingImages | None = None,
) -> pd.DataFrame:
    """Largest and median similarity of each prompt's pictures to its training image (F6).

    Returns a frame with `prompt`, `group` (the list's label), `maximum`, `median` (cosines),
    `measured` ("VM" where the maximum exceeds the threshold, else "TM"), `embedder` and `protocol`
    (what measured). Prompts without a known training image are left out, so for another model's
    prompts there may be no row.

    Parameters: `rows`, with `prompt` and `group`; `generated`, from `generate_all`; `threshold`;
    `embedder`, by default the embedded model's copy descriptor, and `training`, by default its
    training images.
    Raises ValueError for a missing column or a prompt without pictures.
    Source: paper, figure 6 and section 4.
    """
    if missing := {"prompt", "group"} - set(rows.columns):
        raise ValueError(f"rows lack {', '.join(sorted(missing))}; they have {list(rows.columns)}")
    known = [(training or TrainingImages()).one(prompt) for prompt in rows["prompt"]]
    kept = rows[[image is not None for image in known]]
    names = ["prompt", "group", "maximum", "median", "embedder", "protocol"]
    if kept.empty:
        return pd.DataFrame(columns=[*names[:4], "measured", *names[4:]]).astype({"maximum": float})
    table = metrics.copying_table(
        kept,
        effects.pictures(generated, kept["prompt"]),
        embedder or metrics.lab_descriptor(),
        [image for image in known if image is not None],
    )
    frame = table.rename(columns={"orig_max": "maximum", "orig": "median"})[names]
    frame.insert(4, "measured", np.where(frame["maximum"] > threshold, "VM", "TM"))
    return frame.reset_index(drop=True)


def agreement(frame: pd.DataFrame) -> pd.DataFrame:
    """How many prompts of each label measure as verbatim and as template.

    Returns a frame with `group`, `prompts`, `VM`, `TM` (counts by measure), `median_of_maxima`.
    Parameters: `frame`, from `maxima`.
    """
    table = frame.groupby("group", sort=False).agg(
        prompts=("prompt", "size"),
        VM=("measured", lambda told: int((told == "VM").sum())),
        TM=("measured", lambda told: int((told == "TM").sum())),
        median_of_maxima=("maximum", "median"),
    )
    return table.reset_index()


def sentence(frame: pd.DataFrame, threshold: float = metrics.COPY_THRESHOLD) -> str:
    """What the table says, in one sentence: which prompts measure otherwise than labelled."""
    if frame.empty:
        return "No prompt here has a known training image, so no type can be measured."
    other = frame[frame["measured"] != frame["group"]]
    if other.empty:
        return f"All {len(frame)} prompts measure as labelled at {threshold:g}."
    parts = [
        f"{len(part)} of {(frame['group'] == label).sum()} labelled {label}"
        for label, part in other.groupby("group", sort=False)
    ]
    return f"{' and '.join(parts)} measure as the other type at {threshold:g}."
