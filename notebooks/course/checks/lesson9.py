"""Lesson 9, who finds the neurons? Rankings, a gradient, and how a ranking is judged.

Source: Chang et al., "Do Localization Methods Actually Localize Memorized Data in LLMs?" (NAACL
2024), injection and deletion; average precision as scikit-learn defines it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from checks.exercise import Exercise, Wrong, wrong

Neuron = tuple[int, int]
Scores = dict[int, Tensor]
ONE_BY_ONE = "yours asks the model for one neuron after another: one backward pass tells them all."


def _entries(scores: Scores) -> list[tuple[float, int, int]]:
    return [(v, layer, i) for layer, own in scores.items() for i, v in enumerate(own.tolist())]


def _order(scores: Scores, key: Callable[[float], float] = lambda v: -v) -> list[Neuron]:
    known = sorted((key(v), layer, i) for v, layer, i in _entries(scores))
    return [(layer, i) for _, layer, i in known]


def _turned(scores: Scores) -> list[Neuron]:
    return [(layer, i) for _, layer, i in sorted(_entries(scores), reverse=True)]


def _layer_by_layer(scores: Scores) -> list[Neuron]:
    return [one for layer in sorted(scores) for one in _order({layer: scores[layer]})]


def _pairs(order: Callable[[Scores], Any]) -> Callable[[Scores], Any]:
    """Layers and neurons may be NumPy's or PyTorch's numbers."""

    def run(scores: Scores) -> Any:
        ranked = order(scores)
        if ranked is None or ranked is ...:
            return ranked
        return [(int(layer), int(neuron)) for layer, neuron in ranked]

    return run


def _drawn_scores(rng: np.random.Generator) -> tuple[Scores]:
    widths = {3: 5, 1: 4, 2: 6}
    return ({n: torch.from_numpy(rng.normal(0, n, width)) for n, width in widths.items()},)


Memory = Callable[[Tensor], Tensor]


def _slopes(memory: Memory, width: int, gate: float = 1.0) -> Tensor:
    gates = torch.full((width,), gate, requires_grad=True)
    (slope,) = torch.autograd.grad(memory(gates), gates)
    return slope


def _patched(memory: Memory, width: int) -> Tensor:
    return torch.stack([memory(torch.ones(width)) - memory(1 - row) for row in torch.eye(width)])


def _counted(slopes: Callable[[Memory, int], Any]) -> Callable[[Memory, int], Any]:
    """Ends an answer that asks for each neuron anew."""

    def run(memory: Memory, width: int) -> Any:
        asked = 0

        def counted(gates: Tensor) -> Tensor:
            nonlocal asked
            asked += 1
            if asked > 1:
                raise Wrong(ONE_BY_ONE)
            return memory(gates)

        return slopes(counted, width)

    return run


def _toy_memory(rng: np.random.Generator) -> tuple[Memory, int]:
    """The length of what the open neurons add up to, so that slopes depend on all gates."""
    writes = torch.from_numpy(rng.normal(size=(5, 8))).float()
    return lambda gates: (gates @ writes).norm() / writes.sum(dim=0).norm(), 5


def _quality(order: list[Neuron], truth: set[Neuron], k: int) -> tuple[float, float]:
    places = [n for n, one in enumerate(order, 1) if one in truth]
    precisions = [hits / place for hits, place in enumerate(places, 1)]
    return sum(precisions) / len(truth), len(truth & set(order[:k])) / len(truth)


def _reciprocal(order: list[Neuron], truth: set[Neuron], k: int) -> tuple[float, float]:
    places = [n for n, one in enumerate(order, 1) if one in truth]
    return sum(1 / place for place in places) / len(truth), _quality(order, truth, k)[1]


def _judged(rng: np.random.Generator) -> tuple[list[Neuron], set[Neuron], int]:
    order = [(int(n) // 10, int(n) % 10) for n in rng.permutation(30)]
    return order, {order[1], order[4], order[int(rng.integers(9, 20))]}, 6


Score = Callable[[Any], float]
Curve = tuple[list[float], list[float]]


def _curve(
    score: Score, order: list[Neuron], sizes: list[int], draw: Callable[[set[Neuron]], set[Neuron]]
) -> Curve:
    sets = [set(order[:k]) for k in sizes]
    return [score(one) for one in sets], [score(draw(one)) for one in sets]


def _world(rng: np.random.Generator) -> tuple[Any, ...]:
    """Neurons that each carry something, an order of them, and draws that follow the layers."""
    every = [(layer, n) for layer in range(1, 5) for n in range(8)]
    share = dict(zip(every, rng.dirichlet(np.full(len(every), 0.5)), strict=True))
    order = [every[n] for n in rng.permutation(len(every))]

    def draw(chosen: Any) -> set[Neuron]:
        counts, own = Counter(layer for layer, _ in chosen), np.random.default_rng(len(chosen))
        return {
            (layer, int(n))
            for layer, count in sorted(counts.items())
            for n in own.choice(8, count, replace=False)
        }

    return lambda off: 1 - sum(share[one] for one in off), order, [1, 2, 4, 8], draw


Orders = dict[str, list[Neuron]]


def _agreement(orders: Orders, k: int | None) -> np.ndarray:
    best = [set(order[:k]) for order in orders.values()]
    return np.array([[len(a & b) / len(a | b) for b in best] for a in best])


def _shared(orders: Orders, k: int) -> np.ndarray:
    best = [set(order[:k]) for order in orders.values()]
    return np.array([[len(a & b) / k for b in best] for a in best])


def _same_places(orders: Orders, k: int) -> np.ndarray:
    best = [order[:k] for order in orders.values()]
    return np.array([[np.mean([x == y for x, y in zip(a, b, strict=True)]) for b in best]
                     for a in best])  # fmt: skip


def _square(agreement: Callable[[Orders, int], Any]) -> Callable[[Orders, int], Any]:
    """Rows may be lists."""

    def run(orders: Orders, k: int) -> Any:
        rows = agreement(orders, k)
        return rows if rows is None or rows is ... else np.asarray(rows, float)

    return run


def _orders(rng: np.random.Generator) -> tuple[Orders, int]:
    every = [(layer, n) for layer in (1, 2) for n in range(5)]
    shuffled = ([every[n] for n in rng.permutation(10)] for _ in range(3))
    return dict(zip(("one", "two", "three"), shuffled, strict=True)), 5


Roles = tuple[set[Neuron], set[Neuron]]


def _roles(score: Score, neurons: set[Neuron], threshold: float) -> Roles:
    necessary = {one for one in neurons if score({one}) <= threshold}
    return necessary, {one for one in neurons if score(neurons - {one}) > threshold}


def _not_necessary(score: Score, neurons: set[Neuron], threshold: float) -> Roles:
    necessary, _ = _roles(score, neurons, threshold)
    return necessary, neurons - necessary


def _strictly(score: Score, neurons: set[Neuron], threshold: float) -> Roles:
    return _roles(score, neurons, threshold - 1e-9)


def _copying(logic: Callable[[set[Neuron]], bool], count: int) -> tuple[Score, set[Neuron], float]:
    """A world with a set of so many neurons, whose copy is there while `logic` holds of what is on.

    Where it is gone the score lies at the threshold.
    """
    neurons = {(1 + n % 3, 7 * n) for n in range(count)}
    return lambda off: 0.9 if logic(neurons - set(off)) else 0.5, neurons, 0.5


def _any_or_all(rng: np.random.Generator) -> tuple[Score, set[Neuron], float]:
    """So many of three must be on: one, two or all."""
    least = int(rng.integers(1, 4))
    return _copying(lambda on: len(on) >= least, 3)


EXERCISES = {
    "9.1": Exercise(
        "from scores to a ranking",
        _order,
        wrong(
            _layer_by_layer,
            "each layer is ranked by itself; a ranking is one list over all layers.",
            lambda scores: _order(scores, lambda v: v),
            "yours begins with the lowest score; the surest neuron comes first.",
            lambda scores: _order(scores, lambda v: -abs(v)),
            "the sign counts: a score below 0 says that less is lost, so it belongs at the end.",
            _turned,
            "right but for equal scores: the lower layer, then the lower index comes first; "
            "`reverse=True` turns these too.",
        ),
        _drawn_scores,
        "a list of pairs (layer, neuron)",
        harness=_pairs,
        edges=(({2: torch.tensor([0.9, 0.5]), 1: torch.tensor([0.5, 0.5])},),),
    ),
    "9.2": Exercise(
        "how fast memory goes as a gate begins to close",
        _slopes,
        wrong(
            _patched,
            ONE_BY_ONE,
            lambda memory, width: _slopes(memory, width, 0.0),
            "these are the slopes at closed gates; the model as it is has its gates at 1.",
            lambda memory, width: -_slopes(memory, width),
            "the sign is turned: a neuron that memory rests on has a slope above 0.",
            lambda memory, width: _slopes(memory, width).abs(),
            "keep the sign: below 0 means that memory grows as the gate closes.",
        ),
        _toy_memory,
        "a tensor [width]",
        harness=_counted,
    ),
    "9.3": Exercise(
        "average precision and recall@k",
        _quality,
        wrong(
            _reciprocal,
            "at the second hit two were found: the precision there is 2 over the place, not 1.",
            lambda order, truth, k: (
                _quality(order, truth, k)[0],
                len(truth & set(order[:k])) / k,
            ),
            "the second number is precision@k; recall divides by the number of true neurons.",
            lambda order, truth, k: (
                _quality(order[:k], truth, k)[0],
                _quality(order, truth, k)[1],
            ),
            "average precision looks at the whole ranking, not at its first k only.",
        ),
        _judged,
        "a pair (average precision, recall)",
    ),
    "9.4": Exercise(
        "the deletion curve and its control",
        _curve,
        wrong(
            lambda score, order, sizes, draw: _curve(score, order, sizes, lambda chosen: chosen),
            "your control is the ranking itself: `draw` gives the random twin of a set.",
            lambda score, order, sizes, draw: (
                [score({order[k - 1]}) for k in sizes],
                [score(draw({order[k - 1]})) for k in sizes],
            ),
            "only the k-th neuron is off; the curve asks for the first k together.",
            lambda score, order, sizes, draw: _curve(score, order, [k + 1 for k in sizes], draw),
            "yours switches one more off than k.",
            lambda score, order, sizes, draw: (
                [score(set(order[:k])) for k in sizes],
                [score(draw(set(order[: sizes[-1]])))] * len(sizes),
            ),
            "your control has the count of the largest k everywhere; draw anew for each k.",
        ),
        _world,
        "a pair of lists",
    ),
    "9.5": Exercise(
        "how far rankings agree on the k best",
        _agreement,
        wrong(
            lambda orders, k: _agreement(orders, None),
            "over all neurons any two rankings hold the same: compare the first k.",
            _shared,
            "that is the share of k; intersection over union divides by the size of the union.",
            _same_places,
            "places do not matter here: compare the k best as sets.",
        ),
        _orders,
        "a square array",
        harness=_square,
    ),
    "9.6": Exercise(
        "necessary and sufficient neurons",
        _roles,
        wrong(
            lambda score, neurons, threshold: _roles(score, neurons, threshold)[::-1],
            "the two have changed places: necessary is what alone takes the copy away.",
            _not_necessary,
            "not necessary is not the same as sufficient: switch all *others* of the set off.",
            _strictly,
            "at the threshold the copy counts as gone: at or below, not below.",
        ),
        _any_or_all,
        "a pair of sets",
        edges=(
            _copying(lambda on: (1, 0) in on and len(on) >= 2, 3),
            _copying(lambda on: len(on) >= 1, 2),
            _copying(lambda on: len(on) >= 2, 2),
        ),
    ),
}  # fmt: skip
