"""What `lab-flow` shares with `lab`: autoencoder, tokenizer and text encoder, which are not stored
twice."""

import copy
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from nemo_kit.lab import HERE, MODEL

FOLDER = HERE / "flow"


def parts(pooled: int, dtype: torch.dtype) -> dict[str, Any]:
    """`lab`'s parts as a `StableDiffusion3Pipeline` takes them, on the CPU.

    Parameters: `pooled`, width of the transformer's pooled text; `dtype`, of the weights.
    """
    return as_parts(
        AutoencoderKL.from_pretrained(MODEL / "vae", torch_dtype=dtype),
        CLIPTextModel.from_pretrained(MODEL / "text_encoder", dtype=dtype),
        CLIPTokenizer.from_pretrained(MODEL / "tokenizer"),
        pooled,
    )


def as_parts(
    vae: AutoencoderKL, text: CLIPTextModel, tokenizer: CLIPTokenizer, pooled: int
) -> dict[str, Any]:
    """These parts as a `StableDiffusion3Pipeline` takes them: one text encoder in both places.

    It projects everything to nothing: pooled text would bring the prompt into every layer's
    modulation, around the values, and `lab-flow` was trained without.
    """
    config = copy.deepcopy(text.config)
    config.projection_dim = pooled // 2
    encoder = CLIPTextModelWithProjection(config).to(text.dtype).eval()
    encoder.text_model.load_state_dict(text.state_dict())
    nn.init.zeros_(encoder.text_projection.weight)
    vae.register_to_config(shift_factor=0.0)
    twice = {"text_encoder": encoder, "text_encoder_2": encoder}
    return {"vae": vae, "tokenizer": tokenizer, "tokenizer_2": tokenizer} | twice
