"""What the explorer shows, as HTML: verdict, map, facts, images, each from the session's values.

Scope: chooses words, calls `nemo_kit.plots`, fills `explorer.html`, which escapes every text; no
model and no widget. Colours (`style.css`) are JupyterLab's variables; charts have a clear ground
and are inverted in a dark theme, photographs are not.
"""

from base64 import b64encode
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nemo_kit import plots
from nemo_kit.explorer.probe import Case, Facts, Pictures, scaled_words
from nemo_kit.explorer.session import Session
from nemo_kit.explorer.values import write_seeds
from nemo_kit.localization.result import ALGORITHMS
from nemo_kit.neurons import NeuronSet

STYLE = f"<style>\n{Path(__file__).with_name('style.css').read_text('utf-8')}</style>"
STALE = "These pictures belong to another selection or other settings: press Generate."
_SIDE, _THUMB = 128, 48  # pixels of shown pictures: messages stay small whatever the model draws


@cache
def _macros() -> Any:
    from jinja2 import Environment, FileSystemLoader

    folder = FileSystemLoader(Path(__file__).parent)
    return Environment(loader=folder, autoescape=True).get_template("explorer.html").module


def html(piece: str, *values: Any) -> str:
    """A piece of `explorer.html` with these values."""
    return str(getattr(_macros(), piece)(*values)).strip()


def uri(png: bytes) -> str:
    """A PNG file as an address, so that the page need not ask the server."""
    return f"data:image/png;base64,{b64encode(png).decode('ascii')}"


def photo(image: np.ndarray, side: int = _SIDE) -> str:
    """A picture of at most that many pixels a side, as an address."""
    from PIL import Image

    small = Image.fromarray(image)
    small.thumbnail((side, side), Image.Resampling.BICUBIC)
    return uri(plots.png(np.asarray(small)))


def status_words(session: Session) -> str:
    """What runs, or what happened last."""
    now = session.progress
    if now is None:
        return session.note or "Ready."
    counted = f" {now.done} of {now.total}" if now.total else ""
    stage = ALGORITHMS.get(now.stage, now.stage)
    return f"{now.job}: {stage}{counted} …" if stage else f"{now.job} …"


def score(session: Session, known: pd.DataFrame | None) -> str:
    """Each prompt with its verdict, its score before those of other prompts, and the numbers."""
    bare = {"prompt": session.prompt, "badges": None, "remarks": (), "tiles": ()}
    told = [_scored(session, case, known) for case in session.cases]
    waits = "computing …" if session.progress else "not computed yet"
    return html("score", told or [bare], waits)


def _scored(session: Session, case: Case, known: pd.DataFrame | None) -> dict[str, Any]:
    probe, look, left = session.probe, case.look, case.left
    own, limit = probe.model.calibration, probe.threshold
    same = left.same_seed if left else None
    figure = plots.score_in_distribution(
        look.score, limit, own.mean if own else None, own.std if own else None, frame=known,
        left=same, measure=probe.similarity.kind.upper().replace("_", "-"),
    )  # fmt: skip
    words = f"Memorization score {look.score:.2f}"
    words += f", threshold {limit:.2f}" if limit is not None else ""
    words += f", with the selection scaled {same:.2f}" if left else ""
    badges, remarks = verdict(session, case)
    training = probe.training.get(look.prompt)
    return {
        "prompt": look.prompt, "badges": badges, "remarks": remarks,
        "training": None if training is None else photo(training),
        "chart": uri(plots.png(figure)), "chart_words": words, "tiles": _tiles(session, case),
    }  # fmt: skip


def _tiles(session: Session, case: Case) -> list[tuple[str, str]]:
    tiles = [(f"{case.look.score:.2f}", "score, all neurons on")]
    if case.left is not None:
        how = scaled_words(len(session.selection), session.factor)
        tiles.append((f"{case.left.pairs:.2f}", f"score, {how}"))
        tiles.append((f"{case.left.same_seed:.2f}", "left of it: same seed"))
    if (limit := session.probe.threshold) is not None:
        share = session.probe.false_alarms
        words = "threshold τ" if share is None else f"τ; {share:.0%} false alarms expected"
        tiles.append((f"{limit:.2f}", words))
    return tiles


def verdict(session: Session, case: Case) -> tuple[list[tuple[str, str]], list[str]]:
    """What was measured of a prompt, as badges (kind and words) and remarks.

    A score above τ flags a prompt; whether it is memorized its pictures say, where training images
    are known: each is held against the nearest one.
    """
    flagged, limit = case.look.flagged, session.probe.threshold
    if flagged is None or limit is None:
        return [("none", "no threshold: calibrate the model")], []
    badges = [("yes", "flagged: above τ")] if flagged else [("none", "not flagged: below τ")]
    shots = case.pictures if case.pictures and not session.stale else None
    copied = copies(shots) if shots else None
    below = case.left is not None and case.left.same_seed <= limit
    if flagged and below and copied and copied[1]:
        words = f"below τ with the selection, but {copied[1]} of {len(shots.after)} pictures copy"
        badges.append(("yes", words))
    elif flagged and below:
        badges.append(("off", "below τ with the selection"))
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
    from nemo_kit.metrics import COPY_THRESHOLD

    above = shots.measured[["copy_before", "copy_after"]] > COPY_THRESHOLD
    return tuple(above.sum().tolist())


def shared(session: Session) -> str:
    """The neurons that both prompts drive out of their range."""
    frame = session.shared()
    if frame is None:
        return ""
    rows, counts = list(frame.itertuples()), frame.attrs["candidates"]
    return html("shared", rows, counts, f"{session.theta:g}", session.k, _number)


def z_chart(session: Session) -> str:
    """All neurons by z, the selected ones marked."""
    if session.case is None:
        return ""
    look, chosen = session.case.look, session.selection
    z = look.z or {layer: np.zeros(len(a)) for layer, a in look.activations.items()}
    figure = plots.z_map(
        {layer: np.asarray(one) for layer, one in z.items()}, chosen, session.focus
    )
    counts = ", ".join(f"layer {k}: {n}" for k, n in chosen.counts().items()) or "none"
    words = f"z of all neurons in the searched value layers; selected by layer: {counts}"
    lacking = "This model has no statistics: all z are shown as 0, the buttons show activations."
    missing = "" if look.z else html("quiet", lacking)
    return missing + html("image", uri(plots.png(figure)), words, "chart")


def selection_line(session: Session) -> str:
    """How many neurons are selected, and where the selection comes from."""
    count = len(session.selection)
    return html("quiet", f"{count} neuron{'s' * (count != 1)} selected · {session.origin}")


def facts(found: Facts | None, planted: NeuronSet | None) -> str:
    """What is known of the neuron looked at."""
    if found is None:
        return html("quiet", "Press a neuron's button, or name one here, to read about it.")
    answer = None
    if planted is not None:
        answer = "yes" if (found.layer, found.neuron) in planted else "no"
    return html("facts", found, _number, answer)


def _number(value: float | None) -> str:
    return "not known" if value is None or np.isnan(value) else f"{value:+.2f}"


def revealed(planted: NeuronSet | None, chosen: NeuronSet) -> str:
    """The planted neurons against the selection, once a person asked for them."""
    if planted is None:
        return ""
    if not len(planted):
        return html("quiet", "No neuron was planted for this prompt.")
    names = ", ".join(f"layer {layer}: #{index}" for layer, index in planted)
    hits = len(planted & chosen)
    words = f"Planted: {names}. The selection has {hits} of {len(planted)}, "
    return html("quiet", words + f"and {len(chosen - planted)} others.")


def pictures(session: Session) -> str:
    """Images of all seeds with and without, below each the training image nearest to it."""
    shown = [case.pictures for case in session.cases if case.pictures]
    if not shown:
        return ""
    legend = "No training images are known for this model: explore(…, training=…, embedder=…)."
    if session.probe.training:
        by = session.probe.embedder.name + " (not SSCD itself)" * session.probe.is_lab
        legend = f"Below a picture: the nearest training image, and the cosine to it by the {by}."
    rows = [_pictures(session, one) for one in shown]
    return html("pictures", rows, STALE if session.stale else "", legend)


def _pictures(session: Session, shots: Pictures) -> dict[str, Any]:
    seeds, every = f"seeds {write_seeds(shots.view.seeds)}", "all neurons on"
    ends = {"before": (shots.before, every), "after": (shots.after, shots.how)}
    rows = [
        {"words": f"{how} · {seeds}", "cells": [
            _cell(session, shots, place, image, end, how) for place, image in enumerate(images)
        ]}
        for end, (images, how) in ends.items()
    ]  # fmt: skip
    noise = [
        {"words": how, "cells": [
            {"picture": photo(image), "words": f"Noise difference of seed {seed}, {how}"}
            for seed, image in zip(shots.view.seeds, plots.noise_pictures(drawn), strict=True)
        ]}
        for drawn, how in ((shots.noise_before, every), (shots.noise_after, shots.how))
        if len(drawn)
    ]  # fmt: skip
    tiles = []
    if "same_seed" in shots.measured:
        middle = shots.measured[["copy_before", "copy_after", "same_seed"]].median()
        tiles = [(f"{middle['copy_before']:.2f}", "to the nearest image, all on"),
                 (f"{middle['copy_after']:.2f}", f"to the nearest image, {shots.how}"),
                 (f"{middle['same_seed']:.2f}", "with to without, same seed")]  # fmt: skip
    return {"prompt": shots.view.prompt, "rows": rows, "noise": noise, "tiles": tiles}


def _cell(
    session: Session, shots: Pictures, place: int, image: np.ndarray, end: str, how: str
) -> dict[str, str]:
    row = shots.measured.iloc[place]
    cell = {"picture": photo(image), "words": f"Seed {row['seed']}, {how}"}
    if f"nearest_{end}" in row:
        name = row[f"nearest_{end}"]
        cell |= {"near": photo(session.probe.training[name], _THUMB), "nearest": name,
                 "cosine": f"{row[f'copy_{end}']:.2f}"}  # fmt: skip
    return cell
