"""Figures of the neuron atlas: shared neurons, the graph of prompts and neurons, one neuron.

Source: Hintersdorf et al., "Finding NeMo", NeurIPS 2024, figures 10 to 12; the graph and the
portrait of one neuron are additions.
"""

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation, Transform

from nemo_kit.plots.grids import note
from nemo_kit.plots.pictures import interventions
from nemo_kit.plots.style import (
    ACCENT,
    COLUMN,
    GROUPS,
    PALE,
    TEXT,
    canvas,
    groups,
    legend,
    plain,
    require,
    styled,
    told,
)


class Pictures(Protocol):
    """What `shared_alone` draws: `sharing.Shared`, or anything with the same parts."""

    names: str  # of the neurons, as a short text
    prompts: list[str]
    training: np.ndarray | None
    before: np.ndarray
    after: np.ndarray


def shared_alone(group: Pictures, seeds: int = 4) -> Figure:
    """Prompts that share neurons, with and without these alone (F10 to F12).

    Returns the figure of `interventions`, or without prompts one that says that there is none.

    Parameters: `group`, from `sharing.shared_effects`; `seeds`, pictures of each prompt.
    Errors as `interventions`.
    Source: paper, figures 10 to 12.
    """
    if not group.prompts:
        return note("no further neuron serves several prompts")
    boxes = [group.names] * len(group.prompts)
    before, after = group.before[:, :seeds], group.after[:, :seeds]
    heading = "only these deactivated"
    return interventions(group.training, before, after, group.prompts, boxes, heading)


@styled
def bipartite(frame: pd.DataFrame, most: int = 40, prompts: int = 60) -> Figure:
    """Prompts and the neurons that memorize them, joined by lines.

    Returns a figure of the text width: prompts on the left with, in brackets, all their neurons;
    on the right the neurons that serve most prompts, sorted so that lines cross little, larger the
    more prompts they serve. A line is the bolder, the fewer neurons the prompt has. Neurons of a
    single prompt are left out where others are shared, and of those the least shared beyond `most`;
    the title tells how many.

    Parameters: `frame`, one row a prompt and neuron, with `prompt`, `group`, `layer`, `neuron`;
    `most`, neurons to draw; `prompts`, prompts to draw, those with the fewest neurons.
    Raises ValueError for a missing column, no rows or an unknown group.
    Source: an addition; section 4 tells of neurons shared by many prompts.
    """
    require(frame, "prompt", "group", "layer", "neuron")
    sizes = frame.groupby("prompt").size().sort_values(kind="stable")
    drawn = frame[frame["prompt"].isin(sizes.index[:prompts])]
    level = _spread(name for _, _, rows in groups(drawn) for name in rows["prompt"].unique())
    served = drawn.groupby(["layer", "neuron"])["prompt"].agg(list)
    counts = frame.groupby(["layer", "neuron"]).size()
    shown = counts[counts > 1] if (counts > 1).any() else counts
    shown = shown[shown.index.isin(served.index)].sort_values(ascending=False, kind="stable")[:most]
    middle = served[shown.index].map(lambda who: np.mean([level[name] for name in who]))
    place = _spread(middle.sort_values(ascending=False, kind="stable").index)
    figure, axes = canvas(TEXT, 0.135 * max(len(level), len(place)) + 0.7)
    _join(axes, drawn, level, place)
    _names(axes, level, place, sizes, shown)
    single = int((counts == 1).sum()) if len(place) < len(counts) else 0
    text = f"not drawn: {len(counts) - len(place)} of {len(counts)} neurons"
    text += f" ({single} of one prompt)" * int(0 < single < len(counts) - len(place))
    text += f", {len(sizes) - len(level)} of {len(sizes)} prompts" * int(len(level) < len(sizes))
    told(axes, text)
    axes.set_title("a prompt (its neurons); bolder lines: fewer neurons", loc="left", fontsize=6.5)
    legend(axes)
    return figure


def _names(
    axes: Axes,
    level: dict[Any, float],
    place: dict[Any, float],
    sizes: pd.Series,
    shown: pd.Series,
) -> None:
    """Prompts with their number of neurons on the left, neurons with that of prompts right."""
    for name, y in level.items():
        text = f"{plain(name, 46)} ({sizes[name]})"
        axes.text(-0.02, y, text, ha="right", va="center", fontsize=6, parse_math=False)
    for key, y in place.items():
        axes.scatter(1, y, min(6 + 5 * shown[key], 60), color=ACCENT, zorder=3)
        text = f"layer {key[0]}, #{key[1]}: {shown[key]} prompt{'s' * int(shown[key] > 1)}"
        axes.text(1.04, y, text, va="center", fontsize=6)
    edge = 0.7 / max(len(level), len(place), 2)  # over half a row, so that no mark is clipped
    axes.set(xlim=(-0.95, 1.5), ylim=(-edge, 1 + edge))
    axes.axis("off")


def _spread(names: Iterable[Any]) -> dict[Any, float]:
    """Heights from 1 down to 0, evenly; a single one in the middle."""
    names = list(names)
    heights = np.linspace(1, 0, len(names)) if len(names) > 1 else [0.5]
    return dict(zip(names, heights, strict=True))


def _join(
    axes: Axes, frame: pd.DataFrame, level: dict[Any, float], place: dict[Any, float]
) -> None:
    """Lines from prompts to the neurons that are drawn, and a marker for each prompt."""
    sizes = frame.groupby("prompt").size()
    for name, look, rows in groups(frame):
        for row in rows.itertuples():
            if (row.layer, row.neuron) in place:
                ends = level[row.prompt], place[row.layer, row.neuron]
                width = 0.4 + 1.2 / sizes[row.prompt]
                axes.plot((0, 1), ends, color=look.colour, ls=look.line, lw=width, alpha=0.6)
        heights = [level[prompt] for prompt in rows["prompt"].unique()]
        axes.plot([0] * len(heights), heights, look.marker, color=look.colour, ms=4, label=name)


@styled
def neuron_portrait(frame: pd.DataFrame) -> Figure:
    """The prompts that drive one neuron most, and its share of its layer's activation there.

    Returns a figure of the text width: z on the left, the share in percent on the right; filled
    bars are prompts whose memorization the neuron serves.

    Parameters: `frame`, one row a prompt, strongest first, with `layer`, `neuron`, `prompt`,
    `group`, `z`, `share` (in [0, 1]), `serves`.
    Raises ValueError for a missing column, no rows or an unknown group.
    Source: an addition; Algorithm 2 for z.
    """
    require(frame, "layer", "neuron", "prompt", "group", "z", "share", "serves")
    figure, grid = canvas(TEXT, 0.17 * len(frame) + 0.95, 1, 2, sharey=True)
    first = frame.iloc[0]
    labels = [
        f"z of layer {first.layer}, #{first.neuron}",
        "its share of the layer's activation (%)",
    ]
    for axes, label, numbers in zip(grid, labels, (frame["z"], 100 * frame["share"]), strict=True):
        _bars(axes, frame, numbers)
        axes.set_xlabel(label)
        axes.axvline(0, color="black", linewidth=0.6)
    names = [plain(prompt, 48) for prompt in frame["prompt"]]
    grid[0].set_yticks(range(len(frame)), names, fontsize=6)
    grid[0].set_ylim(len(frame) - 0.4, -0.6)
    grid[1].tick_params(left=False)
    _portrait_legend(figure, frame)
    return figure


def _bars(axes: Axes, frame: pd.DataFrame, numbers: pd.Series) -> None:
    for place, (row, number) in enumerate(zip(frame.itertuples(), numbers, strict=True)):
        colour = GROUPS[row.group].colour
        fill = {"color": colour} if row.serves else {"color": "white", "hatch": "/////"}
        axes.barh(place, number, height=0.68, edgecolor=colour, linewidth=0.7, **fill)


def _portrait_legend(figure: Figure, frame: pd.DataFrame) -> None:
    there = [name for name in GROUPS if name in set(frame["group"])]
    boxes = [Patch(color=GROUPS[name].colour) for name in there]
    boxes += [Patch(color="#444444"), Patch(fc="white", ec="#444444", hatch="/////")]
    texts = [*there, "serves its memorization", "does not"]
    figure.legend(boxes, texts, loc="outside upper center", ncols=len(texts), fontsize=6.5)


def _above(axes: Axes) -> Transform:
    """Data coordinates, five points up."""
    return axes.transData + ScaledTranslation(0, 5 / 72, axes.figure.dpi_scale_trans)


@styled
def layer_shares(frame: pd.DataFrame) -> Figure:
    """The share of each layer's neurons that memorizes, for one prompt or for several.

    Returns a figure one column wide; a mark over the chosen neuron's layer, and in the title its
    part of the layer's prompt–neuron pairs.

    Parameters: `frame`, one row a layer, with `layer`, `neurons`, `one`, `several`, `share`.
    Raises ValueError for a missing column or no rows.
    Source: an addition; figure 4b counts the same by prompt.
    """
    require(frame, "layer", "neurons", "one", "several", "share")
    figure, axes = canvas(COLUMN, 2.3)
    parts = {"several prompts": ("several", ACCENT, ""), "one prompt": ("one", PALE, "////")}
    bottom = np.zeros(len(frame))
    for label, (column, colour, hatch) in parts.items():
        values = (100 * frame[column] / frame["neurons"]).to_numpy(float)
        look = {"color": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 0.4}
        axes.bar(frame["layer"], values, bottom=bottom, label=f"serve {label}", **look)
        bottom += values
    for row, top in zip(frame.itertuples(), bottom, strict=True):
        if row.share > 0:
            axes.plot(row.layer, top, "v", color="black", ms=4, transform=_above(axes))
            share = f"{100 * row.share:.0f} % of the layer's prompt–neuron pairs"
            told(axes, f"▼ the chosen neuron: {share}")
    axes.set(xlabel="value layer", ylabel="memorization neurons\n(% of the layer)")
    axes.set(xticks=frame["layer"], ylim=(0, max(1.0, 1.12 * bottom.max())))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    legend(axes)
    return figure
