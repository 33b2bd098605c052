"""The memorization score: how alike the noise differences of different seeds are.

Scope: scores of prompts, the verdict against a threshold, the seeds that memorize; and the scores
of hold-out prompts, by which a model is calibrated.
Source: "Finding NeMo" (arXiv 2406.02366), section 3.1 and Algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nemo_kit.calibration import ActivationStatistics, Calibration, check_threshold, resolve
from nemo_kit.checks import check_seeds, check_texts
from nemo_kit.localization.candidates import text_activations
from nemo_kit.localization.differences import AT_ONCE, Differences, Progress
from nemo_kit.memory import BatchSize
from nemo_kit.models.base import DiffusionModel
from nemo_kit.settings import DetectionSettings, SimilaritySettings
from nemo_kit.similarity import pairwise

if TYPE_CHECKING:
    import pandas as pd

VERSION = 2  # raised where results change (see nemo_kit.keys)
LEAST_SPREAD = 1e-4  # of scores, whose equal pairs differ from 1 by up to 3e-5 in float32


def detect(
    model: DiffusionModel,
    prompts: str | Sequence[str],
    seeds: Iterable[int] = range(1, 11),
    threshold: float | None = None,
    settings: DetectionSettings | None = None,
    similarity: SimilaritySettings | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Tell which prompts the model memorizes, from one prediction a seed.

    Returns a frame, one row a prompt: prompt, score (the largest pairwise similarity, in [0, 1]
    for MS-SSIM), flagged (score above the threshold), kept_seeds (list: seeds whose own best
    pair is above it), mean_score (mean over pairs), threshold, pairwise (list: every pair i < j).
    Parameters: `threshold`, `settings`, `similarity`, by default the model's calibration's;
    `progress`, called with (stage, done, total).
    Raises TypeError or ValueError for bad prompts or seeds, and without any threshold,
    UninformativeError where the model's predictions can't tell prompts apart.
    Source: Algorithm 1; default: the code's timesteps[1] on the unchanged x_T and MS-SSIM, which
    the published threshold 0.428 belongs to.
    """
    import pandas as pd

    detection, compared = resolve(model.calibration, settings, similarity)
    limit = check_threshold(model, threshold, detection, compared)
    numbers = check_seeds(seeds, least=2, distinct=True)
    scored = score_pairs(model, prompts, numbers, detection, compared, progress)
    rows = []
    for prompt, pairs in scored:
        scores, mask = upper(pairs), kept(pairs, limit)
        rows.append(
            {
                "prompt": prompt,
                "score": scores.max().item(),
                "flagged": bool(mask.any()),
                "kept_seeds": [seed for seed, keep in zip(numbers, mask, strict=True) if keep],
                "mean_score": scores.mean().item(),
                "threshold": limit,
                "pairwise": scores.tolist(),
            }
        )
    return pd.DataFrame(rows)


def calibrate(
    model: DiffusionModel,
    prompts: Sequence[str],
    seeds: Iterable[int] = range(1, 11),
    settings: DetectionSettings | None = None,
    similarity: SimilaritySettings | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Score hold-out prompts and collect their activations.

    Returns a `Calibration`; it is not attached to the model: `model.calibration = …` does.
    Parameters: `prompts`, at least 2 that the model does not memorize (the paper: 50,000);
    `settings`, by default unguided, with the mean over all pairwise scores (the released code's
    side of differences 1 and 4, the text's of 3); `similarity`, by default Stable Diffusion's.
    Raises TypeError or ValueError for bad prompts and seeds, latents too small to compare, and
    scores or activations that do not vary, UninformativeError where the model's predictions can't
    tell prompts apart.
    Source: section 3.1 (mean + 1 standard deviation of all pairwise scores, or of each prompt's
    maximum: difference 4), Algorithm 2 (μ and σ of each neuron).
    """
    texts, numbers = check_texts(prompts), check_seeds(seeds, least=2, distinct=True)
    if len(texts) < 2:
        raise ValueError(f"prompts must hold at least 2 for a deviation, got {len(texts)}")
    detection, compared = resolve(model.calibration, settings, similarity)
    drawn = detection.for_calibration()
    scored = score_pairs(model, texts, numbers, drawn, compared, progress, "calibrate")
    pairs = torch.stack([upper(one) for _, one in scored])  # [prompts, pairs]
    maxima = detection.threshold_from == "maxima"
    values = (pairs.amax(dim=1) if maxima else pairs.flatten()).double()
    mean, std = values.mean().item(), values.std().item()
    if std <= LEAST_SPREAD:
        raise ValueError(
            f"prompts: all their scores are {mean:.6f} (deviation {std:.1e}), no spread to set "
            "a threshold by; give different hold-out prompts, or look whether every prediction "
            "of this model is alike (schedule, prediction_type, timestep_index, weights)"
        )
    return Calibration(
        mean=mean,
        std=std,
        threshold=mean + detection.deviations * std,
        statistics=ActivationStatistics.from_activations(text_activations(model, texts)),
        similarity=compared,
        detection=detection,
        prompts=len(texts),
        source=f"calibrate({model.name!r}), {len(texts)} prompts",
        seeds=tuple(numbers),
    )


def score_pairs(
    model: DiffusionModel,
    prompts: str | Sequence[str],
    seeds: Sequence[int],
    detection: DetectionSettings,
    similarity: SimilaritySettings,
    progress: Progress | None = None,
    stage: str = "detect",
) -> Iterator[tuple[str, Tensor]]:
    """(prompt, [seeds, seeds] similarities) of each prompt, in order; the diagonal is NaN."""
    texts = check_texts(prompts)
    similarity.check(*model.latent_shape[1:])
    draw, noise = Differences(model, detection), model.noise(seeds, detection.noise)
    batch, at_once = BatchSize(AT_ONCE), max(1, AT_ONCE // len(seeds))
    for start in range(0, len(texts), at_once):
        group = texts[start : start + at_once]
        embeddings = model.embed(group).repeat_interleave(len(seeds), dim=0)
        drawn = draw.in_batches(noise.repeat(len(group), 1, 1, 1), embeddings, None, batch)
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
