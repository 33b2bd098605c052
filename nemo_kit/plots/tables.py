"""Tables as figures: settings in rows, measures of VM and TM prompts in columns.

Source: Hintersdorf et al., "Finding NeMo", NeurIPS 2024, tables 1, 3 and 4.
"""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nemo_kit.plots.style import GROUPS, TEXT, canvas, require, styled

HEADS = {
    "neurons": "neurons",
    "orig": "orig ↓",
    "gen": "gen ↓",
    "diversity": "div ↓",
    "alignment": "align ↑",
}
ROW, HEAD = 0.27, 0.62  # inches
NAMES = 1.85  # inches for the settings' names, less where they are short


@styled
def results(frame: pd.DataFrame, note: str = "", rules: Sequence[str] = ()) -> Figure:
    """Median ± MAD of every setting, group and measure, the interval below it (T1, T4).

    Returns a figure of the text width; measures without numbers have no column, missing cells a
    dash. Arrows say which direction is less memorization or better alignment.

    Parameters: `frame`, with `setting`, `group`, `measure`, `median`, and if there are any `mad`,
    `low`, `high` (95 % interval), `prompts`; `note`, below the table, e.g. which networks gave the
    numbers; `rules`, settings with a thin line below.
    Raises ValueError for a missing column, no rows, or an unknown group.
    Source: paper, tables 1 and 4.
    """
    require(frame, "setting", "group", "measure", "median")
    columns = [
        (group, measure)
        for group in GROUPS
        for measure in sorted(dict.fromkeys(frame["measure"]), key=_place)
        if ((frame["group"] == group) & (frame["measure"] == measure)).any()
    ]
    settings = list(dict.fromkeys(frame["setting"]))
    height = HEAD + ROW * len(settings) + (0.2 if note else 0.05)
    figure, axes = canvas(TEXT, height)
    axes.set(xlim=(0, TEXT), ylim=(height, 0))
    axes.axis("off")
    ends = _ends(columns, min(NAMES, 0.3 + 0.068 * max(map(len, settings))))
    _heads(axes, columns, ends, frame)
    cells = {(r.setting, r.group, r.measure): r for r in frame.itertuples()}
    for place, setting in enumerate(settings):
        y = HEAD + ROW * (place + 0.5)
        if setting in rules:
            axes.axhline(y + ROW / 2, color="#999999", linewidth=0.5)
        axes.text(0, y, setting, va="center", parse_math=False)
        for x, key in zip(ends, columns, strict=True):
            row = cells.get((setting, *key))
            _cell(axes, x, y, row, 1 if key[1] == "neurons" else 2, 7 if len(columns) < 9 else 6.5)
    for y, width in ((0.05, 1.0), (HEAD - 0.04, 0.6), (HEAD + ROW * len(settings) + 0.02, 1.0)):
        axes.axhline(y, color="black", linewidth=width)
    if note:
        axes.text(0, height - 0.02, note, va="bottom", fontsize=6.5, color="#444444")
    return figure


def _place(measure: str) -> int:
    """Neurons first, then the measures of table 1 in its order, then others."""
    return [*HEADS, measure].index(measure)


def _ends(columns: Sequence[tuple[str, str]], names: float) -> list[float]:
    """Right edges of the columns, in inches, after so many for the names; a gap between groups."""
    gaps = [0.0]
    for before, after in pairwise(columns):
        gaps.append(gaps[-1] + 0.12 * (before[0] != after[0]))
    width = (TEXT - names - gaps[-1]) / len(columns)
    return [names + width * (place + 1) + gap for place, gap in enumerate(gaps)]


def _heads(
    axes: Axes, columns: Sequence[tuple[str, str]], ends: Sequence[float], frame: pd.DataFrame
) -> None:
    for group in dict.fromkeys(group for group, _ in columns):
        own = [end for end, (name, _) in zip(ends, columns, strict=True) if name == group]
        left = own[0] - (ends[1] - ends[0] if len(ends) > 1 else 1.0) + 0.12
        middle, count = (left + own[-1]) / 2, _prompts(frame, group)
        axes.text(middle, 0.17, f"{group}{count}", ha="center", va="center", weight="bold")
        axes.plot([left, own[-1]], [0.29, 0.29], color="black", linewidth=0.5)
    for end, (_, measure) in zip(ends, columns, strict=True):
        axes.text(end, 0.43, HEADS.get(measure, measure), ha="right", va="center", fontsize=7)


def _prompts(frame: pd.DataFrame, group: str) -> str:
    if "prompts" not in frame:
        return ""
    return f" (n = {frame.loc[frame['group'] == group, 'prompts'].max():.0f})"


def _cell(axes: Axes, x: float, y: float, row: Any, digits: int, size: float) -> None:
    if row is None:
        axes.text(x, y, "–", ha="right", va="center")
        return
    deviation, low = getattr(row, "mad", float("nan")), getattr(row, "low", float("nan"))
    text = _number(row.median, digits)
    if deviation == deviation:  # a number, not NaN
        text += f"±{_number(deviation, digits)}"
    if low != low:
        axes.text(x, y, text, ha="right", va="center", fontsize=size)
        return
    axes.text(x, y - 0.055, text, ha="right", va="center", fontsize=size)
    interval = f"[{_number(low, digits)}, {_number(row.high, digits)}]"
    axes.text(x, y + 0.065, interval, ha="right", va="center", fontsize=5.5, color="#555555")


def _number(value: float, digits: int) -> str:
    """In the paper's short form: .83 for 0.83; counts as 3, not 3.0."""
    text = f"{value:.{digits}f}"
    text = text.removeprefix("-") if not float(text) else text  # no minus before 0
    text = text.removesuffix(".0") if digits == 1 else re.sub(r"^(-?)0\.", r"\1.", text)
    return text.replace("-", "−")
