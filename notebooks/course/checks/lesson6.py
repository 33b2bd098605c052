"""Lesson 6, refinement and why its order matters.

Source: Hintersdorf et al., "Finding NeMo" (NeurIPS 2024), Algorithm 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import combinations, permutations

import numpy as np

from checks.exercise import Exercise, wrong

Score = Callable[[frozenset], float]


def _refine(score: Score, neurons: list[int], threshold: float) -> list[int]:
    left = list(neurons)
    for neuron in neurons:
        trial = [n for n in left if n != neuron]
        if score(frozenset(trial)) < threshold:
            left = trial
    return left


def _forgetful(score: Score, neurons: list[int], threshold: float) -> list[int]:
    every = frozenset(neurons)
    return [n for n in neurons if score(every - {n}) >= threshold]


def _backwards(score: Score, neurons: list[int], threshold: float) -> list[int]:
    return sorted(_refine(score, neurons[::-1], threshold))


def _turned(score: Score, neurons: list[int], threshold: float) -> list[int]:
    kept = _refine(score, neurons, threshold)
    return [n for n in neurons if n not in kept]


def _redundant(rng: np.random.Generator) -> tuple[Score, list[int], float]:
    """Neurons of which either of two, and one more in any case, must stay off."""
    a, b, c = rng.choice(np.arange(1, 9), 3, replace=False).tolist()

    def score(off: frozenset[int]) -> float:
        return 0.2 if c in off and (a in off or b in off) else 0.9

    return score, list(range(10)), 0.5


Layers = dict[int, list[int]]


def _pairs(layers: Layers) -> frozenset[tuple[int, int]]:
    return frozenset((layer, n) for layer, neurons in layers.items() for n in neurons)


def _layers(score: Score, layers: Layers, threshold: float, order: Iterable[int]) -> Layers:
    left = dict(layers)
    for layer in order:
        trial = {k: v for k, v in left.items() if k != layer}
        if score(_pairs(trial)) < threshold:
            left = trial
    return left


def _last_first(score: Score, layers: Layers, threshold: float) -> Layers:
    return _layers(score, layers, threshold, sorted(layers, reverse=True))


def _first_first(score: Score, layers: Layers, threshold: float) -> Layers:
    return _layers(score, layers, threshold, sorted(layers))


def _alone(score: Score, layers: Layers, threshold: float) -> Layers:
    every = _pairs(layers)
    return {k: v for k, v in layers.items() if score(every - _pairs({k: v})) >= threshold}


def _two_ways(rng: np.random.Generator) -> tuple[Score, Layers, float]:
    """Layers of which either of two must stay off."""
    first, second = sorted(rng.choice(np.arange(1, 6), 2, replace=False).tolist())
    layers = {n: sorted(rng.choice(20, 3, replace=False).tolist()) for n in range(1, 6)}

    def score(off: frozenset[tuple[int, int]]) -> float:
        return 0.2 if {first, second} & {layer for layer, _ in off} else 0.9

    return score, layers, 0.5


def _bill(rng: np.random.Generator) -> tuple[Layers, Layers]:
    _, layers, _ = _two_ways(rng)
    sizes = rng.integers(2, 9, 5).tolist()
    layers = {n: list(range(size)) for n, size in zip(layers, sizes, strict=True)}
    return layers, {n: layers[n] for n in sorted(rng.choice(np.arange(1, 6), 2, replace=False))}


def _outcomes(
    refine: Callable, score: Score, neurons: list[int], threshold: float
) -> set[frozenset[int]]:
    return {frozenset(refine(score, list(o), threshold)) for o in permutations(neurons)}


def _all_sufficient(
    refine: Callable, score: Score, neurons: list[int], threshold: float
) -> set[frozenset[int]]:
    sizes = range(1, len(neurons) + 1)
    sets = (frozenset(chosen) for size in sizes for chosen in combinations(neurons, size))
    return {one for one in sets if score(one) < threshold}


def _stand_ins(rng: np.random.Generator) -> tuple[Callable, Score, list[int], float]:
    """Five neurons; any of three of them stops the copy, together with a fourth."""
    first, second, third, always = rng.permutation(5)[:4].tolist()

    def score(off: frozenset[int]) -> float:
        return 0.2 if always in off and off & {first, second, third} else 0.9

    return _refine, score, list(range(5)), 0.5


EXERCISES = {
    "6.1": Exercise(
        "refine the neurons of one layer",
        _refine,
        wrong(
            _forgetful,
            "every neuron is tried against all candidates; what was switched on before has to "
            "stay on, or two that stand in for each other are both switched on.",
            _backwards,
            "inside a layer the walk goes in the order given: by number.",
            _turned,
            "these are the ones to switch on: a low score means nothing was lost.",
        ),
        _redundant,
        "a list of neuron numbers in the order given",
    ),
    "6.2": Exercise(
        "refine whole layers first",
        _last_first,
        wrong(
            _first_first,
            "the walk begins with the last layer.",
            _alone,
            "a layer that was switched on must stay on for the next test.",
        ),
        _two_ways,
        "a dict of the layers that are left",
    ),
    "6.3": Exercise(
        "the bill of both walks",
        lambda layers, left: len(layers) + sum(map(len, left.values())),
        wrong(
            lambda layers, left: len(layers) + sum(map(len, layers.values())),
            "neurons of layers that were switched on again are not tried one by one.",
            lambda layers, left: sum(map(len, left.values())),
            "the layers are tried too, before the neurons, each once.",
            lambda layers, left: len(left) + sum(map(len, left.values())),
            "also the layers that were switched on again had their test.",
        ),
        _bill,
        "one whole number",
    ),
    "6.4": Exercise(
        "every set that some order of the walk ends with",
        _outcomes,
        wrong(
            lambda refine, score, neurons, threshold: {
                frozenset(refine(score, list(order), threshold))
                for order in (neurons, neurons[::-1])
            },
            "two orders are not all: there are sets that neither of them ends with.",
            _all_sufficient,
            "these sets stop the copy, but from some of them a neuron can still be switched on.",
            lambda refine, score, neurons, threshold: [
                frozenset(refine(score, list(order), threshold)) for order in permutations(neurons)
            ],
            "many orders end with one and the same set: a set of frozensets has each once.",
        ),
        _stand_ins,
        "a set of frozensets",
    ),
    "6.5": Exercise(
        "how far a batched chain can be trusted",
        lambda verdicts: verdicts.index(False) + 1 if False in verdicts else len(verdicts),
        wrong(
            lambda verdicts: verdicts.index(False) if False in verdicts else len(verdicts),
            "the first failure is a verdict too: that neuron must stay off, and you know it.",
            sum,
            "after a failure the next test would have been another one: later verdicts of the "
            "chain say nothing.",
            len,
            "after a failure the chain has gone another way than the algorithm.",
        ),
        lambda rng: ([True] * int(rng.integers(1, 5)) + [False, True, True, False, True],),
        "one whole number",
        edges=(([True, True, True],),),
    ),
}
