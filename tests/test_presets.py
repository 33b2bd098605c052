"""Presets by name, and whose threshold holds for them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import TOY_SIMILARITY
from safetensors.torch import save_file

from nemo_kit.calibration import published
from nemo_kit.models import DiffusionModel, load
from nemo_kit.presets import PRESETS, calibration_for, calibration_of, preset
from nemo_kit.settings import DetectionSettings

SD = "CompVis/stable-diffusion-v1-4"


def model(name: str) -> Any:
    return SimpleNamespace(name=name, calibration=published(SD), lora=None)


def test_every_preset_says_its_name_and_compares_as_the_model_can(
    toy_model: DiffusionModel,
) -> None:
    own = toy_model.calibration.similarity
    for name in PRESETS:
        made = preset(name, toy_model)
        assert made.name == name
        assert made.similarity is None or made.similarity.kernel == own.kernel
    assert preset("default", toy_model).detection is None


def test_another_name_is_refused(toy_model: DiffusionModel) -> None:
    with pytest.raises(ValueError, match="settings must be one of default, released, paper; got"):
        preset("other", toy_model)


def test_the_model_s_own_threshold_holds_for_what_it_was_made_with() -> None:
    one = model("elsewhere")
    assert calibration_for(one, preset("default", one)) is one.calibration


def test_released_takes_the_published_threshold_where_there_is_one() -> None:
    one = model(SD)
    found = calibration_for(one, preset("released", one))
    assert found.threshold == 0.428
    assert found.detection == DetectionSettings.released()
    with pytest.raises(ValueError, match=r"'paper': the model's threshold 0.428 was computed with"):
        calibration_for(one, preset("paper", one))
    other = model("a/folder")
    with pytest.raises(ValueError, match="give --threshold, or --hold-out"):
        calibration_for(other, preset("released", other))


def test_hold_out_prompts_give_a_threshold_and_statistics_stay(toy_model: DiffusionModel) -> None:
    chosen = preset("paper", toy_model)
    found = calibration_for(toy_model, chosen, ["x", "y", "z"], [1, 2])
    assert (found.detection, found.similarity) == (chosen.detection, chosen.similarity)
    assert found.prompts == 3
    assert found.statistics is toy_model.calibration.statistics


def test_hold_out_prompts_win_over_what_the_model_has(toy_model: DiffusionModel) -> None:
    chosen = preset("default", toy_model)
    assert calibration_for(toy_model, chosen) is toy_model.calibration
    found = calibration_for(toy_model, chosen, ["x", "y", "z"], [1, 2])
    assert (found.prompts, found.seeds) == (3, (1, 2))
    assert found.detection == toy_model.calibration.detection
    assert found.statistics is toy_model.calibration.statistics


def test_a_model_without_calibration_gets_one_from_hold_out_prompts(
    toy_model: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = replace(preset("paper", toy_model), similarity=TOY_SIMILARITY)
    monkeypatch.setattr(toy_model, "calibration", None)
    with pytest.raises(ValueError, match=r"'paper': the model .* has no threshold; give --thres"):
        calibration_for(toy_model, chosen)
    found = calibration_for(toy_model, chosen, ["x", "y", "z"], [1, 2])
    assert (found.prompts, found.detection) == (3, chosen.detection)
    assert found.statistics is not None


def test_released_needs_no_calibration_where_the_paper_names_a_threshold() -> None:
    bare: Any = SimpleNamespace(name=SD, calibration=None, lora=None)
    assert calibration_for(bare, preset("released", bare)).threshold == 0.428


def test_a_fused_lora_gets_a_calibration_of_its_own(
    toy_folder: Path, toy_model: DiffusionModel, tmp_path: Path
) -> None:
    """Compared as its base was, from the hold-out prompts of the files, kept in the store."""
    folder = shutil.copytree(toy_folder, tmp_path / "base")
    toy_model.calibration.save(folder / "nemo")
    name = toy_model.value_layers[0].name
    wide, inner = toy_model.denoiser.get_submodule(name).weight.shape
    pair = {"A": torch.ones(1, inner), "B": torch.ones(wide, 1)}
    weights = {f"unet.{name}.lora_{side}.weight": matrix for side, matrix in pair.items()}
    save_file(weights, tmp_path / "lora.safetensors")
    fused = load(str(folder), device="cpu", lora=tmp_path / "lora.safetensors")
    (tmp_path / "p.csv").write_text("prompt,role\na,holdout\nb,holdout\nc,holdout\nd,verbatim\n")
    (tmp_path / "none.csv").write_text("prompt\na\n")
    assert calibration_of(toy_model, [], None) is toy_model.calibration
    with pytest.raises(ValueError, match="the role holdout of a prompt file"):
        calibration_of(fused, [tmp_path / "none.csv"], None)
    found = calibration_of(fused, [tmp_path / "p.csv"], tmp_path / "store")
    assert (found.prompts, found.similarity) == (3, TOY_SIMILARITY)
    assert found.threshold != toy_model.calibration.threshold
    fused.samples_evaluated = 0
    again = calibration_of(fused, [tmp_path / "p.csv"], tmp_path / "store")
    assert (again.threshold, fused.samples_evaluated) == (found.threshold, 0)
