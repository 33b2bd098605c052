"""Opening a model: what a name means, on which device, in which number type, with which LoRA."""

import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nemo_kit.calibration import CALIBRATION_FILE, Calibration, published
from nemo_kit.checks import check_choice, check_number, check_whole
from nemo_kit.keys import PACKAGE
from nemo_kit.models import hub, single_file
from nemo_kit.models.base import DiffusionModel
from nemo_kit.models.families import INDEX, family_of
from nemo_kit.models.lora import Lora, fuse
from nemo_kit.models.parts import bytes_of, has_weights, opening, read_json
from nemo_kit.models.quiet import quiet
from nemo_kit.models.stable_diffusion import StableDiffusion

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_ALLOWED = (
    'name must be "lab", "lab-flow", a folder with a diffusers model, a .safetensors checkpoint, '
    'or a hub id "owner/model"'
)
GENERATION_FILE = "generation.json"
OFFLOAD = "offload"
LARGE = 4e9  # bytes of weights that are told of
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
    Parameters: `name`, "lab" or "lab-flow" (embedded), a diffusers folder, a `.safetensors`
    checkpoint, or a hub id; `device`, "auto", "cpu", "cuda" or another of torch's, or "offload": as
    "auto", with the denoiser's weights in main memory but for the layer that runs; `dtype`, one of
    torch's or "float32", "float16", "bfloat16"; "auto" (or None) is float16 on cuda (bfloat16 where
    the family needs its range), float32 elsewhere;
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
    extra = None if lora is None else Lora.of(lora)
    if isinstance(found, str):
        found, revision = hub.fetch(found, revision)
    with opening(name):
        if found.is_file():
            single_file.check_kind(found)
        family = family_of(read_json(found / INDEX)) if found.is_dir() else StableDiffusion
    kind = _dtype(dtype, place, family.half)
    if extra and not hasattr(family.kind(), "load_lora_weights"):
        told = f"lora: diffusers reads none into a {family.pipelines[0]}; not supported"
        raise ValueError(told)
    if device == OFFLOAD and not family.offloads:
        raise ValueError(f'device: "{OFFLOAD}" is not supported for {family.__name__}')
    kept = {*family.kept_off, *([family.denoising] if device == OFFLOAD else [])}
    with quiet():
        with opening(name):
            _tell_size(name, found, family, kind, place)
        parts = open_parts(family, name, found, place, kind, extra, config)
        _move(parts, place, kind, kept)
        model = family(
            parts,
            name=name,
            device=place,
            dtype=kind,
            revision=revision,
            lora=extra,
            config=config,
            **settings_in(found, family),
        )
    if device == OFFLOAD:
        from accelerate import cpu_offload

        model.offloaded = dict(model.denoiser.state_dict())
        cpu_offload(model.denoiser, place, offload_buffers=True, state_dict=model.offloaded)
    if extra is None:  # a fused LoRA's threshold and statistics are others
        model.calibration = calibration_of_files(name, found)
    return model


def open_parts(
    family: type[DiffusionModel], name: str, found: Path, device: torch.device, dtype: torch.dtype,
    lora: Lora | None = None, config: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The parts of a folder or checkpoint, on the CPU; raises ValueError.

    With a LoRA in their weights they are on the device.
    """
    with opening(name):
        if found.is_dir():
            if config is not None:
                raise ValueError("config goes with a .safetensors checkpoint; a folder has its own")
            parts = family.open(found, read_json(found / INDEX), dtype)
        else:
            place = resolve(config or single_file.default_config(found), "config")
            if isinstance(place, str):
                place, _ = hub.fetch(place, weights=False)
            if not place.is_dir():
                raise ValueError(f"config must be a diffusers folder or a hub id, got {config!r}")
            parts = single_file.open_file(found, place)
        family.check(parts)
    if lora:
        _move(parts, device, dtype)
        fuse(family.pipeline(parts), lora)
    return parts


def _tell_size(
    name: str, found: Path, family: type[DiffusionModel], dtype: torch.dtype, place: torch.device
) -> None:
    """Say on standard error what a large model will take, before it is read."""
    if not found.is_dir():
        return
    named = family.parts_in(read_json(found / INDEX))
    there = [part for part in named if has_weights(part) and (found / part).is_dir()]
    sizes = {part: bytes_of(found, part, dtype) for part in there}
    if sum(sizes.values()) < LARGE:
        return
    each = ", ".join(f"{part} {size / 1e9:.1f}" for part, size in sizes.items())
    off = f", {' and '.join(family.kept_off)} only while it embeds" if family.kept_off else ""
    print(
        f"opening {name}: {sum(sizes.values()) / 1e9:.1f} GB of weights in {str(dtype)[6:]} "
        f"({each}) for {place}{off}",
        file=sys.stderr, flush=True,
    )  # fmt: skip


def resolve(name: str, parameter: str = "name") -> str | Path:
    """The folder or file (a path) or hub id (a text) a name means; ValueError for other names."""
    allowed = _ALLOWED.replace("name", parameter, 1)
    if not isinstance(name, str) or not name:
        raise ValueError(f"{allowed}; got {name!r}")
    if name in hub.EMBEDDED:
        return PACKAGE / "lab" / hub.EMBEDDED[name]
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
    if device in ("auto", OFFLOAD):
        return default_device()
    try:
        place = torch.device(device)
        torch.empty(1, device=place).tolist()
    except (RuntimeError, TypeError, AssertionError) as error:  # no such device or driver, or meta
        raise ValueError(
            f'device must be "auto", "cpu", "cuda" or "{OFFLOAD}", and one that torch sees here; '
            f"got {device!r}"
        ) from error
    return place


def default_dtype(device: torch.device | None = None) -> torch.dtype:
    """The number type that "auto" means on a device, by default the one that "auto" means."""
    return torch.float16 if (device or default_device()).type == "cuda" else torch.float32


def _dtype(dtype: torch.dtype | str | None, place: torch.device, half: torch.dtype) -> torch.dtype:
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
        return dtype
    dtype = "auto" if dtype is None else dtype
    check_choice("dtype", dtype, DTYPES)
    if dtype == "auto":
        return half if place.type == "cuda" else torch.float32
    return getattr(torch, dtype)  # type: ignore[call-overload]


def _move(
    parts: Mapping[str, Any], device: torch.device, dtype: torch.dtype, kept: Collection[str] = ()
) -> None:
    """Modules to the device (those `kept` to the CPU) and into the number type.

    A module that keeps some weights in float32 (T5's overflow in float16) was read so, and stays.
    """
    for name, part in parts.items():
        if isinstance(part, torch.nn.Module):
            part.to("cpu" if name in kept else device)
            if not getattr(part, "_keep_in_fp32_modules", None):
                part.to(dtype)


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


def settings_in(path: Path, family: type[DiffusionModel]) -> dict[str, Any]:
    """Guidance, and other settings, that `nemo/generation.json` in the folder says.

    Returns "guidance", by default the family's, and "settings", integers: "searched" (how many
    value layers, from the first on) and those that the family names.
    Raises ValueError for a file that says anything else.
    """
    file = hub.notes_folder(path) / GENERATION_FILE
    told = read_json(file) if file.is_file() else {}
    allowed = {"guidance", "searched", *family.adjustable}
    guidance = told.pop("guidance", family.usual_guidance)
    check_number(f"{file}: guidance", guidance, 0)
    for name, value in told.items():
        check_choice(f"{file}: a setting", name, sorted(allowed))
        check_whole(f"{file}: {name}", value, name == "searched")
    return {"guidance": float(guidance), "settings": told}
