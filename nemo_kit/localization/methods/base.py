"""What a localization method is, its registry, and one call of it with what it cost.

Source: Chang et al., NAACL 2024, for the way of comparing.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from nemo_kit.checks import check_finite, check_seeds, check_text, check_whole
from nemo_kit.layers import Projection
from nemo_kit.models.base import DiffusionModel
from nemo_kit.neurons import Neuron, NeuronSet
from nemo_kit.registry import Registered, check_takes, find

SEEDS = range(1, 5)
Scores = Mapping[int, Tensor]  # layer -> [width]
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Method(Registered):
    """A function under its name: the `loss` it follows, in words, and `options` of comparisons."""

    name: str
    function: Callable[..., Any]
    loss: str = "none"
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def needs_image(self) -> bool:
        """Whether it reads the training image."""
        return "image" in self.defaults and self.defaults.get("loss", "image") == "image"


METHODS: dict[str, Method] = {}


def method(name: str, follows: str = "none", **options: Any) -> Callable[[Function], Function]:
    """Register a function under a name, as a decorator; who had the name gives way.

    The function takes (model, prompt, seeds, budget) and returns a score for each searched neuron,
    layer -> [width], the higher the surer it holds the memory; or these and the `NeuronSet` that it
    says to switch off. `budget`, denoiser samples that it may spend, or None for its own measure;
    a backward pass counts as two samples. One that has a parameter `image` gets the prompt's
    training image, or None where none is known.
    Parameters: `follows`, its loss in words; `options`, of every comparison.
    Raises TypeError for a function that doesn't take these alone.
    """

    def register(function: Function) -> Function:
        given = "model, prompt, seeds, budget"
        check_takes(f"localization method {name!r}", function, given, **options)
        METHODS[name] = Method(name, function, follows, options)
        return function

    return register


@dataclass(frozen=True, eq=False)
class Ranking:
    """A method's scores of one prompt's neurons, and what they cost.

    `scores`, layer -> [width], float32 on the CPU, higher: surer; `found`, the set that the method
    names, None where it names none; `loss`, what it followed, in words; `samples`, what the
    denoiser evaluated, a backward pass counted as two; `seconds` on this machine.
    """

    method: str
    prompt: str
    scores: dict[int, Tensor]
    found: NeuronSet | None
    loss: str
    samples: int
    seconds: float

    @cached_property
    def order(self) -> list[Neuron]:
        """All neurons by falling score; equal ones by layer and index."""
        known = ((-v, k, i) for k, own in self.scores.items() for i, v in enumerate(own.tolist()))
        return [(layer, index) for _, layer, index in sorted(known)]

    def best(self, count: int) -> NeuronSet:
        """The `count` neurons of the highest scores."""
        check_whole("count", count, 0)
        return NeuronSet.of(self.order[:count])

    def to_row(self) -> dict[str, Any]:
        """Plain values for one row of a table: scores layer by layer, sets as JSON or None."""
        scores = torch.cat([self.scores[layer] for layer in sorted(self.scores)]).tolist()
        found = None if self.found is None else self.found.to_json()
        own = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return own | {"scores": scores, "found": found}

    @classmethod
    def from_row(cls, row: Mapping[str, Any], layers: Iterable[Projection]) -> Self:
        """Read what `to_row` gave, for the layers that were searched."""
        scores, found = torch.tensor(np.asarray(row["scores"])).float(), row["found"]
        own = dict(row) | {"scores": by_layer(scores, layers)}
        own["found"] = NeuronSet.from_json(found) if isinstance(found, str) else None
        return cls(**own)


def rank(
    which: str | Method | Callable[..., Any],
    model: DiffusionModel,
    prompt: str,
    seeds: Iterable[int] = SEEDS,
    budget: int | None = None,
    image: np.ndarray | None = None,
    **options: Any,
) -> Ranking:
    """Call a localization method, and count its denoiser samples and seconds.

    Parameters: `which`, a registered name, or a function; `seeds`, of the initial noise; `budget`,
    denoiser samples that it may spend, by default the method's own measure; `image`, the prompt's
    training image, uint8 [H, W, 3], for methods that read it; `options`, of the function.
    Raises TypeError or ValueError for a bad prompt, seeds, budget or options, a budget that pays
    for nothing, scores of other layers or widths than those searched, or a set outside of them;
    FloatingPointError for scores that are not finite.
    """
    one, text = find("method", Method, METHODS, which), check_text(prompt)
    if budget is not None:
        check_whole("budget", budget, 1)
    given = {**one.options, **options}
    if "image" in one.defaults:
        given["image"] = image
    numbers = check_seeds(seeds, distinct=True)
    before, started = model.samples_evaluated, time.perf_counter()
    result = one.function(model, text, seeds=numbers, budget=budget, **given)
    seconds, samples = time.perf_counter() - started, model.samples_evaluated - before
    scores, found = result if isinstance(result, tuple) else (result, None)
    clean = _checked(one.name, scores, model)
    if found is not None:
        found.check({layer: len(own) for layer, own in clean.items()})
    return Ranking(one.name, text, clean, found, one.loss, samples, seconds)


def _checked(name: str, scores: Any, model: DiffusionModel) -> dict[int, Tensor]:
    widths = {layer.index: layer.width for layer in model.searched}
    if not isinstance(scores, Mapping) or set(scores) != set(widths):
        raise TypeError(
            f"method {name!r} must return scores of layers {sorted(widths)}, got {scores!r:.60}"
        )
    clean = {k: torch.as_tensor(scores[k]).detach().float().cpu().flatten() for k in widths}
    for layer, own in clean.items():
        told = f"method {name!r}: scores of layer {layer}"
        if len(own) != widths[layer]:
            raise ValueError(f"{told} must be {widths[layer]}, one a neuron, got {len(own)}")
        check_finite(told, own, FloatingPointError)
    return clean


def by_layer(flat: Tensor, layers: Iterable[Projection]) -> dict[int, Tensor]:
    """Scores of all neurons in one row as layer -> [width]."""
    chosen = tuple(layers)
    parts = flat.split([layer.width for layer in chosen])
    return {layer.index: part for layer, part in zip(chosen, parts, strict=True)}


def squashed(values: Scores) -> dict[int, Tensor]:
    """Finite values ≥ 0 in the same order within [0, 1), to rank behind what counts more."""
    return {layer: (one / (1 + one)).clamp(max=1 - 1e-6) for layer, one in values.items()}
