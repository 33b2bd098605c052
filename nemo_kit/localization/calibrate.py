"""Computes a model's calibration from hold-out prompts it does not memorize.

Scope: the threshold of the memorization score, and the statistics of the activations.
Source: "Finding NeMo" (arXiv 2406.02366), section 3.1 (mean + 1 standard deviation) and
Algorithm 2 (μ and σ of each neuron).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nemo_kit.calibration import ActivationStatistics, Calibration
from nemo_kit.checks import ROUNDING, check_seeds, check_texts
from nemo_kit.localization.candidates import text_activations
from nemo_kit.localization.detection import resolve, score_pairs, upper
from nemo_kit.localization.differences import Progress
from nemo_kit.settings import DetectionSettings
from nemo_kit.similarity import SimilaritySettings

if TYPE_CHECKING:
    from nemo_kit.models import DiffusionModel

VERSION = 1  # raised where results change (see nemo_kit.keys)
LEAST_SPREAD = 1e-4  # of scores, whose equal pairs differ from 1 by up to 3e-5 in float32


def calibrate(
    model: DiffusionModel,
    prompts: Sequence[str],
    seeds: Iterable[int] = range(1, 11),
    settings: DetectionSettings | None = None,
    similarity: SimilaritySettings | None = None,
    batch_size: int = 32,
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
    Source: section 3.1.
    """
    texts, numbers = check_texts(prompts), check_seeds(seeds, least=2, distinct=True)
    if len(texts) < 2:
        raise ValueError(f"prompts must hold at least 2 for a deviation, got {len(texts)}")
    detection, compared = resolve(model, settings, similarity)
    scored = score_pairs(
        model, texts, numbers, detection.for_calibration(), compared, batch_size, progress,
        stage="calibrate",
    )  # fmt: skip
    pairs = torch.stack([upper(pairs) for _, pairs in scored]).double()  # [prompts, pairs]
    mean, std = _moments(pairs, detection)
    return Calibration(
        mean=mean,
        std=std,
        threshold=mean + detection.deviations * std,
        statistics=_statistics(model, texts),
        similarity=compared,
        detection=detection,
        prompts=len(texts),
        source=f"calibrate({model.name!r}), {len(texts)} prompts",
        seeds=tuple(numbers),
    )


def _statistics(model: DiffusionModel, texts: Sequence[str]) -> ActivationStatistics:
    found = ActivationStatistics.from_activations(text_activations(model, texts))
    sides = zip(found.means, found.stds, strict=True)
    if all((std <= ROUNDING * mean).all() for mean, std in sides):
        raise ValueError(
            f"prompts: the {len(texts)} hold-out prompts have one and the same activations, so no "
            f"neuron could stand out; are they one text ({texts[0]!r:.40}), or is the text encoder "
            "without its weights?"
        )
    return found


def _moments(pairs: Tensor, detection: DetectionSettings) -> tuple[float, float]:
    """Mean and deviation of all pairwise scores, or of each prompt's maximum."""
    values = pairs.amax(dim=1) if detection.threshold_from == "maxima" else pairs.flatten()
    if len(values) < 2:
        raise ValueError("prompts and seeds give a single score; a deviation needs at least 2")
    mean, std = values.mean().item(), values.std().item()
    if std <= LEAST_SPREAD:
        raise ValueError(
            f"prompts: all their scores are {mean:.6f} (deviation {std:.1e}), no spread to set a "
            "threshold by; give different hold-out prompts, or look whether every prediction of "
            "this model is alike (schedule, prediction_type, timestep_index, weights)"
        )
    return mean, std
