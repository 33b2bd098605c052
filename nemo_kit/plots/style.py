"""One look for all figures: colours, markers and line styles of the groups, fonts and checks.

Colours are from the Okabe-Ito palette, which stays apart under the common colour blindnesses; each
group also has a line style, a marker and a hatch, so that figures read in grey. Sizes are meant for
print: 3.3 in is one column, 6.9 in the text width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from io import BytesIO
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

COLUMN, TEXT = 3.3, 6.9  # widths in inches


@dataclass(frozen=True)
class Look:
    """How one group of prompts is drawn."""

    colour: str
    line: str
    marker: str
    hatch: str


GROUPS = {
    "VM": Look("#D55E00", "-", "o", ""),
    "TM": Look("#0072B2", "--", "s", "////"),
    "non-memorized": Look("#6B6B6B", ":", "^", "...."),
    "hold-out": Look("#CC79A7", "-.", "v", "xxxx"),
}
ACCENT = "#009E73"  # what the method found
PALE = "#B8B8B8"

_RC = sns.axes_style("ticks") | {
    "axes.labelsize": 8,
    "axes.linewidth": 0.7,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 8,
    "figure.dpi": 150,
    "font.family": "DejaVu Sans",
    "font.size": 7.5,
    "hatch.linewidth": 0.5,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 2.0,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "savefig.dpi": 200,
    "svg.hashsalt": "nemo_kit",
    "xtick.labelsize": 7,
    "xtick.major.size": 3,
    "xtick.major.width": 0.7,
    "ytick.labelsize": 7,
    "ytick.major.size": 3,
    "ytick.major.width": 0.7,
}

P = ParamSpec("P")


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw in the common style, and leave matplotlib's settings as they were."""

    @wraps(draw)
    def inside(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context(_RC):
            return draw(*args, **kwargs)

    return inside


class Drawing(Figure):
    """A figure outside pyplot that a notebook shows the way it is saved."""

    def _repr_png_(self) -> bytes:
        picture = BytesIO()
        self.savefig(picture, format="png", dpi=150, bbox_inches="tight")
        return picture.getvalue()


def canvas(width: float, height: float, rows: int = 1, columns: int = 1, **kwargs: Any) -> Any:
    """A figure outside pyplot, laid out so that nothing is clipped, and its axes."""
    figure = Drawing(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **kwargs)


def require(frame: pd.DataFrame, *columns: str, rows: bool = True) -> pd.DataFrame:
    """The frame, if it has these columns, rows, and only known groups; else ValueError."""
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise ValueError(
            f"frame lacks {', '.join(missing)}; needed are {', '.join(columns)}, "
            f"got {', '.join(map(str, frame.columns)) or 'no column'}"
        )
    if rows and not len(frame):
        raise ValueError(f"frame has no rows; needed are {', '.join(columns)}")
    unknown = set(frame["group"]) - set(GROUPS) if "group" in columns else set()
    if unknown:
        named = sorted(map(str, unknown))
        raise ValueError(f"group must be one of {', '.join(GROUPS)}, got {named}")
    return frame


def groups(frame: pd.DataFrame) -> list[tuple[str, Look, pd.DataFrame]]:
    """The frame's groups in the fixed order, each with its look and its rows."""
    return [
        (g, look, frame[frame.group == g]) for g, look in GROUPS.items() if (frame.group == g).any()
    ]


def strips(name: str, images: Any) -> np.ndarray:
    """Images as an array [..., H, W, 3] of uint8; ValueError for anything else."""
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim < 3 or images.shape[-1] != 3:
        raise ValueError(
            f"{name} must be uint8 with shape [..., H, W, 3], "
            f"got {images.dtype} {list(images.shape)}"
        )
    return images


def same_length(**lengths: int) -> None:
    """ValueError, with the names and numbers, unless all lengths are equal."""
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ValueError(f"one entry a prompt is needed in each argument, got {told}")


def legend(axes: Axes, where: str = "outside upper center") -> None:
    """A legend above all axes of the figure, where it covers nothing and takes no width."""
    look = {"ncols": 3, "columnspacing": 0.9, "handlelength": 1.7, "fontsize": 6.5}
    axes.figure.legend(*axes.get_legend_handles_labels(), loc=where, **look)


def told(axes: Axes, text: str) -> None:
    """Small words over the right end of the axes: what bands, whiskers or marks are."""
    axes.set_title(text, loc="right", fontsize=6.5)


def vertical(axes: Axes, x: float, text: str, colour: str = "black", top: float = 1.0) -> None:
    """A dashed line at x with its text at the upper end."""
    axes.axvline(x, color=colour, linestyle=(0, (4, 2)), linewidth=0.9, zorder=1)
    axes.annotate(
        text,
        (x, top),
        xycoords=("data", "axes fraction"),
        xytext=(2, -1),
        textcoords="offset points",
        va="top",
        fontsize=7,
        color=colour,
    )


def plain(text: str, length: int = 60) -> str:
    """A prompt as a label: one line, shortened, and only signs the font has."""
    text = " ".join(text.split())
    signs = get_font(findfont(FontProperties(family="DejaVu Sans"))).get_charmap()
    text = "".join(sign if ord(sign) in signs else "□" for sign in text)
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def write(axes: Axes, x: float, y: float, text: str, **kwargs: Any) -> None:
    """Text in axes coordinates, taken literally: a prompt's dollar signs are no formula."""
    axes.text(x, y, text, transform=axes.transAxes, parse_math=False, **kwargs)


def show(axes: Axes, image: np.ndarray) -> None:
    """A picture without ticks, in a thin frame."""
    axes.imshow(image)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(visible=True, linewidth=0.4, color="#888888")


def row_of(images: np.ndarray, gap: int | None = None) -> np.ndarray:
    """Pictures [N, H, W, 3] beside one another with white between, as one [H, W', 3]."""
    count, height, width, _ = images.shape
    gap = max(1, width // 16) if gap is None else gap
    row = np.full((height, count * (width + gap) - gap, 3), 255, np.uint8)
    for place, image in enumerate(images):
        row[:, place * (width + gap) :][:, :width] = image
    return row


def tile(images: np.ndarray, columns: int = 2) -> np.ndarray:
    """Pictures [N, H, W, 3] as a square-ish tableau with white between, as one picture."""
    rows = [row_of(images[i : i + columns]) for i in range(0, len(images), columns)]
    height, width, gap = rows[0].shape[0], rows[0].shape[1], max(1, images.shape[2] // 16)
    page = np.full((len(rows) * (height + gap) - gap, width, 3), 255, np.uint8)
    for place, row in enumerate(rows):
        page[place * (height + gap) :][:height, : row.shape[1]] = row
    return page


def count_text(frame: pd.DataFrame, name: str) -> str:
    """A group's name with its number of prompts, for a legend."""
    return f"{name} (n = {frame['prompt'].nunique()})"


def mean_interval(values: Sequence[float], resamples: int = 1000) -> tuple[float, float, float]:
    """Mean of values with the ends of its 95 % bootstrap interval (fixed seed)."""
    values = np.asarray(values, dtype=float)
    draws = np.random.default_rng(0).choice(values, (resamples, len(values))).mean(axis=1)
    return float(values.mean()), *map(float, np.quantile(draws, [0.025, 0.975]))
