"""What the explorer shows, as values: a selection of neurons, its history, its text forms.

Scope: plain Python, no model and no widget. Selections read by hand ("layer 3: 14, 15"), from JSON,
and written as JSON or as Python that repeats the view.
Source: "Finding NeMo" (arXiv 2406.02366), sections 2 and 3.2.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from nemo_kit.checks import check_number, check_seeds, check_whole
from nemo_kit.neurons import NeuronSet

_LAYER = re.compile(r"\s*(?:layer|l)?\s*(\d+)\s*:\s*([\d\s,#-]*)", re.IGNORECASE)
_FORMAT = "nemo_kit selection"
_MOST_SEEDS = 16


@dataclass(frozen=True)
class Selection:
    """Selected neurons, and in words where they come from."""

    neurons: NeuronSet = field(default_factory=NeuronSet)
    origin: str = "none"


@dataclass(frozen=True)
class View:
    """All that a picture of the explorer depends on, besides the model.

    `factor` scales the selected neurons (0 switches them off); `seeds`, `steps`, `guidance` are
    those of the generated images, `guidance` None the model's own.
    """

    prompt: str = ""
    selection: Selection = field(default_factory=Selection)
    factor: float = 0.0
    seeds: tuple[int, ...] = (101, 102, 103, 104)
    steps: int = 20
    guidance: float | None = None

    def __post_init__(self) -> None:
        check_number("factor", self.factor)
        check_whole("steps", self.steps, 1)
        if self.guidance is not None:
            check_number("guidance", self.guidance, 0)
        check_seeds(self.seeds, distinct=True)

    def picture_key(self) -> tuple[object, ...]:
        """What the generated images depend on."""
        return self.prompt, self.selection.neurons, self.factor, *self.plain_key()[1:]

    def plain_key(self) -> tuple[object, ...]:
        """What the undisturbed images depend on."""
        return self.prompt, self.seeds, self.steps, self.guidance


class History:
    """Selections in the order they were made, with a place to step back and forth from."""

    def __init__(self, most: int = 200) -> None:
        self._past: list[Selection] = [Selection()]
        self._place, self._most = 0, most

    @property
    def now(self) -> Selection:
        """The selection at the present place."""
        return self._past[self._place]

    @property
    def can_undo(self) -> bool:
        """Whether there is an earlier selection."""
        return self._place > 0

    @property
    def can_redo(self) -> bool:
        """Whether there is a later one."""
        return self._place < len(self._past) - 1

    def push(self, selection: Selection) -> None:
        """Put a new selection on; what was undone before is lost. The same one again is no step."""
        if selection == self.now:
            return
        self._past = [*self._past[: self._place + 1], selection][-self._most :]
        self._place = len(self._past) - 1

    def undo(self) -> Selection:
        """One step back, where there is one."""
        self._place = max(0, self._place - 1)
        return self.now

    def redo(self) -> Selection:
        """One step forth, where there is one."""
        self._place = min(len(self._past) - 1, self._place + 1)
        return self.now


def read_neurons(text: str, widths: dict[int, int]) -> NeuronSet:
    """Neurons written by hand: "layer 3: 14, 15; layer 5: 2-4", also as "3: 14".

    Returns the set; an empty text is the empty set.
    Parameters: `widths`, layer -> number of neurons.
    Raises ValueError that says what can't be read or does not exist.
    """
    pairs: list[tuple[int, int]] = []
    for part in filter(str.strip, re.split(r"[;\n]", text)):
        found = _LAYER.fullmatch(part)
        if not found or not found[2].strip(" ,#-"):
            raise ValueError(f'neurons must read like "layer 3: 14, 15", got {part.strip()!r:.60}')
        layer = int(found[1])
        pairs += [(layer, index) for index in _indices(found[2], widths.get(layer, 0))]
    return NeuronSet.of(pairs).check(widths)


def _indices(text: str, width: int) -> list[int]:
    """Indices and ranges, as in "2, 5-7"; a range that runs out of the layer is cut one past it."""
    indices: list[int] = []
    for piece in filter(None, re.split(r"[,\s]+", re.sub(r"\s*-\s*", "-", text.replace("#", "")))):
        ends = piece.split("-")
        if len(ends) > 2 or not all(ends):
            raise ValueError(f'neurons must be numbers or ranges like "2-4", got {piece!r:.20}')
        first, last = int(ends[0]), int(ends[-1])
        if last < first:
            raise ValueError(f"neurons: the range {piece!r:.20} runs backwards")
        indices += range(first, min(last, max(first, width)) + 1)
    return indices


def write_neurons(neurons: NeuronSet) -> str:
    """The form that `read_neurons` reads: "layer 3: 14, 15; layer 5: 2"."""
    parts = [f"layer {k}: {', '.join(map(str, v))}" for k, v in neurons.layers.items()]
    return "; ".join(parts)


def read_seeds(text: str) -> tuple[int, ...]:
    """Seeds written by hand: "101-104" or "1, 5, 9"; 1 to 16 different ones.

    Raises ValueError for anything else.
    """
    seeds: list[int] = []
    for piece in filter(None, re.split(r"[,;\s]+", re.sub(r"\s*[-–]\s*", "-", text))):
        found = re.fullmatch(r"(\d{1,10})(?:-(\d{1,10}))?", piece)
        if not found:
            raise ValueError(f'seeds must read like "101-104" or "1, 5, 9", got {piece!r:.20}')
        first, last = int(found[1]), int(found[2] or found[1])
        seeds += range(first, min(last, first + _MOST_SEEDS) + 1)
    if not 1 <= len(seeds) <= _MOST_SEEDS:
        raise ValueError(f"seeds must be 1 to {_MOST_SEEDS} numbers, got {len(seeds)}")
    return tuple(check_seeds(seeds, distinct=True))


def write_seeds(seeds: tuple[int, ...]) -> str:
    """The shortest form that `read_seeds` reads."""
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]}-{seeds[-1]}"
    return ", ".join(map(str, seeds))


def to_json(view: View, model: str) -> str:
    """The selection with what it was looked at with, as JSON to keep."""
    return json.dumps(
        {
            "format": _FORMAT,
            "model": model,
            "prompt": view.prompt,
            "origin": view.selection.origin,
            "neurons": json.loads(view.selection.neurons.to_json()),
            "factor": view.factor,
            "seeds": list(view.seeds),
            "steps": view.steps,
            "guidance": view.guidance,
        },
        ensure_ascii=False,
        indent=1,
    )


def from_json(text: str, view: View, widths: dict[int, int]) -> View:
    """Read what `to_json` wrote, or the JSON of a `NeuronSet`, into a view.

    Returns `view` with what the file names.
    Raises ValueError for anything else, and for neurons that the model lacks.
    """
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"the file is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"the file must hold a JSON object, got {type(found).__name__}")
    if found.get("format") != _FORMAT:
        return replace(view, selection=Selection(_set_of(found, widths), "loaded"))
    try:
        return replace(
            view,
            prompt=str(found["prompt"]),
            selection=Selection(_set_of(found["neurons"], widths), str(found["origin"])),
            factor=found["factor"],
            seeds=tuple(found["seeds"]),
            steps=found["steps"],
            guidance=found["guidance"],
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"the file is no selection of the explorer: {error!r}") from error


def _set_of(layers: object, widths: dict[int, int]) -> NeuronSet:
    return NeuronSet.from_json(json.dumps(layers)).check(widths)


def as_code(
    view: View,
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
    opened = f"load({', '.join(given)})"
    options = f"steps={view.steps}, guidance={view.guidance!r}"
    return (
        "from nemo_kit import NeuronSet, detect, generate, load\n"
        "from nemo_kit.hooks import scale_neurons\n"
        "\n"
        f"model = {opened}\n"
        f"prompt = {view.prompt!r}\n"
        f"neurons = {view.selection.neurons!r}  # {_one_line(view.selection.origin)}\n"
        f"seeds = {list(view.seeds)}\n"
        f"detection = {list(detection)}\n"
        "whole = detect(model, prompt, detection)\n"
        f"with scale_neurons(model.denoiser, model.value_layers, neurons, {view.factor!r}):\n"
        "    left = detect(model, prompt, detection)\n"
        "print(whole.score[0], left.score[0], whole.threshold[0])\n"
        f"before = generate(model, prompt, seeds, {options})\n"
        "after = generate(\n"
        f"    model, prompt, seeds, neurons=neurons, factor={view.factor!r}, {options}\n"
        ")\n"
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())
