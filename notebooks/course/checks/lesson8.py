"""Lesson 8, is memorization local? Ground truth, dose and response, stability, the critics.

Source: Hintersdorf et al., "Finding NeMo" (NeurIPS 2024); Kowalczuk et al., "Finding Dori:
Memorization in Text-to-Image Diffusion Models Is Not Local" (arXiv 2507.16880).
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

from checks.exercise import Exercise, wrong


def _quality(found: set[int], truth: set[int]) -> tuple[float, float]:
    hit = len(found & truth)
    return hit / len(found), hit / len(truth)


def _crossing(rates: np.ndarray, shares: np.ndarray, scale: object = np.log) -> float:
    """Where a rising line through (scale(rate), share) reaches one half."""
    place = int(np.flatnonzero(shares >= 0.5)[0])
    low, high = scale(rates[place - 1]), scale(rates[place])
    part = (0.5 - shares[place - 1]) / (shares[place] - shares[place - 1])
    reached = low + part * (high - low)
    return float(np.exp(reached)) if scale is np.log else float(reached)


def _response(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    rates = np.array([1.0, 6.0, 21.0, 63.0, 211.0, 634.0])
    return rates, np.sort(np.append(rng.uniform(0.0, 0.45, 3), rng.uniform(0.55, 1.0, 3)))


def _jaccard(sets: list[set[int]]) -> float:
    return float(np.mean([len(a & b) / len(a | b) for a, b in combinations(sets, 2)]))


def _all_at_once(sets: list[set[int]]) -> float:
    return len(set.intersection(*sets)) / len(set.union(*sets))


def _with_itself(sets: list[set[int]]) -> float:
    return float(np.mean([len(a & b) / len(a | b) for a in sets for b in sets]))


def _sets(rng: np.random.Generator) -> tuple[list[set[int]]]:
    return ([{0, *rng.choice(12, 6, replace=False).tolist()} for _ in range(4)],)


def _two_sets(rng: np.random.Generator) -> tuple[set[int], set[int]]:
    return {0, 1, *rng.choice(30, 8, replace=False).tolist()}, {0, 1, 2, 3}


def _step(y: np.ndarray, a: np.ndarray, target: np.ndarray, rate: float) -> np.ndarray:
    return y - rate * _gradient(y, a, target)


def _gradient(y: np.ndarray, a: np.ndarray, target: np.ndarray) -> np.ndarray:
    return 2 * a.T @ (a @ y - target) / len(target)


def _verdict(
    off: np.ndarray, searched: np.ndarray, control: np.ndarray, of: object = np.median
) -> str:
    if of(off) > 0.7:
        return "never gone"
    if of(control) > 0.7:
        return "no evidence"
    return "hidden" if of(searched) > 0.7 else "not found"


def _searches(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return rng.uniform(0, 0.5, 3), rng.uniform(0.75, 1, 3), rng.uniform(0, 0.5, 3)


EXERCISES = {
    "8.1": Exercise(
        "precision and recall against planted neurons",
        _quality,
        wrong(
            lambda found, truth: _quality(truth, found),
            "the two have changed places: precision is the share of what was found.",
            lambda found, truth: (len(found & truth) / len(found | truth),) * 2,
            "that is the Jaccard index; precision and recall have denominators of their own.",
        ),
        _two_sets,
        "a pair (precision, recall)",
    ),
    "8.2": Exercise(
        "how often until half of the pictures are copies",
        _crossing,
        wrong(
            lambda rates, shares: _crossing(rates, shares, float),
            "the rates grow by factors: interpolate between their logarithms.",
            lambda rates, shares: float(rates[np.flatnonzero(shares >= 0.5)[0]]),
            "that is the first rung above one half; the crossing lies below it.",
        ),
        _response,
        "one number, in presentations",
    ),
    "8.3": Exercise(
        "how alike the sets of different seeds are",
        _jaccard,
        wrong(
            _all_at_once,
            "one seed with a different set would spoil it all: compare the sets in pairs.",
            _with_itself,
            "each set is compared with itself too, which is always 1.",
        ),
        _sets,
        "one number in [0, 1]",
    ),
    "8.4": Exercise(
        "one step of a search for a prompt that brings the copy back",
        _step,
        wrong(
            lambda y, a, target, rate: y + rate * _gradient(y, a, target),
            "uphill: the error grows.",
            lambda y, a, target, rate: y - rate * a.T @ (a @ y - target),
            "the direction is right, the length is not: differentiate the *mean* of the *squares*.",
        ),
        lambda rng: (rng.normal(size=5), rng.normal(size=(8, 5)), rng.normal(size=8), 0.1),
        "a vector like y",
    ),
    "8.5": Exercise(
        "the verdict of a search with its control",
        _verdict,
        wrong(
            lambda off, searched, control: _verdict(off, searched, np.zeros(3)),
            "the control is not looked at: a search that draws any picture proves nothing.",
            lambda off, searched, control: _verdict(np.zeros(3), searched, control),
            "where the copy was never gone, there is nothing to bring back: look at `off` first.",
            lambda off, searched, control: _verdict(off, searched, control, np.max),
            "one seed above 0.7 is not the rule here: take the median over seeds.",
        ),
        _searches,
        "one of the four words",
        edges=(
            (np.array([0.9, 0.8, 0.95]), np.array([0.9, 0.9, 0.9]), np.array([0.1, 0.2, 0.1])),
            (np.array([0.2, 0.1, 0.3]), np.array([0.9, 0.8, 0.9]), np.array([0.8, 0.9, 0.9])),
            (np.array([0.2, 0.1, 0.3]), np.array([0.2, 0.9, 0.1]), np.array([0.1, 0.0, 0.3])),
        ),
    ),
}
