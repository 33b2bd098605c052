"""Training images of prompts: those of the lab model, or those of a folder a user has.

Scope: which file belongs to which prompt, and how many are missing. A folder holds one image a
prompt, named as the prompt file's column `image` says, or as `Index`, the column of the released
code's CSV files, with any ending (`1030727993.jpg`). Nothing is ever fetched from a URL.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from nemo_kit import lab

KINDS = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
SIDE = 512  # of a folder's images: as Stable Diffusion saw them, centre cut out


class TrainingImages:
    """Training images of the prompts of a table, to be handed to what measures copies of them.

    Parameters: `table`, with `prompt`, `type` and `image`, as `prompts.prompt_table` gives, by
    default the lab's; `folder`, that holds the images, None: those of the lab model. A warning says
    where no prompt has one.
    Raises FileNotFoundError where there is no such folder, ValueError for a missing column.
    """

    def __init__(self, table: pd.DataFrame | None = None, folder: str | Path | None = None) -> None:
        self._table = lab.prompts() if table is None else table
        if missing := {"prompt", "type", "image"} - set(self._table):
            raise ValueError(
                f"table lacks {', '.join(sorted(missing))}; it has {', '.join(self._table)}"
            )
        self._files = None if folder is None else _matched(self._table, Path(folder))
        known = _of_lab() if self._files is None else set(self._files)
        self._there = self._table["prompt"].isin(known)
        if not self._there.any():
            warnings.warn(self.told(), stacklevel=2)

    def told(self) -> str:
        """How many prompts have an image, in words, and what to do where none has."""
        text = f"{self._there.sum()} of {len(self._table)} prompts have a training image"
        if self._there.any():
            return text
        return (
            f"{text}; similarities to it are not measured: a column image (or Index) in the prompt "
            "file names it, in the folder that training_images (--training-images) names"
        )

    def counts(self) -> pd.DataFrame:
        """How many prompts of each type have an image: `group`, `prompts`, `with_image`, `missing`.

        The group of prompts without a type is "other".
        """
        groups = self._table["type"].replace("", "other")
        there = self._there.astype(int)
        counts = pd.DataFrame({"group": groups, "prompts": 1, "with_image": there})
        counts = counts.groupby("group", sort=False, as_index=False).sum()
        return counts.assign(missing=counts["prompts"] - counts["with_image"])

    def one(self, prompt: str) -> np.ndarray | None:
        """The image of a prompt, uint8 [side, side, 3], or None where none is known.

        The lab model's have 64 pixels; a folder's are scaled to 512 on the shorter side and cut
        square from the middle. For a template it is one of its many.
        Raises ValueError that names a file which holds no image.
        """
        if self._files is None:
            return dict(zip(*lab.training_images(), strict=True)).get(prompt)
        return _open(self._files[prompt]) if prompt in self._files else None

    def of(self, prompts: Sequence[str], blank: bool = False) -> np.ndarray | None:
        """The images of these prompts, uint8 [prompts, side, side, 3], or None where one has none.

        Parameters: `blank`, grey in place of missing ones, to be shown and not measured; None is
        returned where all are missing. Raises as `one`.
        """
        found = [self.one(prompt) for prompt in prompts]
        known = [image for image in found if image is not None]
        if not known or not (blank or len(known) == len(found)):
            return None
        grey = np.full_like(known[0], 200)
        return np.stack([grey if image is None else image for image in found])


def _of_lab() -> set[str]:
    """The lab's prompts that have an image."""
    return set(lab.prompts().query("image != ''")["prompt"])


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
