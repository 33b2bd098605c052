"""Training images of prompts: those of the lab model, or those of a folder a user has.

Scope: which file belongs to which prompt, and how many are missing. A folder holds one image a
prompt, named as the prompt file's column `image` says, or as `Index`, the column of the released
code's CSV files, with any ending (`1030727993.jpg`). Nothing is ever fetched from a URL.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from nemo_kit import lab

KINDS = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
SIDE = 512  # of a folder's images: as Stable Diffusion saw them, centre cut out
_given: dict[str, Path] | None = None  # prompt -> file; None: those of the lab model


def use(table: pd.DataFrame, folder: str | Path | None) -> pd.DataFrame:
    """Take training images from a folder from here on, or with None from the lab model.

    Returns a frame with `group`, `prompts`, `with_image`, `missing`: how many prompts have one.
    Parameters: `table`, with `prompt`, `type` and `image`, as `experiments.prompt_table` gives;
    `folder`, that holds the images.
    Raises FileNotFoundError where there is no such folder, ValueError for a missing column.
    """
    global _given
    if missing := {"prompt", "type", "image"} - set(table):
        raise ValueError(f"table lacks {', '.join(sorted(missing))}; it has {', '.join(table)}")
    _given = None if folder is None else _matched(table, Path(folder))
    there = table["prompt"].isin(known()).astype(int)
    groups = table["type"].replace("", "other")
    counts = pd.DataFrame({"group": groups, "prompts": 1, "with_image": there})
    counts = counts.groupby("group", sort=False, as_index=False).sum()
    return counts.assign(missing=counts["prompts"] - counts["with_image"])


def known() -> list[str]:
    """Prompts whose training image is known."""
    return lab.training_images()[0] if _given is None else list(_given)


def images(prompts: Sequence[str]) -> np.ndarray:
    """Training images of these prompts, uint8 [prompts, side, side, 3]; grey where unknown.

    The lab model's have 64 pixels; a folder's are scaled to 512 on the shorter side and cut square
    from the middle. Raises ValueError that names a file which holds no image.
    """
    found = dict(zip(*lab.training_images(), strict=True)) if _given is None else None
    side = SIDE if found is None else next(iter(found.values())).shape[0]
    grey = np.full((side, side, 3), 200, np.uint8)
    if found is not None:
        return np.stack([found.get(prompt, grey) for prompt in prompts])
    return np.stack([_open(_given[p]) if p in _given else grey for p in prompts])


def _matched(table: pd.DataFrame, folder: Path) -> dict[str, Path]:
    """Prompt -> file, by the whole name or by the name without its ending."""
    if not folder.is_dir():
        raise FileNotFoundError(f"training_images: there is no folder {folder}")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in KINDS)
    names = {path.stem: path for path in reversed(files)} | {path.name: path for path in files}
    rows = zip(table["prompt"], table["image"].astype(str), strict=True)
    return {prompt: names[name] for prompt, name in rows if name in names}


def _open(path: Path) -> np.ndarray:
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            square = ImageOps.fit(image.convert("RGB"), (SIDE, SIDE), Image.Resampling.BICUBIC)
    except OSError as error:
        raise ValueError(f"training_images: {path} holds no image: {error}") from error
    return np.asarray(square)
