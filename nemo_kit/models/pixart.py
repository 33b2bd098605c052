"""PixArt-α and PixArt-Σ: a transformer with cross-attention to T5's tokens.

Values follow from the text alone, behind the caption projection; padding is masked. All blocks are
searched: there is no bottleneck as in a U-Net, and no study says which of them memorize.
Source: Chen et al., "PixArt-α" (arXiv 2310.00426), "PixArt-Σ" (arXiv 2403.04692).
"""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from nemo_kit.models import schedulers
from nemo_kit.models.base import STANDARDIZED, DiffusionModel
from nemo_kit.models.conditioning import Conditioning
from nemo_kit.models.texts import encoded

VERSION = 1  # raised where results change (see nemo_kit.keys)


class PixArtAlpha(DiffusionModel):
    """PixArt-α, run as DDIM; the learned variance is split off."""

    pipelines = ("PixArtAlphaPipeline",)
    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "scheduler": tuple(sorted(schedulers.SAME_PROCESS)),
        "text_encoder": ("T5EncoderModel",),
        "tokenizer": ("T5Tokenizer", "T5TokenizerFast"),
        "transformer": ("PixArtTransformer2DModel",),
        "vae": ("AutoencoderKL",),
    }
    foreign: ClassVar[Mapping[str, Mapping[str, str]]] = {"vae": STANDARDIZED}
    fits: ClassVar[Mapping[str, str]] = {"caption_channels": "text_encoder.d_model"}
    blocks = ("transformer_blocks.{}.attn2.to_v",)
    usual_guidance = 4.5
    beside = ("mask",)
    kept_off = ("text_encoder",)
    tokens: ClassVar[int] = 120

    def _embed(self, texts: list[str]) -> Tensor:
        """T5's last states; texts are lowered, as in the pipeline."""
        tokenizer = self.tokenizers["tokenizer"]
        states, mask = encoded(
            self.text_encoder["text_encoder"],
            tokenizer,
            [text.lower().strip() for text in texts],
            min(self.tokens, tokenizer.model_max_length),
            self.device,
        )
        return Conditioning.of(states, mask=mask)

    def _value_inputs(self, embeddings: Tensor) -> Tensor:
        return self.denoiser.caption_projection(super()._value_inputs(embeddings))

    def _forward(
        self, latents: Tensor, timestep: Tensor, tokens: Tensor, **beside: Tensor
    ) -> Tensor:
        count, (height, width) = len(latents), self.image_size
        added = {"resolution": None, "aspect_ratio": None}
        if self.denoiser.use_additional_conditions:
            added["resolution"] = latents.new_tensor([height, width]).expand(count, -1)
            added["aspect_ratio"] = latents.new_tensor([height / width]).expand(count, -1)
        output = self.denoiser(
            latents,
            encoder_hidden_states=tokens,
            encoder_attention_mask=beside["mask"],
            timestep=timestep.expand(count),
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
        return output[:, : latents.shape[1]]


class PixArtSigma(PixArtAlpha):
    """PixArt-Σ: longer texts and another autoencoder."""

    pipelines = ("PixArtSigmaPipeline",)
    tokens = 300
