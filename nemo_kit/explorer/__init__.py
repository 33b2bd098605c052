"""The explorer: find a prompt's neurons, and see what happens without them, in JupyterLab.

Scope: `explore(model)`. Logic and widgets are apart:
- `values`: what pictures depend on, and text forms
- `probe`: what is asked of the model, remembered
- `session`: the state as traits, requests in, results out
- `present`, `explorer.html`, `style.css`: values as HTML, with its charts
- `keep`: what is shown as a figure with its data
- `widget`: the ipywidgets; nothing else here imports them
Source: "Finding NeMo" (arXiv 2406.02366), sections 3 and 4.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nemo_kit import lab
from nemo_kit.checks import check_choice, check_columns, check_texts
from nemo_kit.explorer.probe import Probe
from nemo_kit.explorer.session import Session
from nemo_kit.explorer.widget import Explorer
from nemo_kit.models.base import DiffusionModel
from nemo_kit.plots import PALETTE
from nemo_kit.tables import read_csv


def explore(
    model: DiffusionModel,
    prompts: pd.DataFrame | Sequence[str] | None = None,
    seeds: Iterable[int] = range(1, 11),
    scores: pd.DataFrame | str | Path | None = None,
    training: Mapping[str, np.ndarray] | None = None,
    embedder: Callable[[np.ndarray], Any] | None = None,
) -> Session:
    """Show the explorer: choose a prompt, select neurons, switch them off, look.

    Returns a `Session`; as its last line in a cell shows the explorer, later cells read and set
    `session.prompt`, `session.selection`, `session.pictures`; `session.close()` ends it.
    While it computes, the model must not be used by another cell: its hooks act on the model.
    Parameters: `model`, from `load`; `prompts`, to choose from, as a list or a frame with `prompt`
    and perhaps `role` (by default the lab's own for the lab model, none for others: write one);
    `seeds`, of detection; `scores`, a frame or CSV with `prompt`, `group`, `score`, whose largest
    score of each prompt is drawn behind; `training`, prompt -> training image, uint8 [H, W, 3],
    that pictures are held against, and the `embedder` that compares them, as for
    `nemo_kit.metrics` (the lab model has its own).
    Raises TypeError for anything but a loaded model, ValueError for bad prompts, seeds and frames.
    """
    if not hasattr(model, "value_layers"):
        raise TypeError(
            f'model must be a loaded one, as in explore(load("lab")), got {model!r:.60}'
        )
    offered, known = _prompt_frame(model, prompts), _best_scores(scores)
    session = Session(Probe(model, offered, list(seeds), training, embedder))
    session.widget = Explorer(session, known)
    if len(offered):
        session.prompt = offered["prompt"].iloc[0]
    return session


def _prompt_frame(
    model: DiffusionModel, prompts: pd.DataFrame | Sequence[str] | None
) -> pd.DataFrame:
    if prompts is None:
        is_lab = model.name in lab.TABLES
        return lab.prompts(model=model.name) if is_lab else pd.DataFrame(columns=["prompt", "role"])
    if not isinstance(prompts, pd.DataFrame):
        prompts = pd.DataFrame({"prompt": check_texts(prompts)})
    check_columns("prompts", prompts, "prompt")
    return prompts if "role" in prompts else prompts.assign(role="prompts")


def _best_scores(scores: pd.DataFrame | str | Path | None) -> pd.DataFrame | None:
    """The largest score of each prompt and group."""
    if scores is None:
        return None
    frame = scores if isinstance(scores, pd.DataFrame) else read_csv(scores)
    check_columns("scores", frame, "prompt", "group", "score")
    for group in frame["group"].unique():
        check_choice("group of scores", group, PALETTE)
    frame = frame.assign(score=pd.to_numeric(frame["score"]))
    return frame.groupby(["prompt", "group"], as_index=False)["score"].max()
