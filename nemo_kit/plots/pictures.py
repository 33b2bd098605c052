"""Rows of pictures with words beside and between them: figures 3, 9 to 13 and 18 to 20; and noise
differences as pictures.

Source: Hintersdorf et al., "Finding NeMo", NeurIPS 2024, for what the figures show.
"""

from collections.abc import Sequence
from textwrap import wrap

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nemo_kit.metrics._checks import check_images
from nemo_kit.plots.style import ACCENT, TEXT, plain, row_of, show

PAGE = 9.0  # inches of text on a page, from top to bottom
BOX, GAP, EDGE = 0.62, 0.1, 0.05  # inches: a box of words, between blocks, around all
LINE, LETTER = 0.17, 0.06  # inches: a line of text, a letter in it

Block = np.ndarray | str | None


def picture_rows(
    rows: Sequence[Sequence[Block]],
    headings: Sequence[str] = (),
    labels: Sequence[str] = (),
    captions: Sequence[str] = (),
    side: float = PAGE,
) -> Figure:
    """Rows of blocks, each some pictures beside one another or a text in a box.

    Returns a pyplot figure of at most the text width and a page's height, with all pictures equally
    high.

    Parameters: `rows`, for each the same number of blocks: uint8 [N, H, W, 3] or one picture
    [H, W, 3], a text, or None for nothing (where it is None in all rows it takes no width);
    `headings`, one over each block; `labels`, one left of each row; `captions`, one over each row,
    such as its prompt; `side`, the largest height of a picture in inches.
    Raises ValueError for no pictures, other shapes or dtypes, and numbers that don't fit.
    """
    wanted = {"headings": len(rows[0]), "labels": len(rows), "captions": len(rows)}
    given = {"headings": headings, "labels": labels, "captions": captions}
    given |= {f"row {number}": row for number, row in enumerate(rows, start=1)}
    for name, values in given.items():
        if len(values) not in (0, number := wanted.get(name, len(rows[0]))):
            raise ValueError(f"{name} must have {number} entries, got {len(values)}")
    strips = [[_strip(cell) for cell in row] for row in rows]
    ratios = [max(map(_ratio, column)) for column in zip(*strips, strict=True)]
    if not any(ratios):
        raise ValueError("rows must hold at least one picture, got none")
    boxes = [any(isinstance(cell, str) for cell in column) for column in zip(*strips, strict=True)]
    used = [n for n, (ratio, box) in enumerate(zip(ratios, boxes, strict=True)) if ratio or box]
    left = EDGE + LETTER * max((len(x) for text in labels for x in text.split("\n")), default=0)
    head = EDGE + LINE * (bool(headings) + (max(map(len, headings), default=0) > 24))
    above = 0.06 + LINE * bool(captions)
    free = TEXT - left - EDGE - GAP * (len(used) - 1) - BOX * sum(boxes)
    height = min(side, free / sum(ratios), (PAGE - head) / len(rows) - above)
    sizes = [max(ratios[n] * height, BOX * boxes[n]) for n in used]
    width = left + sum(sizes) + GAP * (len(sizes) - 1) + EDGE
    whole = head + len(rows) * (height + above)
    figure, grid = plt.subplots(
        len(rows), len(used), figsize=(width, whole), layout="none", squeeze=False,
        gridspec_kw={
            "width_ratios": sizes, "wspace": GAP / np.mean(sizes), "hspace": above / height,
            "left": left / width, "right": 1 - EDGE / width,
            "bottom": 0, "top": 1 - (head + above) / whole,
        },
    )  # fmt: skip
    for axes, strip in zip(grid, strips, strict=True):
        for ax, place in zip(axes, used, strict=True):
            _draw(ax, strip[place])
    for axes, text in zip(grid[:, 0], labels, strict=False):
        axes.annotate(text, (0, 0.5), (-4, 0), **_OFFSET, ha="right", va="center", fontsize=7)
    for axes, text in zip(grid[:, 0], captions, strict=False):
        text = plain(text, int((width - left) / LETTER))
        axes.annotate(text, (0, 1), (0, 2.5), **_OFFSET, fontsize=7, style="italic")
    for ax, place, size in zip(grid[0], used if headings else (), sizes, strict=False):
        letters = int(max(size, BOX) / LETTER)
        lines = wrap(plain(headings[place], 2 * letters), letters, max_lines=2, placeholder="…")
        ax.annotate("\n".join(lines), (0.5, 1), (0, 72 * above), **_OFFSET, ha="center")
    return figure


_OFFSET = {"xycoords": "axes fraction", "textcoords": "offset points"}


def _strip(cell: Block) -> Block:
    """Pictures side by side as one [H, W', 3]; words and nothing as they are."""
    if cell is None or isinstance(cell, str):
        return cell
    images = np.asarray(cell)
    return row_of(check_images("pictures", images[None] if images.ndim == 3 else images))


def _ratio(cell: Block) -> float:
    return cell.shape[1] / cell.shape[0] if isinstance(cell, np.ndarray) else 0.0


def _draw(ax: Axes, cell: Block) -> None:
    """A block in its place, from the left."""
    if isinstance(cell, np.ndarray):
        show(ax, cell)
        ax.set_anchor("W")
        return
    ax.set_axis_off()
    text = "\n".join(line for part in (cell or "").split("\n") for line in wrap(part, 12))
    if text:
        frame = {"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": ACCENT}
        ax.text(0.5, 0.5, text, ha="center", va="center", bbox=frame,
                fontsize=9 if len(text) < 5 else 6.5)  # fmt: skip


def noise_pictures(differences: np.ndarray) -> np.ndarray:
    """Noise differences as pictures: the first three latent channels as red, green and blue.

    Returns uint8 [N, H, W, 3].

    Parameters: `differences`, [N, channels >= 3, H, W] in [0, 1].
    Raises ValueError for other shapes and for values outside [0, 1].
    Source: paper, figure 13.
    """
    values = np.asarray(differences, dtype=float)
    if values.ndim != 4 or values.shape[1] < 3:
        raise ValueError(
            f"differences must be [N, 3 or more channels, H, W], got {list(values.shape)}"
        )
    if not (values.min() >= 0 and values.max() <= 1):
        raise ValueError("differences must lie in [0, 1]")
    return (values[:, :3].transpose(0, 2, 3, 1) * 255).round().astype(np.uint8)
