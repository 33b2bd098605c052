"""Figures of activations: z-scores in one value layer, and the most extreme neurons by layer.

Source: Hintersdorf et al., "Finding NeMo", NeurIPS 2024, section 3.2 and figure 2b.
"""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nemo_kit.plots.style import (
    COLUMN,
    TEXT,
    canvas,
    count_text,
    groups,
    legend,
    require,
    styled,
    told,
)


@styled
def z_density(frame: pd.DataFrame, layer: int = 1, theta: float | None = 5.0) -> Figure:
    """Density of neurons' z-scores in one value layer, by group (F2b).

    Returns a figure one column wide. The density is a histogram on a logarithmic axis: what tells
    the groups apart are a few neurons far out, which a linear axis would hide.

    Parameters: `frame`, one row a prompt and neuron, with `prompt`, `group`, `layer`, `z`;
    `layer`, from 1; `theta`, the first threshold on |z|, drawn if given.
    Raises ValueError for a missing column, an unknown group, or a layer without rows.
    Source: paper, figure 2b; algorithm 2.
    """
    require(frame, "prompt", "group", "layer", "z")
    rows = frame[frame.layer == layer]
    if rows.empty:
        raise ValueError(f"layer must be one of {sorted(frame.layer.unique())}, got {layer}")
    figure, axes = canvas(COLUMN, 2.4)
    edges = z_bins(rows["z"])
    for name, look, part in groups(rows):
        density, _ = np.histogram(part["z"], bins=edges, density=True)
        style = {"color": look.colour, "linestyle": look.line, "linewidth": 1.2}
        axes.stairs(density, edges, baseline=None, label=count_text(part, name), **style)
    axes.set(yscale="log", xlabel=f"z of a neuron in value layer {layer}", ylabel="density")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * 2)
    if theta is not None:
        _thetas(axes, theta)
    legend(axes)
    return figure


def z_bins(z: pd.Series) -> np.ndarray:
    """Edges that cover all z: half a deviation wide, wider where that would be over 48 bins."""
    low, high = np.floor(z.min()), np.ceil(z.max()) + 1e-9
    return np.linspace(low, high, int(np.clip(2 * round(high - low), 2, 48)) + 1)


def _thetas(axes: Axes, theta: float) -> None:
    for x in (-theta, theta):
        axes.axvline(x, color="black", linestyle=(0, (4, 2)), linewidth=0.8, zorder=0)
    low, _ = axes.get_xlim()
    axes.set_xlim(min(low, -theta - 1), None)
    axes.text(-theta, axes.get_ylim()[1], rf" $|z|={theta:g}$", va="top", fontsize=7)


@styled
def extreme_neurons(frame: pd.DataFrame, theta: float | None = 5.0, named: int = 1) -> Figure:
    """Each prompt's most extreme neuron in each value layer, as |z|, by group.

    Returns a figure of the text width; the numbers over a layer name its furthest neurons.

    Parameters: `frame`, one row a prompt, layer and neuron, with `prompt`, `group`, `layer`,
    `neuron`, `z`, of which the largest |z| of each prompt and layer is drawn; `theta`, the first
    threshold on |z|, drawn if given; `named`, how many neurons of a layer are named.
    Raises ValueError for a missing column, no rows, or an unknown group.
    Source: paper, section 3.2 (out-of-distribution activations).
    """
    rows = furthest(frame)
    figure, axes = canvas(TEXT, 2.5)
    parts, layers = groups(rows), sorted(rows.layer.unique())
    jitter = np.random.default_rng(0).uniform(-0.09, 0.09, len(rows))
    rows = rows.assign(place=rows.layer + jitter)
    for order, (name, look, _) in enumerate(parts):
        part = rows[rows.group == name]
        shift = (order - (len(parts) - 1) / 2) * 0.24
        style = {"color": look.colour, "marker": look.marker, "mec": "white", "mew": 0.2}
        axes.plot(
            part.place + shift, part.z.abs(), ls="", ms=3.5, label=count_text(part, name), **style
        )
        middle = part.z.abs().groupby(part.layer).median()
        axes.hlines(middle, middle.index + shift - 0.1, middle.index + shift + 0.1, "black", lw=1.4)
    _name_tops(axes, rows, named)
    told(axes, "bars: medians; #: the layer's furthest neurons")
    if theta is not None:
        axes.axhline(theta, color="black", linestyle=(0, (4, 2)), linewidth=0.8, zorder=0)
        axes.annotate(rf"$\theta={theta:g}$", (1, theta), xycoords=("axes fraction", "data"))
    axes.set(xlabel="value layer", ylabel="largest |z| of a prompt", xticks=layers)
    axes.set_ylim(0, axes.get_ylim()[1] * (1.04 + 0.07 * named))
    legend(axes)
    return figure


def furthest(frame: pd.DataFrame) -> pd.DataFrame:
    """The row of the largest |z| of each prompt and layer, in their order.

    Returns the rows unchanged. Raises ValueError as `extreme_neurons`.
    """
    require(frame, "prompt", "group", "layer", "neuron", "z")
    frame = frame.reset_index(drop=True)
    return frame.loc[frame["z"].abs().groupby([frame["prompt"], frame["layer"]]).idxmax()]


def _name_tops(axes: Axes, rows: pd.DataFrame, named: int) -> None:
    for layer, part in rows.groupby("layer"):
        tops = part.z.abs().groupby(part.neuron).max().nlargest(named)
        offset = {"xytext": (0, 4), "textcoords": "offset points", "va": "bottom"}
        text = "\n".join(f"#{neuron}" for neuron in tops.index)
        axes.annotate(text, (layer, tops.max()), ha="center", fontsize=6.5, **offset)
