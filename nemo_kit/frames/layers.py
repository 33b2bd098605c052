"""Grids of pictures of the layer notebook: a row for each part that was switched off.

Source: Hintersdorf et al., "Finding NeMo", NeurIPS 2024, figures 18 to 20.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from nemo_kit.frames.prompts import need

GREY = 200


def shown(prompts: pd.DataFrame, most: int = 3) -> list[str]:
    """Up to so many prompts to show: VM ones, or where there are none TM ones.

    Raises ValueError for a missing column or where there is neither.
    """
    need(prompts, "prompt", "group")
    for group in ("VM", "TM"):
        names = prompts.loc[prompts["group"] == group, "prompt"]
        if len(names):
            return list(names[:most])
    raise ValueError(f"prompts must hold VM or TM ones, got {sorted(set(prompts['group']))}")


def picture_grid(
    pictures: pd.DataFrame, kind: str, prompts: Sequence[str], most: int = 4
) -> tuple[np.ndarray, list[str]]:
    """Pictures by what was switched off, the undisturbed ones first, and the rows' names.

    Returns uint8 [rows, prompts, seeds, H, W, 3], seeds in their order, and a name for each row;
    grey in place of pictures that failed (`cut_all` names them in a warning).
    Parameters: `pictures`, from `dissection.cut_all`; `kind`, "value", "key" or "convolution";
    `prompts`, those to show; `most`, seeds of each.
    Raises ValueError for a missing column, or where there are no such pictures, none of a prompt,
    or more of one than of another.
    """
    need(pictures, "prompt", "kind", "layer", "place", "image")
    wanted = pictures["kind"].isin(["none", kind]) & pictures["prompt"].isin(list(prompts))
    rows = pictures[wanted].sort_values("layer", kind="stable")
    names = list(rows["place"].unique())
    if len(names) < 2:
        raise ValueError(f"pictures has none of kind {kind!r} for these prompts")
    images = {key: list(part[:most]) for key, part in rows.groupby(["place", "prompt"])["image"]}
    counts = {len(part) for part in images.values()}
    if len(counts) > 1 or not set(prompts) <= set(rows["prompt"]):
        raise ValueError(f"pictures must hold as many of each prompt, got {sorted(counts)}")
    blank = [np.full_like(rows["image"].iloc[0], GREY)] * counts.pop()
    cells = [[images.get((name, prompt), blank) for prompt in prompts] for name in names]
    return np.array(cells), [str(name) for name in names]


def picture_list(pictures: pd.DataFrame, kind: str, prompts: Sequence[str]) -> pd.DataFrame:
    """What a grid shows, without the pictures: prompt, kind, layer, place, seed."""
    need(pictures, "prompt", "kind", "layer", "place", "seed")
    wanted = pictures["kind"].isin(["none", kind]) & pictures["prompt"].isin(list(prompts))
    return pictures.loc[wanted, ["prompt", "kind", "layer", "place", "seed"]]
