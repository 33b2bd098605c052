"""What is shown, to keep: a figure of scores and pictures, and a row for each of its pictures.

Scope: from what is known of each prompt to a figure and a frame; `nemo_kit.figures` writes them.
"""

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from nemo_kit.explorer.probe import Case
from nemo_kit.plots import picture_rows


def frame(cases: list[Case], threshold: float | None) -> pd.DataFrame:
    """A row for each prompt, seed and intervention shown: settings, scores, nearest training image.

    Returns `prompt`, `seed`, `intervention` ("none" or what was done), `neurons` (JSON), `factor`,
    `steps`, `guidance`, `score`, `score_left` (same seed, NaN where nothing is selected),
    `threshold`, and where training images are known `nearest` (its prompt), `copy` (cosine to it)
    and `same_seed` (cosine of the picture with to that without).
    """
    parts = [part for case in cases for part in _rows(case, threshold)]
    return pd.concat(parts, ignore_index=True)


def _rows(case: Case, threshold: float | None) -> list[pd.DataFrame]:
    shots, parts = case.pictures, []
    for end, how in (("before", "none"), ("after", shots.how)):
        ends = {f"nearest_{end}": "nearest", f"copy_{end}": "copy"}
        part = shots.measured.rename(columns=ends)
        part = part.filter(["seed", "nearest", "copy", *["same_seed"] * (end == "after")]).assign(
            prompt=shots.view.prompt, intervention=how, neurons=shots.view.neurons.to_json(),
            factor=shots.view.factor, steps=shots.view.steps, guidance=shots.view.guidance,
            score=case.look.score, threshold=threshold,
            score_left=case.left.same_seed if case.left else float("nan"),
        )  # fmt: skip
        parts.append(part)
    order = ["prompt", "seed", "intervention", "neurons", "factor", "steps", "guidance", "score",
             "score_left", "threshold", "nearest", "copy", "same_seed"]  # fmt: skip
    return [part[[name for name in order if name in part]] for part in parts]


def figure(cases: list[Case], threshold: float | None) -> Figure:
    """Each prompt's pictures, with and without the selection, under its score.

    Returns a figure of the text width, which pyplot doesn't show.
    """
    rows, labels, captions = [], [], []
    for case in cases:
        rows += [[case.pictures.before], [case.pictures.after]]
        labels += ["all on", case.pictures.how]
        captions += [f"{_score(case, threshold)}: {case.look.prompt}", ""]
    drawn = picture_rows(rows, labels=labels, captions=captions)
    plt.close(drawn)
    return drawn


def _score(case: Case, limit: float | None) -> str:
    words = f"score {case.look.score:.2f}" + (f", τ = {limit:.2f}" if limit is not None else "")
    return words + (f", left of it {case.left.same_seed:.2f}" if case.left else "")
