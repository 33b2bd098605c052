"""Rows of pictures with words beside and between them: figures 3, 9 to 13 and 18 to 20.

Source: Hintersdorf et al., "Finding NeMo", NeurIPS 2024, for what the figures show.
"""

from collections.abc import Sequence
from textwrap import wrap

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from nemo_kit.plots.style import ACCENT, TEXT, plain, row_of, show, strips

PAGE = 9.0  # inches of text on a page, from top to bottom
BOX, GAP, LINE = 0.62, 0.1, 0.17  # inches: a box of words, between blocks, a line of text
LETTER = 0.055  # inches a letter takes in a heading

Block = np.ndarray | str | None


def picture_rows(
    rows: Sequence[Sequence[Block]],
    headings: Sequence[str] = (),
    labels: Sequence[str] = (),
    captions: Sequence[str] = (),
    side: float = PAGE,
) -> Figure:
    """Rows of blocks, each some pictures beside one another or a text in a box.

    Returns a pyplot figure of the text width, narrower where the pictures are at their largest; all
    pictures have one size, such that a page holds them.

    Parameters: `rows`, for each the same number of blocks: uint8 [N, H, W, 3] or one picture
    [H, W, 3], a text, or None for nothing (where it is None in all rows it takes no width);
    `headings`, one over each block; `labels`, one left of each row; `captions`, one over each row,
    such as its prompt; `side`, the largest width of a picture in inches.
    Raises ValueError for no pictures, other shapes or dtypes, and numbers that don't fit.
    """
    cells = [[_block(cell) for cell in row] for row in rows]
    pictures = [cell for row in cells for cell in row if isinstance(cell, np.ndarray)]
    if not pictures:
        raise ValueError("rows must hold at least one picture, got none")
    blocks = len(cells[0])
    _same("blocks", blocks, **{f"row {place + 1}": row for place, row in enumerate(cells)})
    _same("blocks", blocks, headings=headings or cells[0])
    _same("rows", len(cells), labels=labels or cells, captions=captions or cells)
    counts = [_pictures(column) for column in zip(*cells, strict=True)]
    gaps = GAP * (sum(map(bool, counts)) - 1)
    left = 0.05 + max((len(line) for text in labels for line in text.split("\n")), default=0) * 0.06
    boxes = BOX * sum(count == "box" for count in counts)
    spare = TEXT - left - gaps - boxes - 0.05
    tall = max(cell.shape[1] / cell.shape[2] for cell in pictures)
    above = LINE * bool(captions) + 0.06
    head = _head(headings)
    number = sum(count for count in counts if count != "box")
    side = min(side, spare / number, ((PAGE - head) / len(cells) - above) / tall)
    sizes = [BOX if count == "box" else count * side for count in counts]
    page = _Page(left + sum(sizes) + gaps + 0.05, head + len(cells) * (side * tall + above) + 0.02)
    starts = [left + sum(sizes[:j]) + GAP * sum(map(bool, sizes[:j])) for j in range(blocks)]
    for place, row in enumerate(cells):
        top = head + place * (side * tall + above) + LINE * bool(captions)
        if captions:
            text = plain(captions[place], int(page.width / LETTER))
            page.write(0.05, top - 0.035, text, va="bottom", fontsize=7, style="italic")
        if labels:
            page.write(left - 0.06, top + side * tall / 2, labels[place], ha="right", fontsize=7)
        for start, cell in zip(starts, row, strict=True):
            if isinstance(cell, str):
                page.box(start + BOX / 2, top + side * tall / 2, cell)
            elif cell is not None:
                page.strip(start, top, side * len(cell), side * tall, cell)
    for start, size, text in zip(starts, sizes, headings, strict=False):
        lines = _lines(text, max(size, BOX)) if size else []
        page.write(start + size / 2, head - 0.05, "\n".join(lines), ha="center", va="bottom")
    return page.figure


def _block(cell: Block) -> Block:
    if cell is None or isinstance(cell, str):
        return cell
    images = strips("pictures", cell)
    images = images[None] if images.ndim == 3 else images
    if images.ndim != 4:
        raise ValueError(f"pictures must be [N, H, W, 3] or [H, W, 3], got {list(images.shape)}")
    return images


def _pictures(column: Sequence[Block]) -> int | str:
    """How many pictures wide a column is, or "box" for words, 0 for nothing."""
    if any(isinstance(cell, str) for cell in column):
        return "box"
    return max(0 if cell is None else len(cell) for cell in column)


def _same(what: str, number: int, **given: Sequence[object]) -> None:
    for name, values in given.items():
        if len(values) != number:
            raise ValueError(f"{name} must be as many as there are {what}, {number}, got {values}")


def _lines(text: str, width: float) -> list[str]:
    """A heading in at most two lines that fit into so many inches."""
    letters = max(8, int(width / LETTER))
    lines = wrap(plain(text, 2 * letters), letters)
    return lines[:2]


def _head(headings: Sequence[str]) -> float:
    return 0.05 if not headings else 0.36 if max(map(len, headings)) > 24 else 0.2


class _Page:
    """A figure whose places are inches from its upper left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = plt.figure(figsize=(width, height), layout="none")

    def write(self, x: float, y: float, text: str, **look: object) -> None:
        look = {"va": "center", "fontsize": 7.5} | look
        self.figure.text(x / self.width, 1 - y / self.height, text, **look)

    def box(self, x: float, y: float, text: str) -> None:
        frame = {"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": ACCENT}
        size = 9 if len(text) < 5 else 6.5
        self.write(x, y, text, ha="center", fontsize=size, bbox=frame)

    def strip(self, x: float, y: float, width: float, height: float, images: np.ndarray) -> None:
        sizes = (width / self.width, height / self.height)
        axes = self.figure.add_axes((x / self.width, 1 - (y + height) / self.height, *sizes))
        show(axes, row_of(images))
