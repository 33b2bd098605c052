"""Lesson 4, the memorization score from a single step: noise differences, SSIM, threshold, AUROC.

Source: Hintersdorf et al., "Finding NeMo" (NeurIPS 2024), section 3.1, equation 4 and Algorithm 1;
Wang et al., "Image quality assessment" (IEEE TIP 2004).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from checks.exercise import Exercise, wrong


def _rescale(delta: Tensor, dims: tuple[int, ...] = (2, 3)) -> Tensor:
    low, high = delta.amin(dims, keepdim=True), delta.amax(dims, keepdim=True)
    return (delta - low) / (high - low)


def _ssim(x: np.ndarray, y: np.ndarray, double: float = 2.0, c2: float = 0.03**2) -> float:
    c1 = 0.01**2
    covariance = ((x - x.mean()) * (y - y.mean())).mean()
    above = (2 * x.mean() * y.mean() + c1) * (double * covariance + c2)
    below = (x.mean() ** 2 + y.mean() ** 2 + c1) * (x.var() + y.var() + c2)
    return float(above / below)


def _windows(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    x = rng.uniform(0, 1, 25)
    return x, np.clip(x + rng.normal(0, 0.2, 25), 0, 1)


def _kept(pairs: np.ndarray, threshold: float) -> np.ndarray:
    return np.nanmax(pairs, axis=1) > threshold


def _pairs(rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Scores where best, mean and verdict with the diagonal all tell other seeds."""
    scores = np.triu(rng.uniform(0.0, 0.4, (8, 8)), 1)
    scores[0, 1] = scores[2, 3] = 0.9
    scores = scores + scores.T
    np.fill_diagonal(scores, np.nan)
    return scores, 0.5


def _with_diagonal(pairs: np.ndarray, threshold: float) -> np.ndarray:
    return np.nan_to_num(pairs, nan=1.0).max(axis=1) > threshold


def _auroc(memorized: np.ndarray, others: np.ndarray) -> float:
    gaps = memorized[:, None] - others[None]
    return float((gaps > 0).mean() + 0.5 * (gaps == 0).mean())


def _groups(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Scores in tenths, so that some are equal."""
    return rng.integers(3, 10, 12) / 10, rng.integers(0, 7, 15) / 10


EXERCISES = {
    "4.1": Exercise(
        "scale noise differences to [0, 1]",
        _rescale,
        wrong(
            lambda delta: _rescale(delta, (0, 1, 2, 3)),
            "one range for the whole batch lets a seed's score depend on the other seeds.",
            lambda delta: _rescale(delta, (1, 2, 3)),
            "each channel has its own range in Algorithm 1; yours share one.",
        ),
        lambda rng: (torch.from_numpy(rng.normal(size=(3, 4, 5, 5))).float(),),
        "a tensor [N, C, H, W] in [0, 1]",
    ),
    "4.2": Exercise(
        "SSIM of one window",
        _ssim,
        wrong(
            lambda x, y: _ssim(x, y, double=1.0),
            "equal windows must give 1: look at the factor of the covariance.",
            lambda x, y: _ssim(x, y, c2=0.0),
            "the constants are missing in one place: flat windows would divide by nearly zero.",
        ),
        _windows,
        "one number in [-1, 1]",
    ),
    "4.3": Exercise(
        "which seeds memorize",
        _kept,
        wrong(
            lambda pairs, threshold: np.nanmean(pairs, axis=1) > threshold,
            "a seed is kept for its best partner, not for its mean over all partners.",
            _with_diagonal,
            "every seed is kept: each was compared with itself. What about the diagonal?",
        ),
        _pairs,
        "an array of booleans [seeds]",
    ),
    "4.4": Exercise(
        "a threshold from prompts that are not memorized",
        lambda pairs: float(pairs.max(axis=1).mean() + pairs.max(axis=1).std(ddof=1)),
        wrong(
            lambda pairs: float(pairs.mean() + pairs.std(ddof=1)),
            "that takes all pairs alike; here each prompt counts once, with its largest score.",
            lambda pairs: float(pairs.max(axis=1).mean()),
            "the mean alone would flag half of the prompts it was computed on.",
            lambda pairs: float(pairs.max(axis=1).mean() + pairs.max(axis=1).std()),
            "right but for the deviation: of a sample, so divide by the number minus one.",
        ),
        lambda rng: (rng.uniform(0, 0.6, (12, 45)),),
        "one number",
    ),
    "4.5": Exercise(
        "the area under the ROC curve",
        _auroc,
        wrong(
            lambda memorized, others: _auroc(others, memorized),
            "yours is the chance that an ordinary prompt scores higher; turn it round.",
            lambda memorized, others: float((memorized[:, None] > others[None]).mean()),
            "nearly: what does a tie count?",
        ),
        _groups,
        "one number in [0, 1]",
    ),
}
