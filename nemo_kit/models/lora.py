"""LoRA weights fused into a model's weights: W + scale · (alpha / rank) · B·A.

Scope: files of diffusers, peft and kohya-ss, read by diffusers through peft. After fusing the model
is an ordinary one, so that neurons act on what is measured.
Source: Hu et al., "LoRA" (arXiv 2106.09685), equation 3.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_kit.files import file_digest
from nemo_kit.models.parts import check_whole, readable

_SIDE = r"(lora_{}|lora_{}(\.\w+)?|(\.|_)lora\.{}|lora_linear_layer\.{})\.weight$"
_DOWN = re.compile(_SIDE.format("down", "A", "down", "down"))
_UP = re.compile(_SIDE.format("up", "B", "up", "up"))


@dataclass(frozen=True)
class Lora:
    """A file of LoRA weights: where it is, how strongly it acts, and the SHA-256 of its bytes."""

    path: str
    scale: float
    sha256: str

    @classmethod
    def of(cls, text: str | Path) -> Lora:
        """The file that "FILE" or "FILE:SCALE" names; the scale is 1 where none is given.

        Raises ValueError for what is no .safetensors file, and for a scale that is 0 or no number.
        """
        path, scale = Path(text), 1.0
        if not path.is_file():
            before, colon, after = str(text).rpartition(":")
            with suppress(ValueError):
                path, scale = (Path(before), float(after)) if colon else (path, 1.0)
        if path.suffix != ".safetensors" or not path.is_file():
            raise ValueError(
                f'lora must be a .safetensors file, or "FILE:SCALE", got {text!s:.200}'
            )
        if not 0 < abs(scale) < float("inf"):
            raise ValueError(f"lora: the scale must be a number other than 0, got {scale}")
        check_whole(path)
        return cls(str(path.resolve()), scale, file_digest(path))

    @property
    def text(self) -> str:
        """What `load` takes for it."""
        return f"{self.path}:{self.scale:g}"

    def __str__(self) -> str:
        return f"{Path(self.path).name} × {self.scale:g}"


def fuse(pipeline: Any, lora: Lora) -> None:
    """Add the LoRA to the weights of the pipeline's U-Net and text encoder, in place.

    Raises ValueError for weights that are no LoRA, or of another kind (DoRA, LoHa, LoKr), and where
    any of them fits no layer of this model: a LoRA for another one.
    """
    count = _layers_in(lora)
    with readable(f"lora: {lora.path}"):
        pipeline.load_lora_weights(Path(lora.path).parent, weight_name=Path(lora.path).name,
                                   local_files_only=True)  # fmt: skip
    found = _adapted(pipeline.components)
    if found != count:
        raise ValueError(
            f"lora: {found} of its {count} layers are in this model; is {lora.path} for "
            "another one?"
        )
    pipeline.fuse_lora(lora_scale=lora.scale)
    pipeline.unload_lora_weights()


def _layers_in(lora: Lora) -> int:
    """How many layers the file is for."""
    from safetensors import safe_open

    with safe_open(lora.path, "pt") as opened:
        keys = list(opened.keys())
    downs = [key for key in keys if _DOWN.search(key)]
    ups = [key for key in keys if _UP.search(key)]
    foreign = sorted({*keys} - {*downs, *ups} - {key for key in keys if key.endswith(".alpha")})
    if foreign or not downs or len(downs) != len(ups):
        told = (
            f"it holds {foreign[0]}" if foreign else f"{len(downs)} down and {len(ups)} up weights"
        )
        raise ValueError(f"lora: {lora.path} is no plain LoRA: {told}")
    return len(downs)


def _adapted(components: Mapping[str, Any]) -> int:
    """How many layers have LoRA weights."""
    from torch import nn

    modules = [part for part in components.values() if isinstance(part, nn.Module)]
    layers = [layer for module in modules for layer in module.modules()]
    return sum(bool(getattr(layer, "lora_A", None)) for layer in layers)
