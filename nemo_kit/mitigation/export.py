"""Writes a mitigation into the weights: a diffusers folder that anyone can open.

Scope: rows of the value projections zeroed or scaled (NeMo), or feed-forward weights pruned
(Wanda). A change of weights holds for every prompt, and for both halves of guidance. The folder
holds the pipeline's parts alone; what else lay beside them (checkpoints, other variants) stays out,
since it would bring the weights back.
Source: "Finding NeMo" (arXiv 2406.02366), section 5: neurons can be pruned from the model.
"""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from operator import mul
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nemo_kit.calibration import ActivationStatistics, Calibration
from nemo_kit.checks import check_texts
from nemo_kit.files import folder_digest, write_json
from nemo_kit.keys import plain
from nemo_kit.mitigation.base import Mitigation, checked
from nemo_kit.models import hub, opening
from nemo_kit.models.base import DiffusionModel
from nemo_kit.models.families import INDEX
from nemo_kit.models.parts import files_of, read_json
from nemo_kit.models.quiet import quiet
from nemo_kit.provenance import versions

RECORD = "export.json"


def export(
    model: DiffusionModel,
    mitigation: Mitigation,
    out: str | Path,
    prompts: str | Sequence[str] = (),
    finish: Callable[[Path], Any] | None = None,
) -> Path:
    """Write the model with the mitigation in its weights as a diffusers folder.

    Returns the folder. It is there in full or not at all: written under another name beside `out`,
    then renamed. Weights keep the number types that their files have; with a LoRA, which is fused
    into them, they have the model's. Its folder `nemo` holds the calibration as far as it holds
    (see `carried`), and `export.json`, which says what was done.
    Parameters: `model`, as `load` gave it, its weights unchanged since; `mitigation`, a permanent
    one; `out`, a folder that doesn't exist yet; `prompts`, those it is to hold for, by default all
    that the mitigation names; `finish`, called with the written folder before it is renamed.
    Raises FileExistsError where `out` exists, FileNotFoundError without a folder above it,
    ValueError for a mitigation that is not permanent or changes nothing, for layers that text and
    image share, and for changed weights.
    """
    target, texts = Path(out), check_texts(prompts) if prompts else []
    _check_target(target)
    gains = checked(mitigation).gains(model, texts)
    if shared := [one.name for one in model.value_layers if one.tokens and one.name in gains]:
        raise ValueError(
            f"mitigation: {shared[0]} serves the image's tokens too, so that its neurons can be "
            "scaled for the text in a running model, but not in the weights"
        )
    if not any((gain != 1).any() for gain in gains.values()):
        raise ValueError(f"mitigation: {mitigation.name!r} changes no weight for these prompts")
    place = opening.resolve(model.name)
    if isinstance(place, str):
        place, _ = hub.fetch(place, model.revision)
    with TemporaryDirectory(dir=target.resolve().parent, prefix=f".{target.name}.") as scratch:
        part = Path(scratch) / "part"
        source = _source_folder(model, place, Path(scratch) / "fused")
        _copy_parts(model, source, part)
        _write_denoiser(model, source, part, gains)
        notes, own = part / "nemo", model.denoising
        notes.mkdir()
        if (said := hub.notes_folder(place) / opening.GENERATION_FILE).is_file():
            shutil.copyfile(said, notes / said.name)
        calibration, statistics = carried(model, gains)
        if calibration:
            calibration.save(notes)
        record = {
            "model": model.name,
            "revision": model.revision,
            "lora": model.lora and asdict(model.lora),
            "mitigation": plain(mitigation),
            "source": mitigation.source,
            "prompts": texts,
            "changed": {name: _told(gain) for name, gain in gains.items()},
            f"{own}_before": folder_digest(source / own, [".safetensors", ".bin"]),
            f"{own}_after": folder_digest(part / own, [".safetensors"]),
            "statistics": statistics,
            "threshold": "of the model before; nemo_kit.calibrate measures the exported one's",
            "versions": versions(),
        }
        write_json(notes / RECORD, record)
        if finish:
            finish(part)
        _check_target(target)
        _sync(part)
        part.rename(target)
    return target


def carried(model: DiffusionModel, gains: Mapping[str, Tensor]) -> tuple[Calibration | None, str]:
    """The model's calibration once its weights are multiplied, and what holds of its statistics.

    They stay exact where value projections read the text alone: there a scaled neuron's mean and
    deviation scale by the factor's size, and no other neuron's change. The threshold was measured
    on the model before, and says so in its source.
    """
    known = model.calibration
    if known:
        known = replace(known, source=f"{known.source}; threshold of the model before the export")
    if known is None or known.statistics is None:
        return known, "none: the model had none"
    if not model.values_of_text:
        told = "none: values depend on those of other layers; nemo_kit.calibrate measures them"
        return replace(known, statistics=None), told
    sizes = [gains.get(layer.name, torch.ones(1)).abs().flatten() for layer in model.value_layers]
    means = tuple(map(mul, known.statistics.means, sizes))
    stds = tuple(map(mul, known.statistics.stds, sizes))
    told = "exact: those of scaled neurons scaled, all others as before"
    return replace(known, statistics=ActivationStatistics(means, stds)), told


def _check_target(target: Path) -> None:
    if target.exists() or target.is_symlink():
        raise FileExistsError(f"out: {target} exists; an export never overwrites, name another one")
    if not target.resolve().parent.is_dir():
        raise FileNotFoundError(f"out: there is no folder {target.resolve().parent}")


def _source_folder(model: DiffusionModel, place: Path, scratch: Path) -> Path:
    """Where all the model's files are; where no folder has them, they are written to `scratch`.

    So it is for a checkpoint, a fused LoRA, and a model that shares parts with another.
    """
    own = {name for name in model.parts() if name not in model.optional}
    if model.lora is None and all((place / name).is_dir() for name in own):
        return place
    with quiet():
        given = place, model.device, model.dtype, model.lora, model.config
        parts = opening.open_parts(type(model), model.name, *given)
        model.pipeline(parts).save_pretrained(scratch)
    return scratch


def _copy_parts(model: DiffusionModel, source: Path, part: Path) -> None:
    """The pipeline's index and parts, but no weights of the denoiser.

    A part that is named but not there (a safety checker that was never fetched) is named no more,
    so that the folder opens.
    """
    index = read_json(source / INDEX)
    names = [name for name, kind in index.items() if isinstance(kind, list) and any(kind)]
    missing = [name for name in names if not (source / name).is_dir()]
    index |= {name: [None, None] for name in missing}
    if "safety_checker" in missing:
        index["requires_safety_checker"] = False
    part.mkdir()
    write_json(part / INDEX, index)
    for name in set(names) - set(missing):
        for file in files_of(source, name):
            if name != model.denoising or file.name == "config.json":
                _copy(file, part / name)


def _copy(file: Path, folder: Path) -> None:
    """The file under its plain name, which any program finds; an index names plain files too."""
    folder.mkdir(parents=True, exist_ok=True)
    if file.name.endswith(".json") and ".index." in file.name:
        plain_text = _plain(file.read_text("utf-8"))
        (folder / _plain(file.name)).write_text(plain_text, "utf-8")
    else:
        shutil.copyfile(file, folder / _plain(file.name))


def _plain(name: str) -> str:
    return name.replace(".fp16", "").replace(".bf16", "")


def _write_denoiser(
    model: DiffusionModel, source: Path, part: Path, gains: Mapping[str, Tensor]
) -> None:
    """The denoiser with its weights multiplied, in one file."""
    tensors: dict[str, Tensor] = {}
    for file in files_of(source, model.denoising):
        if file.suffix == ".safetensors":
            tensors |= load_file(file)
        elif file.suffix == ".bin":
            tensors |= torch.load(file, map_location="cpu", weights_only=True)
    _check_unchanged(model, tensors)
    factors = {f"{layer}.weight": gain for layer, gain in gains.items()}
    rows = {f"{layer}.bias": gain.flatten() for layer, gain in gains.items() if gain.shape[1] == 1}
    factors |= {name: gain for name, gain in rows.items() if name in tensors}  # rows' own biases
    for name, factor in factors.items():
        tensors[name] = (tensors[name].double() * factor).to(tensors[name].dtype)
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    place = part / model.denoising / "diffusion_pytorch_model.safetensors"
    save_file(whole, place, {"format": "pt"})


def _check_unchanged(model: DiffusionModel, tensors: Mapping[str, Tensor]) -> None:
    """What is exported are the files; so the model in memory must be theirs."""
    now = model.weights()[0]
    for name, stored in tensors.items():
        if name not in now or not torch.equal(stored.to(model.dtype), now[name].cpu()):
            raise ValueError(
                f"model: its weights in memory differ from those of {model.name!r} ({name}); "
                "an export starts from the files, so load it anew or save the changed one first"
            )


def _told(gain: Tensor) -> str:
    changed = int((gain != 1).sum())
    if gain.shape[1] == 1:
        return f"{changed} neuron" + "s" * (changed > 1)
    return f"{changed} of {gain.numel()} weights"


def _sync(folder: Path) -> None:
    """Onto the disk, and readable as the user's other files are: safetensors makes them private."""
    for file in folder.rglob("*"):
        if file.is_file():
            shutil.copymode(folder / INDEX, file)
            with file.open("rb+") as opened:
                os.fsync(opened.fileno())
