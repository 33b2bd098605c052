"""Stable Diffusion XL: base, turbo and fine-tunes, without the refiner.

Two CLIPs' tokens side by side are what cross-attention reads. The second one's pooled text and the
image's size enter the time embedding, around the values: a known limit of what neurons can switch
off. Down and mid blocks are searched, as in the paper: it is the same U-Net in another size.
Source: Podell et al., "SDXL" (arXiv 2307.01952).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from nemo_kit.models.base import STANDARDIZED, DiffusionModel
from nemo_kit.models.conditioning import Conditioning
from nemo_kit.models.parts import check_pairs

VERSION = 1  # raised where results change (see nemo_kit.keys)
_ZEROS = "force_zeros_for_empty_prompt"  # what the unconditional half is, by model_index.json


class StableDiffusionXL(DiffusionModel):
    """Stable Diffusion XL, run as DDIM."""

    pipelines = ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline")
    foreign: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "unet": {
            "time_cond_proj_dim": "guidance as an input (a latent consistency model)",
            "class_embed_type": "a class or picture beside the text",
            "encoder_hid_dim_type": "text embeddings that it transforms first",
        },
        "vae": STANDARDIZED,
    }
    fits: ClassVar[Mapping[str, str]] = {
        "out_channels": "vae.latent_channels",
        "cross_attention_dim": "text_encoder.hidden_size + text_encoder_2.hidden_size",
    }
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
        pooled = parts["text_encoder_2"].config.projection_dim
        sizes = 6 * (wanted.addition_time_embed_dim or 0)  # height, width, crop, as trained and now
        own = wanted.projection_class_embeddings_input_dim
        pairs = {
            "addition_embed_type": (wanted.addition_embed_type, "text_time"),
            "projection_class_embeddings_input_dim": (own, sizes + pooled),
        }
        check_pairs("unet", pairs)

    def __init__(self, parts: Mapping[str, Any], **about: Any) -> None:
        super().__init__(parts, **about)
        self.settings[_ZEROS] = parts[_ZEROS]
        if self.vae.config.force_upcast and self.dtype == torch.float16:
            self.vae.float()  # it overflows in float16

    def _embed(self, texts: list[str]) -> Tensor:
        """Both CLIPs' states side by side; of the empty prompt zeros, where the model has it so."""
        states, (_, pooled) = self._clips(texts)
        zeros = self.settings[_ZEROS]
        told = torch.tensor([bool(text) or not zeros for text in texts], device=self.device)
        return Conditioning.of(states * told[:, None, None], pooled=pooled * told[:, None])

    def _arguments(self, latents: Tensor, timesteps: Tensor, **beside: Tensor) -> dict[str, Any]:
        size = [*self.image_size, 0, 0, *self.image_size]
        ids = latents.new_tensor(size).expand(len(latents), -1)
        added = {"text_embeds": beside["pooled"].to(self.dtype), "time_ids": ids}
        return {"added_cond_kwargs": added}
