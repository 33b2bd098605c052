"""Lesson 3, inside cross-attention: keys, values, what a neuron is, and how a hook switches it off.

Source: Vaswani et al., "Attention Is All You Need" (NeurIPS 2017), equation 1; Hintersdorf et al.,
"Finding NeMo" (NeurIPS 2024), sections 2 and 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from checks.exercise import Exercise, same, wrong

Zeroed = Callable[[nn.Module, list[int]], AbstractContextManager]


def _attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    scores = queries @ keys.T / queries.shape[1] ** 0.5
    return scores.softmax(dim=1) @ values


def _contribution(weights: Tensor, values: Tensor, out: Tensor, neuron: int) -> Tensor:
    return torch.outer(weights @ values[:, neuron], out[:, neuron])


def _zero(output: Tensor, neurons: list[int]) -> Tensor:
    gains = torch.ones(output.shape[-1])
    gains[neurons] = 0
    return output * gains


def _zero_tokens(output: Tensor, neurons: list[int]) -> Tensor:
    changed = output.clone()
    changed[:, [n % output.shape[1] for n in neurons]] = 0
    return changed


def _only(output: Tensor, neurons: list[int]) -> Tensor:
    return output - _zero(output, neurons)


@contextmanager
def _zeroed(module: nn.Module, neurons: list[int]) -> Iterator[None]:
    handle = module.register_forward_hook(lambda _module, _inputs, output: _zero(output, neurons))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _careless(module: nn.Module, neurons: list[int]) -> Iterator[None]:
    handle = module.register_forward_hook(lambda _module, _inputs, output: _zero(output, neurons))
    yield
    handle.remove()


@contextmanager
def _forgotten(module: nn.Module, neurons: list[int]) -> Iterator[None]:
    module.register_forward_hook(lambda _module, _inputs, output: _zero(output, neurons))
    yield


def _trial(zeroed: Zeroed) -> Callable[..., Any]:
    """Runs a context manager on a linear layer: what it gives, and what it leaves behind."""

    def run(weight: Tensor, neurons: list[int], inputs: Tensor) -> Any:
        module = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        module.weight.data = weight.clone()
        plain, manager = module(inputs), zeroed(module, neurons)
        if manager is None or manager is ...:
            return manager
        with manager as given:
            inside, hooks = module(inputs), len(module._forward_hooks)
        if given is ... and not hooks and same(inside, plain):
            return ...  # the cell as it was handed out: `yield ...`, and nothing around it
        after, left = module(inputs), len(module._forward_hooks)
        try:
            with zeroed(module, neurons):
                raise KeyError("an error inside the block")
        except KeyError:
            pass
        return inside, after, left, len(module._forward_hooks)

    return run


def _tensors(rng: np.random.Generator, *shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.from_numpy(rng.normal(size=shape)).float() for shape in shapes]


def _some(rng: np.random.Generator, width: int) -> list[int]:
    return sorted(rng.choice(width, 2, replace=False).tolist())


EXERCISES = {
    "3.1": Exercise(
        "attention by hand",
        _attention,
        wrong(
            lambda q, k, v: (q @ k.T).softmax(dim=1) @ v,
            "without the root of the width in the denominator the softmax is too sharp.",
            lambda q, k, v: (q @ k.T / q.shape[1] ** 0.5).softmax(dim=0) @ v,
            "your weights add up to one over the pixels; each pixel must share one weight "
            "among the tokens.",
        ),
        lambda rng: tuple(_tensors(rng, (6, 4), (5, 4), (5, 3))),
        "a tensor [pixels, width of the values]",
    ),
    "3.2": Exercise(
        "zero some neurons of an output",
        _zero,
        wrong(
            _zero_tokens,
            "whole tokens are zero now; a neuron is a feature: the last dimension.",
            _only,
            "it is the other way round: the named neurons go, all the others stay.",
        ),
        lambda rng: (*_tensors(rng, (2, 6, 8)), _some(rng, 8)),
        "a tensor of the same shape",
    ),
    "3.3": Exercise(
        "a hook that cleans up after itself",
        _zeroed,
        wrong(
            _careless,
            "it works until something inside the block raises an error: then the hook stays. "
            "What does Python run in any case?",
            _forgotten,
            "the hook is still there after the block: who removes it?",
        ),
        lambda rng: (*_tensors(rng, (5, 3)), _some(rng, 5), *_tensors(rng, (2, 4, 3))),
        "a context manager zeroed(module, neurons)",
        harness=_trial,
    ),
    "3.4": Exercise(
        "what one neuron adds",
        _contribution,
        wrong(
            lambda weights, values, out, neuron: torch.outer(
                weights @ values[:, neuron], out[neuron]
            ),
            "a neuron meets the *column* of `out` that belongs to it: which features does it feed?",
            lambda weights, values, out, neuron: torch.outer(
                values[:, neuron].mean().expand(len(weights)), out[:, neuron]
            ),
            "each pixel mixes the tokens by its own weights; yours takes them all alike.",
            lambda weights, values, out, neuron: weights @ values @ out.T,
            "that is what all neurons add together.",
        ),
        lambda rng: (
            _tensors(rng, (6, 5))[0].softmax(dim=1),
            *_tensors(rng, (5, 4), (4, 4)),
            int(rng.integers(4)),
        ),
        "a tensor [pixels, features]",
    ),
}
