"""Figures of detection: score densities, ROC, calibration of the threshold, noise differences.

Source: Hintersdorf et al., "Finding NeMo", NeurIPS 2024, figures 2a and 13 and section 3.1.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nemo_kit.metrics import roc_curve
from nemo_kit.plots.style import (
    COLUMN,
    TEXT,
    Look,
    canvas,
    count_text,
    groups,
    legend,
    require,
    row_of,
    show,
    styled,
    told,
    vertical,
    write,
)


@styled
def pairwise_density(
    frame: pd.DataFrame, threshold: float | None = None, measure: str = "similarity"
) -> Figure:
    """Density of the pairwise score by group, with the threshold τ (F2a).

    Returns a figure one column wide.

    Parameters: `frame`, one row a pair of seeds, with `prompt`, `group`, `score` in [0, 1];
    `threshold`, drawn as a line if given; `measure`, the similarity's name, for the axis.
    Raises ValueError for a missing column, no rows, or an unknown group.
    Source: paper, figure 2a.
    """
    require(frame, "prompt", "group", "score")
    figure, axes = canvas(COLUMN, 2.4)
    for name, look, rows in groups(frame):
        _density(axes, rows["score"], look, count_text(rows, name))
    label = f"memorization score of a pair of seeds ({measure})"
    axes.set(xlabel=label, ylabel="density", xlim=(0, 1))
    axes.set_ylim(0, axes.get_ylim()[1] * 1.08)
    if threshold is not None:
        vertical(axes, threshold, rf"$\tau$ = {threshold:.3f}")
    legend(axes)
    return figure


def _density(axes: Axes, values: pd.Series, look: Look, label: str) -> None:
    if values.nunique() < 2:  # a density needs spread: a single value is a line
        axes.axvline(values.iloc[0], color=look.colour, linestyle=look.line, label=label)
        return
    style = {"color": look.colour, "linestyle": look.line, "label": label, "clip": (0, 1)}
    sns.kdeplot(x=values, ax=axes, **style)
    sns.kdeplot(x=values, ax=axes, color=look.colour, fill=True, alpha=0.15, lw=0, clip=(0, 1))


@styled
def roc(frame: pd.DataFrame, threshold: float | None = None) -> Figure:
    """ROC of detection by the score: VM and TM prompts, each against non-memorized ones.

    Returns a figure one column wide, with the false-positive rate on a logarithmic axis, as the
    interest is at few false alarms. A rate of 0 is drawn at the left edge.

    Parameters: `frame`, one row a prompt, with `prompt`, `group`, `score`; `threshold`, whose
    operating point is marked if given.
    Raises ValueError for a missing column, an unknown group, or no non-memorized prompt.
    Source: paper, section 4 (detection from the score alone).
    """
    require(frame, "prompt", "group", "score")
    negative = frame[frame.group == "non-memorized"]
    if negative.empty:
        raise ValueError("frame needs rows of group non-memorized to count false alarms, got none")
    edge = 0.5 / len(negative)
    figure, axes = canvas(COLUMN, 2.6)
    for name, look, rows in groups(frame[frame.group.isin(["VM", "TM"])]):
        _roc_line(axes, rows, negative, look, name, edge, threshold)
    axes.axvline(0.01, color="#999999", linewidth=0.7, linestyle=":", zorder=0)
    told(axes, "dotted: 1 %; left edge: 0")
    axes.set(xscale="log", xlim=(edge, 1), ylim=(0, 1.03))
    axes.set(xlabel="false-positive rate (logarithmic)", ylabel="true-positive rate")
    if threshold is not None:
        axes.plot([], [], "o", color="#444444", label=rf"at $\tau$ = {threshold:.3f}")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 0.02))
    return figure


def _roc_line(
    axes: Axes,
    rows: pd.DataFrame,
    negative: pd.DataFrame,
    look: Look,
    name: str,
    edge: float,
    threshold: float | None,
) -> None:
    both = pd.concat([rows, negative])
    curve = roc_curve(both["score"], [True] * len(rows) + [False] * len(negative))
    area = np.trapezoid(curve.tpr, curve.fpr)
    text = count_text(rows, name)
    style = {"color": look.colour, "linestyle": look.line, "drawstyle": "steps-post"}
    axes.plot(curve.fpr.clip(lower=edge), curve.tpr, label=f"{text}, AUROC {area:.3f}", **style)
    if threshold is not None:
        point = [(part["score"] > threshold).mean() for part in (negative, rows)]
        marker = {"marker": look.marker, "mec": "white", "ms": 6, "clip_on": False, "zorder": 5}
        axes.plot(max(point[0], edge), point[1], color=look.colour, linestyle="", **marker)


@styled
def calibration(
    frame: pd.DataFrame,
    mean: float,
    std: float,
    threshold: float,
    unit: str = "pair of seeds",
    measure: str = "similarity",
) -> Figure:
    """How τ comes about: hold-out scores with their mean and deviation, and what each τ flags.

    Returns a figure of the text width. Left: histogram of the hold-out scores. Right: share of
    prompts of each other group with a score above a threshold, over thresholds.

    Parameters: `frame`, with `prompt`, `group`, `score`: hold-out rows as the threshold is computed
    from them (a row a pair of seeds, or a prompt), the other groups one row a prompt; `mean` and
    `std` of the hold-out scores; `threshold`, τ, by the method mean + std; `unit`, what a hold-out
    row is, and `measure`, the similarity's name, for the axis.
    Raises ValueError for a missing column, an unknown group, or no hold-out prompt.
    Source: paper, section 3.1.
    """
    require(frame, "prompt", "group", "score")
    held, rest = frame[frame.group == "hold-out"], frame[frame.group != "hold-out"]
    if held.empty:
        raise ValueError("frame needs rows of group hold-out, got none")
    figure, (left, right) = canvas(TEXT, 2.3, 1, 2)
    _hold_out(left, held, mean, std, threshold)
    left.set(xlabel=f"memorization score of a {unit} ({measure})")
    left.set_ylabel(f"hold-out {'pairs' if unit.startswith('pair') else f'{unit}s'}")
    for name, look, rows in groups(rest):
        scores = np.sort(rows["score"])
        share = 1 - np.searchsorted(scores, GRID, side="right") / len(scores)
        right.plot(
            GRID, share, color=look.colour, linestyle=look.line, label=count_text(rows, name)
        )
    right.set(xlabel=r"threshold", ylabel="share of prompts flagged", xlim=(0, 1), ylim=(0, 1.12))
    vertical(right, threshold, r"$\tau$")
    legend(right, "outside upper right")
    return figure


GRID = np.linspace(0, 1, 501)


def _hold_out(axes: Axes, held: pd.DataFrame, mean: float, std: float, threshold: float) -> None:
    low, high = held["score"].min(), held["score"].max()
    count = int(np.clip(2 * np.sqrt(len(held)), 8, 31))
    bins = np.linspace(min(low, mean - std), max(high, mean + 2 * std) + 1e-6, count)
    look = {"color": "#DDA9C4", "edgecolor": "white", "linewidth": 0.4}
    axes.hist(held["score"], bins=bins, **look)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.2)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    for shift, text in ((-1, r"$\mu-\sigma$"), (0, r"$\mu$"), (2, r"$\mu+2\sigma$")):
        vertical(axes, mean + shift * std, text, "#777777")
    vertical(axes, threshold, r"$\tau$")
    axes.set_title(count_text(held, "hold-out") + rf", $\tau$ = {threshold:.3f}", fontsize=7)


@styled
def noise_differences(
    rows: Mapping[str, np.ndarray], scores: Mapping[str, float] | None = None
) -> Figure:
    """Noise differences as pictures, one row a case and one column a seed (F13).

    Returns a figure of the text width; the first three latent channels are shown as red, green
    and blue.

    Parameters: `rows`, name -> [seeds, channels >= 3, H, W] in [0, 1]; `scores`, name -> score to
    write beside the row.
    Raises ValueError for no rows, other shapes, values outside [0, 1] or unequal numbers of seeds.
    Source: paper, figure 13.
    """
    pictures = {name: _as_pictures(name, values) for name, values in rows.items()}
    if len({len(images) for images in pictures.values()}) != 1:
        counts = {name: len(images) for name, images in pictures.items()}
        raise ValueError(f"rows must hold the same number of seeds, at least one row, got {counts}")
    count = len(next(iter(pictures.values())))
    side = (TEXT - 1.35) / count
    figure, grid = canvas(TEXT, len(rows) * side * 1.04 + 0.2, len(rows), 1, squeeze=False)
    for axes, (name, images) in zip(grid[:, 0], pictures.items(), strict=True):
        show(axes, row_of(images))
        axes.spines[:].set_visible(False)
        score = f"\nscore {scores[name]:.2f}" if scores and name in scores else ""
        write(axes, -0.015, 0.5, name + score, ha="right", va="center", fontsize=8)
    grid[0, 0].set_title(
        f"one column a seed ({count} seeds); latent channels 1 to 3 as red, green, blue", fontsize=7
    )
    return figure


def _as_pictures(name: str, values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    if values.ndim != 4 or values.shape[1] < 3:
        raise ValueError(
            f"rows[{name!r}] must have shape [seeds, channels >= 3, H, W], got {list(values.shape)}"
        )
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
        raise ValueError(f"rows[{name!r}] must lie in [0, 1], got {values.min()} to {values.max()}")
    return (values[:, :3].transpose(0, 2, 3, 1) * 255).round().astype(np.uint8)
