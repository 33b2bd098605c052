"""What the explorer shows, as HTML: verdict, map, facts, images, each from the controller's values.

Scope: chooses words and calls `nemo_kit.plots`; no model and no widget.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from nemo_kit import plots
from nemo_kit.explorer import markup
from nemo_kit.explorer.controller import Controller
from nemo_kit.explorer.session import Facts, Look, Pictures
from nemo_kit.neurons import NeuronSet
from nemo_kit.plots.style import row_of

ALGORITHMS = {
    "detect": "1 noise differences",
    "activations": "2 activations",
    "select": "3 initial selection",
    "refine": "4 refinement",
}
_SIDE = 128  # pixels of a shown image: messages stay small whatever the model draws


def verdict(controller: Controller) -> str:
    """The prompt, and whether it is memorized."""
    look = controller.look
    head = f"<p>{markup.prompt(controller.view.prompt)}</p>"
    if look is None:
        return head + markup.quiet("computing …" if controller.progress else "not computed yet")
    return head + f"<p>{_badges(controller, look)}</p>"


def score_tiles(controller: Controller) -> str:
    """The score, what is left of it with the selection scaled, and the threshold."""
    look, left, limit = controller.look, controller.left, controller.session.threshold
    if look is None:
        return ""
    entries = [(f"{look.score:.2f}", "memorization score, all neurons on")]
    if left is not None:
        how = scaled(len(controller.view.selection.neurons), controller.view.factor)
        entries.append((f"{left.pairs:.2f}", f"memorization score, {how}"))
        entries.append((f"{left.same_seed:.2f}", "left of it: same seed, with and without"))
    if limit is not None:
        entries.append((f"{limit:.2f}", "threshold τ of the model"))
    return markup.tiles(entries)


def _badges(controller: Controller, look: Look) -> str:
    if look.memorized is None:
        return markup.badge("no threshold: calibrate the model")
    if not look.memorized:
        return markup.badge("not memorized")
    words = [markup.badge("memorized", "yes")]
    left, limit = controller.left, controller.session.threshold
    if left is not None and limit is not None and left.same_seed <= limit:
        words.append(markup.badge("below τ with the selection", "off"))
    return " ".join(words)


def scaled(count: int, factor: float) -> str:
    """ "2 neurons off", or "2 neurons × 0.5"."""
    return f"{neurons(count)} {'off' if factor == 0 else f'× {factor:g}'}"


def neurons(count: int) -> str:
    """ "1 neuron", "2 neurons"."""
    return f"{count} neuron{'s' * (count != 1)}"


def score_chart(controller: Controller, known: pd.DataFrame | None) -> str:
    """The score before the model's other prompts."""
    look, session = controller.look, controller.session
    if look is None:
        return ""
    own = session.model.calibration
    left = controller.left.same_seed if controller.left else None
    figure = plots.score_in_distribution(
        look.score,
        session.threshold,
        own.mean if own else None,
        own.std if own else None,
        frame=known,
        left=left,
        measure=session.similarity.kind.upper().replace("_", "-"),
    )
    words = f"Memorization score {look.score:.2f}"
    words += f", threshold {session.threshold:.2f}" if session.threshold is not None else ""
    words += f", with the selection scaled {left:.2f}" if left is not None else ""
    return markup.image(plots.png(figure), words, "chart")


def training(controller: Controller) -> str:
    """The training image, where one is known."""
    look = controller.look
    if look is None or not controller.session.is_lab:
        return ""
    if look.training is None:
        return markup.quiet("no training image belongs to this prompt")
    picture = markup.image(plots.png(look.training), f"Training image of: {look.prompt}")
    return markup.stack([picture, markup.quiet("training image")])


def z_chart(controller: Controller) -> str:
    """All neurons by z, the selected ones marked."""
    look = controller.look
    if look is None:
        return ""
    chosen = controller.view.selection.neurons
    figure = plots.z_map(controller.session.neuron_table(look, chosen), controller.focus)
    counts = ", ".join(f"layer {k}: {n}" for k, n in chosen.counts().items()) or "none"
    words = f"z of all neurons in the searched value layers; selected by layer: {counts}"
    lacking = "This model has no statistics: all z are shown as 0, the buttons show activations."
    missing = "" if look.z else markup.quiet(lacking)
    return missing + markup.image(plots.png(figure), words, "chart")


def selection_line(controller: Controller) -> str:
    """How many neurons are selected, and where the selection comes from."""
    chosen = controller.view.selection
    return markup.quiet(f"{neurons(len(chosen.neurons))} selected · {chosen.origin}")


def facts(controller: Controller, planted: NeuronSet | None) -> str:
    """What is known of the neuron looked at."""
    found = controller.facts
    if found is None:
        return markup.quiet("Press a neuron's button, or name one here, to read about it.")
    rows = [("Neuron", markup.text(f"layer {found.layer}, #{found.neuron}"))]
    rows.append(("z for this prompt", _number(found.z)))
    rows.append(("Mean |activation|", f"{found.activation:.3f}"))
    rows.append(("Most activating", _strongest(found)))
    rows.append(("In the sets of", _lines(found.sets, "none of the prompts localized so far")))
    if planted is not None:
        answer = "yes" if (found.layer, found.neuron) in planted else "no"
        rows.append(("Planted for this prompt", answer))
    return markup.table(rows)


def _number(value: float | None) -> str:
    return "not known" if value is None else f"{value:+.2f}"


def _strongest(found: Facts) -> str:
    lines = (f"{markup.text(f'{value:.3f}')} {markup.prompt(p)}" for p, value in found.strongest)
    return "<br>".join(lines) or "no prompts to compare"


def _lines(texts: list[str], otherwise: str) -> str:
    return "<br>".join(map(markup.prompt, texts)) or markup.text(otherwise)


def revealed(planted: NeuronSet | None, chosen: NeuronSet) -> str:
    """The planted neurons against the selection, once a person asked for them."""
    if planted is None:
        return ""
    if not len(planted):
        return markup.quiet("No neuron was planted for this prompt.")
    names = ", ".join(f"layer {layer}: #{index}" for layer, index in planted)
    hits = len(planted & chosen)
    words = f"Planted: {names}. The selection has {hits} of {len(planted)}, "
    return markup.quiet(words + f"and {len(chosen - planted)} others.")


def picture_tiles(controller: Controller) -> str:
    """Numbers of the images: SSCD in the paper's sense, by the model's copy descriptor."""
    shown = controller.pictures
    if shown is None:
        return ""
    if not len(shown.copies):
        return markup.quiet("Copies are measured with the lab model only.")
    median = shown.copies[["copy_before", "copy_after", "same_seed"]].median()
    entries = [(f"{median['same_seed']:.2f}", "SSCD_gen: with to without, same seed")]
    if median.notna()["copy_before"]:
        entries.insert(0, (f"{median['copy_before']:.2f}", "SSCD_orig: to the training image"))
        entries.insert(1, (f"{median['copy_after']:.2f}", "SSCD_orig with the selection scaled"))
    said = "" if not controller.stale else markup.quiet(STALE)
    by = markup.quiet(
        "Medians over the seeds, of the model's own copy descriptor (not SSCD itself)."
    )
    return said + markup.tiles(entries) + by


STALE = "These images belong to another selection or other settings: press Generate."


def strip(shown: Pictures, disturbed: bool, words: str, stale: bool) -> str:
    """Images of all seeds in a row, their noise differences below."""
    images = shown.after if disturbed else shown.before
    noise = shown.noise_after if disturbed else shown.noise_before
    seeds = ", ".join(map(str, shown.view.seeds))
    pieces = [
        markup.quiet(words),
        markup.image(plots.png(row_of(small(images))), f"Images {words}, seeds {seeds}"),
        "<div style='height:4px'></div>",
        markup.image(
            plots.png(row_of(plots.noise_pictures(noise))),
            f"Noise differences {words}, seeds {seeds}",
        ),
        markup.quiet(f"noise differences · seeds {seeds}"),
    ]
    return markup.stack(pieces, stale)


def small(images: np.ndarray) -> np.ndarray:
    """Images of at most 128 pixels a side."""
    from PIL import Image

    if max(images.shape[1:3]) <= _SIDE:
        return images
    sides = [round(n * _SIDE / max(images.shape[1:3])) for n in images.shape[1:3]]
    scaled = [Image.fromarray(i).resize(sides[::-1], Image.Resampling.BICUBIC) for i in images]
    return np.stack([np.asarray(i) for i in scaled])


def status_words(controller: Controller) -> str:
    """What runs, or what happened last."""
    now = controller.progress
    if now is None:
        return controller.note or "Ready."
    counted = f" {now.done} of {now.total}" if now.total else ""
    stage = ALGORITHMS.get(now.stage, now.stage)
    return f"{now.job}: {stage}{counted} …" if stage else f"{now.job} …"
