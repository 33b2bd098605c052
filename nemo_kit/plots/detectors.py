"""Figure of the detectors side by side: how well each separates, and what it costs.

Source: an addition; the detectors are those of `nemo_kit.detectors`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nemo_kit.plots.style import ACCENT, GROUPS, TEXT, canvas, legend, styled, told


@styled
def detector_comparison(table: pd.DataFrame) -> Figure:
    """AUROC of each detector for VM and TM, and its denoiser samples a prompt.

    Returns a figure of the text width: left a row a detector with its 95 % intervals, the dotted
    line is chance; right samples a prompt on a logarithmic axis, with the seconds beside them.

    Parameters: `table`, from `frames.detectors.detector_table`.
    Raises ValueError for a missing column or no rows.
    """
    needed = ["detector", "memorized", "prompts", "others", "AUROC", "AUROC_low", "AUROC_high"]
    if missing := {*needed, "samples", "seconds"} - set(table):
        raise ValueError(f"table lacks {', '.join(sorted(missing))}; it has {list(table)}")
    shown = table[table["memorized"].isin(GROUPS)]
    if shown.empty:
        raise ValueError(f"table has no rows of {', '.join(GROUPS)}, got {set(table['memorized'])}")
    names = list(dict.fromkeys(shown["detector"]))
    figure, (left, right) = canvas(
        TEXT, 0.6 + 0.27 * len(names), 1, 2, sharey=True, width_ratios=[1.5, 1]
    )
    _separation(left, shown, names)
    _cost(right, shown, names)
    told(left, "dotted: chance")
    legend(left)
    return figure


def _separation(axes: Axes, shown: pd.DataFrame, names: list[str]) -> None:
    kinds = [kind for kind in GROUPS if (shown["memorized"] == kind).any()]
    for shift, kind in zip(np.linspace(-0.14, 0.14, len(kinds)), kinds, strict=True):
        rows = shown[shown["memorized"] == kind].set_index("detector").loc[names]
        ends = [rows["AUROC"] - rows["AUROC_low"], rows["AUROC_high"] - rows["AUROC"]]
        look = GROUPS[kind]
        label = f"{kind} (n = {rows['prompts'].iloc[0]}) against {rows['others'].iloc[0]} others"
        axes.errorbar(
            rows["AUROC"],
            np.arange(len(names)) + shift,
            xerr=np.clip(ends, 0, None),
            fmt=look.marker,
            color=look.colour,
            elinewidth=0.9,
            label=label,
        )
    axes.axvline(0.5, color="#999999", linewidth=0.8, linestyle=":", zorder=0)
    axes.set(xlabel="AUROC, with 95 % interval", xlim=(-0.02, 1.02))
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)


def _cost(axes: Axes, shown: pd.DataFrame, names: list[str]) -> None:
    rows = shown.drop_duplicates("detector").set_index("detector").loc[names]
    places = np.arange(len(names))
    axes.hlines(places, 1, rows["samples"], color="#CCCCCC", linewidth=0.9)
    axes.plot(rows["samples"], places, "D", color=ACCENT)
    for place, row in zip(places, rows.itertuples(), strict=True):
        text = f"{row.samples:.0f} ({row.seconds:.1f} s)"
        axes.annotate(
            text,
            (row.samples, place),
            (5, 0),
            textcoords="offset points",
            va="center",
            fontsize=6.5,
        )
    axes.set(xscale="log", xlim=(1, rows["samples"].max() * 12))
    axes.set_xlabel("denoiser samples a prompt (seconds)")
    axes.tick_params(axis="y", labelleft=False)
