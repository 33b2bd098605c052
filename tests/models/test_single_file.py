"""Single-file checkpoints: the same model as the folder whose weights they hold."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from checkpoints import write_checkpoint
from safetensors.torch import load_file, save_file
from toys import SD2, save_pipeline

from nemo_kit.models import DiffusionModel, load
from nemo_kit.models.single_file import default_config


@pytest.fixture(scope="module")
def checkpoint(toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(toy_folder, tmp_path_factory.mktemp("files") / "v1.safetensors")


@pytest.fixture(scope="module")
def sd2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SD 2.x in small, but with a text encoder as wide as its own, by which a file is known."""
    place = tmp_path_factory.mktemp("sd2")
    changes = {"cross_attention_dim": 1024, **SD2}
    return save_pipeline(place / "m", prediction="v_prediction", **changes)


def settings_alone(folder: Path, out: Path) -> Path:
    """The folder without a weight."""
    return Path(shutil.copytree(folder, out, ignore=shutil.ignore_patterns("*.safetensors")))


def prediction(model: DiffusionModel) -> torch.Tensor:
    return model.predict_noise(model.noise([1]), 961, model.embed("a cat"))


def test_a_checkpoint_is_the_model_of_its_folder(
    checkpoint: Path, toy_folder: Path, toy_model: DiffusionModel, tmp_path: Path
) -> None:
    config = settings_alone(toy_folder, tmp_path / "settings")
    model = load(str(checkpoint), device="cpu", config=str(config))
    assert (model.name, model.config, model.revision) == (str(checkpoint), str(config), None)
    assert torch.equal(prediction(model), prediction(toy_model))
    noise = model.noise([1])
    assert (model.decode(noise) == toy_model.decode(noise)).all()


def test_a_checkpoint_of_sd2_needs_its_kind_to_be_said(sd2: Path, tmp_path: Path) -> None:
    file = write_checkpoint(sd2, tmp_path / "v2.safetensors")
    with pytest.raises(ValueError, match=r"config.*stable-diffusion-2-1 \(v-pred.*2-1-base \(ε"):
        load(str(file), device="cpu")
    model, folder = load(str(file), "cpu", config=str(sd2)), load(str(sd2), "cpu")
    assert model.scheduler.config.prediction_type == "v_prediction"
    assert torch.equal(prediction(model), prediction(folder))


def test_what_a_checkpoint_says_of_itself_is_held_against_the_settings(
    toy_folder: Path, tmp_path: Path
) -> None:
    said = {"modelspec.prediction_type": "v"}
    file = write_checkpoint(toy_folder, tmp_path / "v.safetensors", **said)
    with pytest.raises(ValueError, match=r"config: .* says that it predicts v, .* epsilon"):
        load(str(file), "cpu", config=str(toy_folder))
    save_file(load_file(file) | {"v_pred": torch.zeros(0)}, tmp_path / "marked.safetensors")
    with pytest.raises(ValueError, match="says v_pred"):
        default_config(tmp_path / "marked.safetensors")


def test_without_a_config_those_of_sd15_are_asked_for(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match=r"'stable-diffusion-v1-5/stable-diffusion-v1-5'.*not on"):
        load(str(checkpoint), device="cpu")


@pytest.mark.parametrize(
    ("dropped", "named"),
    [
        ("model.diffusion_model.out.2.weight", "unet: conv_out.weight missing"),
        ("first_stage_model.decoder.conv_in.weight", "vae: decoder.conv_in.weight missing"),
        ("cond_stage_model.transformer.text_model.final_layer_norm.bias", "final_layer_norm.bias"),
        ("cond_stage_model.", "CLIPTextModel|text_encoder|CLIP"),
        ("model.diffusion_model.input_blocks.0.0.weight", "no checkpoint of Stable Diffusion"),
    ],
)
def test_a_checkpoint_that_lacks_tensors_is_refused(
    checkpoint: Path, toy_folder: Path, tmp_path: Path, dropped: str, named: str
) -> None:
    kept = {name: t for name, t in load_file(checkpoint).items() if not name.startswith(dropped)}
    save_file(kept, tmp_path / "part.safetensors")
    with pytest.raises(ValueError, match=named) as told:
        load(str(tmp_path / "part.safetensors"), "cpu", config=str(toy_folder))
    assert "part.safetensors" in str(told.value)


def test_what_is_no_checkpoint(toy_folder: Path, tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "model.ckpt").touch()
    with pytest.raises(ValueError, match=r"model\.ckpt' is a pickle"):
        load(str(tmp_path / "model.ckpt"))
    with pytest.raises(ValueError, match=r"there is no file 'a/none\.safetensors'"):
        load("a/none.safetensors")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"cut\.safetensors is no whole safetensors file"):
        load(str(cut), "cpu", config=str(toy_folder))
    with pytest.raises(ValueError, match=r"config goes with a \.safetensors checkpoint"):
        load(str(toy_folder), "cpu", config=str(toy_folder))
    with pytest.raises(ValueError, match="config must be"):
        load(str(checkpoint), "cpu", config="nothing")


def test_a_checkpoint_has_its_calibration_beside_it(
    toy_folder: Path, toy_model: DiffusionModel, checkpoint: Path, tmp_path: Path
) -> None:
    file = Path(shutil.copy(checkpoint, tmp_path / "mine.v2.safetensors"))
    assert load(str(file), "cpu", config=str(toy_folder)).calibration is None
    assert toy_model.calibration is not None
    toy_model.calibration.save(tmp_path / "mine.v2.nemo")
    found = load(str(file), "cpu", config=str(toy_folder)).calibration
    assert found is not None
    assert found.threshold == toy_model.calibration.threshold
