"""`score` against the bare U-Net at Stable Diffusion's shapes, with random weights, on a GPU.

Scope: samples a second of both, at the same batch sizes and precision. Nothing is downloaded: the
time of a call does not depend on the weights.
Source: the shapes are those of Stable Diffusion 1.4 (section 4 of arXiv 2406.02366).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from nemo_kit.localization.differences import Differences
from nemo_kit.localization.scoring import Score
from nemo_kit.memory import BatchSize, out_of_memory
from nemo_kit.models import DiffusionModel, StableDiffusion
from nemo_kit.neurons import NeuronSet
from nemo_kit.settings import DetectionSettings, SimilaritySettings
from nemo_kit.similarity import noise_differences

SD14: Mapping[str, Any] = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
TOKENS = 77


def throughput(
    device: str = "cuda",
    dtype: torch.dtype = torch.float16,
    batches: Sequence[int] = (8, 16, 32, 64, 128),
    repeats: int = 3,
    config: Mapping[str, Any] = SD14,
    similarity: SimilaritySettings | None = None,
) -> pd.DataFrame:
    """Samples a second of the bare U-Net and of `score`, at each batch size that fits.

    Returns a frame with batch, bare, score (samples a second) and share (score over bare).
    Parameters: `repeats`, timed calls, of which the best counts; `config`, of the U-Net;
    `similarity`, by default Stable Diffusion's.
    Raises ValueError without a CUDA device where one is asked for, or where no batch fits.
    """
    place = torch.device(device)
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "throughput at Stable Diffusion's shapes needs a CUDA device, and torch sees none here"
        )
    model = random_model(place, dtype, config)
    rows = []
    for batch in batches:
        try:
            rows.append(_rates(model, batch, repeats, similarity))
        except Exception as error:
            if not out_of_memory(error):
                raise
            break
    if not rows:
        raise ValueError(f"batches: not even {batches[0]} samples fit into the memory of {device}")
    return pd.DataFrame(rows)


def random_model(
    device: torch.device, dtype: torch.dtype, config: Mapping[str, Any] = SD14
) -> DiffusionModel:
    """A denoiser of these shapes with random weights; it has no text encoder and no VAE."""
    from diffusers import DDIMScheduler, UNet2DConditionModel

    torch.manual_seed(0)
    with torch.device(device):
        denoiser = UNet2DConditionModel(**config).to(dtype)
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    return StableDiffusion(
        {
            "unet": denoiser,
            "text_encoder": nn.Identity(),
            "tokenizer": object(),
            "vae": nn.Identity(),
            "scheduler": scheduler,
        },
        name="random weights",
        device=device,
        dtype=dtype,
    )


def _rates(
    model: DiffusionModel, batch: int, repeats: int, similarity: SimilaritySettings | None
) -> dict[str, float]:
    noise = model.noise(range(1, batch + 1))
    text = torch.randn(1, TOKENS, model.denoiser.config.cross_attention_dim, device=model.device)
    draw = Differences(model, DetectionSettings())
    with torch.no_grad():
        unblocked = noise_differences(draw.predict(noise, text.expand(batch, -1, -1)), noise)
    widths = {layer.index: layer.width for layer in model.searched}

    @torch.no_grad()
    def bare() -> Tensor:
        return model.predict_noise(noise, draw.timestep, text.expand(batch, -1, -1)).cpu()

    def scored() -> None:
        compared = similarity or SimilaritySettings()
        score = Score(draw, noise, text, unblocked, compared, BatchSize(batch))
        score([NeuronSet({layer: range(width // 8) for layer, width in widths.items()})])

    rates = {
        name: batch / _best(call, repeats) for name, call in (("bare", bare), ("score", scored))
    }
    return {"batch": batch, **rates, "share": rates["score"] / rates["bare"]}


def _best(call: Callable[[], object], repeats: int) -> float:
    """The shortest of some calls' seconds, after one that is not timed."""
    call()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
