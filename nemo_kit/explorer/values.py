"""Values of the explorer: what a picture depends on, selections and seeds as text.

Scope: plain Python, no model and no widget.
Source: "Finding NeMo" (arXiv 2406.02366), sections 2 and 3.2.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from nemo_kit.checks import check_seeds
from nemo_kit.neurons import NeuronSet

_LAYER = re.compile(r"\s*(?:layer|l)?\s*(\d+)\s*:\s*([\d\s,#-]*)", re.IGNORECASE)
_MOST_SEEDS = 16


@dataclass(frozen=True)
class View:
    """All that pictures depend on, besides the model.

    `neurons` are scaled by `factor` (0 switches them off); `guidance` is the strength of
    the prompt.
    """

    prompt: str
    neurons: NeuronSet
    factor: float
    seeds: tuple[int, ...]
    steps: int
    guidance: float


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
        raise ValueError(f"seeds must be 1 to {_MOST_SEEDS} numbers, got {given!r:.40}")
    return tuple(check_seeds(seeds, distinct=True))


def write_seeds(seeds: tuple[int, ...]) -> str:
    """The shortest form that `read_seeds` reads."""
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]}-{seeds[-1]}"
    return ", ".join(map(str, seeds))
