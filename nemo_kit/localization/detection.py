"""The memorization score: how alike the noise differences of different seeds are.

Scope: scores of prompts, the verdict against a threshold, the seeds that memorize.
Source: "Finding NeMo" (arXiv 2406.02366), section 3.1 and Algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nemo_kit.checks import check_number, check_seeds, check_texts, check_whole
from nemo_kit.initial_noise import initial_noise
from nemo_kit.localization.differences import Differences, Progress, detection_settings
from nemo_kit.settings import DetectionSettings
from nemo_kit.similarity import SimilaritySettings, pairwise

if TYPE_CHECKING:
    import pandas as pd

    from nemo_kit.models import DiffusionModel

VERSION = 1  # raised where results change (see nemo_kit.keys)


def detect(
    model: DiffusionModel,
    prompts: str | Sequence[str],
    seeds: Iterable[int] = range(1, 11),
    threshold: float | None = None,
    settings: DetectionSettings | None = None,
    similarity: SimilaritySettings | None = None,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Tell which prompts the model memorizes, from one prediction a seed.

    Returns a frame, one row a prompt: prompt, score (the largest pairwise similarity, in [0, 1]
    for MS-SSIM), memorized (score above the threshold), kept_seeds (list: seeds whose own best
    pair is above it), mean_score (mean over pairs), threshold, pairwise (list: every pair i < j).
    Parameters: `threshold`, `settings`, `similarity`, by default the model's calibration's;
    `batch_size`, denoiser samples a call; `progress`, called with (stage, done, total).
    Raises TypeError or ValueError for bad prompts or seeds, and without any threshold,
    UninformativeError where the model's predictions can't tell prompts apart.
    Source: Algorithm 1; default: the code's timesteps[1] on the unchanged x_T and MS-SSIM, which
    the published threshold 0.428 belongs to.
    """
    import pandas as pd

    detection, compared = resolve(model, settings, similarity)
    limit = check_threshold(model, threshold, detection, compared)
    numbers = check_seeds(seeds, least=2, distinct=True)
    scored = score_pairs(model, prompts, numbers, detection, compared, batch_size, progress)
    return pd.DataFrame([_row(prompt, pairs, numbers, limit) for prompt, pairs in scored])


def score_pairs(
    model: DiffusionModel,
    prompts: str | Sequence[str],
    seeds: Sequence[int],
    detection: DetectionSettings,
    similarity: SimilaritySettings,
    batch_size: int = 32,
    progress: Progress | None = None,
    stage: str = "detect",
) -> Iterator[tuple[str, Tensor]]:
    """(prompt, [seeds, seeds] similarities) of each prompt, in order; the diagonal is NaN."""
    texts = check_texts(prompts)
    check_whole("batch_size", batch_size, 1)
    similarity.check(*model.latent_shape[1:])
    draw, noise = Differences(model, detection), initial_noise(model, seeds, detection.noise)
    at_once = max(1, batch_size // len(seeds))
    for start in range(0, len(texts), at_once):
        group = texts[start : start + at_once]
        embeddings = model.embed(group).repeat_interleave(len(seeds), dim=0)
        drawn = draw.in_batches(noise.repeat(len(group), 1, 1, 1), embeddings, None, batch_size)
        for text, differences in zip(group, drawn.split(len(seeds)), strict=True):
            yield text, pairwise(differences, similarity).cpu()
        if progress:
            progress(stage, start + len(group), len(texts))


def kept(pairs: Tensor, threshold: float) -> Tensor:
    """[seeds] bool: which seeds' best pair is above the threshold.

    Source: Algorithm 1: the others do not memorize and are left out.
    """
    return pairs.nan_to_num(nan=-math.inf).amax(dim=1) > threshold


def upper(pairs: Tensor) -> Tensor:
    """[seeds · (seeds − 1) / 2]: the score of every pair i < j."""
    first, second = torch.triu_indices(len(pairs), len(pairs), offset=1)
    return pairs[first, second]


def _row(prompt: str, pairs: Tensor, seeds: Sequence[int], threshold: float) -> dict[str, Any]:
    scores, mask = upper(pairs), kept(pairs, threshold)
    return {
        "prompt": prompt,
        "score": scores.max().item(),
        "memorized": bool(mask.any()),
        "kept_seeds": [seed for seed, keep in zip(seeds, mask.tolist(), strict=True) if keep],
        "mean_score": scores.mean().item(),
        "threshold": threshold,
        "pairwise": scores.tolist(),
    }


def resolve(
    model: DiffusionModel,
    detection: DetectionSettings | None,
    similarity: SimilaritySettings | None,
) -> tuple[DetectionSettings, SimilaritySettings]:
    """What was given, else what the model was calibrated with, else Stable Diffusion's."""
    own = model.calibration.similarity if model.calibration else SimilaritySettings.sd()
    return detection or detection_settings(model), similarity or own


def check_threshold(
    model: DiffusionModel,
    threshold: float | None,
    detection: DetectionSettings,
    similarity: SimilaritySettings,
) -> float:
    """The threshold that holds for these settings.

    Raises ValueError where none was given and the model's own is missing or belongs to other
    settings.
    """
    if threshold is not None:
        check_number("threshold", threshold)
        return float(threshold)
    own = model.calibration
    if own is None:
        raise ValueError(
            f"threshold: the model {model.name!r} has none; give threshold=…, or set "
            "model.calibration = calibrate(model, hold_out_prompts)"
        )
    if (own.detection, own.similarity) != (detection, similarity):
        raise ValueError(
            f"threshold: the model's {own.threshold:.3f} was calibrated with {own.detection} and "
            f"{own.similarity}; give threshold=… or calibrate with your settings"
        )
    return own.threshold
