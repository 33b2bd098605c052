"""Models: loading, and each operation against the parts it stands for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import diffusers
import numpy as np
import pytest
import torch
import transformers
from conftest import TOY_SIMILARITY
from diffusers import DDIMScheduler, StableDiffusionPipeline

from nemo_kit.calibration import Calibration
from nemo_kit.hooks import capture
from nemo_kit.models import DiffusionModel, hub, load


@pytest.fixture(params=["toy_model", "sd2_model"])
def model(request: pytest.FixtureRequest) -> DiffusionModel:
    found = request.getfixturevalue(request.param)
    found.samples_evaluated = 0
    return found


def test_a_loaded_model(toy_model: DiffusionModel, toy_folder: Path) -> None:
    assert toy_model.name == str(toy_folder)
    assert toy_model.revision is None
    assert toy_model.dtype == torch.float32  # on the CPU
    assert toy_model.latent_shape == (4, 16, 16)
    assert isinstance(toy_model.scheduler, DDIMScheduler)
    assert [layer.index for layer in toy_model.searched] == [1, 2, 3, 4, 5, 6, 7]
    assert len(toy_model.value_layers) == len(toy_model.key_layers) == 16
    assert not any(p.requires_grad for p in toy_model.denoiser.parameters())
    assert repr(toy_model).startswith("StableDiffusion(")


def test_opening_says_nothing_of_libraries(toy_folder: Path) -> None:
    """In a new process, in which they are imported and could speak of what they don't find."""
    code = f"from nemo_kit import load; load({str(toy_folder)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("masked", [False, True])
def test_embeddings_are_the_pipelines(
    toy_model: DiffusionModel, toy_folder: Path, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of an encoder that is not to see padding."""
    pipeline = StableDiffusionPipeline.from_pretrained(toy_folder, safety_checker=None)
    for encoder in (pipeline.text_encoder, toy_model.text_encoder):
        monkeypatch.setattr(encoder.config, "use_attention_mask", masked, raising=False)
    text = "a caption far longer than the twelve tokens of this model"
    expected, empty = pipeline.encode_prompt(text, "cpu", 1, True)
    with pytest.warns(RuntimeWarning, match="more than the text encoder's 12 tokens are cut"):
        found = toy_model.embed([text, ""])
    torch.testing.assert_close(found, torch.cat([expected, empty]))
    assert toy_model.embed(["a"] * 130).shape == (130, 12, 16)


def test_noise_depends_on_the_seed_alone(model: DiffusionModel) -> None:
    noise = model.noise([3, 1, 3])
    assert noise.shape == (3, 4, 16, 16)
    assert torch.equal(noise[0], noise[2])
    generator = torch.Generator().manual_seed(1)
    assert torch.equal(noise[1], torch.randn((4, 16, 16), generator=generator))


def test_timesteps_are_those_of_ddim(model: DiffusionModel) -> None:
    assert model.timesteps(50)[:2].tolist() == [981, 961]


def predict(model: DiffusionModel, seeds: list[int], text: str = "a cat") -> torch.Tensor:
    embeddings = model.embed([text] * len(seeds))
    return model.predict_noise(model.noise(seeds), model.timesteps(50)[1], embeddings)


def test_samples_are_counted(model: DiffusionModel) -> None:
    predict(model, [1, 2, 3])
    predict(model, [1])
    assert model.samples_evaluated == 4


def test_epsilon_is_the_denoisers_output(toy_model: DiffusionModel) -> None:
    noise, text = toy_model.noise([1]), toy_model.embed("a cat")
    expected = toy_model.denoiser(noise, 961, encoder_hidden_states=text).sample
    torch.testing.assert_close(predict(toy_model, [1]), expected)


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_other_predictions_become_epsilon(
    sd2_model: DiffusionModel, kind: str, monkeypatch: Any
) -> None:
    """Held against the scheduler: one DDIM step from ε equals the step from the raw output."""
    timestep, x = sd2_model.timesteps(50)[1], sd2_model.noise([5])
    text, config = sd2_model.embed("a cat"), sd2_model.scheduler.config
    own = DDIMScheduler.from_config(config, prediction_type=kind)
    own.set_timesteps(50)
    monkeypatch.setattr(sd2_model, "scheduler", own)
    epsilon, raw = sd2_model.predict_noise(x, timestep, text), sd2_model.predict(x, timestep, text)
    assert not torch.allclose(epsilon, raw)
    other = DDIMScheduler.from_config(config, prediction_type="epsilon")
    other.set_timesteps(50)
    steps = [s.step(o, timestep, x).prev_sample for s, o in ((own, raw), (other, epsilon))]
    torch.testing.assert_close(steps[0], steps[1], rtol=1e-3, atol=1e-3)


def test_the_sd2_model_predicts_v(sd2_model: DiffusionModel) -> None:
    assert sd2_model.scheduler.config.prediction_type == "v_prediction"
    assert sd2_model.denoiser.config.use_linear_projection


def test_value_activations_are_what_a_hook_sees(model: DiffusionModel) -> None:
    texts = ["a cat", "a red cup"]
    found = model.value_activations(model.embed(texts))
    assert model.samples_evaluated == 0
    assert sorted(found) == list(range(1, 17))
    noise = model.noise([1, 2])
    with capture(model.denoiser, model.value_layers) as seen, torch.no_grad():
        model.predict_noise(noise, 961, model.embed(texts))
    for layer, values in found.items():
        assert torch.equal(values, seen[layer])
    only = model.value_activations(model.embed(texts), model.searched)
    assert sorted(only) == list(range(1, 8))


def test_decode_gives_images(model: DiffusionModel) -> None:
    images = model.decode(model.noise(range(9)))
    assert images.shape == (9, 32, 32, 3)
    assert images.dtype == np.uint8
    assert np.array_equal(images[8:], model.decode(model.noise([8])))


@pytest.mark.parametrize("prompts", [[], ["a", 5], None])
def test_bad_prompts(toy_model: DiffusionModel, prompts: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="prompts must"):
        toy_model.embed(prompts)


def test_bad_numbers(toy_model: DiffusionModel) -> None:
    x, text = toy_model.noise([1, 2]), toy_model.embed("a")
    with pytest.raises(ValueError, match=r"got \[2, 4, 16, 16\] for 1"):
        toy_model.predict_noise(x, 961, text)
    with pytest.raises(ValueError, match=r"latents must be \[N, 4, 16, 16\] for N embeddings"):
        toy_model.predict_noise(x[:1, :, :8], 961, text)
    with pytest.raises(FloatingPointError, match="latents became NaN or infinite"):
        toy_model.decode(torch.full((1, 4, 16, 16), torch.nan))
    with pytest.raises(ValueError, match="seeds must be integers"):
        toy_model.noise([0.5])


def test_unknown_names(tmp_path: Path) -> None:
    allowed = 'name must be "lab", "lab-flow", a folder with a diffusers model, a .safetensors'
    for name in ("labb", "", 5, "a/b/c", "../x", "http://a/b"):
        with pytest.raises(ValueError, match=allowed):
            load(name)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"has no model_index\.json"):
        load(str(tmp_path))
    with pytest.raises(ValueError, match="'nobody/nothing-here' could not be opened"):
        load("nobody/nothing-here")


def test_bad_devices(toy_folder: Path) -> None:
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    missing = [device for device, there in here.items() if not there]
    allowed = 'device must be "auto", "cpu", "cuda" or "offload", and one that torch sees here'
    for device in (*missing, "meta", "cuda:99", "tpu9"):
        with pytest.raises(ValueError, match=f"{allowed}; got '{device}'"):
            load(str(toy_folder), device=device)


def test_dtype_is_applied_to_all_parts(toy_folder: Path) -> None:
    model = load(str(toy_folder), device="cpu", dtype=torch.bfloat16)
    assert {m.dtype for m in (model.denoiser, model.vae, model.text_encoder)} == {torch.bfloat16}
    assert predict(model, [1]).dtype == torch.float32
    assert load(str(toy_folder), device="cpu", dtype="float16").dtype == torch.float16
    for usual in ("auto", None):
        assert load(str(toy_folder), device="cpu", dtype=usual).dtype == torch.float32
    for wrong in ("float64", "half", torch.int32):
        with pytest.raises(ValueError, match="dtype must be one of auto, float32, float16, bfl"):
            load(str(toy_folder), dtype=wrong)  # type: ignore[arg-type]


def test_the_number_types_are_the_same_everywhere() -> None:
    from nemo_kit.cli.options import Dtype
    from nemo_kit.models import DTYPES

    assert get_args(Dtype) == DTYPES


def test_a_folder_brings_its_calibration(toy_folder: Path, toy_model: DiffusionModel) -> None:
    assert load(str(toy_folder), device="cpu").calibration is None
    assert isinstance(toy_model.calibration, Calibration)
    toy_model.calibration.save(toy_folder / "nemo")
    try:
        found = load(str(toy_folder), device="cpu").calibration
    finally:
        for file in (toy_folder / "nemo").iterdir():
            file.unlink()
        (toy_folder / "nemo").rmdir()
    assert found is not None
    assert found.threshold == toy_model.calibration.threshold
    assert found.similarity == TOY_SIMILARITY


def test_parts_are_opened_without_code_or_network(toy_folder: Path, monkeypatch: Any) -> None:
    seen: list[dict[str, Any]] = []
    for library, kind in (
        (diffusers, "UNet2DConditionModel"), (diffusers, "AutoencoderKL"),
        (transformers, "CLIPTextModel"), (transformers, "CLIPTokenizer"),
    ):  # fmt: skip
        original = getattr(library, kind).from_pretrained

        def spy(*given: Any, original: Any = original, **options: Any) -> Any:
            seen.append(options)
            return original(*given, **options)

        monkeypatch.setattr(getattr(library, kind), "from_pretrained", spy)
    monkeypatch.setattr(hub, "fetch", lambda name, revision: (toy_folder, "0123abc"))
    model = load("owner/model", device="cpu", revision="v1")
    assert (model.name, model.revision) == ("owner/model", "0123abc")  # the commit behind the tag
    assert len(seen) == 4
    assert all(options["local_files_only"] for options in seen)
    assert not any("trust_remote_code" in options for options in seen)


def test_code_in_a_models_folder_is_not_run(toy_folder: Path, tmp_path: Path) -> None:
    for part in toy_folder.iterdir():
        os.symlink(part, tmp_path / part.name)
    (tmp_path / "unet").unlink()
    (tmp_path / "unet").mkdir()
    for file in (toy_folder / "unet").iterdir():
        os.symlink(file, tmp_path / "unet" / file.name)
    (tmp_path / "unet" / "evil.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass"
    )
    index = json.loads((toy_folder / "model_index.json").read_text())
    (tmp_path / "model_index.json").unlink()
    (tmp_path / "model_index.json").write_text(json.dumps(index | {"unet": ["evil", "Evil"]}))
    with pytest.raises(ValueError, match="could not be opened"):
        load(str(tmp_path), device="cpu")
    assert not (tmp_path / "ran").exists()
