"""Figure of the dose-response: how memorization grows with the repetition of a training image.

Source: an addition; it needs a model whose training frequencies are known.
"""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from nemo_kit.plots.style import ACCENT, TEXT, canvas, mean_interval, require, styled, told

PANELS = {
    "score": "memorization score",
    "copies": "share of verbatim copies",
    "neurons": "neurons of flagged prompts",
}


@styled
def dose_response(frame: pd.DataFrame, threshold: float | None = None) -> Figure:
    """Score, share of verbatim copies and number of neurons against the repetition rate.

    Returns a figure of the text width in three parts with a logarithmic rate axis: points are
    prompts, the line joins the means of each rate, the band is their 95 % bootstrap interval.

    Parameters: `frame`, one row a prompt, with `prompt`, `repetitions` (> 0), `score`, `copies`
    (share in [0, 1]), `neurons` (NaN where the prompt was not localized); `threshold`, τ, drawn
    in the first part if given.
    Raises ValueError for a missing column, no rows, or a rate of 0 or less.
    """
    require(frame, "prompt", "repetitions", *PANELS)
    if (frame["repetitions"] <= 0).any():
        raise ValueError(f"repetitions must be above 0, got {frame['repetitions'].min()}")
    figure, grid = canvas(TEXT, 2.3, 1, 3)
    for axes, (column, label) in zip(grid, PANELS.items(), strict=True):
        _response(axes, frame[["repetitions", column]].dropna(), column)
        axes.set_ylabel(label)
        _rates(axes, frame["repetitions"])
    grid[0].set_ylim(0, 1)
    grid[1].set_ylim(-0.03, 1.03)
    grid[2].set_ylim(0, max(1.0, 1.08 * np.nanmax([*frame["neurons"], 0])))
    told(grid[1], "lines: means, bands: 95 % intervals")
    if threshold is not None:
        grid[0].axhline(threshold, color="black", linestyle=(0, (4, 2)), linewidth=0.9)
        told(grid[0], rf"dashed: $\tau$ = {threshold:.3f}")
    return figure


def _response(axes: Axes, rows: pd.DataFrame, column: str) -> None:
    axes.plot(rows["repetitions"], rows[column], "o", color="#555555", ms=3.2, alpha=0.6, mew=0)
    if rows.empty:
        return
    means = rows.groupby("repetitions")[column].agg(mean_interval)
    middle, low, high = np.array(means.tolist()).T
    axes.plot(means.index, middle, color=ACCENT, marker="D", ms=3.5)
    axes.fill_between(means.index, low, high, color=ACCENT, alpha=0.2, linewidth=0)


def _rates(axes: Axes, rates: pd.Series) -> None:
    ticks, span = [rates.min()], np.log(max(rates.max() / rates.min(), 1.01))
    for rate in sorted(rates.unique()):
        if np.log(rate / ticks[-1]) >= span / 6.5:  # labels that do not touch
            ticks.append(rate)
    axes.set(xscale="log", xlabel="repetitions in training (log)", xticks=ticks)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(FixedLocator(sorted(rates.unique())))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", labelsize=6.5)
