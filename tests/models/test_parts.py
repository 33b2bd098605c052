"""Parts of a pipeline: one copy of the weights, whole files, and no tensor made up."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nemo_kit.models import DiffusionModel, load
from nemo_kit.models.parts import choose

PARTS = ("unet", "vae", "text_encoder")
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:d54d1800\nsize 3438167536\n"
MODEL = "diffusion_pytorch_model"


@pytest.fixture
def folder(toy_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(toy_folder, tmp_path / "m"))


def weights(folder: Path, part: str) -> Path:
    return next((folder / part).glob("*.safetensors"))


def change(folder: Path, part: str, edit: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(weights(folder, part))
    edit(tensors)
    save_file(tensors, weights(folder, part), {"format": "pt"})


def configure(folder: Path, part: str, **changes: Any) -> None:
    file = folder / part / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def refused(folder: Path, *named: str) -> None:
    with pytest.raises(ValueError, match="could not be opened") as told:
        load(str(folder), device="cpu")
    message = str(told.value)
    assert "\n" not in message
    assert all(name in message for name in named), message


def prediction(model: DiffusionModel) -> Tensor:
    return model.predict_noise(model.noise([1]), 961, model.embed("a cat"))


@pytest.mark.parametrize("part", PARTS)
def test_tensors_that_don_t_fit_are_named(folder: Path, part: str) -> None:
    name = sorted(load_file(weights(folder, part)))[5]
    shown = name.removeprefix("text_model.")
    whole = weights(folder, part).read_bytes()
    change(folder, part, lambda tensors: tensors.pop(name))
    refused(folder, f"{part}: ", shown, "missing", str(weights(folder, part)))
    weights(folder, part).write_bytes(whole)
    change(folder, part, lambda tensors: tensors.update({"more.weight": torch.zeros(2)}))
    refused(folder, f"{part}: more.weight unexpected")
    weights(folder, part).write_bytes(whole)
    change(folder, part, lambda tensors: tensors.update({name: torch.zeros(3, 5)}))
    refused(folder, f"{part}: ", shown, "of another shape")


def test_old_names_of_tensors_are_read(folder: Path, toy_model: DiffusionModel) -> None:
    def old_text(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors["text_model." + name.removeprefix("text_model.")] = tensors.pop(name)
        tensors["text_model.embeddings.position_ids"] = torch.arange(12).unsqueeze(0)

    def old_vae(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if ".attentions.0." in name]:
            renamed = name.replace("to_q", "query").replace("to_k", "key")
            renamed = renamed.replace("to_v", "value").replace("to_out.0", "proj_attn")
            tensors[renamed] = tensors.pop(name)

    change(folder, "text_encoder", old_text)
    change(folder, "vae", old_vae)
    model = load(str(folder), device="cpu")
    assert torch.equal(prediction(model), prediction(toy_model))
    noise = model.noise([1])
    assert (model.decode(noise) == toy_model.decode(noise)).all()


@pytest.mark.parametrize("part", PARTS)
def test_files_that_are_not_whole(folder: Path, part: str) -> None:
    file = weights(folder, part)
    whole = file.read_bytes()
    file.write_text(POINTER)
    refused(folder, str(file), "Git-LFS pointer")
    file.write_bytes(whole[: len(whole) // 2])
    refused(folder, str(file), "cut short")
    file.write_bytes(b"")
    refused(folder, str(file), "cut short")
    pickled = file.with_name(f"{'pytorch_model' if part == 'text_encoder' else MODEL}.bin")
    file.write_bytes(whole)
    torch.save(load_file(file), pickled)
    file.unlink()
    pickled.write_bytes(pickled.read_bytes()[:-5000])
    refused(folder, str(pickled), "cut short")
    pickled.unlink()
    refused(folder, part, "weights must be there", "got none")
    shutil.rmtree(folder / part)
    refused(folder, part, "missing" if part != "unet" else "unet")


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        ("unet/config.json", "{", "unet/config.json"),
        ("unet/config.json", "[]", "JSON object"),
        ("model_index.json", "{", "model_index.json"),
        ("scheduler/scheduler_config.json", POINTER, "Git-LFS"),
        ("tokenizer/tokenizer.json", POINTER, "Git-LFS"),
        ("tokenizer/tokenizer.json", "{}", "tokenizer"),
    ],
)
def test_settings_that_can_t_be_read(folder: Path, file: str, content: str, named: str) -> None:
    (folder / file).write_text(content)
    refused(folder, named)


def test_a_tokenizer_without_vocabulary_is_none(folder: Path) -> None:
    """The library would make one of two tokens."""
    (folder / "tokenizer" / "tokenizer.json").unlink()
    refused(folder, "tokenizer: tokenizer.json, vocab.json and merges.txt, vocab.txt or spiece")


@pytest.mark.parametrize("part", PARTS)
def test_quantized_weights_are_refused(folder: Path, part: str) -> None:
    configure(folder, part, quantization_config={"quant_method": "bitsandbytes"})
    refused(folder, f"{part}: ", "quantization_config (bitsandbytes)")


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("unet", {"time_cond_proj_dim": 256}),
        ("unet", {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 4}),
        ("unet", {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}),
        ("unet", {"encoder_hid_dim_type": "text_proj", "encoder_hid_dim": 8}),
        ("unet", {"num_class_embeds": 10}),
        ("vae", {"shift_factor": 0.1}),
    ],
)
def test_other_kinds_of_models_are_refused_by_their_setting(
    folder: Path, part: str, changes: dict[str, Any]
) -> None:
    configure(folder, part, **changes)
    refused(folder, f"{part}: {next(iter(changes))} = ")


def test_parts_of_different_models(folder: Path, toy_folder: Path) -> None:
    from toys import unet

    for changes, named in (
        ({"in_channels": 9}, "in_channels = 9"),
        ({"out_channels": 8}, "out_channels = 8"),
        ({"cross_attention_dim": 32}, "cross_attention_dim = 32"),
    ):
        unet(**changes).save_pretrained(folder / "unet")
        refused(folder, "unet: ", named)
    configure(folder, "unet", _class_name="UNet2DModel")
    refused(folder, "must be a UNet2DConditionModel", "UNet2DModel")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"_class_name": "KandinskyPipeline"}, "KandinskyPipeline is not supported"),
        ({"_class_name": "CogVideoXPipeline"}, "CogVideoXPipeline"),
        ({"_class_name": "StableDiffusionInpaintPipeline"}, "StableDiffusionInpaintPipeline"),
        ({"_class_name": ["pipeline", "Mine"]}, "Mine"),
        ({"text_encoder": ["transformers", "T5EncoderModel"]}, "text_encoder must be a CLIPText"),
        ({"unet": ["diffusers", "OnnxRuntimeModel"]}, "unet must be a UNet2DConditionModel"),
        ({"vae": [None, None]}, "the part 'vae' is missing"),
    ],
)
def test_other_pipelines_are_refused_by_name(
    folder: Path, changes: dict[str, Any], named: str
) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | changes))
    refused(folder, named)


def test_which_copy_is_taken() -> None:
    def chosen(*names: str) -> tuple[list[str], str | None]:
        return choose("unet", names)

    plain, half = f"{MODEL}.safetensors", f"{MODEL}.fp16.safetensors"
    assert chosen(half, f"{MODEL}.bin", plain) == ([plain], None)
    assert chosen(half, f"{MODEL}.bin") == ([f"{MODEL}.bin"], None)
    assert chosen(half, f"{MODEL}.non_ema.safetensors") == ([half], "fp16")
    shards = [f"{MODEL}-0000{n}-of-00002.safetensors" for n in (1, 2)]
    index = f"{MODEL}.safetensors.index.json"
    assert chosen(*shards, index, f"{MODEL}.bin.index.json") == ([*shards, index], None)
    old = f"{MODEL}.fp16-00001-of-00001.safetensors"
    assert chosen(f"{MODEL}.safetensors.index.fp16.json", old)[0][0] == old
    assert chosen(f"{MODEL}-00001-of-00001.fp16.bin")[1] == "fp16"
    for names, told in (((), "none"), ((f"{MODEL}.fp8.bin",), "variant fp8"), ((index,), "none")):
        with pytest.raises(ValueError, match=rf"unet: weights .*variant.* got .*{told}"):
            chosen(*names)


def test_half_precision_alone_opens(folder: Path, toy_model: DiffusionModel) -> None:
    for part in PARTS:
        file = weights(folder, part)
        half = {name: tensor.half() for name, tensor in load_file(file).items()}
        save_file(half, file.with_suffix(".fp16.safetensors"), {"format": "pt"})
        file.unlink()
    model = load(str(folder), device="cpu")
    assert model.dtype == model.denoiser.dtype == torch.float32
    kept = toy_model.denoiser.conv_in.weight.half().float()
    assert torch.equal(model.denoiser.conv_in.weight, kept)


def test_sharded_weights_open(folder: Path, toy_model: DiffusionModel) -> None:
    weights(folder, "unet").unlink()
    toy_model.denoiser.save_pretrained(folder / "unet", max_shard_size="100KB")
    assert len(list((folder / "unet").glob("*.safetensors"))) > 1
    assert torch.equal(prediction(load(str(folder), device="cpu")), prediction(toy_model))
    os.remove(sorted((folder / "unet").glob("*.safetensors"))[0])
    refused(folder, "unet")
