"""FLUX.1: joint attention, then blocks in which text and image share all projections.

Neurons are the outputs of the text's value projection, `add_v_proj`, in the double blocks, and of
the shared `to_v` for the text's tokens alone in the single ones; both have seen the image, so they
are read in a denoiser call. The double blocks are searched: there the text has weights of its own,
so that its neurons can be written into them. Pooled text of CLIP modulates every block, around the
values: a known limit of what neurons can switch off.

Guidance was distilled into "dev", which takes its strength as an input (3.5, the pipeline's) and
has no unconditional half: the noise difference is v − x_T at that strength. Guidance above 1 here
is the pipeline's `true_cfg_scale`, against the empty prompt.
Source: Black Forest Labs, FLUX.1, as diffusers has it.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from nemo_kit.layers import Projection
from nemo_kit.models.base import DiffusionModel
from nemo_kit.models.conditioning import Conditioning

VERSION = 1  # raised where results change (see nemo_kit.keys)
DISTILLED = 3.5  # the guidance that "dev" is told


class Flux(DiffusionModel):
    """FLUX.1 dev or schnell, run by diffusers' Euler steps.

    Settings: `t5_tokens`, of the text, by default 512; `side`, of a latent, by default 128 (1024
    pixels).
    """

    pipelines = ("FluxPipeline", "FluxImg2ImgPipeline")
    fits: ClassVar[Mapping[str, str]] = {
        "pooled_projection_dim": "text_encoder.hidden_size",
        "joint_attention_dim": "text_encoder_2.d_model",
    }
    packed = 4
    blocks = ("transformer_blocks.{}.attn.add_v_proj", "single_transformer_blocks.{}.attn.to_v")
    flow = True
    usual_guidance = 1.0
    adjustable = frozenset({"t5_tokens", "side"})
    kept_off = ("text_encoder_2",)
    half = torch.bfloat16
    values_of_text = False
    beside = ("pooled",)

    def __init__(self, parts: Mapping[str, Any], **about: Any) -> None:
        super().__init__(parts, **about)
        self.value_layers = self._marked(self.value_layers)
        self.key_layers = self._marked(self.key_layers)
        height, width = self.latent_shape[1:]
        self.scheduler.image_tokens, self.scheduler.even = height * width // 4, True

    def _marked(self, layers: tuple[Projection, ...]) -> tuple[Projection, ...]:
        """With how many tokens are the text's, where a layer serves the image's too."""
        return tuple(
            replace(one, tokens=self._length) if one.block.startswith("single") else one
            for one in layers
        )

    @property
    def _length(self) -> int:
        told = self.settings.get("t5_tokens", 512)
        return min(told, self.tokenizers["tokenizer_2"].model_max_length)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a latent, before it is packed."""
        side = self.settings.get("side", 128)
        return self.denoiser.config.in_channels // 4, side, side

    def _embed(self, texts: list[str]) -> Tensor:
        """T5's last states, and CLIP's pooled output."""
        states, _ = self._encoded("_2", texts, self._length, masked=False)
        ids = self._tokens("", texts).input_ids
        pooled = self.text_encoder["text_encoder"](ids).pooler_output
        return Conditioning.of(states, pooled=pooled)

    def _forward(
        self, latents: Tensor, timestep: Tensor, tokens: Tensor, **beside: Tensor
    ) -> Tensor:
        """Of 2 × 2 latents as one token each, as the denoiser takes them."""
        count, channels, height, width = latents.shape
        halved = latents.reshape(count, channels, height // 2, 2, width // 2, 2)
        packed = halved.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        output = super()._forward(packed, timestep, tokens, **beside)
        square = output.reshape(count, height // 2, width // 2, channels, 2, 2)
        return square.permute(0, 3, 1, 4, 2, 5).reshape(latents.shape)

    def _arguments(self, latents: Tensor, timesteps: Tensor, **beside: Tensor) -> dict[str, Any]:
        rows, columns = (torch.arange(side // 2.0) for side in self.latent_shape[1:])
        told = latents.new_full((len(latents),), DISTILLED)
        return {
            "timestep": timesteps / 1000,
            "pooled_projections": beside["pooled"].to(self.dtype),
            "img_ids": torch.cartesian_prod(torch.zeros(1), rows, columns).to(latents),
            "txt_ids": latents.new_zeros(self._length, 3),
            "guidance": told if self.denoiser.config.guidance_embeds else None,
        }
