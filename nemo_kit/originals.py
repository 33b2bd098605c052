"""Training images of prompts: those of the lab model, or those of a folder a user has.

Scope: which file belongs to which prompt. A folder holds one image a prompt, named as the prompt
file's column `image` says, or as `Index`, the column of the released code's CSV files, with any
ending (`1030727993.jpg`). Nothing is ever fetched from a URL.
"""

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageOps

from nemo_kit import lab
from nemo_kit.checks import check_columns
from nemo_kit.files import PICTURES, open_picture

SIDE = 512  # of a folder's images: as Stable Diffusion saw them, centre cut out


class TrainingImages(Mapping[str, np.ndarray]):
    """Prompt -> its training image, uint8 [side, side, 3], opened when it is asked for.

    The lab model's have 64 pixels; a folder's are scaled to 512 on the shorter side and cut square
    from the middle. For a template it is one of its many. A file that holds no image raises
    ValueError that names it.

    Parameters: `table`, with `prompt` and `image`, as `prompt_table` gives; `folder`, that holds
    the images, None: those of the lab model, whatever the table. A warning says where no prompt has
    one.
    Raises FileNotFoundError where there is no such folder, ValueError for a missing column.
    """

    def __init__(self, table: pd.DataFrame, folder: str | Path | None = None) -> None:
        check_columns("table", table, "prompt", "image")
        self._side = None if folder is None else SIDE
        place = lab.DATA / "images" if folder is None else Path(folder)
        if not place.is_dir():
            raise FileNotFoundError(f"training_images: there is no folder {place}")
        files = sorted(path for path in place.iterdir() if path.suffix.lower() in PICTURES)
        names = {path.stem: path for path in reversed(files)} | {path.name: path for path in files}
        named = lab.prompts() if folder is None else table
        rows = zip(named["prompt"], named["image"].astype(str), strict=True)
        self._files = {prompt: names[name] for prompt, name in rows if name in names}
        self._asked = list(table["prompt"])
        if not set(self._asked) & set(self._files):
            warnings.warn(self.told(), stacklevel=2)

    def told(self) -> str:
        """How many prompts have an image, in words, and what to do where none has."""
        count = sum(prompt in self._files for prompt in self._asked)
        text = f"{count} of {len(self._asked)} prompts have a training image"
        if count:
            return text
        return (
            f"{text}; similarities to it are not measured: a column image (or Index) in the prompt "
            "file names it, in the folder that training_images (--training-images) names"
        )

    def __getitem__(self, prompt: str) -> np.ndarray:
        image = open_picture(self._files[prompt], "training_images")
        if self._side:
            image = ImageOps.fit(image, (self._side, self._side), Image.Resampling.BICUBIC)
        return np.asarray(image)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)
