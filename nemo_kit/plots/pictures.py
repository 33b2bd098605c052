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

    Returns a pyplot figure of at most the text width, narrower where pictures have their largest
    size; all pictures are equally wide, and such that a page holds them.

    Parameters: `rows`, for each the same number of blocks: uint8 [N, H, W, 3] or one picture
    [H, W, 3], a text, or None for nothing (where it is None in all rows it takes no width);
    `headings`, one over each block; `labels`, one left of each row; `captions`, one over each row,
    such as its prompt; `side`, the largest width of a picture in inches.
    Raises ValueError for no pictures, other shapes or dtypes, and numbers that don't fit.
    """
    cells = [[_block(cell) for cell in row] for row in rows]
    page = _Page(cells, headings, labels, captions, side)
    for place, row in enumerate(cells):
        top = page.top(place)
        for text in captions[place : place + 1]:
            line = plain(text, int(page.width / LETTER))
            look = {"ha": "left", "va": "bottom", "fontsize": 7, "style": "italic"}
            page.write(EDGE, top - 0.035, line, **look)
        for text in labels[place : place + 1]:
            page.write(page.left - 0.06, top + page.height / 2, text, ha="right", fontsize=7)
        for start, cell in zip(page.starts, row, strict=True):
            page.draw(start, top, cell)
    for start, size, text in zip(page.starts, page.sizes, headings, strict=False):
        if size:
            page.write(start + size / 2, page.head - 0.05, _two_lines(text, size), va="bottom")
    return page.figure


def _block(cell: Block) -> Block:
    """The pictures as [N, H, W, 3]; words and nothing as they are."""
    if cell is None or isinstance(cell, str):
        return cell
    images = strips("pictures", cell)
    images = images[None] if images.ndim == 3 else images
    if images.ndim != 4:
        raise ValueError(f"pictures must be [N, H, W, 3] or [H, W, 3], got {list(images.shape)}")
    return images


def _widths(images: np.ndarray) -> float:
    """How wide a strip of pictures is, in pictures."""
    return row_of(images).shape[1] / images.shape[2]


def _same(what: str, number: int, **given: Sequence[object]) -> None:
    for name, values in given.items():
        if len(values) not in (0, number):
            raise ValueError(f"{name} must be one for each of {number} {what}, got {len(values)}")


def _two_lines(text: str, width: float) -> str:
    letters = int(max(width, BOX) / LETTER)
    return "\n".join(wrap(plain(text, 2 * letters), letters, max_lines=2, placeholder="…"))


class _Page:
    """Sizes and places, in inches from the upper left corner, and the figure that has them."""

    def __init__(
        self,
        cells: list[list[Block]],
        headings: Sequence[str],
        labels: Sequence[str],
        captions: Sequence[str],
        side: float,
    ) -> None:
        pictures = [cell for row in cells for cell in row if isinstance(cell, np.ndarray)]
        if not pictures:
            raise ValueError("rows must hold at least one picture, got none")
        named = {f"row {place}": row for place, row in enumerate(cells, start=1)}
        _same("blocks", len(cells[0]), headings=headings, **named)
        _same("rows", len(cells), labels=labels, captions=captions)
        longest = max((len(line) for text in labels for line in text.split("\n")), default=0)
        self.left = EDGE + 0.06 * longest
        self.head = EDGE + LINE * (bool(headings) + (max(map(len, headings), default=0) > 24))
        self.above = 0.06 + LINE * bool(captions)
        tall = max(cell.shape[1] / cell.shape[2] for cell in pictures)
        columns = list(zip(*cells, strict=True))
        boxes = [any(isinstance(cell, str) for cell in column) for column in columns]
        counts = [
            max((_widths(cell) for cell in column if isinstance(cell, np.ndarray)), default=0)
            for column in columns
        ]
        used = [bool(count) or box for count, box in zip(counts, boxes, strict=True)]
        fixed = self.left + GAP * (sum(used) - 1) + BOX * sum(boxes) + EDGE
        high = ((PAGE - self.head) / len(cells) - self.above) / tall
        self.side = min(side, (TEXT - fixed) / sum(counts), high)
        self.height = self.side * tall
        self.sizes = [
            max(count * self.side, BOX * box) for count, box in zip(counts, boxes, strict=True)
        ]
        steps = [size + GAP * bool(size) for size in self.sizes]
        *self.starts, end = self.left + np.cumsum([0, *steps])
        self.width = end - GAP + EDGE
        whole = self.head + len(cells) * (self.height + self.above)
        self.size = np.array([self.width, whole])
        self.figure = plt.figure(figsize=tuple(self.size), layout="none")

    def top(self, row: int) -> float:
        """Where the pictures of a row begin."""
        return self.head + (row + 1) * self.above - 0.06 + row * self.height

    def write(self, x: float, y: float, text: str, **look: object) -> None:
        """A text at a place."""
        look = {"ha": "center", "va": "center", "fontsize": 7.5} | look
        self.figure.text(x / self.size[0], 1 - y / self.size[1], text, **look)

    def draw(self, x: float, y: float, cell: Block) -> None:
        """A block, its upper left corner at a place."""
        if isinstance(cell, str):
            frame = {"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": ACCENT}
            size = 9 if len(cell) < 5 else 6.5
            lines = [line for text in cell.split("\n") for line in wrap(text, 12)]
            middle = (x + BOX / 2, y + self.height / 2)
            self.write(*middle, "\n".join(lines), fontsize=size, bbox=frame)
        elif cell is not None:
            width, height = np.array([_widths(cell) * self.side, self.height]) / self.size
            place = (x / self.size[0], 1 - y / self.size[1] - height, width, height)
            show(self.figure.add_axes(place), row_of(cell))
