"""Figure of scaling: copying against the factor that memorization neurons are multiplied by.

Source: Hintersdorf et al., "Finding NeMo", NeurIPS 2024, figure 5b.
"""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from nemo_kit.plots.style import (
    TEXT,
    Look,
    canvas,
    count_text,
    groups,
    legend,
    require,
    styled,
    told,
)

PANELS = {
    "orig": "similarity to the\ntraining image (cosine)",
    "gen": "similarity to the\npicture before (cosine)",
}


@styled
def scaling(frame: pd.DataFrame) -> Figure:
    """Similarity to the training image, and to the picture before, against the factor (F5b).

    Returns a figure of the text width in two parts: lines join the medians of VM and TM prompts,
    bands are the quartiles. Dotted: factor 0, deactivated; at 1 nothing is changed.

    Parameters: `frame`, one row a prompt and factor, with `factor`, `prompt`, `group`, `orig`,
    `gen` (cosines; NaN where there is no training image).
    Raises ValueError for a missing column, no rows, or an unknown group.
    Source: paper, figure 5b.
    """
    require(frame, "factor", "prompt", "group", *PANELS)
    figure, grid = canvas(TEXT, 2.3, 1, len(PANELS), sharey=True)
    for axes, (column, label) in zip(grid, PANELS.items(), strict=True):
        for name, look, rows in groups(frame):
            _line(axes, rows[["factor", column]].dropna(), column, look, count_text(rows, name))
        axes.axvline(0, color="#999999", linestyle=":", linewidth=0.8, zorder=0)
        axes.set(xlabel="factor of the memorization neurons", ylabel=label)
        axes.xaxis.set_major_locator(MultipleLocator(0.5))
        axes.yaxis.set_tick_params(labelleft=True)
    low = np.nanmin(frame[list(PANELS)].to_numpy(float), initial=0.0)
    grid[0].set_ylim(min(-0.02, low), 1.03)
    told(grid[-1], "lines: medians, bands: quartiles of prompts")
    _once(grid)
    return figure


def _line(axes: Axes, rows: pd.DataFrame, column: str, look: Look, label: str) -> None:
    if rows.empty:
        return
    by = rows.groupby("factor")[column]
    low, middle, high = (by.quantile(share) for share in (0.25, 0.5, 0.75))
    style = {"color": look.colour, "linestyle": look.line, "marker": look.marker, "ms": 3.5}
    axes.plot(middle.index, middle, label=label, mec="white", mew=0.5, **style)
    axes.fill_between(middle.index, low, high, color=look.colour, alpha=0.15, linewidth=0)


def _once(grid: np.ndarray) -> None:
    """One legend, from the part that has all groups."""
    full = max(grid, key=lambda axes: len(axes.get_legend_handles_labels()[0]))
    legend(full)
