"""Finds the cross-attention key and value projections of a denoiser, once, by their names.

Scope: U-Nets in the shape of Stable Diffusion 1.x and 2.x (down, mid, up; `attn2` reads the
text), and transformers by the names of their blocks. Everything else takes what is found here.
Source: "Finding NeMo" (arXiv 2406.02366), section 2: value layers 1 to 16 of SD v1.4 in the order
in which the denoiser runs them, of which NeMo searches down and mid (1 to 7).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import nn

Kind = Literal["value", "key"]

_PLACES = {"down": 0, "mid": 1, "up": 2}  # forward order; modules register mid after up
_PATTERN = re.compile(
    r"(?P<part>down|mid|up)_blocks?(?:\.(?P<block>\d+))?"
    r"\.attentions\.(?P<attention>\d+)\.transformer_blocks\.(?P<transformer>\d+)\.attn2"
)


@dataclass(frozen=True)
class Projection:
    """One cross-attention projection.

    Its number among those of its kind, from 1; the kind, "value" or "key"; the module's name; its
    outputs; where it is; how many tokens are the text's, first in a sequence of text and image
    (None: all are).
    """

    index: int
    kind: str
    name: str
    width: int
    block: str  # "down.0", "mid", "up.1", …; "block.0", "single.0" of a transformer
    tokens: int | None = None

    @property
    def title(self) -> str:
        """What it is, in words: "value 3 (mid)"."""
        return f"{self.kind} {self.index} ({self.block.replace('.', ' ')})"


def value_layers(denoiser: nn.Module, *blocks: str) -> tuple[Projection, ...]:
    """The value projections in forward order, numbered from 1.

    Returns 16 of them for SD 1.x and 2.x, and for the embedded model.
    Parameters: `blocks`, of a transformer: modules in the order in which it runs them, with {} for
    the block's number: "transformer_blocks.{}.attn2.to_v"; without any it is a U-Net.
    Raises ValueError where the denoiser has none, or some that can't be placed or are no linear
    layers.
    Source: section 2 of the paper.
    """
    return _of_blocks(denoiser, "value", blocks) if blocks else _of_unet(denoiser, "value", "to_v")


def key_layers(denoiser: nn.Module, *blocks: str) -> tuple[Projection, ...]:
    """The key projections in forward order, numbered from 1; otherwise as `value_layers`.

    Source: figures 16 and 17 of the paper, which zero whole key and value layers.
    """
    keys = [name.replace("to_v", "to_k").replace("add_v", "add_k") for name in blocks]
    return _of_blocks(denoiser, "key", keys) if keys else _of_unet(denoiser, "key", "to_k")


def searched(layers: Iterable[Projection]) -> tuple[Projection, ...]:
    """Those that NeMo searches: of a U-Net in down and mid blocks (1 to 7 in SD v1.4).

    Of a transformer all, but those of single blocks, where text and image share their weights.
    Source: section 2 of the paper.
    """
    return tuple(layer for layer in layers if not layer.block.startswith(("up", "single")))


def _of_blocks(denoiser: nn.Module, kind: Kind, names: Iterable[str]) -> tuple[Projection, ...]:
    found = []
    for name in names:
        root = name.partition(".{}")[0]
        blocks = getattr(denoiser, root, None)
        if not blocks:
            raise ValueError(f"denoiser: no {root} in {type(denoiser).__name__}")
        label = "single" if root.startswith("single") else "block"
        for number, block in enumerate(blocks):
            attention, _, last = name.partition(".{}.")[2].rpartition(".")
            place = name.format(number)
            width = _width(place, block.get_submodule(attention), last)
            found.append((place, width, f"{label}.{number}"))
    return tuple(Projection(i, kind, *one) for i, one in enumerate(found, start=1))


def _of_unet(denoiser: nn.Module, kind: Kind, last: str) -> tuple[Projection, ...]:
    """Those of `attn2`, in forward order: down, mid and up, each by its numbers."""
    found = []
    for name, attention in denoiser.named_modules():
        if name.rpartition(".")[2] != "attn2":
            continue
        match = _PATTERN.fullmatch(name)
        if not match:
            raise ValueError(
                f"denoiser: can't place the attention {name!r}; expected down_blocks.N, mid_block "
                "or up_blocks.N, then attentions.N.transformer_blocks.N.attn2"
            )
        if getattr(attention, "is_cross_attention", True) is False:
            raise ValueError(f"denoiser: {name} attends to the image itself, not to the text")
        for extra in ("norm_cross", "add_v_proj"):
            if getattr(attention, extra, None) is not None:
                raise ValueError(f"denoiser: {name} uses {extra}, which is not supported")
        part, *numbers = match.groups()
        order = _PLACES[part], *(int(number or 0) for number in numbers)
        block = part if numbers[0] is None else f"{part}.{numbers[0]}"
        found.append((order, f"{name}.{last}", _width(f"{name}.{last}", attention, last), block))
    if not found:
        raise ValueError(
            f"denoiser: no cross-attention (attn2) found in {type(denoiser).__name__}; "
            "it must be a U-Net in the shape of Stable Diffusion 1.x or 2.x"
        )
    return tuple(Projection(i, kind, *one) for i, (_, *one) in enumerate(sorted(found), start=1))


def _width(name: str, attention: nn.Module, last: str) -> int:
    """How many outputs the projection of that name has; ValueError where it is not one layer."""
    if getattr(attention, "fused_projections", False):
        raise ValueError(f"denoiser: {name}: fused projections; call unfuse_qkv_projections()")
    module = getattr(attention, last, None)
    width = getattr(module, "out_features", None)
    if not isinstance(width, int):
        raise ValueError(f"denoiser: {name} must be a linear layer, got {type(module).__name__}")
    return width
