"""LoRA weights: fused, W + scale · (alpha / rank) · B·A; what fits no layer is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from nemo_kit.models import DiffusionModel, load
from nemo_kit.models.lora import Lora
from nemo_kit.store.work import ModelRef, model_key

pytest.importorskip("peft", reason="LoRA weights are read through peft")
VALUE = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v"
PROJECTION = "mid_block.attentions.0.proj_in"  # a 1×1 convolution
TEXT = ("encoder.layers.0.self_attn.q_proj", "encoder.layers.0.self_attn.out_proj")
RANK = 2


def pair(weight: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """A and B of rank 2 for a weight [out, in] or [out, in, 1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    rest = (1, 1) if weight.ndim == 4 else ()
    down = torch.randn(RANK, weight.shape[1], *rest, generator=generator) / 10
    return down, torch.randn(weight.shape[0], RANK, *rest, generator=generator) / 10


@pytest.fixture(scope="module")
def pairs(_toy: DiffusionModel) -> dict[str, tuple[Tensor, Tensor]]:
    unet, text = _toy.denoiser.state_dict(), _toy.text_encoder.state_dict()
    all_weights = {f"unet.{n}": unet[f"{n}.weight"] for n in (VALUE, PROJECTION)}
    all_weights |= {f"text_encoder.{n}": text[f"{n}.weight"] for n in TEXT}
    return {name: pair(weight, seed) for seed, (name, weight) in enumerate(all_weights.items())}


def kohya(pairs: dict[str, tuple[Tensor, Tensor]], alpha: float) -> dict[str, Tensor]:
    tensors = {}
    for name, (down, up) in pairs.items():
        part, _, layer = name.partition(".")
        flat = layer.replace(".", "_")
        start = f"lora_unet_{flat}" if part == "unet" else f"lora_te_text_model_{flat}"
        tensors |= {f"{start}.lora_down.weight": down, f"{start}.lora_up.weight": up,
                    f"{start}.alpha": torch.tensor(alpha)}  # fmt: skip
    return tensors


def peft(pairs: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    sides = [(name, side, pair["AB".index(side)]) for name, pair in pairs.items() for side in "AB"]
    return {f"{name}.lora_{side}.weight": matrix for name, side, matrix in sides}


def old_diffusers(pairs: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    down, up = pairs[f"unet.{VALUE}"]
    start = f"unet.{VALUE.removesuffix('.to_v')}.processor.to_v_lora"
    return {f"{start}.down.weight": down, f"{start}.up.weight": up}


def check(model: DiffusionModel, base: DiffusionModel, pairs: dict, factor: float) -> None:  # type: ignore[type-arg]
    for part, module, before in (
        ("unet", model.denoiser, base.denoiser.state_dict()),
        ("text_encoder", model.text_encoder, base.text_encoder.state_dict()),
    ):
        assert module.state_dict().keys() == before.keys()
        for name, weight in module.state_dict().items():
            expected = before[name]
            if both := pairs.get(f"{part}.{name.removesuffix('.weight')}"):
                down, up = both
                added = factor * up.flatten(1) @ down.flatten(1)
                expected = expected + added.reshape(expected.shape)
                assert not torch.equal(weight, before[name])
            torch.testing.assert_close(weight, expected)


@pytest.mark.parametrize(("scale", "factor"), [("", 1.0), (":0.5", 0.5), (":-1", -1.0)])
def test_a_fused_lora_is_the_sum_by_hand(
    toy_folder: Path, toy_model: DiffusionModel, pairs: dict, tmp_path: Path,
    scale: str, factor: float,
) -> None:  # fmt: skip
    save_file(kohya(pairs, alpha=1.0), tmp_path / "a.safetensors")
    model = load(str(toy_folder), "cpu", lora=f"{tmp_path / 'a.safetensors'}{scale}")
    check(model, toy_model, pairs, factor * 1.0 / RANK)
    assert model.lora is not None
    assert model.lora.scale == factor
    assert model.calibration is None
    assert [layer.index for layer in model.searched] == [1, 2, 3, 4, 5, 6, 7]


def test_files_of_peft_and_of_old_diffusers(
    toy_folder: Path, toy_model: DiffusionModel, pairs: dict, tmp_path: Path
) -> None:
    save_file(peft(pairs), tmp_path / "p.safetensors")
    check(load(str(toy_folder), "cpu", lora=tmp_path / "p.safetensors"), toy_model, pairs, 1.0)
    save_file(old_diffusers(pairs), tmp_path / "o.safetensors")
    only = {f"unet.{VALUE}": pairs[f"unet.{VALUE}"]}
    check(load(str(toy_folder), "cpu", lora=tmp_path / "o.safetensors"), toy_model, only, 1.0)


def test_a_lora_has_its_own_key_and_reaches_the_workers(
    toy_folder: Path, toy_model: DiffusionModel, pairs: dict, tmp_path: Path
) -> None:
    file = tmp_path / "a.safetensors"
    save_file(peft(pairs), file)
    model = load(str(toy_folder), "cpu", lora=f"{file}:0.123456789")
    key = model_key(model)
    assert key["lora"] == Lora.of(file).sha256
    assert key["weights"] != model_key(toy_model)["weights"]
    assert model_key(load(str(toy_folder), "cpu", lora=file))["weights"] != key["weights"]
    with ModelRef.of(model, "cpu").borrow() as opened:
        assert model_key(opened) == key


@pytest.mark.parametrize("count", [0, 1])
def test_a_lora_of_another_model_is_refused(
    toy_folder: Path, pairs: dict, tmp_path: Path, count: int
) -> None:
    strange = {"unet.down_blocks.7.to_v": pairs[f"unet.{VALUE}"]}
    kept = dict(list(pairs.items())[:count])
    tensors = {name: t.clone() for name, t in peft(strange | kept).items()}
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"lora: .*a\.safetensors"):
        load(str(toy_folder), "cpu", lora=tmp_path / "a.safetensors")


def test_a_lora_of_another_width_is_refused(toy_folder: Path, pairs: dict, tmp_path: Path) -> None:
    down, up = pairs[f"unet.{VALUE}"]
    wide = {f"unet.{VALUE}": (down.repeat(1, 3), up.repeat(2, 1))}
    save_file(peft(wide), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=rf"lora: .*{VALUE}"):
        load(str(toy_folder), "cpu", lora=tmp_path / "a.safetensors")


def test_what_is_no_lora(toy_folder: Path, pairs: dict, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    dora = {f"lora_unet_{VALUE.replace('.', '_')}.dora_scale": torch.ones(8)}
    for tensors, named in (
        (kohya(pairs, 1.0) | dora, "dora_scale"),
        ({"conv_in.weight": torch.ones(2)}, "conv_in.weight"),
        (dict(list(peft(pairs).items())[:1]), "1 down and 0 up"),
    ):
        save_file(tensors, file)
        with pytest.raises(ValueError, match=f"no plain LoRA: .*{named}"):
            load(str(toy_folder), "cpu", lora=file)
    for wrong in ("none.safetensors", str(tmp_path), f"{file}:x", f"{file}:0", f"{file}:nan", ""):
        with pytest.raises(ValueError, match="lora"):
            load(str(toy_folder), "cpu", lora=wrong)
    file.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="Git-LFS pointer"):
        load(str(toy_folder), "cpu", lora=file)
