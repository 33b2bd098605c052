"""Tidy frames of detection: scores by pair of seeds, calibration, metrics.

Scope: reshaping what `detect_all` gave; no model is asked.
Source: Hintersdorf et al., "Finding NeMo", NeurIPS 2024, sections 3.1 and 4, figures 2a and 13.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from nemo_kit.frames.prompts import need
from nemo_kit.metrics import detection_metrics

MEASURES = {"ms_ssim": "MS-SSIM", "ssim": "SSIM"}  # names of the similarity settings' kinds
UNITS = {"pairs": "pair of seeds", "maxima": "prompt"}  # what a threshold is computed from


def pairwise(detected: pd.DataFrame, seeds: Sequence[int]) -> pd.DataFrame:
    """One row for each prompt and pair of seeds (F2a).

    Returns a frame with `prompt`, `group`, `seed_a`, `seed_b`, `score`.

    Parameters: `detected`, from `detect_all`, grouped; `seeds`, those it was called with.
    Raises ValueError for a missing column or scores of another number of seeds.
    """
    need(detected, "prompt", "group", "pairwise")
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
    need(detected, "prompt", "group", "score")
    need(held, "prompt", "group", "score", "pairwise")
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
    need(detected, "group", "score")
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
    need(detected, "prompt", "group", "score")
    rows = detected.sort_values("score", kind="stable")
    own = rows[rows["group"] == "VM"]
    own = rows[rows["group"] == "TM"] if own.empty else own
    other = rows[rows["group"] == "non-memorized"]
    if own.empty or other.empty:
        raise ValueError(f"detected needs memorized and other prompts, got {set(rows['group'])}")
    return own["prompt"].iloc[-1], other["prompt"].iloc[len(other) // 2]
