"""Writes a mitigation into the weights: a diffusers folder that anyone can open.

Scope: rows of the value projections zeroed or scaled (NeMo), or feed-forward weights pruned
(Wanda). A change of weights holds for every prompt, and for both halves of guidance. The folder
holds the pipeline's parts alone; what else lay beside them (checkpoints, other variants) stays out,
since it would bring the weights back.
Source: "Finding NeMo" (arXiv 2406.02366), section 5: neurons can be pruned from the model.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from nemo_kit import __version__
from nemo_kit.calibration import ActivationStatistics, Calibration
from nemo_kit.checks import check_texts
from nemo_kit.files import folder_digest, write_json
from nemo_kit.keys import plain
from nemo_kit.mitigation.base import Mitigation

if TYPE_CHECKING:
    from nemo_kit.models import DiffusionModel

RECORD = "export.json"
_KEPT = {".json", ".txt", ".safetensors", ".bin", ".model"}  # parts; no other framework's weights
_ABSENT = (None, [None, None])
_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def export(
    model: DiffusionModel,
    mitigation: Mitigation,
    out: str | Path,
    prompts: Sequence[str] = (),
    finish: Callable[[Path], Any] | None = None,
) -> Path:
    """Write the model with the mitigation in its weights as a diffusers folder.

    Returns the folder. It is there in full or not at all: written under another name beside `out`,
    then renamed. Weights keep the number type that their files have. Its folder `nemo` holds the
    calibration as far as it holds (see `carried`), and `export.json`, which says what was done.
    Parameters: `model`, as `load` gave it, its weights unchanged since; `mitigation`, a permanent
    one; `out`, a folder that doesn't exist yet; `prompts`, those it is to hold for, by default all
    that the mitigation names; `finish`, called with the written folder before it is renamed.
    Raises FileExistsError where `out` exists, FileNotFoundError without a folder above it,
    ValueError for a mitigation that is not permanent or changes nothing, and for changed weights.
    """
    target = Path(out)
    _check_target(target)
    gains = _gains(model, mitigation, prompts)
    part = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        source = _source_folder(model)
        _copy_parts(source, part)
        before = _write_denoiser(model, source, part, gains)
        _write_notes(model, source, part, mitigation, prompts, gains, before)
        if finish:
            finish(part)
        _check_target(target)
        _sync(part)
        part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def carried(calibration: Calibration, gains: Mapping[str, Tensor], layers: Any) -> Calibration:
    """The calibration for a model whose value projections were scaled.

    Statistics stay exact: value projections read the text alone, so a scaled neuron's mean and
    deviation scale by the factor's size, and no other neuron's change. The threshold was measured
    on the model before, and says so in its source.
    """
    note = f"{calibration.source}; threshold of the model before the export"
    known = calibration.statistics
    if known is None:
        return replace(calibration, source=note)
    means, stds = list(known.means), list(known.stds)
    for layer in layers:
        if layer.name in gains and layer.index <= len(means):
            size = gains[layer.name].abs().flatten()
            means[layer.index - 1] = means[layer.index - 1] * size
            stds[layer.index - 1] = stds[layer.index - 1] * size
    scaled = ActivationStatistics(tuple(means), tuple(stds))
    return replace(calibration, statistics=scaled, source=note)


def _check_target(target: Path) -> None:
    if target.exists() or target.is_symlink():
        raise FileExistsError(f"out: {target} exists; an export never overwrites, name another one")
    if not target.resolve().parent.is_dir():
        raise FileNotFoundError(f"out: there is no folder {target.resolve().parent}")


def _gains(
    model: DiffusionModel, mitigation: Mitigation, prompts: Sequence[str]
) -> dict[str, Tensor]:
    if not isinstance(mitigation, Mitigation):
        raise TypeError(f"mitigation must be a Mitigation, got {mitigation!r:.80}")
    gains = mitigation.gains(model, named_prompts(mitigation, prompts))
    if not any((gain != 1).any() for gain in gains.values()):
        raise ValueError(f"mitigation: {mitigation.name!r} changes no weight for these prompts")
    return gains


def named_prompts(mitigation: Mitigation, prompts: Sequence[str]) -> list[str]:
    """The prompts given, else those that the mitigation has neurons for.

    Raises ValueError where there is neither; one set for all prompts needs none.
    """
    neurons = getattr(mitigation, "neurons", None)
    if prompts:
        return check_texts(prompts)
    if isinstance(neurons, Mapping):
        return list(neurons)
    if neurons is not None:
        return [""]
    raise ValueError(f"prompts: {mitigation.name!r} needs those it is to hold for, got none")


def _source_folder(model: DiffusionModel) -> Path:
    """Where the model's files are; a hub model's, in the cache."""
    from nemo_kit.models import resolve

    place = resolve(model.name)
    if isinstance(place, Path):
        return place
    from diffusers import StableDiffusionPipeline

    return Path(
        StableDiffusionPipeline.download(place, revision=model.revision, safety_checker=None)
    )


def _copy_parts(source: Path, part: Path) -> None:
    """The pipeline's index and parts, but no weights of the denoiser.

    A part that is named but not there (a safety checker that was never fetched) is named no more,
    so that the folder opens.
    """
    index = json.loads((source / "model_index.json").read_text("utf-8"))
    names = [n for n, value in index.items() if isinstance(value, list) and value not in _ABSENT]
    missing = [name for name in names if not (source / name).is_dir()]
    index |= {name: [None, None] for name in missing}
    if "safety_checker" in missing:
        index["requires_safety_checker"] = False
    part.mkdir()
    write_json(part / "model_index.json", index)
    for name in [*names, "clip"]:
        for file in sorted((source / name).rglob("*")):
            if file.is_file() and _wanted(file, name):
                copy = part / file.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)


def _wanted(file: Path, part: str) -> bool:
    """Whether a file belongs to a plain pipeline: no variant, and of the U-Net the config alone."""
    if part == "unet":
        return file.name == "config.json"
    variant = any(word in file.name for word in (".fp16.", ".non_ema.", ".bf16."))
    return file.suffix in _KEPT and not variant


def _write_denoiser(
    model: DiffusionModel, source: Path, part: Path, gains: Mapping[str, Tensor]
) -> str:
    """The U-Net with its weights multiplied; returns the digest of the files it came from."""
    from diffusers import UNet2DConditionModel

    kind = _stored_type(source / "unet")
    unet = UNet2DConditionModel.from_pretrained(source, subfolder="unet", torch_dtype=kind)
    _check_unchanged(model, unet)
    for name, gain in gains.items():
        _multiply(unet.get_submodule(name), gain)
    config = (part / "unet" / "config.json").read_bytes()  # as it was: saving adds paths to it
    unet.save_pretrained(part / "unet")
    (part / "unet" / "config.json").write_bytes(config)
    return folder_digest(source / "unet", [".safetensors", ".bin"])


@torch.no_grad()
def _multiply(module: nn.Module, gain: Tensor) -> None:
    module.weight.copy_((module.weight.double() * gain).to(module.weight.dtype))
    bias = getattr(module, "bias", None)
    if bias is not None and gain.shape[1] == 1:  # a whole row: its bias belongs to it
        bias.copy_((bias.double() * gain.flatten()).to(bias.dtype))


def _check_unchanged(model: DiffusionModel, unet: nn.Module) -> None:
    """What is exported are the files; so the model in memory must be theirs."""
    now = model.denoiser.state_dict()
    for name, stored in unet.state_dict().items():
        if name not in now or not torch.equal(stored.to(model.dtype), now[name].cpu()):
            raise ValueError(
                f"model: its weights in memory differ from those of {model.name!r} ({name}); "
                "an export starts from the files, so load it anew or save the changed one first"
            )


def _stored_type(folder: Path) -> torch.dtype:
    """The number type of the files; single precision where they are no safetensors."""
    for file in sorted(folder.glob("diffusion_pytorch_model*.safetensors")):
        if _wanted(file, ""):
            with safe_open(file, "pt") as tensors:
                first = next(iter(tensors.keys()))
                return _TYPES.get(tensors.get_slice(first).get_dtype(), torch.float32)
    return torch.float32


def _write_notes(
    model: DiffusionModel,
    source: Path,
    part: Path,
    mitigation: Mitigation,
    prompts: Sequence[str],
    gains: Mapping[str, Tensor],
    before: str,
) -> None:
    """The folder `nemo`: generation settings, what holds of the calibration, and the record."""
    from nemo_kit.models import GENERATION_FILE

    notes = part / "nemo"
    notes.mkdir()
    if (source / "nemo" / GENERATION_FILE).is_file():
        shutil.copyfile(source / "nemo" / GENERATION_FILE, notes / GENERATION_FILE)
    if model.calibration is not None:
        carried(model.calibration, gains, model.value_layers).save(notes)
    write_json(
        notes / RECORD,
        {
            "model": model.name,
            "revision": model.revision,
            "mitigation": plain(mitigation),
            "source": mitigation.source,
            "prompts": list(prompts),
            "changed": {name: _told(gain) for name, gain in gains.items()},
            "unet_before": before,
            "unet_after": folder_digest(part / "unet", [".safetensors"]),
            "statistics": _statistics_note(model, gains),
            "threshold": "of the model before; nemo_kit.calibrate measures the exported one's",
            "nemo_kit": __version__,
        },
    )


def _told(gain: Tensor) -> str:
    count = int((gain != 1).sum())
    if gain.shape[1] == 1:
        return f"{count} neuron" + "s" * (count > 1)
    return f"{count} of {gain.numel()} weights"


def _statistics_note(model: DiffusionModel, gains: Mapping[str, Tensor]) -> str:
    if model.calibration is None or model.calibration.statistics is None:
        return "none: the model had none"
    if any(layer.name in gains for layer in model.value_layers):
        return "exact: those of the scaled neurons scaled, all others as before"
    return "exact: no value projection was changed"


def _sync(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb+") as opened:
                os.fsync(opened.fileno())
