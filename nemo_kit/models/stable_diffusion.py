"""Stable Diffusion 1.x and 2.x: U-Net, CLIP text encoder and autoencoder; and the embedded model.

Source: "Finding NeMo" (arXiv 2406.02366), section 2 (the model's parts).
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from nemo_kit.layers import Projection, key_layers, searched, value_layers
from nemo_kit.models import schedulers
from nemo_kit.models.base import STANDARDIZED, DiffusionModel
from nemo_kit.models.texts import tokenized

VERSION = 1  # raised where results change (see nemo_kit.keys)


class StableDiffusion(DiffusionModel):
    """Stable Diffusion 1.x or 2.x, run as DDIM: ε- or v-prediction, one CLIP text encoder."""

    pipelines = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")
    denoising = "unet"
    clip_attention = True
    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "scheduler": tuple(sorted(schedulers.SAME_PROCESS)),
        "text_encoder": ("CLIPTextModel",),
        "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
        "unet": ("UNet2DConditionModel",),
        "vae": ("AutoencoderKL",),
    }

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

    @classmethod
    def check(cls, parts: Mapping[str, Any]) -> None:
        """Raise ValueError where the parts don't fit one another or the family."""
        for part in cls.foreign:
            cls.check_config(part, parts[part].config)
        _check_together(**parts)

    @classmethod
    def assemble(cls, parts: Mapping[str, Any], **about: Any) -> Self:
        """The model of these parts."""
        others = {name: part for name, part in parts.items() if name != "unet"}
        return cls(denoiser=parts["unet"], **others, **about)

    @classmethod
    def find_layers(cls, denoiser: nn.Module) -> tuple[tuple[Projection, ...], ...]:
        """Those of `attn2`; the ones of down and mid blocks are searched, as in the paper."""
        values = value_layers(denoiser)
        return values, key_layers(denoiser), searched(values)

    def _embed(self, texts: list[str]) -> Tensor:
        """The output of CLIP's last layer, normed."""
        config = self.text_encoder.config
        length = min(self.tokenizer.model_max_length, config.max_position_embeddings)
        tokens = tokenized(self.tokenizer, texts, length).to(self.device)
        masked = getattr(config, "use_attention_mask", False)
        mask = tokens.attention_mask if masked else None
        return self.text_encoder(tokens.input_ids, attention_mask=mask)[0]

    def _forward(
        self, latents: Tensor, timestep: Tensor, tokens: Tensor, **beside: Tensor
    ) -> Tensor:
        return self.denoiser(latents, timestep, encoder_hidden_states=tokens, return_dict=False)[0]


def _check_together(unet: Any, vae: Any, text_encoder: Any, tokenizer: Any, **_: Any) -> None:
    wanted, latents = unet.config, vae.config.latent_channels
    if wanted.in_channels != latents:
        raise ValueError(
            f"unet: in_channels = {wanted.in_channels}, the latents have {latents}; inpainting, "
            "depth and image-editing models are not supported"
        )
    if wanted.out_channels != latents:
        raise ValueError(
            f"unet: out_channels = {wanted.out_channels}, the latents have {latents}; models that "
            "learn a variance are not supported"
        )
    if wanted.cross_attention_dim != text_encoder.config.hidden_size:
        raise ValueError(
            f"unet: cross_attention_dim = {wanted.cross_attention_dim}, the text encoder gives "
            f"{text_encoder.config.hidden_size}: they are parts of different models"
        )
    words, known = len(tokenizer), text_encoder.config.vocab_size
    if words > known:
        raise ValueError(
            f"tokenizer: {words} tokens, the text encoder knows {known}: is it another model's?"
        )
