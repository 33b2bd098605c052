"""The settings presets by name, and the threshold that belongs to one on a given model.

Scope: `default`, `released` (the released code in all ten points where it differs from the text)
and `paper` (the text); what to compare with where the model was calibrated with other settings, or
has none because a LoRA is in its weights.
Source: "Finding NeMo" (arXiv 2406.02366), section 4, and the authors' released code.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from nemo_kit import lab
from nemo_kit.calibration import CALIBRATION_FILE, Calibration, published, resolve
from nemo_kit.checks import check_choice
from nemo_kit.keys import value_digest, versions
from nemo_kit.localization import calibrate
from nemo_kit.localization.differences import Progress
from nemo_kit.models.base import DiffusionModel
from nemo_kit.models.opening import calibration_of_files, on_this_machine
from nemo_kit.prompts import prompt_table
from nemo_kit.settings import LocalizationSettings
from nemo_kit.store import model_key

PRESETS = ("default", "released", "paper")


def preset(name: str, model: DiffusionModel) -> LocalizationSettings:
    """The settings of that name, with a comparison that fits the model's latents.

    Returns `LocalizationSettings` whose `name` says which; "default" leaves detection and
    similarity to the model's calibration.
    Raises ValueError for another name.
    """
    check_choice("settings", name, PRESETS)
    if name == "default":
        return LocalizationSettings()
    made = LocalizationSettings.released if name == "released" else LocalizationSettings.paper
    return made(known.similarity if (known := _own(model)) else None)


def calibration_of(
    model: DiffusionModel, prompt_files: Sequence[str | Path], store: str | Path | None
) -> Calibration | None:
    """The model's own calibration; with a LoRA in its weights, one computed for these.

    It is computed once, from the prompts of the role holdout in the files (the embedded model's own
    where there are none), and kept in `store`.
    Raises ValueError where the files hold no such prompt.
    """
    if model.lora is None:
        return model.calibration
    table = prompt_table(prompt_files)
    held = list(table["prompt"][table["role"] == "holdout"])
    return calibration_for(model, LocalizationSettings(), held, store=store)


def calibration_for(
    model: DiffusionModel,
    settings: LocalizationSettings,
    hold_out: Sequence[str] = (),
    seeds: Sequence[int] = range(1, 11),
    store: str | Path | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """The calibration whose threshold holds for these settings; activation statistics stay.

    Returns one computed from `hold_out` where prompts were given; else the model's own where it
    was made with these settings; for `released` on a model that the paper names a threshold for,
    that one; for the embedded model one computed from its own hold-out prompts.
    Parameters: `hold_out`, prompts that the model does not memorize; `store`, a folder that keeps
    what was computed; `progress`, called with (stage, done, total).
    Raises ValueError where there is no threshold and no hold-out prompt.
    """
    own = model.calibration
    detection, similarity = resolve(_own(model), settings.detection, settings.similarity)
    if own and own.holds(detection, similarity) and not hold_out:
        return own
    found, texts = None, list(hold_out)
    if not texts and settings.name == "released" and model.lora is None:
        found = published(str(model.name))
    if not texts and model.name in lab.TABLES:
        texts = list(lab.prompts("holdout", model=model.name)["prompt"])
    if found is None and not texts:
        lacking = f"the model {model.name!r} has no threshold"
        if own:
            lacking = f"the model's threshold {own.threshold:.3f} was computed with other settings"
        raise ValueError(
            f"settings {settings.name!r}: {lacking}; give --threshold, or --hold-out with "
            "prompts that the model does not memorize (the role holdout of a prompt file)"
        )
    options = {"settings": detection, "similarity": similarity}
    found = found or _computed(model, texts, list(seeds), options, store, progress)
    statistics = (own and own.statistics) or found.statistics
    return replace(found, statistics=statistics, detection=detection, similarity=similarity)


def _own(model: DiffusionModel) -> Calibration | None:
    """The model's calibration, or what it had before a LoRA, for how its latents are compared."""
    if model.calibration or model.lora is None:
        return model.calibration
    place = on_this_machine(model.name, model.revision)
    return place and calibration_of_files(model.name, place)


def _computed(
    model: DiffusionModel,
    texts: list[str],
    seeds: list[int],
    options: dict[str, Any],
    store: str | Path | None,
    progress: Progress | None,
) -> Calibration:
    """From the store where it is there, else computed."""
    compute = partial(calibrate, model, texts, seeds, **options, progress=progress)
    if store is None:
        return compute()
    code = versions("localization.detection", "localization.candidates")
    digest = value_digest([model_key(model), code, texts, seeds, options])
    folder = Path(store) / "calibration" / digest[:16]
    if not (folder / CALIBRATION_FILE).is_file():
        compute().save(folder)
    return Calibration.load(folder)
