"""Pictures of the explorer: a score against the threshold, all neurons of a prompt as a map of z.

Source: Hintersdorf et al., "Finding NeMo", NeurIPS 2024, section 3 (score, threshold, z); their
form on a screen is an addition.
"""

from collections.abc import Mapping, Sequence
from io import BytesIO

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from nemo_kit.neurons import NeuronSet
from nemo_kit.plots.style import ACCENT, PALETTE, canvas, legend, require, styled

LIMIT = 8.0  # |z| at which the colours of the map end
_NAMED = 3  # selected neurons named in each layer


@styled
def score_in_distribution(
    score: float,
    threshold: float | None = None,
    mean: float | None = None,
    std: float | None = None,
    frame: pd.DataFrame | None = None,
    left: float | None = None,
    measure: str = "similarity",
) -> Figure:
    """One prompt's memorization score before the scores of the model's other prompts.

    Returns a figure 3.9 in wide: a dot at the score, a ring at what is left of it, the threshold τ,
    and behind them the densities of `frame`, or the calibration's mean with one and two deviations.

    Parameters: `score`, in [-1, 1]; `threshold`, τ; `mean`, `std`, of the calibration; `frame`, one
    row a prompt, with `prompt`, `group`, `score`; `left`, the score with neurons scaled; `measure`,
    the similarity's name, for the axis.
    Raises ValueError for a missing column or an unknown group.
    Source: paper, section 3.1 and figure 2a.
    """
    figure, axes = canvas(3.9, 1.5)
    if frame is not None and len(frame):
        _densities(axes, require(frame, "prompt", "group", "score"))
    elif mean is not None and std is not None:
        _bands(axes, mean, std)
    low = min(0.0, score, score if left is None else left)
    axes.set(xlim=(low - 0.02, 1.02), ylim=(0, 1.3), yticks=[])
    axes.set_xlabel(f"memorization score ({measure})")
    axes.spines["left"].set_visible(False)
    if threshold is not None:
        axes.axvline(threshold, ymax=0.82, color="black", linestyle=(0, (4, 2)), linewidth=1.1)
        axes.text(threshold, 1.1, rf"$\tau$ = {threshold:.2f}", ha="center", va="bottom")
    _dots(axes, score, left, threshold)
    return figure


def _densities(axes: Axes, frame: pd.DataFrame) -> None:
    """Densities of the groups, behind, on a scale of their own."""
    import seaborn as sns

    behind, names = axes.twinx(), [name for name in PALETTE if name in set(frame["group"])]
    sns.kdeplot(
        frame, x="score", hue="group", hue_order=names, palette=PALETTE, common_norm=False,
        fill=True, linewidth=1, warn_singular=False, ax=behind,
    )  # fmt: skip
    behind.set_ylim(0, 1.35 * behind.get_ylim()[1])
    legend(behind, fontsize=6.5, ncols=4)
    behind.set_axis_off()
    axes.set_zorder(1)
    axes.patch.set_visible(False)


def _bands(axes: Axes, mean: float, std: float) -> None:
    colour = PALETTE["hold-out"]
    for deviations, alpha in ((2, 0.15), (1, 0.25)):
        axes.axvspan(
            mean - deviations * std, mean + deviations * std, 0, 0.77, color=colour,
            alpha=alpha, lw=0,
        )  # fmt: skip
    axes.plot([mean, mean], [0, 1], color=colour, lw=1.2)
    text = "hold-out prompts:\nmean, ± σ, ± 2σ"
    axes.text(mean - 2.2 * std, 0.8, text, ha="right", va="center", fontsize=6.5, color="#444444")


def _dots(axes: Axes, score: float, left: float | None, threshold: float | None) -> None:
    above = threshold is None or score > threshold
    colour = PALETTE["VM"] if above else PALETTE["non-memorized"]
    if left is not None:
        arrow = {"arrowstyle": "->", "color": "#444444", "shrinkA": 7, "shrinkB": 7}
        axes.annotate("", (left, 0.32), (score, 0.32), arrowprops=arrow)
        axes.plot(left, 0.32, "o", ms=9, mfc="white", mec=ACCENT, mew=2, clip_on=False)
    axes.plot(score, 0.32, "o", ms=9, color=colour, mec="white", mew=1, clip_on=False, zorder=5)


@styled
def z_map(
    z: Mapping[int, np.ndarray], selected: NeuronSet, focus: tuple[int, int] | None = None
) -> Figure:
    """All neurons of the searched layers, coloured by z, the selected ones marked.

    Returns a figure 5.6 in wide, a row for each layer; every layer fills the width, whatever its
    number of neurons. Right of a row: how many of its neurons are selected.

    Parameters: `z`, layer -> [width]; `focus`, (layer, neuron) to ring.
    Source: paper, section 3.2, Algorithm 2.
    """
    figure, axes = canvas(5.6, 0.27 * len(z) + 0.5)
    look = {"cmap": "RdBu_r", "norm": Normalize(-LIMIT, LIMIT)}
    for row, (layer, values) in enumerate(z.items()):
        edges, ends = np.linspace(0, 1, len(values) + 1), [row + 0.3, row + 0.95]
        drawn = axes.pcolormesh(edges, ends, np.clip(values, -LIMIT, LIMIT)[None], **look)
        axes.hlines(ends, 0, 1, color="#888888", lw=0.4)
        _marks(axes, row, np.abs(values), selected.layers.get(layer, ()))
        if focus is not None and focus[0] == layer:
            x = (focus[1] + 0.5) / len(values)
            axes.plot(x, row + 0.62, "o", ms=10, mfc="none", mec="black", mew=1.1, clip_on=False)
    axes.set_yticks(np.arange(len(z)) + 0.62, map(str, z))
    axes.set(xlim=(0, 1), ylim=(len(z), -0.3), xticks=[], ylabel="value layer")
    axes.set_xlabel("neurons of the layer, from the first to the last (▼ selected)")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    bar = figure.colorbar(drawn, ax=axes, extend="both", pad=0.07, aspect=16, shrink=0.8)
    bar.set_label("z", rotation=0)
    bar.set_ticks([-LIMIT, -LIMIT / 2, 0, LIMIT / 2, LIMIT])
    bar.outline.set_linewidth(0.4)
    return figure


def _marks(axes: Axes, row: int, size: np.ndarray, chosen: Sequence[int]) -> None:
    """The selected neurons of a row, the furthest of them named where there is room."""
    places = {neuron: (neuron + 0.5) / len(size) for neuron in chosen}
    axes.plot([*places.values()], [row + 0.2] * len(chosen), "v", ms=4, color=ACCENT, clip_on=False)
    taken: list[float] = []
    for neuron in sorted(chosen, key=lambda neuron: -size[neuron])[:_NAMED]:
        x = places[neuron]
        if all(abs(x - other) > 0.06 for other in taken):
            taken.append(x)
            place = {"ha": "right" if x > 0.95 else "left", "va": "center", "fontsize": 6.5}
            axes.text(x + (-0.008 if x > 0.95 else 0.008), row + 0.16, f"#{neuron}", **place)
    axes.text(1.012, row + 0.62, f"{len(chosen)} / {len(size)}", va="center", fontsize=7)


def noise_pictures(differences: np.ndarray) -> np.ndarray:
    """Noise differences as pictures: the first three latent channels as red, green and blue.

    Returns uint8 [N, H, W, 3].

    Parameters: `differences`, [N, channels >= 3, H, W] in [0, 1].
    Raises ValueError for other shapes and for values outside [0, 1].
    Source: paper, figure 13.
    """
    values = np.asarray(differences, dtype=float)
    if values.ndim != 4 or values.shape[1] < 3:
        raise ValueError(
            f"differences must be [N, 3 or more channels, H, W], got {list(values.shape)}"
        )
    if not (values.min() >= 0 and values.max() <= 1):
        raise ValueError("differences must lie in [0, 1]")
    return (values[:, :3].transpose(0, 2, 3, 1) * 255).round().astype(np.uint8)


def png(picture: Figure | np.ndarray, dpi: int = 150) -> bytes:
    """A figure (on a clear ground) or a picture, uint8 [H, W, 3], as the bytes of a PNG file."""
    out = BytesIO()
    if isinstance(picture, Figure):
        picture.savefig(out, format="png", dpi=dpi, transparent=True, bbox_inches="tight")
    else:
        from PIL import Image

        Image.fromarray(picture).save(out, format="png", optimize=True)
    return out.getvalue()
