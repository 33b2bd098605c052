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
        "how many neurons NeMo searches in the lab model",
        576,  # 2·32 + 2·64 + 3·128
        wrong(
            1248,
            "that is the width of all 16 value layers; NeMo leaves the up-blocks.",
            7,
            "that is the number of layers; each of their output features is a neuron.",
            448,
            "the mid-block's layer is searched too.",
        ),
        returns="one whole number",
    ),
    "3.2": Exercise(
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
    "3.3": Exercise(
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
    "3.4": Exercise(
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
    "3.5": Exercise(
        "what a prompt's value activations cost",
        0,
        wrong(
            1,
            "does a value layer see the noisy latent at all? Look at its input.",
            10,
            "do the seeds change what a value layer sees? Look at its input.",
            50,
            "does the time step change what a value layer sees? Look at its input.",
        ),
        returns="one whole number",
    ),
}
