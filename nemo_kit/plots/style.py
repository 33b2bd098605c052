"""One look for all figures: sizes, fonts, the groups' colours.

`style()` sets it for a notebook, as `seaborn.set_theme` does: from then on pyplot and seaborn draw
in it. Sizes are meant for print: 3.3 in is one column, 6.9 in the text width. Colours are from the
Okabe-Ito palette, which stays apart under the common colour blindnesses and in grey.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_params_from_file
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties, findfont, get_font

COLUMN, TEXT = 3.3, 6.9  # widths in inches


PALETTE = {  # for hue="group"
    "VM": "#D55E00",
    "TM": "#0072B2",
    "non-memorized": "#949494",
    "hold-out": "#CC79A7",
}
MARKERS = dict(zip(PALETTE, "os^v", strict=True))  # for style="group"
ACCENT = "#009E73"  # what the method found
PALE = "#B8B8B8"


def style() -> None:
    """Draw in the house style from here on: matplotlib's settings and seaborn's theme."""
    import seaborn as sns

    house = Path(__file__).with_name("house.mplstyle")
    own = rc_params_from_file(house, fail_on_error=True, use_default_template=False)
    sns.set_theme(style="ticks", palette="colorblind", rc=own)


def legend(axes: Axes, frame: pd.DataFrame | None = None, **options: Any) -> None:
    """A legend above all axes of the figure, where it covers nothing, without a title.

    Parameters: `axes`, whose legend it is, or whose labelled artists are told; `frame`, with
    `group` and `prompt`: names of groups get their number of prompts; `options`, of the legend.
    """
    own = axes.get_legend()
    handles, names = axes.get_legend_handles_labels()
    if own is not None:  # as seaborn makes it
        handles, names = own.legend_handles, [text.get_text() for text in own.texts]
        own.remove()
    if frame is not None:
        counts = frame.groupby("group")["prompt"].nunique()
        names = [f"{name} (n = {counts[name]})" if name in counts else name for name in names]
    look = {"loc": "outside upper center", "ncols": 3, "columnspacing": 0.9} | options
    axes.figure.legend(handles, names, **look)


def plain(text: str, length: int = 60) -> str:
    """A prompt as a label: one line, shortened, only signs the font has, and no formula."""
    text = " ".join(text.split())
    signs = get_font(findfont(FontProperties(family="DejaVu Sans"))).get_charmap()
    text = "".join(sign if ord(sign) in signs else "□" for sign in text)
    text = text if len(text) <= length else text[: length - 1].rstrip() + "…"
    return text.replace("$", r"\$")


def row_of(images: np.ndarray) -> np.ndarray:
    """Pictures [N, H, W, 3] beside one another with white between, as one [H, W', 3]."""
    count, height, width, _ = images.shape
    gap = max(1, width // 16)
    row = np.full((height, count * (width + gap) - gap, 3), 255, np.uint8)
    for place, image in enumerate(images):
        row[:, place * (width + gap) :][:, :width] = image
    return row


def show(axes: Axes, images: np.ndarray, columns: int | None = None) -> None:
    """A picture without ticks, in a thin frame.

    Parameters: `images`, uint8 [H, W, 3], or several, [N, H, W, 3], which are drawn in rows of
    `columns`, by default all in one.
    """
    images = np.asarray(images)
    if images.ndim == 4:
        count, *size = images.shape
        columns = min(columns or count, count)
        white = np.full((-count % columns, *size), 255, np.uint8)
        rows = np.concatenate([images, white]).reshape(-1, columns, *size)
        whole = np.stack([row_of(row) for row in rows])
        images = row_of(whole.transpose(0, 2, 1, 3)).transpose(1, 0, 2)
    axes.imshow(images)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(visible=True, linewidth=0.4, color="#888888")
