"""The commands with what people bring: one line and exit code 2, or the model that was meant."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import write_checkpoint
from safetensors.torch import save_file

from nemo_kit import cli
from nemo_kit.models import DiffusionModel, load


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["nemo-kit", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


def test_a_model_that_can_t_be_opened_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    toy_folder: Path,
    tmp_path: Path,
) -> None:
    folder = Path(shutil.copytree(toy_folder, tmp_path / "m"))
    file = folder / "text_encoder" / "model.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n")
    words = ["detect", "a cat", "--model", str(folder), "--threshold", "0.5"]
    assert call(monkeypatch, *words) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert str(file) in said[0]
    assert "Git-LFS pointer" in said[0]


def _for_small_latents(toy: DiffusionModel) -> Callable[..., DiffusionModel]:
    def opened(*given: Any, **options: Any) -> DiffusionModel:
        model = load(*given, **options)
        model.calibration = toy.calibration
        return model

    return opened


def test_detect_takes_a_checkpoint_and_a_lora(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    toy_folder: Path,
    toy_model: DiffusionModel,
    tmp_path: Path,
) -> None:
    pytest.importorskip("peft", reason="LoRA weights are read through peft")
    monkeypatch.chdir(tmp_path)
    write_checkpoint(toy_folder, tmp_path / "a.safetensors")
    name = toy_model.value_layers[0].name
    out, inner = toy_model.denoiser.get_submodule(name).weight.shape
    pair = {"A": torch.ones(1, inner), "B": torch.ones(out, 1)}
    lora = {f"unet.{name}.lora_{side}.weight": matrix for side, matrix in pair.items()}
    save_file(lora, tmp_path / "lora.safetensors")
    monkeypatch.setattr("nemo_kit.models.load", _for_small_latents(toy_model))
    words = ["detect", "a cat", "--seeds", "2", "--threshold", "0.5", "--device", "cpu", "--json"]
    shown = []
    for given in (
        ["--model", str(toy_folder)],
        ["--model", "a.safetensors", "--config", str(toy_folder)],
        ["--model", "a.safetensors", "--config", str(toy_folder), "--lora", "lora.safetensors:2"],
    ):
        assert call(monkeypatch, *words, *given) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] != shown[2]
    assert call(monkeypatch, *words, "--lora", "none.safetensors") == 2
    assert "lora must be a .safetensors file" in capsys.readouterr().err
