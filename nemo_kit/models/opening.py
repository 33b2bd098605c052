"""Opening a model: what a name means, on which device, in which number type, with which LoRA."""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from nemo_kit.calibration import CALIBRATION_FILE, Calibration, published
from nemo_kit.checks import check_choice
from nemo_kit.models import hub, single_file
from nemo_kit.models.base import DiffusionModel
from nemo_kit.models.families import INDEX, family_of
from nemo_kit.models.lora import Lora, fuse
from nemo_kit.models.parts import read_json
from nemo_kit.models.stable_diffusion import StableDiffusion

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_ALLOWED = (
    'name must be "lab", a folder with a diffusers model, a .safetensors checkpoint, or a hub id '
    '"owner/model"'
)
GENERATION_FILE = "generation.json"
DTYPES = ("auto", "float32", "float16", "bfloat16")


def load(
    name: str = "lab",
    device: str = "auto",
    dtype: torch.dtype | str | None = "auto",
    revision: str | None = None,
    *,
    lora: str | Path | None = None,
    config: str | None = None,
) -> DiffusionModel:
    """Open a model.

    Returns a `DiffusionModel`; a folder `nemo` beside its parts is read as its calibration.
    Parameters: `name`, "lab" (embedded), a diffusers folder, a `.safetensors` checkpoint, or a hub
    id; `device`, "auto", "cpu", "cuda" or another of torch's; `dtype`, one of torch's or "float32",
    "float16", "bfloat16"; "auto" (or None) is float16 on cuda, float32 elsewhere;
    `revision`, the hub's commit, which a published result should name; `lora`, a `.safetensors`
    file or "FILE:SCALE", fused into the weights: the model then has no calibration until it is
    calibrated itself; `config`, for a checkpoint alone: the diffusers folder or hub id whose
    settings and vocabulary it has, by default those of Stable Diffusion 1.5. A hub model that is
    not on this machine is downloaded, after a line that says how large it is.
    Raises ValueError for an unknown name, device or dtype, for models of another family, where a
    part or a tensor is missing or unexpected, and where the hub can't be reached.
    """
    found = resolve(name)
    place = _device(device)
    kind = _dtype(dtype, place)
    extra = None if lora is None else Lora.of(lora)
    if isinstance(found, str):
        found, revision = hub.fetch(found, revision)
    with quiet():
        family, parts = open_parts(name, found, kind, config)
        if extra:
            parts = fused(family, parts, extra, place, kind)
        model = family.assemble(
            _cast(parts, place, kind),
            name=name,
            device=place,
            dtype=kind,
            revision=revision,
            guidance=_guidance(found),
            lora=extra,
            config=config,
        )
    if extra is None:  # a fused LoRA's threshold and statistics are others
        model.calibration = calibration_of_files(name, found)
    return model


def open_parts(
    name: str, found: Path, dtype: torch.dtype, config: str | None = None
) -> tuple[type[DiffusionModel], dict[str, Any]]:
    """The family and the parts of a folder or checkpoint, on the CPU; raises ValueError."""
    family: type[DiffusionModel]
    try:
        if found.is_dir():
            if config is not None:
                raise ValueError("config goes with a .safetensors checkpoint; a folder has its own")
            index = read_json(found / INDEX)
            family = family_of(index)
            parts = family.open(found, index, dtype)
        else:
            family = StableDiffusion
            parts = single_file.open_file(found, _settings(found, config))
        family.check(parts)
    except ValueError as error:
        raise ValueError(f"name: {name!r} could not be opened: {error}") from error
    return family, parts


def _settings(file: Path, config: str | None) -> Path:
    """The folder with a checkpoint's settings, from the hub where they are not here."""
    place = resolve(config or single_file.default_config(file), "config")
    if isinstance(place, str):
        place, _ = hub.fetch(place, weights=False)
    if not place.is_dir():
        raise ValueError(f"config must be a diffusers folder or a hub id, got {config!r}")
    return place


def resolve(name: str, parameter: str = "name") -> str | Path:
    """The folder or file (a path) or hub id (a text) a name means; ValueError for other names."""
    allowed = _ALLOWED.replace("name", parameter, 1)
    if not isinstance(name, str) or not name:
        raise ValueError(f"{allowed}; got {name!r}")
    if name == "lab":
        folder = Path(str(files("nemo_kit"))) / "lab" / "model"
        if not (folder / INDEX).is_file():
            raise ValueError(f"name: the embedded model is missing from {folder}; run `make lab`")
        return folder
    path = Path(name)
    if path.is_dir():
        if not (path / INDEX).is_file():
            raise ValueError(f"{allowed}; the folder {name!r} has no {INDEX}")
        return path
    if path.suffix in (".ckpt", ".pt", ".pth", ".bin"):
        raise ValueError(f"{allowed}; {name!r} is a pickle, which may run code: convert it first")
    if path.suffix == ".safetensors":
        if not path.is_file():
            raise ValueError(f"{allowed}; there is no file {name!r}")
        return path
    if not _HUB_ID.fullmatch(name):
        raise ValueError(f"{allowed}; got {name!r}")
    return name


def default_device() -> torch.device:
    """The device that "auto" means here."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _device(device: str) -> torch.device:
    if device == "auto":
        return default_device()
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f'device must be "auto", "cpu" or "cuda", got {device!r}') from error
    try:
        usable = place.type != "meta" and torch.empty(1, device=place).numel() == 1
    except (RuntimeError, AssertionError):  # not built in, no such device, no driver
        usable = False
    if not usable:
        raise ValueError(f"device is {device!r}, but torch sees no such device here")
    return place


def default_dtype(device: torch.device | None = None) -> torch.dtype:
    """The number type that "auto" means on a device, by default the one that "auto" means."""
    return torch.float16 if (device or default_device()).type == "cuda" else torch.float32


def _dtype(dtype: torch.dtype | str | None, place: torch.device) -> torch.dtype:
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
        return dtype
    dtype = "auto" if dtype is None else dtype
    check_choice("dtype", dtype, DTYPES)
    if dtype == "auto":
        return default_dtype(place)
    return getattr(torch, dtype)  # type: ignore[call-overload]


@contextmanager
def quiet() -> Iterator[None]:
    """Without the loaders' hints and progress bars, and without garbage collection.

    The collector finds nothing while libraries are imported, and takes a seventh of the time.
    """
    collecting, before = gc.isenabled(), []
    gc.disable()
    try:
        from diffusers.utils import logging as diffusers_logging
        from transformers.utils import logging as transformers_logging

        for log in (diffusers_logging, transformers_logging):
            before.append((log, log.get_verbosity(), log.is_progress_bar_enabled()))
            log.set_verbosity_error()
            log.disable_progress_bar()
        yield
    finally:
        if collecting:
            gc.enable()
        for log, verbosity, shown in before:
            log.set_verbosity(verbosity)
            if shown:
                log.enable_progress_bar()


def fused(
    family: type[DiffusionModel],
    parts: Mapping[str, Any],
    lora: Lora,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """The parts on that device and in that number type, with the LoRA in their weights."""
    placed = _cast(parts, device, dtype)
    fuse(family.pipeline(placed), lora)
    return placed


def _cast(parts: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Modules on the device and in the number type; tokenizer and scheduler as they are."""
    modules = {n: part for n, part in parts.items() if isinstance(part, torch.nn.Module)}
    return {**parts, **{name: module.to(device, dtype) for name, module in modules.items()}}


def on_this_machine(name: str, revision: str | None = None) -> Path | None:
    """The folder or file that a name means; None for a hub model that is not here yet."""
    found = resolve(name)
    return found if isinstance(found, Path) else hub.local(found, revision)


def calibration_of_files(name: str, path: Path) -> Calibration | None:
    """The calibration that lies with a model's files, else the one that the paper names for it."""
    folder = hub.notes_folder(path)
    if (folder / CALIBRATION_FILE).is_file():
        found = Calibration.load(folder)
        return replace(found, source=found.source or str(folder))
    return published(name)


def _guidance(path: Path) -> float:
    """What `nemo/generation.json` in the folder says, else the paper's 7."""
    file = hub.notes_folder(path) / GENERATION_FILE
    if not file.is_file():
        return 7.0
    try:
        return float(json.loads(file.read_text("utf-8"))["guidance"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f'{file} must hold {{"guidance": number}}: {error!r}') from error
