"""Rows × settings × seeds → measures, through the store: one engine behind tables and figures.

Scope: pictures of every prompt under every setting, and what they measure. A setting is the model
as it is, neurons, a mitigation, a cut of a layer or another model, the same for all prompts or one
for each, or a list of these (repeats). Medians over prompts are `metrics.summary`.
Source: Hintersdorf et al., "Finding NeMo", NeurIPS 2024, section 4, tables 1 and 4.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nemo_kit import metrics
from nemo_kit.checks import check_columns, check_seeds_apart
from nemo_kit.metrics import Clip, Median, Seen
from nemo_kit.metrics.measures import LABELS
from nemo_kit.mitigation import Mitigation, NeMo
from nemo_kit.models.base import DiffusionModel
from nemo_kit.neurons import NeuronSet
from nemo_kit.store import ModelRef, generate_all
from nemo_kit.store.runs import UNDEFINED

_OWN = ("setting", "repeat", "images", "threshold", "seed_median", "mitigation_protocol")  # columns


def study(
    model: DiffusionModel | ModelRef,
    rows: pd.DataFrame,
    settings: Mapping[str, Any],
    seeds: Iterable[int],
    measures: Iterable[Any] | None = None,
    *,
    store: str | Path,
    detection_seeds: Iterable[int] = (),
    training: Mapping[str, np.ndarray] | None = None,
    look: Callable[[np.ndarray], Any] | None = None,
    clip: Clip | None = None,
    median: Median = "middle two",
    **options: Any,
) -> pd.DataFrame:
    """Draw every prompt under every setting and measure the pictures, from the store or anew.

    Returns a frame with `setting`, `repeat` (0, 1, … where a setting is a list), the columns of
    `rows`, those of `metrics.measured`, and `mitigation_protocol`. A prompt whose pictures failed,
    under the setting or undisturbed, is named in a warning and has no row for it. So is a setting
    that isn't defined for this kind of model; its rows hold no numbers, and 0 `images`.

    Parameters: `rows`, with `prompt`; `settings`, name -> None (the model as it is), a
    `NeuronSet`, a `Mitigation`, another model, a mapping from prompt to a set or a mitigation, or a
    list of these; `seeds`, of the pictures; `measures`, as in `metrics.chosen`, by default all;
    `detection_seeds`, which `seeds` must not meet; `training`, prompt -> training image, uint8
    [H, W, 3]; `look`, the copy descriptor (an `Embedder` or any function of pictures), and `clip`,
    by default the embedded model's; `median`, over seeds; `options`, of `generate_all`.
    Raises ValueError for shared seeds, rows with columns of the study's own, no setting, one that
    no prompt has or has pictures under, or an unknown measure; TypeError for another setting or
    descriptor; and what `generate_all` raises.
    Source: paper, section 4.
    """
    numbers = check_seeds_apart(seeds, detection_seeds)
    if not isinstance(settings, Mapping) or not settings:
        raise ValueError(f"settings must map names to interventions, got {settings!r:.60}")
    if any(isinstance(given, list) and not given for given in settings.values()):
        raise ValueError(f"settings must hold an intervention in each list, got {settings!r:.60}")
    check_columns("rows", rows, "prompt")
    asked = metrics.chosen(measures)
    own = {*_OWN, *LABELS, *(one.name for one in asked)}
    if taken := [name for name in rows if name in own]:
        raise ValueError(f"rows must lack the columns that a study adds, got {', '.join(taken)}")
    keyed = ModelRef.of(model)
    prompts, known = list(rows["prompt"]), training or {}
    descriptor = metrics.lab_descriptor() if look is None else metrics.as_embedder(look)
    networks = descriptor, clip or metrics.load_clip()
    ways = [
        (name, repeat, one, _asked(name, one, keyed, prompts))
        for name, given in settings.items()
        for repeat, one in enumerate(given if isinstance(given, list) else [given])
    ]
    drawing = {"prompts": prompts, "seeds": numbers, "store": store, **options}
    drawn = pictures(generate_all(keyed, **drawing))
    plain = {
        prompt: Seen(prompt, images, *networks, training=known.get(prompt), median=median)
        for prompt, images in drawn.items()
    }
    parts = []
    for name, repeat, one, how in ways:
        made = _drawn(name, {"model": keyed, **how, **drawing}) if how else drawn
        both = plain if made is None else plain.keys() & made.keys()
        kept = rows[rows["prompt"].isin(both)]
        if kept.empty:
            raise ValueError(f"settings: {name!r} has pictures of none of {len(rows)} prompts")
        seen = [
            Seen(p, made[p], *networks, plain[p], plain[p].training, median)
            for p in kept["prompt"]
            if made is not None
        ]
        part = metrics.measured(kept, seen, asked)
        part.insert(0, "setting", [name] * len(part))
        part.insert(1, "repeat", repeat)
        parts.append(part.assign(mitigation_protocol=getattr(one, "protocol", "")))
    return pd.concat(parts, ignore_index=True)


def _drawn(name: str, given: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
    """Pictures under a setting; None and a warning where it isn't defined for the model."""
    try:
        return pictures(generate_all(**given))
    except RuntimeError as error:  # of all prompts
        if UNDEFINED not in str(error):
            raise
        warnings.warn(f"settings: {name!r} has no pictures: {error}", stacklevel=3)
        return None


def pictures(made: pd.DataFrame) -> dict[str, np.ndarray]:
    """Pictures by prompt, uint8 [seeds, H, W, 3] each.

    Parameters: `made`, from `generate_all`; a prompt that failed is not there.
    """
    groups = made.groupby("prompt", sort=False)["image"] if len(made) else ()
    return {prompt: np.stack(list(images)) for prompt, images in groups}


def before_after(frame: pd.DataFrame, before: str, after: str) -> pd.DataFrame:
    """Two settings of a study side by side, a row a prompt that has both.

    Returns the columns of the study's rows, `gen` of the second, each other measure with the
    endings `_before` and `_after`, and the names of what measured.
    Parameters: `frame`, from `study`; `before`, `after`, names of settings.
    Raises ValueError where the frame lacks one.
    """
    sides = {}
    for side, name in (("before", before), ("after", after)):
        sides[side] = frame[frame["setting"] == name].set_index("prompt", drop=False)
        if sides[side].empty:
            raise ValueError(f"{side} must be a setting of the frame, got {name!r}")
    place = frame.columns.get_loc("images")  # after the columns of the rows, before the measures
    own = list(frame.columns[2:place])
    numbers = [
        name
        for name in frame.columns[place + 1 : frame.columns.get_loc("threshold")]
        if name != "gen"
    ]
    both = [part[numbers].add_suffix(f"_{side}") for side, part in sides.items()]
    second = sides["after"]
    table = pd.concat([second[own], second["gen"], *both, second[list(LABELS)]], axis=1)
    return table[table["prompt"].isin(sides["before"].index)].reset_index(drop=True)


def _asked(name: str, given: Any, model: ModelRef, prompts: Sequence[str]) -> dict[str, Any]:
    """What `generate_all` takes for a setting; nothing for the model as it is.

    Mitigations that scale neurons become a set for each prompt, so that a prompt's pictures stay in
    the store when others are added.
    """
    if given is None or type(given) is Mitigation:
        return {}
    if isinstance(given, ModelRef) or hasattr(given, "denoiser"):
        return {"model": given}
    of_prompts = getattr(given, "neurons", given)
    if isinstance(of_prompts, Mapping) and of_prompts and not {*of_prompts} & {*prompts}:
        raise ValueError(f"settings: {name!r} is for none of the {len(prompts)} prompts of rows")
    if isinstance(given, NeMo):
        with model.borrow() as opened:
            sets = {prompt: given.chosen(opened, prompt) for prompt in prompts}
        return {"neurons": sets} | ({} if given.factor == 0 else {"factor": given.factor})
    if isinstance(given, NeuronSet):
        return {"neurons": given}
    if isinstance(given, Mitigation):
        return {"mitigation": given}
    if isinstance(given, Mapping):
        for kind, key in ((NeuronSet, "neurons"), (Mitigation, "mitigation")):
            if given and all(isinstance(one, kind) for one in given.values()):
                return {key: dict(given)}
    raise TypeError(
        f"settings: {name!r} must be None, a NeuronSet, a Mitigation, a model, a mapping from "
        f"prompt to a set or a mitigation, or a list of these, got {given!r:.60}"
    )
