"""The explorer: find a prompt's neurons, and see what happens without them, in JupyterLab.

Scope: `explore(model)`. Logic and widgets are apart:
- `state`: a selection of neurons, its history and text forms
- `session`: what is asked of the model, remembered
- `worker`: one background thread, the last request wins
- `controller`: requests in, changes out
- `markup`, `present`: values as HTML, with the pictures of `nemo_kit.plots`
- `view`, `panels`: the ipywidgets; nothing else here imports them
Source: "Finding NeMo" (arXiv 2406.02366), sections 3 and 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from nemo_kit.tables import read_csv

if TYPE_CHECKING:
    from nemo_kit.explorer.view import Explorer
    from nemo_kit.models import DiffusionModel
    from nemo_kit.neurons import NeuronSet

__all__ = ["explore"]


def explore(
    model: DiffusionModel,
    prompts: pd.DataFrame | Sequence[str] | None = None,
    seeds: Iterable[int] = range(1, 11),
    found: Mapping[str, NeuronSet] | None = None,
    scores: pd.DataFrame | str | Path | None = None,
) -> Explorer:
    """Show the explorer: choose a prompt, select neurons, switch them off, look.

    Returns a widget; its last line in a cell shows it, `.close()` ends its thread. While it
    computes, the model must not be used by another cell: its hooks act on the model itself.
    Parameters: `model`, from `load`; `prompts`, to choose from, as a list or a frame with `prompt`
    and perhaps `role` (by default the lab's own for the lab model, none for others: write one);
    `seeds`, of detection; `found`, prompt -> memorization neurons known before; `scores`, a frame
    or CSV with `prompt`, `group`, `score`, whose largest score of each prompt is drawn behind.
    Raises TypeError for anything but a loaded model, ValueError for bad prompts, seeds and frames,
    ImportError where ipywidgets is missing.
    """
    if isinstance(model, str) or not hasattr(model, "value_layers"):
        raise TypeError(
            f'model must be a loaded one, as in explore(load("lab")), got {model!r:.60}'
        )
    try:
        from nemo_kit.explorer.view import Explorer
    except ImportError as error:
        raise ImportError(
            "nemo_kit.explore needs ipywidgets: pip install ipywidgets, and restart the kernel"
        ) from error
    from nemo_kit.explorer.session import Session

    session = Session(model, _prompt_frame(model, prompts), list(seeds), found)
    return Explorer(session, _best_scores(scores))


def _prompt_frame(
    model: DiffusionModel, prompts: pd.DataFrame | Sequence[str] | None
) -> pd.DataFrame:
    if prompts is None and model.name == "lab":
        from nemo_kit import lab

        return lab.prompts()
    if prompts is None:
        return pd.DataFrame({"prompt": [], "role": []})
    if not isinstance(prompts, pd.DataFrame):
        from nemo_kit.checks import check_texts

        return pd.DataFrame({"prompt": check_texts(prompts), "role": "prompts"})
    if "prompt" not in prompts:
        raise ValueError(f"prompts needs a column 'prompt', got {list(prompts)}")
    return prompts if "role" in prompts else prompts.assign(role="prompts")


def _best_scores(scores: pd.DataFrame | str | Path | None) -> pd.DataFrame | None:
    """The largest score of each prompt and group."""
    if scores is None:
        return None
    frame = scores if isinstance(scores, pd.DataFrame) else read_csv(scores)
    if missing := {"prompt", "group", "score"} - set(frame):
        raise ValueError(f"scores lacks the columns {sorted(missing)}, got {list(frame)}")
    frame = frame.assign(score=pd.to_numeric(frame["score"]))
    return frame.groupby(["prompt", "group"], as_index=False)["score"].max()
