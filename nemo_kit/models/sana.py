"""Sana: a linear transformer with cross-attention to Gemma's tokens, under a rectified flow.

Values follow from the text alone, behind the caption projection and its norm; padding is masked.
All blocks are searched: there is no bottleneck as in a U-Net, and no study says which memorize.
Source: Xie et al., "SANA" (arXiv 2410.10629).
"""

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from nemo_kit.models.base import DiffusionModel
from nemo_kit.models.conditioning import Conditioning

VERSION = 1  # raised where results change (see nemo_kit.keys)
_TOKENS = 300


class Sana(DiffusionModel):
    """Sana, run by diffusers' Euler steps at the shift of its own solver.

    A prompt follows the instruction that the pipeline puts before it, the empty one none.
    """

    pipelines = ("SanaPipeline",)
    foreign: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "transformer": {"guidance_embeds": "guidance as an input (Sana-Sprint)"}
    }
    fits: ClassVar[Mapping[str, str]] = {
        "out_channels": "vae.latent_channels",
        "caption_channels": "text_encoder.hidden_size",
    }
    blocks = ("transformer_blocks.{}.attn2.to_v",)
    flow = True
    usual_guidance = 4.5
    beside = ("mask",)
    kept_off = ("text_encoder",)
    half = torch.bfloat16

    @classmethod
    def schedule(cls, config: Mapping[str, Any], named: str | None) -> Any:
        """A rectified flow's; DPM-Solver on such levels walks the same."""
        if config.get("use_flow_sigmas") and config.get("prediction_type") == "flow_prediction":
            return super().schedule({"shift": config.get("flow_shift", 1.0)}, None)
        return super().schedule(config, named)

    def __init__(self, parts: Mapping[str, Any], **about: Any) -> None:
        from diffusers import SanaPipeline

        super().__init__(parts, **about)
        self.tokenizer.padding_side = "right"
        told = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"]
        self.instruction = "\n".join(told.default)

    def _embed(self, texts: list[str]) -> Tensor:
        """Gemma's last states at BOS and the last tokens; texts are lowered, as in the pipeline."""
        plain = [text.lower().strip() for text in texts]
        told = [number for number, text in enumerate(plain) if text]
        empty = [number for number, text in enumerate(plain) if not text]
        groups = [(told, self.instruction), (empty, "")]
        found = [self._states([before + plain[n] for n in rows], before) for rows, before in groups
                 if rows]  # fmt: skip
        return torch.cat(found)[torch.tensor([*told, *empty]).argsort()]

    def _states(self, texts: list[str], before: str) -> Tensor:
        length = before and len(self.tokenizer.encode(before)) - 2
        states, mask = self._encoded("", texts, _TOKENS + (length or 0))
        kept = [0, *range(1 - _TOKENS, 0)]
        return Conditioning.of(states[:, kept].to(self.dtype), mask=mask[:, kept])

    def _value_inputs(self, embeddings: Tensor) -> Tensor:
        projected = self.denoiser.caption_projection(super()._value_inputs(embeddings))
        return self.denoiser.caption_norm(projected)

    def _arguments(self, latents: Tensor, timesteps: Tensor, **beside: Tensor) -> dict[str, Any]:
        scaled = timesteps * self.denoiser.config.timestep_scale
        return {"encoder_attention_mask": beside["mask"], "timestep": scaled}
