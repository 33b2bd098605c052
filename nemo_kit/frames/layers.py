"""Grids of pictures of the layer notebook: a row for each part that was switched off.

Source: Hintersdorf et al., "Finding NeMo", NeurIPS 2024, figures 18 to 20.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from nemo_kit.frames.prompts import need


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

    Returns uint8 [rows, prompts, seeds, H, W, 3], seeds in their order, and a name for each row.
    Parameters: `pictures`, from `dissection.cut_all`; `kind`, "value", "key" or "convolution";
    `prompts`, those to show; `most`, seeds of each.
    Raises ValueError for a missing column, or where a prompt has no such pictures.
    """
    need(pictures, "prompt", "kind", "layer", "place", "image")
    wanted = pictures["kind"].isin(["none", kind]) & pictures["prompt"].isin(list(prompts))
    rows = pictures[wanted].sort_values("layer", kind="stable")
    grid, names = [], []
    for name, part in rows.groupby("place", sort=False):
        there = [list(part.loc[part["prompt"] == p, "image"][:most]) for p in prompts]
        if len({len(images) for images in there}) > 1:
            raise ValueError(f"pictures must hold as many of each prompt for {name!r}")
        grid.append(np.stack([np.stack(images) for images in there]))
        names.append(str(name))
    if len(grid) < 2:
        raise ValueError(f"pictures has none of kind {kind!r} for these prompts")
    return np.stack(grid), names


def picture_list(pictures: pd.DataFrame, kind: str, prompts: Sequence[str]) -> pd.DataFrame:
    """What a grid shows, without the pictures: prompt, kind, layer, place, seed."""
    need(pictures, "prompt", "kind", "layer", "place", "seed")
    wanted = pictures["kind"].isin(["none", kind]) & pictures["prompt"].isin(list(prompts))
    return pictures.loc[wanted, ["prompt", "kind", "layer", "place", "seed"]]
