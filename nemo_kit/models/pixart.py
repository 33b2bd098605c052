"""PixArt-α and PixArt-Σ: a transformer with cross-attention to T5's tokens.

Values follow from the text alone, behind the caption projection; padding is masked. All blocks are
searched: there is no bottleneck as in a U-Net, and no study says which of them memorize.
Source: Chen et al., "PixArt-α" (arXiv 2310.00426), "PixArt-Σ" (arXiv 2403.04692).
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from nemo_kit.models.base import DiffusionModel
from nemo_kit.models.conditioning import Conditioning

VERSION = 1  # raised where results change (see nemo_kit.keys)


class PixArtAlpha(DiffusionModel):
    """PixArt-α, run as DDIM; the learned variance is split off."""

    pipelines = ("PixArtAlphaPipeline",)
    fits: ClassVar[Mapping[str, str]] = {"caption_channels": "text_encoder.d_model"}
    blocks = ("transformer_blocks.{}.attn2.to_v",)
    usual_guidance = 4.5
    beside = ("mask",)
    kept_off = ("text_encoder",)
    tokens: ClassVar[int] = 120

    def _embed(self, texts: list[str]) -> Tensor:
        """T5's last states; texts are lowered, as in the pipeline."""
        lowered = [text.lower().strip() for text in texts]
        length = min(self.tokens, self.tokenizer.model_max_length)
        states, mask = self._encoded("", lowered, length)
        return Conditioning.of(states, mask=mask)

    def _value_inputs(self, embeddings: Tensor) -> Tensor:
        return self.denoiser.caption_projection(super()._value_inputs(embeddings))

    def _arguments(self, latents: Tensor, timesteps: Tensor, **beside: Tensor) -> dict[str, Any]:
        count, (height, width) = len(latents), self.image_size
        added = {"resolution": None, "aspect_ratio": None}
        if self.denoiser.use_additional_conditions:
            added["resolution"] = latents.new_tensor([height, width]).expand(count, -1)
            added["aspect_ratio"] = latents.new_tensor([height / width]).expand(count, -1)
        return {"encoder_attention_mask": beside["mask"], "added_cond_kwargs": added}


class PixArtSigma(PixArtAlpha):
    """PixArt-Σ: longer texts and another autoencoder."""

    pipelines = ("PixArtSigmaPipeline",)
    tokens = 300
