"""Lesson 7, mitigation and its price: controls, robust numbers, and the baselines.

Source: Hintersdorf et al., "Finding NeMo" (NeurIPS 2024), section 4; Ren et al., "Unveiling and
Mitigating Memorization" (ECCV 2024), attention scaling; Wen et al., "Detecting, Explaining, and
Mitigating Memorization" (ICLR 2024), the norm of the text-conditional noise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from checks.exercise import Exercise, wrong


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _deviation(values: np.ndarray) -> float:
    return float(np.median(np.abs(values - np.median(values))))


def _draw(width: int, taken: list[int], count: int, rng: np.random.Generator) -> list[int]:
    free = np.setdiff1d(np.arange(width), taken)
    return rng.choice(free, count, replace=False).tolist()


def _judged(draw: Callable[..., Any]) -> Callable[..., Any]:
    """What must hold for a random draw: as many, all different, none taken, none outside, others
    from another generator, the same again from the same one.
    """

    def run(width: int, taken: list[int], count: int, seed: int) -> Any:
        def drawn_from(seed: int, count: int) -> Any:
            drawn = draw(width, list(taken), count, np.random.default_rng(seed))
            return drawn if drawn is None or drawn is ... else [int(n) for n in drawn]

        drawn = drawn_from(seed, count)
        if drawn is None or drawn is ...:
            return drawn
        few, again = ([drawn_from(s, 3) for s in range(seed, seed + 5)] for _ in range(2))
        return (
            len(drawn) == count,
            len(set(drawn)) == len(drawn),
            not set(drawn) & set(taken),
            all(0 <= n < width for n in drawn),
            len(set(map(frozenset, few))) > 1,
            few == again,
        )

    return run


def _scaled(logits: Tensor, factor: float) -> Tensor:
    changed = logits.clone()
    changed[:, 0] *= factor
    return changed.softmax(dim=1)


def _after(logits: Tensor, factor: float) -> Tensor:
    weights = logits.softmax(dim=1)
    weights[:, 0] *= factor
    return weights / weights.sum(dim=1, keepdim=True)


EXERCISES = {
    "7.1": Exercise(
        "random neurons as a control",
        _draw,
        wrong(
            lambda width, taken, count, rng: rng.choice(width, count, replace=False).tolist(),
            "some of yours are memorization neurons: a control must not hold any.",
            lambda width, taken, count, rng: rng.choice(
                np.setdiff1d(np.arange(width), taken), count
            ).tolist(),
            "some neuron is drawn twice, so fewer are switched off than in the experiment.",
            lambda width, taken, count, rng: np.setdiff1d(np.arange(width), taken)[:count],
            "these are the same neurons whatever the generator: nothing is drawn.",
            lambda width, taken, count, rng: np.random.default_rng().choice(
                np.setdiff1d(np.arange(width), taken), count, replace=False
            ),
            "your draw can't be repeated: use the generator that you are given, `rng`.",
        ),
        lambda rng: (24, list(range(0, 24, 2)), 11, int(rng.integers(1000))),
        "a list of neuron numbers",
        harness=_judged,
    ),
    "7.2": Exercise(
        "SSCD_gen",
        lambda mitigated, plain: float(np.median((mitigated * plain).sum(axis=1))),
        wrong(
            lambda mitigated, plain: float(np.median(mitigated @ plain.T)),
            "pictures of different seeds are compared too; only equal seeds belong together.",
            lambda mitigated, plain: float(np.mean((mitigated * plain).sum(axis=1))),
            "the pairs are right; over the seeds the paper takes the median.",
        ),
        lambda rng: (_unit(rng.normal(size=(7, 5))), _unit(rng.normal(size=(7, 5)))),
        "one number in [-1, 1]",
    ),
    "7.3": Exercise(
        "median and median absolute deviation",
        lambda values: (float(np.median(values)), _deviation(values)),
        wrong(
            lambda values: (float(np.median(values)), float(np.std(values))),
            "one far-off prompt would blow up a standard deviation; use medians throughout.",
            lambda values: (
                float(np.median(values)),
                float(np.median(np.abs(values - np.mean(values)))),
            ),
            "the deviations are taken from the median, not from the mean.",
        ),
        lambda rng: (rng.exponential(size=9),),
        "a pair (median, deviation)",
    ),
    "7.4": Exercise(
        "attention scaling",
        _scaled,
        wrong(
            _after,
            "the weight is scaled after the softmax; the method scales the logit before it.",
            lambda logits, factor: (logits * factor).softmax(dim=1),
            "all tokens are scaled; only the first one, the begin-of-sequence token, is.",
        ),
        lambda rng: (torch.from_numpy(rng.normal(1, 2, (4, 6))).float(), 1.25),
        "weights [pixels, tokens] that add up to one over the tokens",
    ),
    "7.5": Exercise(
        "the text's pull on each image",
        lambda delta: delta.flatten(1).norm(dim=1),
        wrong(
            lambda delta: delta.norm(),
            "one norm over the whole batch grows with the number of images.",
            lambda delta: delta.flatten(1).square().mean(dim=1),
            "that is a mean square; the norm is the root of the sum of squares.",
        ),
        lambda rng: (torch.from_numpy(rng.normal(size=(3, 4, 6, 6))).float(),),
        "a tensor [images]",
    ),
}
