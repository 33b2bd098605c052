"""HunyuanDiT: a transformer with cross-attention to the tokens of BERT and T5.

Values follow from the text alone: BERT's states beside T5's behind their embedder, learned padding
in the place of both's. Pooled T5 enters the time embedding, around the values: a known limit of
what neurons can switch off. All blocks are searched: no study says which memorize.
Source: Li et al., "Hunyuan-DiT" (arXiv 2405.08748).
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from nemo_kit.models.base import DiffusionModel
from nemo_kit.models.conditioning import Conditioning

VERSION = 1  # raised where results change (see nemo_kit.keys)


class HunyuanDiT(DiffusionModel):
    """HunyuanDiT 1.x, run as DDIM; the learned variance is split off."""

    pipelines = ("HunyuanDiTPipeline",)
    fits: ClassVar[Mapping[str, str]] = {
        "cross_attention_dim": "text_encoder.hidden_size",
        "cross_attention_dim_t5": "text_encoder_2.d_model",
    }
    blocks = ("blocks.{}.attn2.to_v",)
    usual_guidance = 5.0
    offloads = False
    beside = ("attended", "t5", "t5_attended")
    kept_off = ("text_encoder_2",)

    def _embed(self, texts: list[str]) -> Tensor:
        """BERT's last states; beside them T5's, and which tokens of each are no padding."""
        config = self.denoiser.config
        bert, attended = self._encoded("", texts, config.text_len)
        t5, t5_attended = self._encoded("_2", texts, config.text_len_t5)
        return Conditioning.of(bert, attended=attended, t5=t5, t5_attended=t5_attended)

    def _value_inputs(self, embeddings: Tensor) -> Tensor:
        beside = {name: value.to(self.device) for name, value in embeddings.beside.items()}
        t5 = beside["t5"].to(self.dtype)
        projected = self.denoiser.text_embedder(t5.flatten(0, 1)).unflatten(0, t5.shape[:2])
        both = torch.cat([super()._value_inputs(embeddings), projected], dim=1)
        attended = torch.cat([beside["attended"], beside["t5_attended"]], dim=1)
        return torch.where(attended[:, :, None], both, self.denoiser.text_embedding_padding)

    def _arguments(self, latents: Tensor, timesteps: Tensor, **beside: Tensor) -> dict[str, Any]:
        given: dict[str, Any] = {
            "timestep": timesteps.to(self.dtype),
            "text_embedding_mask": beside["attended"],
            "encoder_hidden_states_t5": beside["t5"].to(self.dtype),
            "text_embedding_mask_t5": beside["t5_attended"],
            "image_rotary_emb": self._places(latents.device),
        }
        if self.denoiser.config.use_style_cond_and_image_meta_size:
            size = [1024, 1024, *self.image_size, 0, 0]  # as trained, as drawn, crop
            given["image_meta_size"] = latents.new_tensor(size).repeat(len(latents), 1)
            given["style"] = torch.zeros(len(latents), dtype=torch.long, device=latents.device)
        return given

    def _places(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Rotary embeddings of the patches, as the pipeline has them."""
        from diffusers.models.embeddings import get_2d_rotary_pos_embed
        from diffusers.pipelines.hunyuandit.pipeline_hunyuandit import (
            get_resize_crop_region_for_grid,
        )

        width = self.denoiser.inner_dim // self.denoiser.num_heads
        patch = self.denoiser.config.patch_size
        grid = tuple(side // patch for side in self.latent_shape[1:])
        crop = get_resize_crop_region_for_grid(grid, 512 // 8 // patch)
        return get_2d_rotary_pos_embed(width, crop, grid, device=device, output_type="pt")
