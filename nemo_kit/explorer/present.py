"""What the explorer shows, as HTML: verdict, map, facts, images, each from the session's values.

Scope: chooses words and places, fills `explorer.html`, which draws and escapes every text; no model
and no widget. Colours (`style.css`) are JupyterLab's variables, in a light and in a dark theme.
Source: "Finding NeMo" (arXiv 2406.02366), section 3 and figure 2a (score, threshold, z).
"""

from base64 import b64encode
from collections.abc import Callable, Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader
from matplotlib import colormaps
from PIL import Image

from nemo_kit.explorer.probe import Case, Pictures, scaled_words
from nemo_kit.explorer.session import Session
from nemo_kit.explorer.values import write_seeds
from nemo_kit.localization.result import ALGORITHMS
from nemo_kit.metrics import COPY_THRESHOLD, lab_descriptor
from nemo_kit.plots import PALETTE, noise_pictures

STYLE = f"<style>\n{Path(__file__).with_name('style.css').read_text('utf-8')}</style>"
STALE = "These pictures belong to another selection or other settings: press Generate."
_SIDE = 128  # pixels of shown pictures: messages stay small whatever the model draws
_LIMIT = 8.0  # |z| at which the colours of the map end
_WIDE, _HIGH = 430, 66  # of the score's chart, in the units of its drawing; densities within it
_NAMED, _APART = 3, 0.06  # selected neurons named in each layer, where so much lies between them


@cache
def _macros() -> Any:
    made = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    made.globals = {"photo": photo, "noise": noise_pictures, "stages": ALGORITHMS,
                    "short_seeds": write_seeds}  # fmt: skip
    return made.get_template("explorer.html").module


def html(piece: str, *values: Any) -> str:
    """A piece of `explorer.html` with these values."""
    return str(getattr(_macros(), piece)(*values)).strip()


def uri(image: Image.Image) -> str:
    """A picture as an address, so that the page need not ask the server."""
    png = BytesIO()
    image.save(png, "png", optimize=True)
    return f"data:image/png;base64,{b64encode(png.getvalue()).decode('ascii')}"


def photo(image: np.ndarray, side: int = _SIDE) -> str:
    """A picture of at most that many pixels a side, as an address."""
    small = Image.fromarray(image)
    small.thumbnail((side, side), Image.Resampling.BICUBIC)
    return uri(small)


def score(session: Session, known: pd.DataFrame | None) -> str:
    """Each prompt with its verdict, its score before those of other prompts, and the numbers."""
    told = [(case, *verdict(session, case), *_chart(case, known)) for case in session.cases]
    return html("score", session, told, scaled_words(len(session.selection), session.factor))


def _chart(case: Case, known: pd.DataFrame | None) -> tuple[Callable[[float], float], list[tuple]]:
    """Where on the chart a score stands, in the units of its drawing; and name, colour and outline
    of the density of each group that varies, all on one scale."""
    from scipy.stats import gaussian_kde

    low, high = min(0.0, case.look.score, case.left.same_seed if case.left else 0.0) - 0.02, 1.02

    def x(value: float) -> float:
        return round((value - low) / (high - low) * _WIDE, 1)

    grid, heights = np.linspace(low, high, 200), {}
    for name in () if known is None else PALETTE:
        own = known["score"][known["group"] == name]
        if own.nunique() > 1:
            heights[name] = gaussian_kde(own)(grid)
    most = max((values.max() for values in heights.values()), default=1.0)
    densities = []
    for name, values in heights.items():
        places = zip(np.pad(grid, 1, "edge"), np.pad(values / most, 1), strict=True)
        outline = " ".join(f"{x(at)},{_HIGH * (1 - height):.1f}" for at, height in places)
        densities.append((name, PALETTE[name], outline))
    return x, densities


def verdict(session: Session, case: Case) -> tuple[list[tuple[str, str]], list[str]]:
    """What was measured of a prompt, as badges (kind and words) and remarks.

    A score above τ flags a prompt; whether it is memorized its pictures say, where training images
    are known: each is held against the nearest one.
    """
    flagged, limit = case.look.flagged, session.probe.threshold
    if limit is None:
        return [("none", "no threshold: calibrate the model")], []
    badges = [("yes", "flagged: above τ")] if flagged else [("none", "not flagged: below τ")]
    shots = None if session.stale else case.pictures
    copied = shots and copies(shots)
    if flagged and case.left and case.left.same_seed <= limit:
        below = "below τ with the selection"
        if copied and copied[1] and not shots.given:
            badges.append(("yes", f"{below}, but {copied[1]} of {len(shots.after)} pictures copy"))
        else:
            badges.append(("off", below))
    remarks = []
    if copied and flagged and not copied[0]:
        nearest = shots.measured["copy_before"].max()
        remarks.append(f"No picture copies a training image (nearest {nearest:.2f}): it may be "
                       "a false alarm.")  # fmt: skip
    if copied and not flagged and copied[0]:
        remarks.append(f"{copied[0]} of {len(shots.before)} pictures copy a training image all "
                       "the same.")  # fmt: skip
    return badges, remarks


def copies(shots: Pictures) -> tuple[int, int] | None:
    """How many pictures copy a training image, without and with the selection; None: not known.

    Source: paper, section 4: a cosine of more than 0.7 is a copy.
    """
    if "copy_before" not in shots.measured:
        return None
    above = shots.measured[["copy_before", "copy_after"]] > COPY_THRESHOLD
    return tuple(above.sum().tolist())


def shared(session: Session) -> str:
    """The neurons that both prompts drive out of their range."""
    frame = session.shared()
    return "" if frame is None else html("shared", frame, session.theta, session.k)


def z_chart(session: Session) -> str:
    """All neurons by z, the selected ones marked."""
    if session.case is None:
        return ""
    look, chosen, focus = session.case.look, session.selection, session.focus
    z = look.z or {layer: np.zeros(len(a)) for layer, a in look.activations.items()}
    rows = []
    for layer, values in z.items():
        own = chosen.layers.get(layer, ())
        ringed = (focus[1] + 0.5) / len(values) if focus and focus[0] == layer else None
        marks = _marks(np.abs(np.asarray(values)), own)
        rows.append((layer, _colours(np.asarray(values)), marks, ringed, len(values)))
    counts = ", ".join(f"layer {k}: {n}" for k, n in chosen.counts().items()) or "none"
    words = f"z of all neurons in the searched value layers; selected by layer: {counts}"
    lacking = "This model has no statistics: all z are shown as 0, the buttons show activations."
    missing = "" if look.z else html("quiet", lacking)
    scale = _colours(np.linspace(-_LIMIT, _LIMIT, 33)), _LIMIT
    return missing + html("z_map", rows, scale, words)


def _colours(z: np.ndarray) -> str:
    """A strip with a pixel for each neuron, from blue (−8 and below) to red, as an address."""
    shades = colormaps["RdBu_r"](np.clip(z / _LIMIT, -1, 1) / 2 + 0.5, bytes=True)
    return uri(Image.fromarray(shades[None, :, :3]))


def _marks(size: np.ndarray, chosen: Sequence[int]) -> list[tuple[float, int, bool]]:
    """Place in the layer, from 0 to 1, and number of its selected neurons, and whether it is named:
    the furthest are, where there is room."""
    places = {neuron: (neuron + 0.5) / len(size) for neuron in chosen}
    named: list[int] = []
    for neuron in sorted(chosen, key=lambda neuron: -size[neuron])[:_NAMED]:
        if all(abs(places[neuron] - places[other]) > _APART for other in named):
            named.append(neuron)
    return [(at, neuron, neuron in named) for neuron, at in places.items()]


def pictures(session: Session) -> str:
    """Images of all seeds with and without, below each the training image nearest to it."""
    shown = [case.pictures for case in session.cases if case.pictures]
    if not shown:
        return ""
    legend = "No training images are known for this model: explore(…, training=…, embedder=…)."
    if session.probe.training:
        by = session.probe.embedder.name
        by += " (not SSCD itself)" * (by == lab_descriptor().name)
        legend = f"Below a picture: the nearest training image, and the cosine to it by the {by}."
    return html("pictures", shown, STALE if session.stale else "", legend, session.probe.training)
