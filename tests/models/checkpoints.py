"""Single-file checkpoints of pipeline folders, as Stable Diffusion's own code writes them."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip
_OUTSIDE = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
_OPEN_CLIP = {
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "final_layer_norm": "ln_final", "encoder.layers.": "transformer.resblocks.",
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", ".fc1.": ".c_fc.", ".fc2.": ".c_proj.",
    ".self_attn.": ".attn.",
}  # fmt: skip


def write_checkpoint(folder: Path, file: Path, **metadata: str) -> Path:
    """The weights of the folder in one file; an OpenCLIP text encoder where it is 1024 wide."""
    parts = {part: _weights(folder / part) for part in ("unet", "vae", "text_encoder")}
    tensors = {f"model.diffusion_model.{_unet(n)}": t for n, t in parts["unet"].items()}
    tensors |= {f"first_stage_model.{_vae(n)}": t for n, t in parts["vae"].items()}
    text = {n.removeprefix("text_model."): t for n, t in parts["text_encoder"].items()}
    if text["final_layer_norm.weight"].shape[0] == 1024:
        tensors |= {f"cond_stage_model.model.{n}": t for n, t in _open_clip(text).items()}
    else:
        tensors |= {f"cond_stage_model.transformer.text_model.{n}": t for n, t in text.items()}
    save_file({name: t.contiguous() for name, t in tensors.items()}, file, metadata)
    return file


def _weights(folder: Path) -> dict[str, Tensor]:
    return load_file(next(folder.glob("*.safetensors")))


def _unet(name: str) -> str:
    for old, new in _OUTSIDE.items():
        if name.startswith(old + "."):
            return name.replace(old, new, 1)
    match = re.match(r"(down_blocks|up_blocks)\.(\d)\.(\w+)\.(\d)\.(.*)", name)
    if not match:
        kind, number, rest = re.match(r"mid_block\.(\w+)\.(\d)\.(.*)", name).groups()  # type: ignore
        place = 1 if kind == "attentions" else 2 * int(number)
        return f"middle_block.{place}.{_resnet(rest) if kind == 'resnets' else rest}"
    side, block, kind, number, rest = match.groups()
    first = 3 * int(block) + (side == "down_blocks")
    blocks = "input_blocks" if side == "down_blocks" else "output_blocks"
    if kind == "resnets":
        return f"{blocks}.{first + int(number)}.0.{_resnet(rest)}"
    if kind == "attentions":
        return f"{blocks}.{first + int(number)}.1.{rest}"
    if kind == "downsamplers":
        return f"{blocks}.{first + 2}.0.{rest.replace('conv', 'op')}"
    return f"{blocks}.{first + 2}.{1 if block == '0' else 2}.{rest}"


def _resnet(name: str) -> str:
    head, _, tail = name.partition(".")
    return f"{_RESNET[head]}.{tail}"


def _vae(name: str) -> str:
    name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{1 - int(m[1])}.block", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{1 - int(m[1])}.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    if "mid_block.attentions.0" not in name:
        return name
    name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
    return name.replace("to_out.0", "proj_out").replace(".to_", ".")


def _open_clip(text: dict[str, Tensor]) -> dict[str, Tensor]:
    """Its names, and query, key and value in one tensor."""
    found: dict[str, Tensor] = {}
    for name, tensor in text.items():
        for old, new in _OPEN_CLIP.items():
            name = name.replace(old, new)
        found[name] = tensor
    for name in [name for name in found if ".q_proj." in name]:
        kind = name.rsplit(".", 1)[1]
        joined = [found.pop(name.replace("q_proj", f"{letter}_proj")) for letter in "qkv"]
        found[name.replace(f"q_proj.{kind}", f"in_proj_{kind}")] = torch.cat(joined)
    return found
