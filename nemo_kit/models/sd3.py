"""Stable Diffusion 3 and 3.5: joint attention under a rectified flow; and the embedded `lab-flow`.

Text and image tokens attend to all of both, each with projections of its own. Neurons are the
outputs of the text's value projection, `add_v_proj`, which reads the text stream behind a norm
modulated by timestep and pooled text, and from the second block on has seen the image: so values
are read in a denoiser call. All blocks are searched: there is no bottleneck as in a U-Net, and no
study says which of them memorize.
Source: Esser et al., "Scaling Rectified Flow Transformers" (arXiv 2403.03206).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from nemo_kit.models.base import DiffusionModel
from nemo_kit.models.conditioning import Conditioning

VERSION = 1  # raised where results change (see nemo_kit.keys)
SHARED = "_shared_with"  # in model_index.json: of which embedded model the other parts are
_T5_TOKENS = 256


class StableDiffusion3(DiffusionModel):
    """Stable Diffusion 3 or 3.5, run by diffusers' Euler steps; T5 may be left out, as usual.

    Setting: `t5_tokens`, how many tokens of T5 (zeros without it) follow CLIP's; by default 256.
    """

    pipelines = ("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline")
    optional = frozenset({"text_encoder_3", "tokenizer_3"})
    fits: ClassVar[Mapping[str, str]] = {
        "out_channels": "vae.latent_channels",
        "pooled_projection_dim": "text_encoder.projection_dim + text_encoder_2.projection_dim",
        "joint_attention_dim": "text_encoder_3.d_model",
    }
    blocks = ("transformer_blocks.{}.attn.add_v_proj",)
    flow = True
    adjustable = frozenset({"t5_tokens"})
    kept_off = ("text_encoder_3",)
    values_of_text = False
    beside = ("pooled",)

    @classmethod
    def open(cls, folder: Path, index: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
        """The parts; `lab-flow`'s folder has those alone that it doesn't share with `lab`."""
        if index.get(SHARED) != "lab":
            return super().open(folder, index, dtype)
        from nemo_kit.lab import flow

        own = {name: index[name] for name in ("transformer", "scheduler")}
        found = super().open(folder, own, dtype)
        width = found["transformer"].config.pooled_projection_dim
        return {**found, **flow.parts(width, dtype)}

    @classmethod
    def check(cls, parts: Mapping[str, Any]) -> None:
        """Raise ValueError where the parts don't fit one another or the family."""
        super().check(parts)
        joint = parts["transformer"].config.joint_attention_dim
        if sum(parts[f"text_encoder{n}"].config.hidden_size for n in ("", "_2")) > joint:
            raise ValueError(f"transformer: joint_attention_dim = {joint} is less than CLIP gives")

    def __init__(self, parts: Mapping[str, Any], **about: Any) -> None:
        super().__init__(parts, **about)
        tokens = self.latent_shape[1:]
        patch = self.denoiser.config.patch_size
        self.scheduler.image_tokens = tokens[0] * tokens[1] // patch**2

    def _embed(self, texts: list[str]) -> Tensor:
        """Both CLIPs' states side by side, filled up to T5's width, then T5's tokens below."""
        states, pooled = self._clips(texts)
        width = self.denoiser.config.joint_attention_dim
        states = F.pad(states, (0, width - states.shape[-1]))
        tokens = torch.cat([states, self._t5(texts, states)], dim=1)
        return Conditioning.of(tokens, pooled=torch.cat(pooled, dim=-1))

    def _t5(self, texts: list[str], like: Tensor) -> Tensor:
        length = self.settings.get("t5_tokens", _T5_TOKENS)
        if "text_encoder_3" not in self.text_encoder or not length:
            return like.new_zeros(len(texts), length, like.shape[-1])
        length = min(length, self.tokenizers["tokenizer_3"].model_max_length)
        return self._encoded("_3", texts, length, masked=False)[0].to(like)

    def _arguments(self, latents: Tensor, timesteps: Tensor, **beside: Tensor) -> dict[str, Any]:
        return {"pooled_projections": beside["pooled"].to(self.dtype)}
