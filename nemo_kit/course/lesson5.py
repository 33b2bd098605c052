"""Lesson 5, out-of-distribution neurons: activations, z-scores, candidates, the initial selection.

Source: Hintersdorf et al., "Finding NeMo" (NeurIPS 2024), section 3.2, Algorithms 2 and 3.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from nemo_kit.course.exercise import Exercise, Mistake

Score = Callable[[frozenset[int]], float]


def _by_z(activation: Tensor, z: Tensor, theta: float, k: int) -> list[int]:
    return _union(z.abs() > theta, z.abs().topk(k).indices)


def _union(outlying: Tensor, largest: Tensor) -> list[int]:
    return sorted({*outlying.nonzero().flatten().tolist(), *largest.tolist()})


def _candidates(activation: Tensor, z: Tensor, theta: float, k: int) -> list[int]:
    return _union(z.abs() > theta, activation.topk(k).indices)


def _one_sided(activation: Tensor, z: Tensor, theta: float, k: int) -> list[int]:
    return _union(z > theta, activation.topk(k).indices)


def _layer(rng: np.random.Generator) -> tuple[Tensor, Tensor, float, int]:
    """A layer with outliers on both sides, and large activations that are no outliers."""
    z = torch.from_numpy(rng.normal(size=30)).float()
    activation = torch.from_numpy(rng.uniform(0, 1, 30)).float()
    places = rng.permutation(30)
    z[places[:2]], z[places[2:4]] = 6.0, -6.0
    activation[places[4:6]] = 3.0
    return activation, z, 4.0, 2


def _widen(
    score: Score, propose: Callable[[float, int], frozenset[int]], threshold: float
) -> tuple[float, int]:
    theta, k = 5.0, 0
    while score(propose(theta, k)) > threshold and theta > 1.0:
        theta, k = theta - 0.25, k + 1
    return theta, k


def _widen_theta(score: Score, propose: Callable, threshold: float) -> tuple[float, int]:
    theta = 5.0
    while score(propose(theta, 0)) > threshold and theta > 1.0:
        theta -= 0.25
    return theta, 0


def _one_more(score: Score, propose: Callable, threshold: float) -> tuple[float, int]:
    theta, k = _widen(score, propose, threshold)
    return max(theta - 0.25, 1.0), k + 1


def _world(rng: np.random.Generator) -> tuple[Score, Callable, float]:
    """Neurons with a z each; five of them, in the tail, carry the copy."""
    z = np.sort(np.abs(rng.normal(0, 1.6, 60)))[::-1]
    needed = frozenset(rng.choice(np.arange(8, 25), 5, replace=False).tolist())
    activation = rng.permutation(60)

    def propose(theta: float, k: int) -> frozenset[int]:
        largest = np.argsort(activation)[::-1][:k]
        return frozenset(np.flatnonzero(z > theta).tolist()) | frozenset(largest.tolist())

    return lambda neurons: 1.0 - 0.18 * len(neurons & needed), propose, 0.4


EXERCISES = {
    "5.1": Exercise(
        "the mean activation of each neuron",
        lambda values: values.abs().mean(dim=0),
        (
            Mistake(
                lambda values: values.mean(dim=0),
                "positive and negative tokens cancel: the absolute value is missing.",
            ),
            Mistake(
                lambda values: values.mean(dim=0).abs(),
                "the order matters: first absolute values, then their mean over tokens.",
            ),
            Mistake(
                lambda values: values.abs().mean(dim=1),
                "that is one number a token; a neuron is a column.",
            ),
        ),
        lambda rng: (torch.from_numpy(rng.normal(size=(6, 9))).float(),),
        "a tensor [width]",
    ),
    "5.2": Exercise(
        "z-scores",
        lambda activation, mean, std: (activation - mean) / std,
        (
            Mistake(
                lambda activation, mean, std: (activation - mean) / std**2,
                "that divides by the variance; z counts standard deviations.",
            ),
            Mistake(
                lambda activation, mean, std: activation / std,
                "how far from its usual value? The mean has to be taken off.",
            ),
        ),
        lambda rng: tuple(torch.from_numpy(rng.uniform(0.2, 2, 9)).float() for _ in range(3)),
        "a tensor [width]",
    ),
    "5.3": Exercise(
        "the candidates of one layer",
        _candidates,
        (
            Mistake(
                _one_sided,
                "a neuron far below its usual value is out of distribution too.",
            ),
            Mistake(
                _by_z,
                "the k largest are taken by activation, not by z: they are there to catch neurons "
                "that are always loud.",
            ),
        ),
        _layer,
        "a sorted list of neuron numbers",
    ),
    "5.4": Exercise(
        "widen until the copy is gone",
        _widen,
        (
            Mistake(_widen_theta, "θ falls, but k stays 0: both move at each round."),
            Mistake(
                _one_more,
                "yours takes one round more than needed: score the candidates before you widen.",
            ),
        ),
        _world,
        "a pair (θ, k)",
    ),
}
