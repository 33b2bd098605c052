"""Stable Diffusion XL: base, turbo and fine-tunes, without the refiner.

Two CLIPs' tokens side by side are what cross-attention reads. The second one's pooled text and the
image's size enter the time embedding, around the values: a known limit of what neurons can switch
off. Down and mid blocks are searched, as in the paper: it is the same U-Net in another size.
Source: Podell et al., "SDXL" (arXiv 2307.01952).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from nemo_kit.layers import Projection, key_layers, searched, value_layers
from nemo_kit.models import schedulers
from nemo_kit.models.base import STANDARDIZED, DiffusionModel, check_pairs
from nemo_kit.models.conditioning import Conditioning
from nemo_kit.models.texts import clips

VERSION = 1  # raised where results change (see nemo_kit.keys)
_ZEROS = "force_zeros_for_empty_prompt"  # what the unconditional half is, by model_index.json


class StableDiffusionXL(DiffusionModel):
    """Stable Diffusion XL, run as DDIM."""

    pipelines = ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline")
    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "scheduler": tuple(sorted(schedulers.SAME_PROCESS)),
        "text_encoder": ("CLIPTextModel",),
        "text_encoder_2": ("CLIPTextModelWithProjection",),
        "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
        "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast"),
        "unet": ("UNet2DConditionModel",),
        "vae": ("AutoencoderKL",),
    }
    foreign: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "unet": {
            "time_cond_proj_dim": "guidance as an input (a latent consistency model)",
            "class_embed_type": "a class or picture beside the text",
            "encoder_hid_dim_type": "text embeddings that it transforms first",
        },
        "vae": STANDARDIZED,
    }
    fits: ClassVar[Mapping[str, str]] = {"out_channels": "vae.latent_channels"}
    denoising = "unet"
    usual_guidance = 5.0
    clip_attention = True
    beside = ("pooled",)

    @classmethod
    def open(cls, folder: Path, index: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
        """The parts, and whether the unconditional half is zeros."""
        return {**super().open(folder, index, dtype), _ZEROS: index.get(_ZEROS, True)}

    @classmethod
    def check(cls, parts: Mapping[str, Any]) -> None:
        """Raise ValueError where the parts don't fit one another or the family."""
        super().check(parts)
        wanted = parts["unet"].config
        first, second = parts["text_encoder"].config, parts["text_encoder_2"].config
        sizes = 6 * (wanted.addition_time_embed_dim or 0)  # height, width, crop, as trained and now
        pairs = {
            "cross_attention_dim": (
                wanted.cross_attention_dim, first.hidden_size + second.hidden_size,
            ),
            "addition_embed_type": (wanted.addition_embed_type, "text_time"),
            "projection_class_embeddings_input_dim": (
                wanted.projection_class_embeddings_input_dim, sizes + second.projection_dim,
            ),
        }  # fmt: skip
        check_pairs("unet", pairs)

    @classmethod
    def assemble(cls, parts: Mapping[str, Any], **about: Any) -> Self:
        """The model of these parts; the VAE in float32 where it overflows in float16."""
        rest = {name: part for name, part in parts.items() if name != _ZEROS}
        if parts["vae"].config.force_upcast and about["dtype"] == torch.float16:
            parts["vae"].float()
        model = super().assemble(rest, **about)
        model.settings[_ZEROS] = parts[_ZEROS]
        return model

    @classmethod
    def find_layers(cls, denoiser: nn.Module) -> tuple[tuple[Projection, ...], ...]:
        """Those of `attn2`; the ones of down and mid blocks are searched, as in the paper."""
        values = value_layers(denoiser)
        return values, key_layers(denoiser), searched(values)

    def _embed(self, texts: list[str]) -> Tensor:
        """Both CLIPs' states side by side; of the empty prompt zeros, where the model has it so."""
        states, (_, pooled) = clips(self, texts)
        zeros = self.settings[_ZEROS]
        told = torch.tensor([bool(text) or not zeros for text in texts], device=self.device)
        return Conditioning.of(states * told[:, None, None], pooled=pooled * told[:, None])

    def _forward(
        self, latents: Tensor, timestep: Tensor, tokens: Tensor, **beside: Tensor
    ) -> Tensor:
        size = [*self.image_size, 0, 0, *self.image_size]
        ids = latents.new_tensor(size).expand(len(latents), -1)
        added = {"text_embeds": beside["pooled"].to(self.dtype), "time_ids": ids}
        return self.denoiser(
            latents,
            timestep,
            encoder_hidden_states=tokens,
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
