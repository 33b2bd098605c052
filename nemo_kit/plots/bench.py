"""What the search modes cost beside the released algorithm.

Source: "Finding NeMo" (arXiv 2406.02366), table 2 has the released algorithm's times; the
comparison is an addition.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from nemo_kit.plots.style import TEXT, canvas, groups, legend, require, styled

BASELINE = "released"
MEASURES = {"samples": "denoiser samples", "seconds": "seconds"}


@styled
def bench_costs(frame: pd.DataFrame) -> Figure:
    """How many times fewer samples and seconds each search mode takes than the released algorithm.

    Returns a figure 6.9 in wide: one mark a prompt by group, and a bar at the ratio of the sums.

    Parameters: `frame`, one row a prompt and way, with `prompt`, `group`, `way`, `samples`,
    `seconds`, and a row of the way "released" for each prompt.
    Raises ValueError for a missing column, no rows, an unknown group, or no other way.
    Source: an addition.
    """
    require(frame, "prompt", "group", "way", "samples", "seconds")
    ways = [way for way in frame["way"].unique() if way != BASELINE]
    if not ways or BASELINE not in set(frame["way"]):
        raise ValueError(f"frame needs the way {BASELINE!r} and another, got {ways}")
    figure, panels = canvas(TEXT, 0.34 * len(ways) + 1.3, 1, 2, sharey=True)
    for axes, (measure, label) in zip(panels, MEASURES.items(), strict=True):
        _panel(axes, frame, ways, measure)
        axes.set_xlabel(f"{label}: released ÷ mode")
    panels[0].set_yticks(range(len(ways)), ways)
    panels[0].set_ylim(len(ways) - 0.5, -0.5)
    legend(panels[0])
    return figure


def _panel(axes: Axes, frame: pd.DataFrame, ways: list[str], measure: str) -> None:
    table = frame.pivot_table(index=["prompt", "group"], columns="way", values=measure)
    for place, way in enumerate(ways):
        known = table[[BASELINE, way]].dropna()
        ratio = (known[BASELINE] / known[way]).rename("ratio").reset_index()
        shown = groups(ratio)
        for order, (name, look, rows) in enumerate(shown):
            height = place + 0.26 * (order - (len(shown) - 1) / 2)
            axes.plot(
                rows["ratio"], [height] * len(rows), look.marker, color=look.colour, alpha=0.55,
                markersize=3, markeredgewidth=0, label=name if place == 0 else None,
            )  # fmt: skip
        total = known[BASELINE].sum() / known[way].sum()
        axes.vlines(total, place - 0.36, place + 0.36, color="black", linewidth=1.6, zorder=3,
                    label="all prompts together" if place == 0 else None)  # fmt: skip
        axes.annotate(f"{total:.1f}", (total, place - 0.4), ha="center", va="bottom", fontsize=6.5)
    _scale(axes)


def _scale(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.axvline(1, color="#888888", linewidth=0.7, linestyle=":")
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
