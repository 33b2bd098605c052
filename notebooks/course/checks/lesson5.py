"""Lesson 5, out-of-distribution neurons: activations, z-scores, candidates, the initial selection.

Source: Hintersdorf et al., "Finding NeMo" (NeurIPS 2024), section 3.2, Algorithms 2 and 3.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor

from checks.exercise import Exercise, Wrong, wrong

Score = Callable[[frozenset[int]], float]
Proposal = Callable[[float, int], frozenset[int]]
PATIENCE = 100  # scores; the loop needs 17 at most
ENDLESS = (
    "your loop doesn't end. θ has to fall inside of it, and it stops at θ = 1 even if the score is "
    "still above the threshold."
)


def _by_z(activation: Tensor, z: Tensor, theta: float, k: int) -> list[int]:
    return _union(z.abs() > theta, z.abs().topk(k).indices)


def _union(outlying: Tensor, largest: Tensor) -> list[int]:
    return sorted({*outlying.nonzero().flatten().tolist(), *largest.tolist()})


def _candidates(activation: Tensor, z: Tensor, theta: float, k: int) -> list[int]:
    return _union(z.abs() > theta, activation.topk(k).indices)


def _twice(activation: Tensor, z: Tensor, theta: float, k: int) -> list[int]:
    outlying = (z.abs() > theta).nonzero().flatten().tolist()
    return sorted([*outlying, *activation.topk(k).indices.tolist()])


def _one_sided(activation: Tensor, z: Tensor, theta: float, k: int) -> list[int]:
    return _union(z > theta, activation.topk(k).indices)


def _layer(rng: np.random.Generator) -> tuple[Tensor, Tensor, float, int]:
    """A layer with outliers on both sides; of its two largest activations one is an outlier."""
    z = torch.from_numpy(rng.normal(size=30)).float()
    activation = torch.from_numpy(rng.uniform(0, 1, 30)).float()
    places = rng.permutation(30)
    z[places[:2]], z[places[2:4]] = 6.0, -6.0
    activation[places[3:5]] = 3.0
    return activation, z, 4.0, 2


def _z(activation: Tensor, hold_out: Tensor, correction: int = 1) -> Tensor:
    distance = activation - hold_out.mean(dim=0)
    return torch.where(distance == 0, 0.0, distance / hold_out.std(dim=0, correction=correction))


def _hold_out(rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Activations of a prompt and of hold-out ones; the last neuron is the same for all."""
    hold_out = torch.from_numpy(rng.uniform(0.2, 2, (7, 9))).float()
    activation = torch.from_numpy(rng.uniform(0.2, 2, 9)).float()
    hold_out[:, -1] = activation[-1] = 0.5
    return activation, hold_out


def _widen(score: Score, propose: Proposal, threshold: float) -> tuple[float, int]:
    theta, k = 5.0, 0
    while score(propose(theta, k)) > threshold and theta > 1.0:
        theta, k = theta - 0.25, k + 1
    return theta, k


def _widen_theta(score: Score, propose: Proposal, threshold: float) -> tuple[float, int]:
    theta = 5.0
    while score(propose(theta, 0)) > threshold and theta > 1.0:
        theta -= 0.25
    return theta, 0


def _one_more(score: Score, propose: Proposal, threshold: float) -> tuple[float, int]:
    theta, k = _widen(score, propose, threshold)
    return max(theta - 0.25, 1.0), k + 1


def _unbounded(score: Score, propose: Proposal, threshold: float) -> tuple[float, int]:
    theta, k = 5.0, 0
    while score(propose(theta, k)) > threshold:
        theta, k = theta - 0.25, k + 1
    return theta, k


def _below_one(score: Score, propose: Proposal, threshold: float) -> tuple[float, int]:
    theta, k = 5.0, 0
    while score(propose(theta, k)) > threshold and theta >= 1.0:
        theta, k = theta - 0.25, k + 1
    return theta, k


def _patient(widen: Callable[..., Any]) -> Callable[..., Any]:
    """Stops a loop that scores without end."""

    def run(score: Score, propose: Proposal, threshold: float) -> Any:
        rounds = count(1)

        def counted(neurons: frozenset[int]) -> float:
            if next(rounds) > PATIENCE:
                raise Wrong(ENDLESS)
            return score(neurons)

        return widen(counted, propose, threshold)

    return run


def _world(rng: np.random.Generator) -> tuple[Score, Proposal, float]:
    """Neurons with a z each; five of them, in the tail, carry the copy."""
    z = np.sort(np.abs(rng.normal(0, 1.6, 60)))[::-1]
    needed = frozenset(rng.choice(np.arange(8, 25), 5, replace=False).tolist())
    activation = rng.permutation(60)

    def propose(theta: float, k: int) -> frozenset[int]:
        largest = np.argsort(activation)[::-1][:k]
        return frozenset(np.flatnonzero(z > theta).tolist()) | frozenset(largest.tolist())

    return lambda neurons: 1.0 - 0.18 * len(neurons & needed), propose, 0.4


def _always(level: float) -> tuple[Score, Proposal, float]:
    """A world where no neuron changes the score."""
    _, propose, threshold = _world(np.random.default_rng(0))
    return lambda neurons: level, propose, threshold


EXERCISES = {
    "5.1": Exercise(
        "the mean activation of each neuron",
        lambda values: values.abs().mean(dim=0),
        wrong(
            lambda values: values.mean(dim=0),
            "positive and negative tokens cancel: the absolute value is missing.",
            lambda values: values.mean(dim=0).abs(),
            "the order matters: first absolute values, then their mean over tokens.",
            lambda values: values.abs().mean(dim=1),
            "that is one number a token; a neuron is a column.",
        ),
        lambda rng: (torch.from_numpy(rng.normal(size=(6, 9))).float(),),
        "a tensor [width]",
    ),
    "5.2": Exercise(
        "z-scores against hold-out prompts",
        _z,
        wrong(
            lambda activation, hold_out: (activation - hold_out.mean(0)) / hold_out.std(0),
            "a neuron that never varies and is as ever gives 0/0: it is not unusual, so z is 0.",
            lambda activation, hold_out: _z(activation, hold_out, 0),
            "right but for the deviation: of a sample, so divide by the number minus one.",
            lambda activation, hold_out: _z(activation + hold_out.mean(0), hold_out),
            "how far from its usual value? The mean has to be taken off.",
            lambda activation, hold_out: (activation - hold_out.mean()) / hold_out.std(),
            "each neuron has its own mean and deviation: take them over the prompts only.",
        ),
        _hold_out,
        "a tensor [width]",
    ),
    "5.3": Exercise(
        "the candidates of one layer",
        _candidates,
        wrong(
            _one_sided,
            "a neuron far below its usual value is out of distribution too.",
            _by_z,
            "the k largest are taken by activation, not by z: they are there to catch neurons "
            "that are always loud.",
            _twice,
            "a neuron that is both unusual and among the largest is in your list twice.",
        ),
        _layer,
        "a sorted list of neuron numbers",
    ),
    "5.4": Exercise(
        "widen until the copy is gone",
        _widen,
        wrong(
            _widen_theta,
            "θ falls, but k stays 0: both move at each round.",
            _one_more,
            "yours takes one round more than needed: score the candidates before you widen.",
            _unbounded,
            ENDLESS,
            _below_one,
            "yours goes below θ = 1: at θ = 1 it has to stop, whatever the score.",
        ),
        _world,
        "a pair (θ, k)",
        harness=_patient,
        edges=(_always(0.9), _always(0.1)),
    ),
}
