"""Figures made of pictures: the workflow on one prompt, generations before and after.

Source: Hintersdorf et al., "Finding NeMo", NeurIPS 2024, figures 1, 3, and 9 to 12.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nemo_kit.plots.style import (
    ACCENT,
    PALE,
    TEXT,
    Drawing,
    plain,
    require,
    row_of,
    same_length,
    show,
    strips,
    styled,
    tile,
)


@styled
def interventions(
    training: np.ndarray | None,
    before: np.ndarray,
    after: np.ndarray,
    prompts: Sequence[str],
    boxes: Sequence[str | int],
    heading: str = "neurons deactivated",
) -> Figure:
    """Generations of each prompt, and the same seeds with neurons deactivated (F3, F9, F10-F12).

    Returns a figure of the text width, a row for each prompt: training image, generations, a box
    with the number (or the names) of the neurons, the same seeds without them.

    Parameters: `training`, uint8 [P, H, W, 3], or None where there is none to show; `before` and
    `after`, uint8 [P, S, H, W, 3]; `prompts`, P texts; `boxes`, P numbers of neurons or short
    texts; `heading`, over the right half.
    Raises ValueError for other shapes or dtypes, or different numbers of prompts.
    Source: paper, figures 3 and 9 to 12.
    """
    before, after = strips("before", before), strips("after", after)
    if before.ndim != 5 or before.shape != after.shape:
        shapes = f"{list(before.shape)} and {list(after.shape)}"
        raise ValueError(f"before and after must both be [P, S, H, W, 3], got {shapes}")
    originals = before[:, 0] if training is None else strips("training", training)
    same_length(training=len(originals), before=len(before), prompts=len(prompts), boxes=len(boxes))
    page = Page(len(prompts), before.shape[1], training is not None)
    for row, prompt in enumerate(prompts):
        if training is not None:
            show(page.axes(row, page.first, 1), originals[row])
        left = page.axes(row, page.left, page.seeds)
        show(left, row_of(before[row]))
        show(page.axes(row, page.right, page.seeds), row_of(after[row]))
        page.text(row, page.middle, str(boxes[row]))
        page.caption(row, plain(prompt, 110))
    page.headings(heading)
    return page.figure


class Page:
    """Places of pictures on a page of the text width, in inches from the upper left corner."""

    margin, gap, box, line, head = 0.05, 0.1, 0.62, 0.17, 0.2

    def __init__(self, rows: int, seeds: int, training: bool) -> None:
        """A page of `rows` prompts with `seeds` pictures each side and perhaps a training image."""
        spare = TEXT - 2 * self.margin - self.box - training * self.gap
        self.side = spare / (2 * seeds + training)
        self.seeds = seeds
        self.first = self.margin
        self.left = self.margin + training * (self.side + self.gap)
        self.middle = self.left + seeds * self.side + self.box / 2
        self.right = self.middle + self.box / 2
        self.row = self.side + self.line + 0.06
        self.height = self.head + rows * self.row + 0.02
        self.training = training
        self.figure = Drawing(figsize=(TEXT, self.height))

    def axes(self, row: int, left: float, pictures: int) -> Axes:
        """Axes for a strip of pictures in a row, `left` inches from the edge."""
        top = self.head + row * self.row + self.line
        bottom = 1 - (top + self.side) / self.height
        size = (pictures * self.side / TEXT, self.side / self.height)
        return self.figure.add_axes((left / TEXT, bottom, *size))

    def _write(self, x: float, y: float, text: str, **kwargs: object) -> None:
        place = (x / TEXT, 1 - y / self.height)
        self.figure.text(*place, text, parse_math=False, **kwargs)

    def text(self, row: int, x: float, text: str) -> None:
        """A boxed text in the middle of a row."""
        y = self.head + row * self.row + self.line + self.side / 2
        frame = {"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": ACCENT}
        size = 9 if len(text) < 5 else 6.5
        self._write(x, y, text, ha="center", va="center", fontsize=size, bbox=frame)

    def caption(self, row: int, text: str) -> None:
        """A prompt over its row."""
        y = self.head + row * self.row + self.line - 0.035
        self._write(self.first, y, text, va="bottom", fontsize=7, style="italic")

    def headings(self, heading: str) -> None:
        """What the columns are."""
        half = self.seeds * self.side / 2
        places = [(self.left + half, "generated"), (self.right + half, heading)]
        places += [(self.middle, "neurons")]
        places += [(self.first + self.side / 2, "training")] if self.training else []
        for x, text in places:
            self._write(x, 0.16, text, ha="center", va="bottom", fontsize=8, weight="bold")


@styled
def workflow(
    frame: pd.DataFrame,
    training: np.ndarray | None,
    before: np.ndarray,
    after: np.ndarray,
    prompt: str,
) -> Figure:
    """The method on one prompt, from its training image to the generations without it (F1).

    Returns a figure of the text width in four parts: training image, generations, all neurons by
    layer and z with candidates and refined ones marked, generations with the refined ones at zero.

    Parameters: `frame`, one row a neuron, with `layer`, `neuron`, `z`, `stage` ("other",
    "candidate", "refined"); `training`, uint8 [H, W, 3] or None; `before` and `after`, uint8
    [S, H, W, 3], of which up to four are shown; `prompt`.
    Raises ValueError for a missing column, an unknown stage, or other shapes.
    Source: paper, figure 1.
    """
    require(frame, "layer", "neuron", "z", "stage")
    unknown = set(frame["stage"]) - {"other", "candidate", "refined"}
    if unknown:
        raise ValueError(f"stage must be other, candidate or refined, got {sorted(unknown)}")
    pictures = [tile(strips("before", before)[:4]), tile(strips("after", after)[:4])]
    first = pictures[0] if training is None else strips("training", training)
    figure = Drawing(figsize=(TEXT, 2.15), layout="constrained")
    grid = figure.subplots(1, 4, width_ratios=(1, 1, 1.75, 1))
    count = int((frame.stage == "refined").sum())
    titles = ["training image", "1  generated", "", f"3  {count} neuron{'s' * (count != 1)} off"]
    for place, image in ((0, first), (1, pictures[0]), (3, pictures[1])):
        show(grid[place], image)
        grid[place].set_title(titles[place])
    if training is None:
        grid[0].remove()
    _stages(grid[2], frame)
    figure.suptitle(plain(prompt, 100), fontsize=8, style="italic", parse_math=False)
    return figure


def _stages(axes: Axes, frame: pd.DataFrame) -> None:
    jitter = (frame.neuron % 17 / 16 - 0.5) * 0.5  # spreads neurons of a layer, the same each time
    looks = {
        "other": {"marker": ".", "color": PALE, "ms": 2},
        "candidate": {"marker": "o", "mfc": "none", "color": "#333333", "ms": 4, "mew": 0.7},
        "refined": {"marker": "o", "color": ACCENT, "mec": "black", "mew": 0.4, "ms": 5.5},
    }
    names = {"candidate": "2  candidates", "refined": "refined"}
    for stage, look in looks.items():
        rows = frame[(frame.stage == stage)]
        count = len(rows) if stage == "refined" else int((frame.stage != "other").sum())
        label = None if stage == "other" else f"{names[stage]} ({count})"
        axes.plot(rows.layer + jitter[rows.index], rows.z, ls="", label=label, **look)
    axes.axhline(0, color="#666666", linewidth=0.5, zorder=0)
    axes.set(xlabel="value layer", ylabel="z", xticks=sorted(frame.layer.unique()))
    look = {"loc": "lower center", "bbox_to_anchor": (0.5, 0.98), "ncols": 2}
    axes.legend(**look, handletextpad=0.1, columnspacing=0.8)
