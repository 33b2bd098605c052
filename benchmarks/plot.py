"""The figure of the search modes' costs beside the released algorithm's."""

from __future__ import annotations

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from benchmarks.compare import BASELINE

MEASURES = {"samples": "denoiser samples", "seconds": "seconds"}


def costs(frame: pd.DataFrame) -> Figure:
    """How many times fewer samples and seconds each search mode takes than the released algorithm.

    Returns a figure: one mark a prompt by group, and a bar at the ratio of the sums.
    Parameters: `frame`, one row a prompt and way, with `prompt`, `group`, `way`, `samples`,
    `seconds`, and a row of the way "released" for each prompt.
    Raises ValueError without the baseline or another way.
    """
    ways = [way for way in frame["way"].unique() if way != BASELINE]
    if not ways or BASELINE not in set(frame["way"]):
        raise ValueError(f"frame needs the way {BASELINE!r} and another, got {ways}")
    figure = Figure(figsize=(6.9, 0.34 * len(ways) + 1.3), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for ax, (measure, label) in zip(panels, MEASURES.items(), strict=True):
        table = frame.pivot_table(index=["prompt", "group"], columns="way", values=measure)
        ratios = table[ways].rdiv(table[BASELINE], axis=0).rename_axis(columns="way")
        shown = ratios.melt(value_name="ratio", ignore_index=False).dropna().reset_index()
        ax.set_xscale("log")
        sns.stripplot(shown, x="ratio", y="way", hue="group", order=ways, dodge=True, alpha=0.55,
                      size=3, legend=ax is panels[0], ax=ax)  # fmt: skip
        for place, way in enumerate(ways):
            known = table[[BASELINE, way]].dropna()
            total = known[BASELINE].sum() / known[way].sum()
            ax.vlines(total, place - 0.36, place + 0.36, color="black", zorder=3)
            ax.annotate(f"{total:.1f}", (total, place - 0.4), ha="center", fontsize=7)
        ax.axvline(1, color="grey", linewidth=0.7, linestyle=":")
        ax.set(xlabel=f"{label}: released ÷ mode", ylabel="")
    return figure
