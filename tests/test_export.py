"""Permanent export: the hooks' images from plain diffusers, all or nothing, what stays valid."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pipelines
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusion3Pipeline, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from test_cli import call

from nemo_kit.generation import generate
from nemo_kit.localization.candidates import text_activations, z_scores
from nemo_kit.mitigation import (
    AttentionScaling,
    Mitigation,
    NeMo,
    RandomNeurons,
    WandaPruning,
    export,
)
from nemo_kit.models import DiffusionModel, load
from nemo_kit.neurons import NeuronSet

FOUND = NeuronSet({1: [0, 3], 4: range(6), 9: [2]})
OTHER = NeuronSet({2: [1]})
WANDA = WandaPruning(share=0.05, steps=1, trajectory=2, seeds=(7,))


def by_pipeline(folder: Path, model: DiffusionModel, prompt: str, seed: int) -> np.ndarray:
    """The image of plain diffusers, without anything of this package."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        prompt, latents=model.noise([seed]), num_inference_steps=3, guidance_scale=model.guidance,
        output_type="np",
    ).images[0]  # fmt: skip


@pytest.fixture(scope="module")
def exported(_toy: DiffusionModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy without the neurons found for one prompt."""
    return export(_toy, NeMo({"a b": FOUND}), tmp_path_factory.mktemp("export") / "out", ["a b"])


@pytest.mark.parametrize(
    "way",
    [NeMo({"a b": FOUND, "Öl": OTHER}), NeMo(FOUND | OTHER, -0.5), WANDA],
    ids=["zeroed", "scaled", "pruned"],
)
def test_plain_diffusers_draws_the_hooks_images(
    toy_model: DiffusionModel, tmp_path: Path, way: Mitigation
) -> None:
    prompts = ["a b"] if way is WANDA else ()
    folder = export(toy_model, way, tmp_path / "out", prompts)
    hooked = way if way is WANDA else NeMo(FOUND | OTHER, way.factor)  # type: ignore[attr-defined]
    expected = generate(toy_model, "a b", [3], steps=3, halves="both", mitigation=hooked)[0]
    found = by_pipeline(folder, toy_model, "a b", 3)
    assert np.abs(found * 255 - expected).max() <= 1
    plain = generate(toy_model, "a b", [3], steps=3)[0]
    assert np.abs(found * 255 - plain).max() > 3


def test_only_the_named_rows_change(toy_model: DiffusionModel, exported: Path) -> None:
    name = "unet/diffusion_pytorch_model.safetensors"
    before, after = (load_file(Path(f) / name) for f in (toy_model.name, exported))
    changed = [key for key in before if not torch.equal(before[key], after[key])]
    assert len(changed) == 3
    first = toy_model.value_layers[0].name + ".weight"
    assert (after[first][[0, 3]] == 0).all()
    assert torch.equal(after[first][[1, 2]], before[first][[1, 2]])
    configs = [Path(f) / "unet/config.json" for f in (toy_model.name, exported)]
    assert configs[0].read_bytes() == configs[1].read_bytes()


def test_half_precision_files_stay_so(toy_model: DiffusionModel, tmp_path: Path) -> None:
    half = StableDiffusionPipeline.from_pretrained(toy_model.name, dtype=torch.float16)
    half.save_pretrained(tmp_path / "half")
    model = load(str(tmp_path / "half"), device="cpu")
    folder = export(model, NeMo(FOUND, 0.5), tmp_path / "out")
    kinds = {
        t.dtype for t in load_file(folder / "unet/diffusion_pytorch_model.safetensors").values()
    }
    assert kinds == {torch.float16}
    assert load(str(folder), device="cpu").calibration is None


def test_half_precision_pickles_stay_half(toy_model: DiffusionModel, tmp_path: Path) -> None:
    source = Path(shutil.copytree(toy_model.name, tmp_path / "source"))
    file = source / "unet/diffusion_pytorch_model.safetensors"
    tensors = {name: tensor.half() for name, tensor in load_file(file).items()}
    tensors["conv_norm_out.weight"] = tensors["conv_norm_out.weight"].float()
    torch.save(tensors, file.with_suffix(".bin"))
    file.unlink()
    folder = export(load(str(source), device="cpu"), NeMo(FOUND), tmp_path / "out")
    written = load_file(folder / "unet/diffusion_pytorch_model.safetensors")
    assert {name: t.dtype for name, t in written.items()} == {
        n: t.dtype for n, t in tensors.items()
    }
    first = toy_model.value_layers[0].name + ".weight"
    assert (written[first][[0, 3]] == 0).all()
    assert torch.equal(written["conv_in.weight"], tensors["conv_in.weight"])


def test_variants_are_written_under_plain_names(toy_model: DiffusionModel, tmp_path: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(toy_model.name, torch_dtype=torch.float16)
    pipeline.save_pretrained(tmp_path / "half", variant="fp16")
    model = load(str(tmp_path / "half"), device="cpu")
    folder = export(model, NeMo(FOUND), tmp_path / "out")
    kept = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    first = model.value_layers[0].name
    assert (kept.unet.get_submodule(first).weight[[0, 3]] == 0).all()
    assert not [path for path in folder.rglob("*") if "fp16" in path.name]


def test_shards_are_joined(toy_model: DiffusionModel, tmp_path: Path) -> None:
    source = Path(shutil.copytree(toy_model.name, tmp_path / "source"))
    (source / "unet/diffusion_pytorch_model.safetensors").unlink()
    toy_model.denoiser.save_pretrained(source / "unet", max_shard_size="100KB")
    folder = export(load(str(source), device="cpu"), NeMo(FOUND), tmp_path / "out")
    model = load(str(folder), device="cpu")
    assert (model.denoiser.get_submodule(toy_model.value_layers[0].name).weight[[0, 3]] == 0).all()
    weights = [path.name for path in (folder / "unet").iterdir() if path.name != "config.json"]
    assert weights == ["diffusion_pytorch_model.safetensors"]


def test_files_are_readable_as_the_umask_says(toy_model: DiffusionModel, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        folder = export(toy_model, NeMo(FOUND), tmp_path / "out")
        assert {f.stat().st_mode & 0o777 for f in folder.rglob("*") if f.is_file()} == {0o644}
        os.umask(0o027)
        folder = export(toy_model, NeMo(FOUND), tmp_path / "group")
        assert {f.stat().st_mode & 0o777 for f in folder.rglob("*") if f.is_file()} == {0o640}
    finally:
        os.umask(before)


def test_a_fused_lora_is_exported_with_the_rest(toy_model: DiffusionModel, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="LoRA weights are read through peft")
    name = toy_model.value_layers[1].name
    out, inner = toy_model.denoiser.get_submodule(name).weight.shape
    pair = {"A": torch.full((1, inner), 0.1), "B": torch.full((out, 1), 0.1)}
    lora = {f"unet.{name}.lora_{side}.weight": matrix for side, matrix in pair.items()}
    save_file(lora, tmp_path / "lora.safetensors")
    model = load(toy_model.name, device="cpu", lora=tmp_path / "lora.safetensors")
    folder = export(model, NeMo(FOUND), tmp_path / "out")
    expected = generate(model, "a b", [3], steps=3, halves="both", mitigation=NeMo(FOUND))[0]
    assert np.abs(by_pipeline(folder, model, "a b", 3) * 255 - expected).max() <= 1
    record = json.loads((folder / "nemo/export.json").read_text("utf-8"))
    assert record["lora"]["sha256"] == model.lora.sha256  # type: ignore[union-attr]
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["lora.safetensors", "out"]


def test_statistics_are_those_of_the_exported_model(
    toy_model: DiffusionModel, tmp_path: Path
) -> None:
    folder = export(toy_model, NeMo(FOUND, -0.5), tmp_path / "out")
    model = load(str(folder), device="cpu")
    prompts = ["cat 1", "red cup 3"]
    old, new = (text_activations(m, prompts) for m in (toy_model, model))
    z_old, z_new = (
        z_scores(a, m.calibration.statistics)  # type: ignore[union-attr]
        for a, m in ((old, toy_model), (new, model))
    )
    assert torch.allclose(new[1][:, 0], 0.5 * old[1][:, 0], rtol=1e-4)
    for layer, values in z_old.items():
        assert torch.allclose(values, z_new[layer], atol=1e-3)
    assert model.calibration.threshold == toy_model.calibration.threshold  # type: ignore
    assert "before the export" in model.calibration.source  # type: ignore[union-attr]


def test_zeroed_neurons_are_no_candidates(exported: Path) -> None:
    model = load(str(exported), device="cpu")
    z = z_scores(text_activations(model, ["other text"]), model.calibration.statistics)  # type: ignore
    assert (z[1][0, [0, 3]] == 0).all()


def test_the_record_says_what_was_done(
    toy_model: DiffusionModel, exported: Path, tmp_path: Path
) -> None:
    record = json.loads((exported / "nemo/export.json").read_text("utf-8"))
    assert record["model"] == toy_model.name
    assert record["prompts"] == ["a b"]
    assert record["mitigation"]["name"] == "NeMo"
    assert record["mitigation"]["neurons"] == {"a b": json.loads(FOUND.to_json())}
    assert list(record["changed"].values()) == ["2 neurons", "6 neurons", "1 neuron"]
    assert record["unet_before"] != record["unet_after"]
    assert record["statistics"].startswith("exact")
    folder = export(toy_model, WANDA, tmp_path / "pruned", "a b")
    record = json.loads((folder / "nemo/export.json").read_text("utf-8"))
    assert record["prompts"] == ["a b"]
    assert len(record["changed"]) == 16


def test_files_that_would_bring_the_weights_back_stay_out(
    toy_model: DiffusionModel, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(toy_model.name, source)
    for name in ("model.ckpt", "unet/diffusion_pytorch_model.fp16.safetensors", "vae/x.msgpack"):
        (source / name).write_bytes(b"weights")
    index = json.loads((source / "model_index.json").read_text("utf-8"))
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (source / "model_index.json").write_text(json.dumps(index), "utf-8")  # named, not there
    folder = export(load(str(source), device="cpu"), NeMo(FOUND), tmp_path / "out")
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert not {"model.ckpt", "unet/diffusion_pytorch_model.fp16.safetensors"} & files
    assert "vae/x.msgpack" not in files
    assert {"vae/diffusion_pytorch_model.safetensors", "unet/config.json"} <= files
    assert StableDiffusionPipeline.from_pretrained(folder).safety_checker is None


def test_parts_that_no_prediction_needs_come_along_in_one_copy(
    toy_model: DiffusionModel, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(toy_model.name, tmp_path / "source"))
    index = json.loads((source / "model_index.json").read_text("utf-8"))
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    (source / "model_index.json").write_text(json.dumps(index), "utf-8")
    for name in ("safety_checker/config.json", "feature_extractor/preprocessor_config.json"):
        (source / name).parent.mkdir()
        (source / name).write_text("{}")
    for name, kind in (("model", torch.float32), ("model.fp16", torch.float16)):
        weights = {"bias": torch.ones(2, dtype=kind)}
        save_file(weights, source / f"safety_checker/{name}.safetensors")
    (source / "safety_checker/pytorch_model.bin").write_bytes(b"the same once more")
    folder = export(load(str(source), device="cpu"), NeMo(FOUND), tmp_path / "out")
    assert (folder / "feature_extractor/preprocessor_config.json").read_text() == "{}"
    files = {path.name for path in (folder / "safety_checker").iterdir()}
    assert files == {"config.json", "model.safetensors"}
    kept = load_file(folder / "safety_checker/model.safetensors")
    assert kept["bias"].dtype == torch.float32


def test_the_command_says_how_diffusers_opens_a_folder_without_t5(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    whole = pipelines.sd3()
    whole.register_modules(text_encoder_3=None, tokenizer_3=None)
    whole.save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    words = ["--model", "model", "--neurons", '{"1": [0]}', "--no-report"]
    assert call(monkeypatch, "export", *words, "--out", "it's out") == 0
    told = capsys.readouterr().out.splitlines()[-1].removeprefix("in diffusers: ")
    opened = eval(told, {"StableDiffusion3Pipeline": StableDiffusion3Pipeline})
    assert opened.text_encoder_3 is opened.tokenizer_3 is None
    weight = opened.transformer.transformer_blocks[0].attn.add_v_proj.weight
    assert (weight.abs().sum(1) == 0).nonzero().flatten().tolist() == [0]


def test_never_over_something_and_never_half(toy_model: DiffusionModel, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match="never overwrites"):
        export(toy_model, NeMo(FOUND), tmp_path / "there")

    def fail(part: Path) -> None:
        assert (part / "model_index.json").is_file()
        assert not (tmp_path / "out").exists()
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        export(toy_model, NeMo(FOUND), tmp_path / "out", finish=fail)
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


def test_changed_weights_are_not_lost_in_silence(toy_folder: Path, tmp_path: Path) -> None:
    model = load(str(toy_folder), device="cpu")
    model.denoiser.conv_in.weight.data += 1
    with pytest.raises(ValueError, match=r"weights in memory differ .*conv_in.weight"):
        export(model, NeMo(FOUND), tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("way", "prompts", "error", "text"),
    [
        (AttentionScaling(), ["a"], ValueError, "'attention scaling' can't be written"),
        (Mitigation(), ["a"], ValueError, "'default' can't be written"),
        (WANDA, (), ValueError, "'Wanda pruning' needs those it is to hold for"),
        (NeMo({"a": FOUND}), ["b"], ValueError, "'NeMo' changes no weight for these prompts"),
        (NeMo(FOUND, 1.0), (), ValueError, "'NeMo' changes no weight"),
        (NeMo(NeuronSet({40: [0]})), (), ValueError, "layer 40 does not exist here"),
        (RandomNeurons(NeuronSet({1: range(5)})), (), ValueError, "leaves 3 neurons"),
        ("NeMo", (), TypeError, "mitigation must be a Mitigation, got 'NeMo'"),
    ],
)
def test_export_refuses(
    toy_model: DiffusionModel, tmp_path: Path, way: Any, prompts: Any, error: Any, text: str
) -> None:
    with pytest.raises(error, match=text):
        export(toy_model, way, tmp_path / "out", prompts)
    assert not list(tmp_path.iterdir())


def test_a_folder_above_must_be_there(toy_model: DiffusionModel, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        export(toy_model, NeMo(FOUND), tmp_path / "no" / "out")
