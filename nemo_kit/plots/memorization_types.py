"""Figure of memorization types: how close a prompt's closest picture comes to its training image.

Source: Hintersdorf et al., "Finding NeMo", NeurIPS 2024, figure 6.
"""

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nemo_kit.plots.style import (
    COLUMN,
    Look,
    canvas,
    count_text,
    groups,
    legend,
    require,
    styled,
    vertical,
    write,
)


@styled
def maximum_similarity(frame: pd.DataFrame, threshold: float = 0.7) -> Figure:
    """Density of each prompt's largest similarity to its training image, VM and TM (F6).

    Returns a figure one column wide; each prompt is a mark below the density. A frame without rows
    gives a figure that says so: most models' training images are not known.

    Parameters: `frame`, one row a prompt, with `prompt`, `group`, `maximum` (cosine);
    `threshold`, above which a prompt counts as verbatim.
    Raises ValueError for a missing column or an unknown group.
    Source: paper, figure 6.
    """
    require(frame, "prompt", "group", "maximum", rows=False)
    figure, axes = canvas(COLUMN, 2.4)
    for place, (name, look, rows) in enumerate(groups(frame)):
        _density(axes, rows["maximum"], look, count_text(rows, name))
        _marks(axes, rows["maximum"], look, place)
    label = "largest similarity to the training image (cosine)"
    axes.set(xlabel=label, ylabel="density", xlim=(min(0.0, frame["maximum"].min() - 0.05), 1.02))
    if frame.empty:
        axes.set_xlim(0, 1.02)
        write(axes, 0.5, 0.5, "no prompt with a training image", ha="center", va="center")
        return figure
    axes.set_ylim(-0.11 * axes.get_ylim()[1], axes.get_ylim()[1] * 1.15)
    vertical(axes, threshold, f"VM above {threshold:g}")
    legend(axes)
    return figure


def _density(axes: Axes, values: pd.Series, look: Look, label: str) -> None:
    style = {"color": look.colour, "linestyle": look.line}
    if values.nunique() < 2:  # a density needs spread: a single value is a line
        axes.axvline(values.iloc[0], label=label, **style)
        return
    sns.kdeplot(x=values, ax=axes, label=label, clip=(-1, 1), **style)
    sns.kdeplot(x=values, ax=axes, color=look.colour, fill=True, alpha=0.15, lw=0, clip=(-1, 1))


def _marks(axes: Axes, values: pd.Series, look: Look, place: int) -> None:
    """One mark a prompt just above the axis, a line for each group."""
    height = 0.022 + 0.04 * place
    style = {"color": look.colour, "marker": look.marker, "ms": 2.8, "alpha": 0.7, "mew": 0}
    axes.plot(values, [height] * len(values), ls="", transform=axes.get_xaxis_transform(), **style)
