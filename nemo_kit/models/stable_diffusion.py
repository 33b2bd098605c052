"""Stable Diffusion 1.x and 2.x: U-Net, CLIP text encoder and autoencoder; and the embedded model.

Source: "Finding NeMo" (arXiv 2406.02366), section 2 (the model's parts).
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from nemo_kit.models.base import STANDARDIZED, DiffusionModel

VERSION = 1  # raised where results change (see nemo_kit.keys)


class StableDiffusion(DiffusionModel):
    """Stable Diffusion 1.x or 2.x, run as DDIM: ε- or v-prediction, one CLIP text encoder."""

    pipelines = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")
    denoising = "unet"
    clip_attention = True

    foreign: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "unet": {
            "time_cond_proj_dim": "guidance as an input (a latent consistency model)",
            "class_embed_type": "a class or picture beside the text (unCLIP)",
            "num_class_embeds": "a class beside the text",
            "addition_embed_type": "more than the text's tokens (SDXL and others)",
            "encoder_hid_dim_type": "text embeddings that it transforms first",
            "dual_cross_attention": "two texts",
            "only_cross_attention": "text in its self-attention's place (an upscaler)",
        },
        "vae": {"shift_factor": "latents that are shifted", **STANDARDIZED},
    }

    fits: ClassVar[Mapping[str, str]] = {
        "out_channels": "vae.latent_channels",
        "cross_attention_dim": "text_encoder.hidden_size",
    }

    def __init__(self, parts: Mapping[str, Any], **about: Any) -> None:
        super().__init__(parts, **about)
        self.text_encoder = parts["text_encoder"]

    def _embed(self, texts: list[str]) -> Tensor:
        """The output of CLIP's last layer, normed."""
        config = self.text_encoder.config
        length = min(self.tokenizer.model_max_length, config.max_position_embeddings)
        tokens = self._tokens("", texts, length)
        masked = getattr(config, "use_attention_mask", False)  # of some encoders, as the pipeline
        mask = tokens.attention_mask if masked else None
        return self.text_encoder(tokens.input_ids, attention_mask=mask)[0]
