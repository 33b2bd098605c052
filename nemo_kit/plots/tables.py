"""Tables as figures, in three rules: rows of text, columns under the groups they belong to.

Source: Hintersdorf et al., "Finding NeMo", NeurIPS 2024, tables 1, 2 and 4.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from nemo_kit.checks import check_choice, check_columns
from nemo_kit.metrics.measures import MEASURES
from nemo_kit.plots.style import PALETTE, TEXT, plain

ARROWS = {"lower": "↓", "higher": "↑", "": ""}
ROW, HEAD = 0.27, 0.62  # inches


def table(
    cells: pd.DataFrame, note: str = "", rules: Sequence[str] = (), width: float = TEXT
) -> Figure:
    """A frame of texts as a table: its index left, its columns right-aligned between rules.

    Returns a pyplot figure.

    Parameters: `cells`, texts; the columns are pairs, a heading over several and one of each, such
    as ("VM (n = 3)", "seconds"); a second line of a cell is drawn small; `note`, below the table;
    `rules`, names of rows with a thin line below; `width`, in inches.
    Raises ValueError for no rows, or columns that are no pairs.
    """
    if cells.empty or cells.columns.nlevels != 2:
        raise ValueError(f"cells must have rows, and pairs as columns; got {list(cells.columns)}")
    height = HEAD + ROW * len(cells) + (0.2 if note else 0.05)
    figure, axes = plt.subplots(figsize=(width, height))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    part, heads = pd.factorize(cells.columns.get_level_values(0))  # of each column
    names = 0.1 + 0.061 * max(map(len, map(str, cells.index)))
    step = (width - min(names, 0.4 * width) - 0.12 * (len(heads) - 1)) / len(part)
    ends = width - step * np.arange(len(part))[::-1] - 0.12 * (len(heads) - 1 - part)
    for place, head in enumerate(heads):
        own = ends[part == place]
        left = own[0] - step + 0.12
        axes.text((left + own[-1]) / 2, 0.17, head, ha="center", va="center", weight="bold")
        axes.plot([left, own[-1]], [0.29, 0.29], color="black", linewidth=0.5)
    right = {"ha": "right", "va": "center"}
    for end, (_, name) in zip(ends, cells.columns, strict=True):
        axes.text(end, 0.43, name, fontsize=7, **right)
    size, small = (7, 5.5) if len(ends) < 9 else (6.5, 5)
    for place, (name, row) in enumerate(cells.iterrows()):
        y = HEAD + ROW * (place + 0.5)
        axes.text(0, y, plain(str(name)), va="center")
        if name in rules:
            axes.axhline(y + ROW / 2, color="#999999", linewidth=0.5)
        for x, text in zip(ends, row, strict=True):
            first, _, second = str(text).partition("\n")
            axes.text(x, y - 0.055 * bool(second), first, fontsize=size, **right)
            axes.text(x, y + 0.065, second, fontsize=small, color="#555555", **right)
    for y, line in ((0.05, 1.0), (HEAD - 0.04, 0.6), (HEAD + ROW * len(cells) + 0.02, 1.0)):
        axes.axhline(y, color="black", linewidth=line)
    axes.text(0, height - 0.02, note, va="bottom", fontsize=6.5, color="#444444")
    return figure


def results(frame: pd.DataFrame, note: str = "", rules: Sequence[str] = ()) -> Figure:
    """Median ± MAD of every setting, group and measure, the interval below it (T1, T4).

    Returns the figure of `table`; measures without numbers have no column, missing cells a dash.
    Arrows say which direction is less memorization or better alignment.

    Parameters: `frame`, with `setting`, `group`, `measure`, `median`, and if there are any `mad`,
    `low`, `high` (95 % interval), `prompts`, and `origin`, each of which has a row of its own where
    it isn't empty; `note` and `rules`, as in `table`.
    Raises ValueError for a missing column, no rows, or an unknown group.
    Source: paper, tables 1 and 4.
    """
    check_columns("frame", frame, "setting", "group", "measure", "median")
    if frame.empty:
        raise ValueError("frame has no rows")
    for group in frame["group"].unique():
        check_choice("group", group, PALETTE)
    frame = frame if "origin" in frame else frame.assign(origin="")
    heads = {group: _head(group, rows) for group, rows in frame.groupby("group")}
    rows = frame["setting"] + frame["origin"].map(lambda origin: f", {origin}" if origin else "")
    last = dict(zip(frame["setting"], rows, strict=True))  # of a setting's rows
    texts = frame.assign(setting=rows, text=[_cell(row) for row in frame.itertuples()])
    wide = texts.pivot(index="setting", columns=["group", "measure"], values="text")
    order = ["neurons", *MEASURES, *sorted(set(frame["measure"]) - {"neurons", *MEASURES})]
    columns = [(g, m) for g in PALETTE for m in order if (g, m) in wide.columns]
    wide = wide.reindex(rows.unique())[columns].fillna("–")
    wide.columns = pd.MultiIndex.from_tuples((heads[g], _heading(m)) for g, m in columns)
    return table(wide, note, [last[name] for name in rules if name in last])


def _head(group: str, rows: pd.DataFrame) -> str:
    """The group with its numbers of prompts, such as `VM (n = 20 planted, 10 natural)`."""
    if "prompts" not in rows:
        return group
    counts = rows.groupby("origin", sort=False)["prompts"].max()
    told = ", ".join(f"{count:.0f} {origin}".strip() for origin, count in counts.items())
    return f"{group} (n = {told})"


def _heading(measure: str) -> str:
    if (known := MEASURES.get(measure)) is None:
        return measure
    return f"{known.heading or known.name} {ARROWS[known.better]}".strip()


def _cell(row: Any) -> str:
    digits = 1 if row.measure == "neurons" else 2
    deviation, low = getattr(row, "mad", float("nan")), getattr(row, "low", float("nan"))
    if pd.isna(row.median):
        return "–"
    text = number(row.median, digits)
    text += f"±{number(deviation, digits)}" if pd.notna(deviation) else ""
    return f"{text}\n[{number(low, digits)}, {number(row.high, digits)}]" if pd.notna(low) else text


def number(value: float, digits: int) -> str:
    """In the paper's short form: .83 for 0.83; counts as 3, not 3.0."""
    text = f"{value:.{digits}f}"
    text = text.removeprefix("-") if not float(text) else text  # no minus before 0
    text = text.removesuffix(".0") if digits == 1 else re.sub(r"^(-?)0\.", r"\1.", text)
    return text.replace("-", "−")
