"""What is shown, to keep: a figure of scores and pictures, a row for each of them, as code.

Scope: from what is known of each prompt to a figure and a frame; `nemo_kit.figures` writes them.
"""

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from nemo_kit.explorer.probe import Case, Probe
from nemo_kit.explorer.values import View
from nemo_kit.models import DTYPES, default_dtype
from nemo_kit.neurons import NeuronSet
from nemo_kit.plots import picture_rows


def frame(cases: list[Case], threshold: float | None) -> pd.DataFrame:
    """A row for each prompt, seed and intervention shown: settings, scores, nearest training image.

    Returns `prompt`, `seed`, `intervention` ("none" or what was done), `neurons` (JSON) and
    `factor` of those scaled, `steps`, `guidance`, `score`, `score_left` (same seed, NaN where
    nothing is scaled), `threshold`, and where training images are known `nearest` (its prompt),
    `copy` (cosine to it) and `same_seed` (cosine of the picture with to that without).
    """
    parts = []
    for case in cases:
        shots, view = case.pictures, case.pictures.view
        for end, how, also in (("before", "none", ()), ("after", shots.how, ["same_seed"])):
            scaled = case.left is not None and end == "after" and not shots.given
            part = pd.DataFrame({
                "prompt": view.prompt, "seed": shots.measured["seed"], "intervention": how,
                "neurons": (view.neurons if scaled else NeuronSet()).to_json(),
                "factor": view.factor if scaled else 1.0, "steps": view.steps,
                "guidance": view.guidance, "score": case.look.score,
                "score_left": case.left.same_seed if scaled else float("nan"),
                "threshold": threshold,
            })  # fmt: skip
            ends = {f"nearest_{end}": "nearest", f"copy_{end}": "copy"}
            own = shots.measured.rename(columns=ends).filter([*ends.values(), *also])
            parts.append(part.join(own))
    return pd.concat(parts, ignore_index=True)


def figure(cases: list[Case], threshold: float | None) -> Figure:
    """Each prompt's pictures, with and without the selection, under its score.

    Returns a figure of the text width, which pyplot doesn't show.
    """
    limit = "" if threshold is None else f", τ = {threshold:.2f}"
    rows, labels, captions = [], [], []
    for case in cases:
        rows += [[case.pictures.before], [case.pictures.after]]
        labels += ["all on", case.pictures.how]
        scaled = case.left is not None and not case.pictures.given
        left = f", left of it {case.left.same_seed:.2f}" if scaled else ""
        captions += [f"score {case.look.score:.2f}{limit}{left}: {case.look.prompt}", ""]
    drawn = picture_rows(rows, labels=labels, captions=captions)
    plt.close(drawn)
    return drawn


def code(view: View, origin: str, probe: Probe) -> str:
    """A cell's worth of Python that repeats the view: score, what is left of it, images.

    Returns source that runs on its own; every text in it is a Python literal.
    """
    model = probe.model
    dtype = str(model.dtype).removeprefix("torch.")
    usual = model.dtype == default_dtype() or dtype not in DTYPES
    named = {"dtype": None if usual else dtype, "revision": model.revision}
    given = [repr(model.name), *(f"{name}={text!r}" for name, text in named.items() if text)]
    known = probe.threshold is not None  # without one, detect asks for one, whatever it is
    return f"""\
from nemo_kit import NeuronSet, detect, generate, load
from nemo_kit.hooks import scale_neurons

model = load({", ".join(given)})
prompt = {view.prompt!r}
neurons = {view.neurons!r}  # {" ".join(origin.split())}
seeds = {list(view.seeds)}
detection = {{"seeds": {probe.seeds}{"" if known else ', "threshold": 1'}}}
whole = detect(model, prompt, **detection)
with scale_neurons(model.denoiser, model.value_layers, neurons, {view.factor!r}):
    left = detect(model, prompt, **detection)
print(whole.score[0], left.score[0]{", whole.threshold[0]" if known else ""})
options = {{"steps": {view.steps}, "guidance": {view.guidance!r}}}
before = generate(model, prompt, seeds, **options)
after = generate(model, prompt, seeds, neurons=neurons, factor={view.factor!r}, **options)
"""
