"""Values of the explorer: what a picture depends on, selections and seeds as text, code.

Scope: plain Python, no model and no widget.
Source: "Finding NeMo" (arXiv 2406.02366), sections 2 and 3.2.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from nemo_kit.checks import check_seeds
from nemo_kit.neurons import NeuronSet

_LAYER = re.compile(r"\s*(?:layer|l)?\s*(\d+)\s*:\s*([\d\s,#-]*)", re.IGNORECASE)
_MOST_SEEDS = 16
_NONE = NeuronSet()


@dataclass(frozen=True)
class View:
    """All that pictures depend on, besides the model.

    `neurons` are scaled by `factor` (0 switches them off); `guidance` is the strength of
    the prompt.
    """

    prompt: str = ""
    neurons: NeuronSet = _NONE
    factor: float = 0.0
    seeds: tuple[int, ...] = (101, 102, 103, 104)
    steps: int = 20
    guidance: float = 7.0

    @property
    def plain(self) -> View:
        """The same without intervention."""
        return replace(self, neurons=NeuronSet(), factor=0.0)


class History:
    """Selections in the order they were made, each with its origin in words, and a place there."""

    def __init__(self, most: int = 200) -> None:
        self._past: list[tuple[NeuronSet, str]] = [(NeuronSet(), "none")]
        self._place, self._most = 0, most

    @property
    def now(self) -> tuple[NeuronSet, str]:
        """The selection at the present place, and its origin."""
        return self._past[self._place]

    def can_step(self, by: int) -> bool:
        """Whether there is a selection `by` steps further."""
        return 0 <= self._place + by < len(self._past)

    def step(self, by: int) -> tuple[NeuronSet, str]:
        """Go `by` steps further (back, if negative), where there is a selection."""
        self._place += by if self.can_step(by) else 0
        return self.now

    def push(self, neurons: NeuronSet, origin: str) -> None:
        """Put a new selection on; what was undone before is lost. The same one again is no step."""
        if (neurons, origin) != self.now:
            self._past = [*self._past[: self._place + 1], (neurons, origin)][-self._most :]
            self._place = len(self._past) - 1


def read_neurons(given: object, widths: dict[int, int]) -> NeuronSet:
    """Neurons as a set, as {layer: indices}, or by hand: "layer 3: 14, 15; 5: 2-4".

    Returns the set; an empty text is the empty set.
    Parameters: `widths`, layer -> number of neurons.
    Raises ValueError that says what can't be read or does not exist.
    """
    if not isinstance(given, str):
        return (given if isinstance(given, NeuronSet) else NeuronSet(given)).check(widths)
    pairs: list[tuple[int, int]] = []
    for part in filter(str.strip, re.split(r"[;\n]", given)):
        found = _LAYER.fullmatch(part)
        if not found or not found[2].strip(" ,#-"):
            raise ValueError(f'neurons must read like "layer 3: 14, 15", got {part.strip()!r:.60}')
        layer = int(found[1])
        indices = _numbers("neurons", found[2].replace("#", ""), widths.get(layer, 0))
        pairs += [(layer, index) for index in indices]
    return NeuronSet.of(pairs).check(widths)


def _numbers(name: str, text: str, most: int) -> list[int]:
    """Numbers and ranges, as in "2, 5-7"; a range of more than `most` is cut to one more."""
    found: list[int] = []
    for piece in filter(None, re.split(r"[,;\s]+", re.sub(r"\s*[-–]\s*", "-", text))):
        ends = re.fullmatch(r"(\d+)(?:-(\d+))?", piece, re.ASCII)
        first, last = (int(ends[1]), int(ends[2] or ends[1])) if ends else (1, 0)
        if last < first:
            fault = ", which runs backwards" if ends else ""
            raise ValueError(
                f'{name} must be numbers or ranges like "2-4", got {piece!r:.20}{fault}'
            )
        found += range(first, min(last, first + most) + 1)
    return found


def write_neurons(neurons: NeuronSet) -> str:
    """The form that `read_neurons` reads: "layer 3: 14, 15; layer 5: 2"."""
    parts = [f"layer {k}: {', '.join(map(str, v))}" for k, v in neurons.layers.items()]
    return "; ".join(parts)


def read_seeds(given: str | Iterable[int]) -> tuple[int, ...]:
    """Seeds, as numbers or by hand: "101-104" or "1, 5, 9"; 1 to 16 different ones.

    Raises ValueError for anything else.
    """
    text = isinstance(given, str)
    seeds = _numbers("seeds", given, _MOST_SEEDS) if text else check_seeds(given)
    if not 1 <= len(seeds) <= _MOST_SEEDS:
        raise ValueError(f"seeds must be 1 to {_MOST_SEEDS} numbers, got {len(seeds)}")
    return tuple(check_seeds(seeds, distinct=True))


def write_seeds(seeds: tuple[int, ...]) -> str:
    """The shortest form that `read_seeds` reads."""
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]}-{seeds[-1]}"
    return ", ".join(map(str, seeds))


def as_code(
    view: View,
    origin: str,
    model: str,
    revision: str | None = None,
    detection: Sequence[int] = range(1, 11),
    dtype: str | None = None,
) -> str:
    """A cell's worth of Python that repeats the view: score, what is left of it, images.

    Returns source that runs on its own; every text in it is a Python literal.
    Parameters: `detection`, the seeds that the score is of; `dtype`, the number type of the
    weights where it is not the usual one.
    """
    named = {"dtype": dtype, "revision": revision}
    given = [repr(model), *(f"{name}={value!r}" for name, value in named.items() if value)]
    return f"""\
from nemo_kit import NeuronSet, detect, generate, load
from nemo_kit.hooks import scale_neurons

model = load({", ".join(given)})
prompt = {view.prompt!r}
neurons = {view.neurons!r}  # {" ".join(origin.split())}
seeds = {list(view.seeds)}
detection = {list(detection)}
whole = detect(model, prompt, detection)
with scale_neurons(model.denoiser, model.value_layers, neurons, {view.factor!r}):
    left = detect(model, prompt, detection)
print(whole.score[0], left.score[0], whole.threshold[0])
options = {{"steps": {view.steps}, "guidance": {view.guidance!r}}}
before = generate(model, prompt, seeds, **options)
after = generate(model, prompt, seeds, neurons=neurons, factor={view.factor!r}, **options)
"""
