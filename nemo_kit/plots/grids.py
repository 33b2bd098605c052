"""Heat maps over thresholds, curves over layers, and grids of pictures with a row a layer.

Source: Hintersdorf et al., "Finding NeMo", NeurIPS 2024, figures 14 to 20.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nemo_kit.plots.style import (
    COLUMN,
    TEXT,
    Drawing,
    canvas,
    mean_interval,
    plain,
    require,
    row_of,
    same_length,
    show,
    strips,
    styled,
    told,
    write,
)

PAGE = 9.0  # inches of text on a page, from top to bottom
KINDS = {"value": ("#0072B2", "-", "o"), "key": ("#E69F00", (0, (5, 2)), "s")}


@styled
def note(text: str) -> Figure:
    """A figure that holds one sentence, where there is nothing to draw.

    Returns a figure one column wide.
    """
    figure, axes = canvas(COLUMN, 0.6)
    write(axes, 0.5, 0.5, text, ha="center", va="center", wrap=True)
    axes.axis("off")
    return figure


@styled
def threshold_map(frame: pd.DataFrame, label: str, digits: int = 0) -> Figure:
    """A number for each pair of an initial and a refinement threshold (F14, F15).

    Returns a figure one column wide: a heat map whose cells hold median ± median absolute
    deviation, shaded from 0 to at least 1; pairs that make no sense stay empty. Without
    rows, or where no number is known, a figure that says so.

    Parameters: `frame`, one row a pair, with `group`, `initial`, `refinement` (names, in order),
    `median`, `mad`, `prompts`; `label`, what is measured; `digits`, decimals, 0 for counts.
    Raises ValueError for a missing column or an unknown group.
    Source: paper, figures 14 and 15.
    """
    require(frame, "group", "initial", "refinement", "median", "mad", "prompts", rows=False)
    known = frame.dropna(subset="median")
    if known.empty:
        return note(f"{label}: not known for any prompt")
    names = list(dict.fromkeys([*known["initial"], *known["refinement"]]))
    shape = {"index": "initial", "columns": "refinement"}
    values = known.pivot(**shape, values="median").reindex(index=names, columns=names)
    form = f".{digits}f" if digits else ".4g"  # counts: 3 and 3.5
    texts = [f"{m:z{form}}\n± {d:{form}}" for m, d in known[["median", "mad"]].to_numpy()]
    texts = [text.replace("-", "−") for text in texts]
    cells = known.assign(text=texts).pivot(**shape, values="text").reindex(values.index)
    figure, axes = canvas(COLUMN, 0.62 * len(names) + 0.8)
    low, high = min(0.0, known["median"].min()), max(1.0, known["median"].max())
    look = {"cmap": "cividis", "vmin": low, "vmax": high, "linewidths": 1.5, "fmt": ""}
    bar = {"label": label, "shrink": 0.95}
    annotations = cells.reindex(columns=names).fillna("").to_numpy()
    sns.heatmap(values, annot=annotations, mask=values.isna(), ax=axes, cbar_kws=bar, **look)
    for text in axes.texts:  # black on the bright half, white on the dark one
        column, row = (int(place) for place in text.get_position())
        shade = (values.iloc[row, column] - low) / (high - low)
        text.set_color("black" if shade > 0.45 else "white")
    title = f"{known['group'].iloc[0]} (n = {known['prompts'].max()})"
    axes.set(xlabel="refinement threshold", ylabel="initial threshold")
    axes.set_title(title, loc="right", fontsize=7)
    axes.tick_params(length=0, labelrotation=0)
    return figure


@styled
def layer_effects(frame: pd.DataFrame) -> Figure:
    """Similarity and alignment with all of one layer at zero, layer by layer (F16, F17).

    Returns a figure one column wide with three parts: median and maximum over a prompt's pictures
    of the similarity, and alignment; key and value layers as lines with 95 % bootstrap intervals
    over prompts, dashed the undisturbed model, thin lines between the denoiser's blocks.

    Parameters: `frame`, one row a prompt, kind and layer, with `prompt`, `group`, `kind` ("value",
    "key", "none" for the undisturbed), `layer` (from 1; 0 for none), `block`, `reference` (what
    pictures are compared with), `median`, `maximum`, `alignment`. No rows: a figure that says so.
    Raises ValueError for a missing column, an unknown group or kind.
    Source: paper, figures 16 and 17.
    """
    measures = ["median", "maximum", "alignment"]
    needed = ["prompt", "group", "kind", "layer", "block", "reference", *measures]
    require(frame, *needed, rows=False)
    if unknown := set(frame["kind"]) - {*KINDS, "none"}:
        raise ValueError(f"kind must be value, key or none, got {sorted(unknown)}")
    if frame.empty:
        return note("no prompt of this group counts as memorized")
    figure, grid = canvas(COLUMN, 4.6, 3, 1, sharex=True)
    reference = frame["reference"].iloc[0]
    labels = [f"{word} similarity\nto {reference}" for word in ("median", "max.")]
    labels.append("alignment\nwith the prompt")
    for axes, measure, label in zip(grid, measures, labels, strict=True):
        _over_layers(axes, frame, measure)
        axes.set_ylabel(label)
    _from_zero(grid[:2])
    _from_zero(grid[2:])
    told(grid[1], "lines: means over prompts, bands: 95 % intervals")
    _blocks(grid, frame[frame["kind"] != "none"])
    handles, names = grid[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=3, fontsize=6.5)
    count = f"{frame['group'].iloc[0]} (n = {frame['prompt'].nunique()})"
    grid[-1].set_xlabel(f"layer with all outputs at zero; {count}")
    return figure


def _over_layers(axes: Axes, frame: pd.DataFrame, measure: str) -> None:
    for kind, (colour, line, marker) in KINDS.items():
        rows = frame[frame["kind"] == kind]
        if rows.empty:
            continue
        found = np.array(rows.groupby("layer")[measure].agg(mean_interval).tolist())
        layers = sorted(rows["layer"].unique())
        axes.plot(layers, found[:, 0], color=colour, ls=line, marker=marker, ms=3, label=kind)
        axes.fill_between(layers, found[:, 1], found[:, 2], color=colour, alpha=0.15, linewidth=0)
    whole = frame.loc[frame["kind"] == "none", measure].mean()
    axes.axhline(whole, color="black", ls=(0, (4, 2)), linewidth=0.9, label="undisturbed", zorder=1)


def _from_zero(parts: Sequence[Axes]) -> None:
    """One scale for these parts that begins at 0, or below where there is something."""
    lows, highs = zip(*(axes.get_ylim() for axes in parts), strict=True)
    for axes in parts:
        axes.set_ylim(min(0.0, *lows), max(highs))


def _blocks(grid: Sequence[Axes], rows: pd.DataFrame) -> None:
    """Thin lines where a block ends, the blocks' names on top, every layer a tick."""
    spans = rows.groupby("block", sort=False)["layer"].agg(["min", "max"]).sort_values("min")
    for axes in grid:
        for end in spans["max"].iloc[:-1]:
            axes.axvline(end + 0.5, color="#999999", linewidth=0.5, zorder=0)
    for name, span in spans.iterrows():
        middle = (span["min"] + span["max"]) / 2
        place = {"xy": (middle, 1.0), "xycoords": ("data", "axes fraction"), "va": "bottom"}
        text = str(name).replace(".", " ")
        grid[0].annotate(text, **place, ha="center", fontsize=5.3, color="#555555")
    layers = sorted(rows["layer"].unique())
    grid[-1].set(xticks=layers, xlim=(layers[0] - 0.6, layers[-1] + 0.6))
    grid[-1].tick_params(axis="x", labelsize=6)


@styled
def picture_rows(
    images: np.ndarray, rows: Sequence[str], columns: Sequence[str], side: float = 0.5
) -> Figure:
    """Pictures in a grid, a row for what was switched off, a column group for each prompt (F18-20).

    Returns a figure as wide as the pictures need, at most the text width and 9 in high.

    Parameters: `images`, uint8 [rows, columns, seeds, H, W, 3]; `rows`, names of the rows;
    `columns`, a prompt for each group of seeds; `side`, of a picture in inches where they fit.
    Raises ValueError for other shapes or dtypes, or other numbers of names.
    Source: paper, figures 18 to 20.
    """
    images = strips("images", images)
    if images.ndim != 6:
        raise ValueError(f"images must be [R, P, S, H, W, 3], got {list(images.shape)}")
    same_length(images=images.shape[0], rows=len(rows))
    same_length(images=images.shape[1], columns=len(columns))
    names, gap, head, edge = 1.05, 0.08, 0.42, 0.03
    prompts, seeds = images.shape[1:3]
    side = min(
        side, (TEXT - names - prompts * gap) / (prompts * seeds), (PAGE - head) / len(rows) - edge
    )
    width = names + prompts * (seeds * side + gap)
    height = head + len(rows) * (side + edge)
    figure = Drawing(figsize=(width, height))
    for row, name in enumerate(rows):
        top = head + row * (side + edge)
        y = 1 - (top + side / 2) / height
        figure.text((names - 0.08) / width, y, name, ha="right", va="center", fontsize=6.5)
        for group in range(prompts):
            left = names + group * (seeds * side + gap)
            box = (left / width, 1 - (top + side) / height, seeds * side / width, side / height)
            show(figure.add_axes(box), row_of(images[row, group]))
    for group, text in enumerate(columns):
        left = (names + group * (seeds * side + gap)) / width
        look = {"fontsize": 6.5, "style": "italic", "va": "bottom", "parse_math": False}
        letters = int(seeds * side / 0.052)
        figure.text(left, 1 - (head - 0.05) / height, _two_lines(text, letters), **look)
    return figure


def _two_lines(text: str, letters: int) -> str:
    """A prompt in at most two lines of so many letters, broken between words."""
    text = plain(text, 2 * letters - 2)
    if len(text) <= letters:
        return text
    cut = text.rfind(" ", 0, letters + 1)
    cut = cut if cut > 0 else letters
    return f"{text[:cut]}\n{plain(text[cut:], letters)}"
