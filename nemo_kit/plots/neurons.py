"""Figures of what localization found: counts, layers, cost, shared neurons, comparison with truth.

Source: Hintersdorf et al., "Finding NeMo", NeurIPS 2024, figures 4 and 7, table 2; the comparison
with known neurons is an addition.
"""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nemo_kit.plots.style import (
    ACCENT,
    COLUMN,
    GROUPS,
    PALE,
    TEXT,
    Look,
    canvas,
    count_text,
    groups,
    legend,
    mean_interval,
    plain,
    require,
    styled,
    told,
    write,
)


@styled
def neuron_histogram(frame: pd.DataFrame, column: str = "refined", detail: int = 50) -> Figure:
    """Histogram of prompts by number of neurons, VM above TM (F4a, F7b; initial neurons: F7a).

    Returns a figure one column wide. Where a count exceeds twice `detail`, it has the text width,
    and a second column shows the range 0 to `detail` neuron by neuron (the paper's inset).

    Parameters: `frame`, one row a prompt, with `prompt`, `group` and the counted `column`;
    `column`, "refined" or "initial" (neurons a prompt); `detail`, end of the detailed range.
    Raises ValueError for a missing column, no rows, an unknown group, or negative counts.
    Source: paper, figures 4a, 7a and 7b.
    """
    require(frame, "prompt", "group", column)
    if (frame[column] < 0).any():
        raise ValueError(f"{column} must be counts, 0 or more, got {frame[column].min()}")
    parts, largest = groups(frame), int(frame[column].max())
    edges = [integer_bins(largest)]
    if largest > 2 * detail:
        edges.append(integer_bins(detail))
    size = (COLUMN if len(edges) == 1 else TEXT, 1.2 * len(parts) + 0.4)
    figure, grid = canvas(*size, len(parts), len(edges), sharex="col", sharey="col", squeeze=False)
    for place, (name, look, rows) in enumerate(parts):
        for axes, bins in zip(grid[place], edges, strict=True):
            _counts(axes, rows[column], look, bins)
        text = f"{count_text(rows, name)}, median {rows[column].median():g}"
        grid[place, 0].set_title(text, loc="right", fontsize=7)
        grid[place, 0].set_ylabel("prompts")
    width = edges[0][1] - edges[0][0]
    parts_of = (f" ({width:g} numbers a bar)" if width > 1 else "", f", 0 to {detail}")
    for column_axes, part in zip(grid.T, parts_of, strict=False):
        column_axes[-1].set_xlabel(f"{column} neurons of a prompt{part}")
        tops = [patch.get_height() for axes in column_axes for patch in axes.patches]
        column_axes[0].set_ylim(0, 1.05 * max(1.0, *tops))
    return figure


def integer_bins(largest: int, most: int = 60) -> np.ndarray:
    """Edges between whole numbers from 0, one number a bin, more where that were over `most`."""
    width = int(np.ceil((largest + 1) / most))
    return np.arange(0, largest + 1 + width, width) - 0.5


def _counts(axes: Axes, values: pd.Series, look: Look, edges: np.ndarray) -> None:
    style = {"color": look.colour, "edgecolor": "white", "linewidth": 0.4, "hatch": look.hatch}
    axes.hist(values, bins=edges, **style)
    axes.set_xlim(edges[0], edges[-1])
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


@styled
def neurons_by_layer(frame: pd.DataFrame) -> Figure:
    """Mean number of memorization neurons in each value layer, VM beside TM (F4b).

    Returns a figure one column wide; the whiskers are 95 % bootstrap intervals over prompts.

    Parameters: `frame`, one row a prompt and layer (layers without neurons as 0), with `prompt`,
    `group`, `layer`, `neurons`.
    Raises ValueError for a missing column, no rows, or an unknown group.
    Source: paper, figure 4b.
    """
    require(frame, "prompt", "group", "layer", "neurons")
    figure, axes = canvas(COLUMN, 2.3)
    parts = groups(frame)
    width = 0.8 / len(parts)
    for order, (name, look, rows) in enumerate(parts):
        found = rows.groupby("layer")["neurons"].agg(mean_interval)
        mean, low, high = np.array(found.tolist()).T
        places = found.index + (order - (len(parts) - 1) / 2) * width
        style = {"color": look.colour, "hatch": look.hatch, "edgecolor": "white", "linewidth": 0.4}
        axes.bar(places, mean, width, label=count_text(rows, name), **style)
        axes.errorbar(
            places, mean, (mean - low, high - mean), fmt="none", ecolor="black", elinewidth=0.8
        )
    axes.set(
        xlabel="value layer", ylabel="neurons a prompt (mean)", xticks=sorted(frame.layer.unique())
    )
    axes.set_ylim(0, None)
    told(axes, "whiskers: 95 % intervals over prompts")
    legend(axes)
    return figure


def runtime_summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean seconds and denoiser samples of each algorithm and in total, by group (T2).

    Returns a frame with `group`, `algorithm`, `seconds`, `samples`, `prompts`.

    Parameters: `frame`, one row a prompt and algorithm, with `prompt`, `group`, `algorithm`,
    `seconds`, `samples`.
    Raises ValueError for a missing column, no rows, or an unknown group.
    Source: paper, table 2.
    """
    require(frame, "prompt", "group", "algorithm", "seconds", "samples")
    totals = frame.groupby(["prompt", "group"], as_index=False)[["seconds", "samples"]].sum()
    both = pd.concat([frame, totals.assign(algorithm="total")])
    keys = both.groupby(["group", "algorithm"], sort=False)
    table = keys.agg(
        seconds=("seconds", "mean"), samples=("samples", "mean"), prompts=("prompt", "nunique")
    )
    return table.reset_index()


@styled
def runtime_table(frame: pd.DataFrame) -> Figure:
    """Seconds and denoiser samples a prompt for each algorithm, VM and TM, as a table (T2).

    Returns a figure 4.4 in wide for two groups; the numbers are those of `runtime_summary`.

    Parameters and errors as `runtime_summary`.
    Source: paper, table 2; samples are an addition, as they are the same on every machine.
    """
    table = runtime_summary(frame)
    names = [name for name in GROUPS if name in set(table.group)]
    cells = [["", *[h for _ in names for h in ("seconds", "samples")]]]
    for algorithm in table.algorithm.unique():
        numbers = [_cost(table, name, algorithm) for name in names]
        cells.append([str(algorithm), *[cell for pair in numbers for cell in pair]])
    figure, axes = canvas(1.8 + 1.3 * len(names), 0.2 * len(cells) + 0.4)
    heads = [f"{n} (n = {table[table.group == n].prompts.max()})" for n in names]
    _booktabs(axes, cells, heads)
    told(axes, "means over prompts; samples: inputs that the denoiser worked on")
    return figure


def _cost(table: pd.DataFrame, group: str, algorithm: str) -> tuple[str, str]:
    row = table[(table.group == group) & (table.algorithm == algorithm)]
    if row.empty:
        return "–", "–"
    return f"{row.seconds.iloc[0]:.2f}", f"{row.samples.iloc[0]:,.0f}"


def _booktabs(axes: Axes, cells: list[list[str]], heads: list[str]) -> None:
    """Right-aligned columns between three rules, with a heading over each pair of columns."""
    lines = len(cells) + 1
    first = 1 / (1 + 0.85 * (len(cells[0]) // 2))  # width of the names
    ends = np.linspace(first, 1, len(cells[0]))[1:]
    for order, head in enumerate(heads):
        axes.text(ends[2 * order + 1], lines - 0.5, head, ha="right", va="center", weight="bold")
    for place, row in enumerate(cells):
        y = lines - 1.5 - place
        weight = "bold" if row[0] == "total" else "normal"
        axes.text(0, y, row[0], va="center", weight=weight)
        for x, cell in zip(ends, row[1:], strict=True):
            axes.text(x, y, cell, ha="right", va="center", weight=weight)
    for y, width in ((lines, 1.0), (lines - 2, 0.6), (1, 0.6), (0, 1.0)):
        axes.axhline(y, color="black", linewidth=width)
    axes.set(xlim=(0, 1), ylim=(-0.1, lines + 0.1))
    axes.axis("off")


@styled
def shared_neuron_counts(frame: pd.DataFrame, most: int = 15) -> Figure:
    """The neurons that serve most prompts, with the number of prompts.

    Returns a figure one column wide. Neurons of a single prompt are left out where others are
    shared.

    Parameters: `frame`, one row a neuron, with `layer`, `neuron`, `prompts`; `most`, how many
    neurons to draw, the most frequent.
    Raises ValueError for a missing column or no rows.
    Source: paper, section 4 (neurons shared by many prompts).
    """
    require(frame, "layer", "neuron", "prompts")
    rows = frame[frame["prompts"] > 1] if (frame["prompts"] > 1).any() else frame
    rows = rows.sort_values(["prompts", "layer", "neuron"], ascending=[False, True, True])[:most]
    figure, axes = canvas(COLUMN, 0.17 * max(len(rows), 4) + 0.7)
    axes.barh(range(len(rows)), rows["prompts"], color=ACCENT, height=0.7)
    names = [f"layer {row.layer}, #{row.neuron}" for row in rows.itertuples()]
    axes.set_yticks(range(len(rows)), names)
    axes.set(xlabel="prompts whose memorization the neuron serves", ylim=(len(rows) - 0.4, -0.6))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    return figure


@styled
def ground_truth(frame: pd.DataFrame) -> Figure:
    """Neurons found against planted ones, prompt by prompt.

    Returns a figure 5 in wide. Left: planted neurons, found and missed. Right: found neurons that
    were not planted, on a scale of their own.

    Parameters: `frame`, one row a prompt, with `prompt`, `hit`, `missed`, `extra` (counts).
    A frame without rows gives a figure that says so: most models have no known neurons.
    Raises ValueError for a missing column.
    Source: an addition; only a model with planted neurons has known ones.
    """
    require(frame, "prompt", "hit", "missed", "extra", rows=False)
    figure, (left, right) = canvas(5.0, 0.14 * max(len(frame), 6) + 0.7, 1, 2, sharey=True)
    _bars(left, frame, {"found": ("hit", ACCENT, ""), "missed": ("missed", "white", "////")})
    _bars(right, frame, {"found": ("extra", PALE, "")})
    names = [plain(prompt, 44) for prompt in frame["prompt"]]
    left.set_yticks(range(len(frame)), names, fontsize=6)
    left.set(xlabel="planted neurons", ylim=(max(len(frame), 1) - 0.4, -0.6))
    right.set_xlabel("other neurons found")
    right.tick_params(left=False)
    if frame.empty:
        write(left, 0.5, 0.5, "no prompt with known neurons", ha="center", va="center")
    legend(left)
    return figure


def _bars(axes: Axes, frame: pd.DataFrame, parts: dict[str, tuple[str, str, str]]) -> None:
    """Stacked horizontal bars, one row a prompt."""
    left = np.zeros(len(frame))
    for label, (column, colour, hatch) in parts.items():
        look = {"color": colour, "hatch": hatch, "edgecolor": "#444444", "linewidth": 0.5}
        axes.barh(range(len(frame)), frame[column], left=left, label=label, **look)
        left += frame[column].to_numpy(float)
    axes.set_xlim(0, max(1, left.max(initial=0)) * 1.05)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
