"""LoRA weights fused into a model's weights: W + scale · (alpha / rank) · B·A.

Scope: files of diffusers, peft and kohya-ss, read by diffusers through peft. After fusing the model
is an ordinary one, so that neurons act on what is measured.
Source: Hu et al., "LoRA" (arXiv 2106.09685), equation 3.
"""

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from nemo_kit.files import file_digest
from nemo_kit.models.parts import check_whole, readable, shapes_in

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
    def of(cls, text: str | Path) -> Self:
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
        return f"{self.path}:{self.scale}"

    def __str__(self) -> str:
        return f"{Path(self.path).name} × {self.scale:g}"


def fuse(pipeline: Any, lora: Lora) -> None:
    """Add the LoRA to the weights of the pipeline's denoiser and text encoders, in place.

    Raises ValueError for weights that are no LoRA, or of another kind (DoRA, LoHa, LoKr), and where
    any of them fits no layer of this model: a LoRA for another one.
    """
    wanted = _outputs_in(lora)
    with readable(f"lora: {lora.path}"):
        pipeline.load_lora_weights(Path(lora.path).parent, weight_name=Path(lora.path).name,
                                   local_files_only=True)  # fmt: skip
    found = {name: _adapted(part) for name, part in pipeline.components.items()}
    if sum(found.values()) != wanted:
        raise ValueError(
            f"lora: {sum(found.values())} of the {wanted} outputs that it acts on are in this "
            f"model; is {lora.path} for another one?"
        )
    pipeline.fuse_lora([name for name, count in found.items() if count], lora_scale=lora.scale)
    pipeline.unload_lora_weights()


def _outputs_in(lora: Lora) -> int:
    """On how many outputs of layers the file acts, whether they are joined in it or not."""
    shapes = shapes_in(Path(lora.path))
    ups = [shape[0] for key, shape in shapes.items() if _UP.search(key)]
    downs = [key for key in shapes if _DOWN.search(key)]
    foreign = [k for k in shapes if not (_DOWN.search(k) or _UP.search(k) or k.endswith(".alpha"))]
    if foreign or not downs or len(downs) != len(ups):
        told = f"{len(downs)} down and {len(ups)} up weights"
        told = f"it holds {min(foreign)}" if foreign else told
        raise ValueError(f"lora: {lora.path} is no plain LoRA: {told}")
    return sum(ups)


def _adapted(part: Any) -> int:
    """How many outputs of a part's layers have LoRA weights."""
    layers = part.modules() if hasattr(part, "modules") else ()
    held = [one for layer in layers for one in getattr(layer, "lora_B", {}).values()]
    return sum(one.weight.shape[0] for one in held)
