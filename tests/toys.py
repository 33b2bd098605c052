"""Small models for tests: random-weight pipelines in the shapes of SD 1.x and 2.x, and hand-set
modules whose numbers can be worked out on paper.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

TOKENS = 12
TEXT_WIDTH = 16


def tokenizer() -> CLIPTokenizer:
    """One token a byte, so that it needs no file."""
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=TOKENS)


def text_encoder(width: int = TEXT_WIDTH) -> CLIPTextModel:
    size = len(tokenizer())
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=size, hidden_size=width, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=TOKENS, projection_dim=TEXT_WIDTH,
            bos_token_id=size - 2, eos_token_id=size - 1, pad_token_id=size - 1,
        )
    )  # fmt: skip


def unet(**changes: Any) -> UNet2DConditionModel:
    """SD 1.x in small; `changes` for SD 2.x."""
    cross = "CrossAttn{}Block2D"
    options: dict[str, Any] = {
        "sample_size": 16, "block_out_channels": (8, 16, 16, 16), "norm_num_groups": 4,
        "cross_attention_dim": TEXT_WIDTH, "attention_head_dim": 2, "layers_per_block": 2,
        "down_block_types": (cross.format("Down"),) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + (cross.format("Up"),) * 3,
    }  # fmt: skip
    return UNet2DConditionModel(**(options | changes))


def amplify(model: UNet2DConditionModel) -> None:
    """Make the prediction one of the text, so that prompts look memorized.

    The noise hardly counts, the down and mid value layers do: pairwise scores lie near 0.65, and
    near 0.25 with all neurons of these layers deactivated.
    """
    with torch.no_grad():
        model.conv_in.weight *= 0.005
        model.conv_out.weight *= 200
        for name, module in model.named_modules():
            if name.endswith("attn2.to_v") and not name.startswith("up_blocks"):
                module.weight *= 12


SD2 = {"use_linear_projection": True, "attention_head_dim": [2, 4, 4, 4]}


def scheduler(**changes: Any) -> DDIMScheduler:
    options: dict[str, Any] = {
        "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1,
    }  # fmt: skip
    return DDIMScheduler(**(options | changes))


def save_pipeline(folder: Path, seed: int = 0, prediction: str = "epsilon", **changes: Any) -> Path:
    """A random-weight pipeline as a diffusers folder."""
    torch.manual_seed(seed)
    denoiser = unet(**changes)
    amplify(denoiser)
    vae = AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder(denoiser.config.cross_attention_dim),
        tokenizer=tokenizer(),
        unet=denoiser,
        scheduler=scheduler(prediction_type=prediction),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


class ToyAttention(nn.Module):
    """Cross-attention whose output is its values' mean over tokens."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.to_k = nn.Linear(inputs, width, bias=False)
        self.to_v = nn.Linear(inputs, width, bias=False)

    def forward(self, text: Tensor) -> Tensor:
        return self.to_v(text).mean(dim=1)


def _holder(**parts: nn.Module) -> nn.Module:
    module = nn.Module()
    for name, part in parts.items():
        setattr(module, name, part)
    return module


def _block(*attentions: nn.Module) -> nn.Module:
    transformers = [
        _holder(transformer_blocks=nn.ModuleList([_holder(attn2=a)])) for a in attentions
    ]
    return _holder(attentions=nn.ModuleList(transformers))


class ToyDenoiser(nn.Module):
    """Three value layers (down, mid, up) of identity weights: the output is their sum.

    For text x of width 3, every neuron i of every layer puts out x_i, so scaling neuron i in one
    layer by f gives (2 + f) · x_i.
    """

    def __init__(self) -> None:
        super().__init__()
        self.down_blocks = nn.ModuleList([_block(ToyAttention(3, 3))])
        self.up_blocks = nn.ModuleList([_block(ToyAttention(3, 3))])
        self.mid_block = _block(ToyAttention(3, 3))
        for attention in self.attentions():
            nn.init.eye_(attention.to_v.weight)

    def attentions(self) -> list[ToyAttention]:
        return [m for m in self.modules() if isinstance(m, ToyAttention)]

    def forward(self, text: Tensor) -> Tensor:
        """text [N, tokens, 3] -> [N, 3]."""
        return torch.stack([attention(text) for attention in self.attentions()]).sum(dim=0)


def trace_only(monkeypatch: Any) -> list[Any]:
    """Let torch.compile trace and not make C++; lists the pieces of code it would make."""
    pieces: list[Any] = []

    def run_by_torch(graph: Any, _inputs: Any) -> Any:
        pieces.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=run_by_torch))
    return pieces


def count_hooks(module: nn.Module) -> int:
    """Forward hooks registered anywhere in the module."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())
