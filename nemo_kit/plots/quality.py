"""Figures of what blocking neurons costs other prompts: image quality and attention outputs.

Source: Hintersdorf et al., "Finding NeMo", NeurIPS 2024, figures 5a and 8, table 3.
"""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from nemo_kit.plots.style import ACCENT, COLUMN, TEXT, canvas, require, styled, told

LOOKS = {
    "most frequent": {"color": "#D55E00", "marker": "o", "linestyle": "-"},
    "random": {"color": "#0072B2", "marker": "s", "linestyle": "--"},
}
GREY = "#8A8A8A"


@styled
def quality(frame: pd.DataFrame) -> Figure:
    """Distance to real pictures against the number of blocked neurons (F5a; F8 for several).

    Returns a figure one column wide for one measure, of the text width for several, panels a, b, …:
    most frequent neurons against random ones, means over seeds with their standard deviation as a
    band, grey line and band: none blocked. The axis of counts is logarithmic.

    Parameters: `frame`, with `measure`, `choice` ("none", "most frequent", "random"), `neurons`
    (count), `mean`, `deviation`, and if there is one `extractor`, which names the axis; lower
    is better in every measure.
    Raises ValueError for a missing column, no rows, an unknown choice, or counts below 1.
    Source: paper, figures 5a and 8a to 8c.
    """
    require(frame, "measure", "choice", "neurons", "mean", "deviation")
    if unknown := set(frame["choice"]) - {*LOOKS, "none"}:
        raise ValueError(f"choice must be none, most frequent or random, got {sorted(unknown)}")
    blocked = frame[frame["choice"] != "none"]
    if (blocked["neurons"] < 1).any():
        raise ValueError(f"neurons must be at least 1, got {blocked['neurons'].min()}")
    measures = list(dict.fromkeys(frame["measure"]))
    size = (COLUMN, 2.4) if len(measures) == 1 else (TEXT, 2.2)
    figure, grid = canvas(*size, 1, len(measures), squeeze=False)
    for place, (axes, measure) in enumerate(zip(grid[0], measures, strict=True)):
        _panel(axes, frame[frame["measure"] == measure], measure)
        if len(measures) > 1:
            axes.set_title("abcdefgh"[place], loc="left", weight="bold")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    if "seeds" in frame and frame["seeds"].max() > 1:
        told(grid[0, -1], f"bands: ± standard deviation over {frame['seeds'].max():.0f} seeds")
    look = {"columnspacing": 1.2, "handlelength": 2.2, "fontsize": 6.5}
    figure.legend(handles, labels, loc="outside upper center", ncols=3, **look)
    return figure


def _panel(axes: Axes, rows: pd.DataFrame, measure: str) -> None:
    none = rows[rows["choice"] == "none"]
    if len(none):
        middle, spread = none["mean"].iloc[0], none["deviation"].iloc[0]
        axes.axhline(middle, color=GREY, linewidth=1, label="none blocked", zorder=1)
        axes.axhspan(middle - spread, middle + spread, color=GREY, alpha=0.2, linewidth=0, zorder=0)
    for choice, look in LOOKS.items():
        part = rows[rows["choice"] == choice].sort_values("neurons")
        if len(part):
            axes.plot(part["neurons"], part["mean"], label=choice, ms=3.5, mec="white", **look)
            ends = (part["mean"] - part["deviation"], part["mean"] + part["deviation"])
            axes.fill_between(part["neurons"], *ends, color=look["color"], alpha=0.15, linewidth=0)
    axes.set(xscale="log", xlabel="blocked neurons (log)", ylabel=_named(rows, measure))
    counts = sorted(rows.loc[rows["neurons"] > 0, "neurons"].unique())
    axes.set_xticks(_apart(counts))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _named(rows: pd.DataFrame, measure: str) -> str:
    """The measure with the network that its features come from, where the frame tells it."""
    if "extractor" not in rows:
        return measure
    return f"{measure} ({str(rows['extractor'].iloc[0]).split(' (')[0]})"


def _apart(counts: list[int]) -> list[int]:
    """Those counts whose labels do not touch on a logarithmic axis, the last one always."""
    if not counts:
        return []
    span, kept = np.log(max(counts[-1] / counts[0], 1.01)), [counts[-1]]
    for count in reversed(counts[:-1]):
        if np.log(kept[-1] / count) >= span / 7:
            kept.append(count)
    return kept[::-1]


@styled
def disentanglement(frame: pd.DataFrame) -> Figure:
    """Similarity of cross-attention outputs with and without blocked neurons, by layer (T3).

    Returns a figure of the text width: a table, a row for each choice and count, a column for each
    layer and their mean, cells shaded by how far they lie below 1.

    Parameters: `frame`, with `choice`, `neurons` (count), `layer` (from 1), `similarity` (cosine,
    mean over prompts and seeds), and if there is one `elsewhere`, how many of the random neurons
    lie in other layers than the most frequent ones, told beside the row.
    Raises ValueError for a missing column, no rows, or an unknown choice.
    Source: paper, table 3.
    """
    require(frame, "choice", "neurons", "layer", "similarity")
    if unknown := set(frame["choice"]) - set(LOOKS):
        raise ValueError(f"choice must be most frequent or random, got {sorted(unknown)}")
    table = frame.pivot_table(index=["choice", "neurons"], columns="layer", values="similarity")
    table = table.loc[[c for c in LOOKS if c in table.index.get_level_values(0)]]
    table = table.assign(mean=table.mean(axis=1))
    figure, axes = canvas(TEXT, 0.21 * len(table) + 0.75)
    values = table.to_numpy()
    low = min(float(values.min()), 0.9)
    axes.imshow(values, cmap="Oranges_r", vmin=low - 0.6 * (1 - low), vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        axes.text(column, row, _short(value), ha="center", va="center", fontsize=5.8)
    moved = (
        {} if "elsewhere" not in frame else frame.groupby(["choice", "neurons"])["elsewhere"].max()
    )
    names = [
        f"{choice}, {count}"
        + (f"\n({n} in other layers)" if (n := moved.get((choice, count), 0)) else "")
        for choice, count in table.index
    ]
    axes.set_yticks(range(len(table)), names, fontsize=6.5)
    axes.set_xticks(range(len(table.columns)), [str(name) for name in table.columns])
    axes.set_xlabel("cross-attention layer (cosine of outputs with and without blocked neurons)")
    axes.tick_params(length=0)
    axes.axvline(len(table.columns) - 1.5, color="white", linewidth=2)
    first = int((table.index.get_level_values(0) == table.index[0][0]).sum())
    axes.axhline(first - 0.5, color="white", linewidth=2)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


def _short(value: float) -> str:
    """Three digits without the leading zero: .987, and 1 only for what rounds to it."""
    text = f"{value:.3f}"
    return "1" if text == "1.000" else text.replace("0.", ".", 1).replace("-", "−")


@styled
def unseen(frame: pd.DataFrame) -> Figure:
    """Share of non-memorized prompts that yield neurons, with 95 % intervals.

    Returns a figure one column wide, a line for each source.

    Parameters: `frame`, with `source`, `prompts`, `with_neurons`, `share`, `low`, `high`.
    Raises ValueError for a missing column or no rows.
    Source: paper, section 4 (442 of 500 yield none).
    """
    require(frame, "source", "prompts", "with_neurons", "share", "low", "high")
    figure, axes = canvas(COLUMN, 0.35 * len(frame) + 0.6)
    for place, row in enumerate(frame.itertuples()):
        colour = ACCENT if row.source == "here" else GREY
        axes.plot([row.low, row.high], [place] * 2, color=colour, linewidth=1.2)
        axes.plot(row.share, place, "o", color=colour, clip_on=False)
    names = [f"{r.source}\n{r.with_neurons} of {r.prompts}" for r in frame.itertuples()]
    axes.set_yticks(range(len(frame)), names)
    axes.set(xlim=(0, max(0.4, frame["high"].max() * 1.05)), ylim=(len(frame) - 0.5, -0.5))
    axes.set_xlabel("share of prompts that yield neurons (95 % interval)")
    return figure
