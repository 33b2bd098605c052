"""What every mitigation is: a value that changes one batch of a generation.

Scope: the base class, the registry, the rows of comparisons. A mitigation may rewrite the prompt,
change its embedding or the initial noise, and act on attention, neurons or weights while the block
is open; it leaves nothing behind.
Source: each subclass names its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from nemo_kit.checks import check_choice, check_whole
from nemo_kit.keys import value_digest
from nemo_kit.models.base import DiffusionModel
from nemo_kit.neurons import NeuronSet
from nemo_kit.sampling import Run

VERSION = 1  # raised where results change (see nemo_kit.keys)
Neurons = NeuronSet | Mapping[str, NeuronSet]
MITIGATIONS: dict[str, type[Mitigation]] = {}


@dataclass(frozen=True)
class Found:
    """What localization gave, for the rows that need it: one set for all prompts, or one for each.

    `refined` neurons, those of the `initial` selection (None: not looked at), and all `known` ones,
    of whatever prompts, which random neurons avoid.
    """

    refined: Neurons
    initial: Neurons | None = None
    known: Neurons = field(default_factory=NeuronSet)


@dataclass(frozen=True)
class Mitigation:
    """Nothing is changed; the base of all others.

    A subclass is a frozen dataclass of plain values and neuron sets, so that equal ones have equal
    digests (`keys.value_digest`). One that says `name = "…"` is registered: it has its rows in
    every comparison, whichever file or notebook cell it stands in; who had the name gives way. What
    it does to an image depends on that image's prompt and seed, and where its protocol says so on
    all seeds of the prompt, never on the batch.
    Attributes: `name`, as tables call it; `source`, who proposed it; `protocol`, what its authors'
    code does where papers or codes differ, in words for results; `permanent`, whether it can be
    written into the weights (`mitigation.export`); `place` of its rows among others, those of the
    paper's table 1 first.
    """

    name: str = field(init=False, default="default")
    source: ClassVar[str] = "the model as it is"
    protocol: ClassVar[str] = ""
    permanent: ClassVar[bool] = False
    place: ClassVar[int] = 100

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if isinstance(cls.__dict__.get("name"), str):
            MITIGATIONS[cls.name] = cls

    @classmethod
    def rows(cls, found: Found, seed: int) -> dict[str, Mitigation]:
        """Its rows in a comparison, label -> mitigation: by default one, with its default options.

        Parameters: `seed`, of what is drawn at random; a mitigation with a field `seed` draws.
        Raises TypeError where a field has no default.
        """
        try:
            return {cls.name: cls(seed=seed) if _draws(cls) else cls()}  # type: ignore[call-arg]
        except TypeError as error:
            raise TypeError(
                f"mitigation {cls.name!r} must have defaults for its fields, or rows() of its own: "
                f"{error}"
            ) from error

    def rewrite(self, model: DiffusionModel, prompt: str, seed: int) -> str:
        """The text that is embedded in place of the prompt, for the image of this seed."""
        return prompt

    @contextmanager
    def apply(self, run: Run) -> Iterator[Run]:
        """Change a batch: `with m.apply(run) as run:` gives the one to denoise inside the block.

        Whatever is hooked to the model is removed on leaving, whatever raises.
        """
        yield run

    def gains(self, model: DiffusionModel, prompts: Sequence[str]) -> dict[str, Tensor]:
        """What the weights are multiplied by where the mitigation is written into them.

        Returns the name of each changed module of the denoiser -> a tensor that broadcasts to its
        weight, [out, in] or [out, 1]; the changes of all prompts together.
        Parameters: `prompts`, those it is to hold for; none: all that it names itself.
        Raises ValueError where the mitigation is not permanent.
        """
        raise ValueError(f"mitigation: {self.name!r} can't be written into the weights")


MITIGATIONS[Mitigation.name] = Mitigation


def table_rows(
    found: Found, repeats: int = 1, options: Mapping[str, Mapping[str, Any]] | None = None
) -> list[tuple[str, Mitigation]]:
    """The rows of table 1 in the paper's order, then every other mitigation's.

    Returns pairs of a label and a mitigation; one that draws at random comes once for each seed 0,
    1, …
    Parameters: `repeats`, at least 1 (the paper: 5 for random neurons); `options`, label -> fields
    that get other values than by default.
    Raises ValueError for numbers below 1 and unknown labels, TypeError for other neurons.
    Source: "Finding NeMo" (arXiv 2406.02366), table 1; the others name their own.
    """
    check_whole("repeats", repeats, 1)
    kinds = sorted(MITIGATIONS.values(), key=lambda kind: (kind is not Mitigation, kind.place))
    drawn: dict[str, list[Mitigation]] = {}
    for kind in kinds:
        for seed in range(repeats if _draws(kind) else 1):
            for label, way in kind.rows(found, seed).items():
                drawn.setdefault(label, []).append(way)
    for label, changed in (options or {}).items():
        check_choice("options", label, drawn)
        drawn[label] = [replace(way, **changed) for way in drawn[label]]
    return [(label, way) for label, ways in drawn.items() for way in ways]


def checked(mitigation: object) -> Mitigation:
    """The mitigation; TypeError for anything else."""
    if not isinstance(mitigation, Mitigation):
        raise TypeError(f"mitigation must be a Mitigation, got {mitigation!r:.80}")
    return mitigation


def _draws(kind: type[Mitigation]) -> bool:
    return any(one.name == "seed" for one in fields(kind))


def draw_seed(*parts: int | str) -> int:
    """A seed below 2⁶³ that follows from these parts alone, on any machine and in any batch."""
    return int(value_digest(list(parts))[:16], 16) >> 1


def numbers(*parts: int | str) -> np.random.Generator:
    """NumPy's generator for these parts."""
    return np.random.default_rng(draw_seed(*parts))


def normal(shape: Sequence[int], *parts: int | str) -> Tensor:
    """Standard normal numbers for these parts, float32 on the CPU."""
    seed = draw_seed(*parts)
    return torch.randn(tuple(shape), generator=torch.Generator("cpu").manual_seed(seed))
