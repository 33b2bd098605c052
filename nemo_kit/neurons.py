"""Sets of neurons: layer -> sorted indices, with their arithmetic.

Scope: `NeuronSet`, its text forms (JSON, and the released code's list of lists), counting over
prompts, a random control set. A neuron is one output feature of a cross-attention value
projection; layers are numbered from 1 as in the paper. Files are in `nemo_kit.neuron_files`.
Source: "Finding NeMo" (arXiv 2406.02366), section 2 and appendix.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from nemo_kit.checks import check_whole

if TYPE_CHECKING:
    import pandas as pd

Neuron = tuple[int, int]  # (layer from 1, index from 0)


class NeuronSet:
    """An immutable, hashable set of neurons, grouped by layer.

    Returns an object whose length is its number of neurons and whose order is layer by layer,
    index by index.

    Parameters: `layers`, a mapping from layer (an integer from 1) to neuron indices (integers
    from 0); double indices count once, empty layers are dropped.
    Raises TypeError for what is no such mapping, ValueError where a layer or an index is no integer
    or too small.
    Source: section 2 (neurons); layers 1 to 7 are the searched ones of SD v1.4.
    """

    __slots__ = ("_layers",)
    _layers: dict[int, tuple[int, ...]]

    def __init__(self, layers: Mapping[int, Iterable[int]] | None = None) -> None:
        clean = {}
        layers = {} if layers is None else layers
        if not isinstance(layers, Mapping):
            got = type(layers).__name__
            raise TypeError(f"layers must map a layer to neuron indices, got {got}")
        for layer, indices in layers.items():
            if isinstance(indices, str) or not isinstance(indices, Iterable):
                told = f"layers[{layer!r}] must be a list of neuron indices"
                raise TypeError(f"{told}, got {indices!r}")
            check_whole("layer", layer, 1)
            found = list(indices)
            for index in found:
                check_whole("neuron index", index, 0)
            if found:
                clean[int(layer)] = tuple(sorted(set(map(int, found))))
        clean = dict(sorted(clean.items()))
        object.__setattr__(self, "_layers", clean)

    @classmethod
    def of(cls, pairs: Iterable[Neuron]) -> NeuronSet:
        """The set of these (layer, index) pairs, in any order."""
        grouped: dict[int, list[int]] = {}
        for layer, index in pairs:
            grouped.setdefault(layer, []).append(index)
        return cls(grouped)

    @property
    def layers(self) -> dict[int, tuple[int, ...]]:
        """Layer -> sorted neuron indices, layers ascending, no empty ones (a copy)."""
        return dict(self._layers)

    def counts(self) -> dict[int, int]:
        """Layer -> number of neurons, for the layers that have any."""
        return {layer: len(indices) for layer, indices in self._layers.items()}

    def only(self, layer: int) -> NeuronSet:
        """The neurons of this layer alone."""
        return NeuronSet({layer: self._layers.get(layer, ())})

    def check(self, widths: Mapping[int, int]) -> NeuronSet:
        """The set itself, if every neuron exists.

        Parameters: `widths`, layer -> number of neurons of that layer.
        Raises ValueError that names the layer or neuron and what the model has.
        """
        for layer, indices in self._layers.items():
            if layer not in widths:
                raise ValueError(
                    f"neurons: layer {layer} does not exist here; layers: {sorted(widths)}"
                )
            if indices[-1] >= widths[layer]:
                raise ValueError(
                    f"neurons: index {indices[-1]} in layer {layer} is out of range; "
                    f"the layer has neurons 0 to {widths[layer] - 1}"
                )
        return self

    def to_text(self, layers: int = 7) -> str:
        """The released code's form: the text of a list of `layers` lists.

        Raises ValueError where the set has a neuron beyond that many layers.
        """
        beyond = [layer for layer in self._layers if layer > layers]
        if beyond:
            raise ValueError(f"layers must be at least {max(beyond)} for this set, got {layers}")
        return str([list(self._layers.get(layer, ())) for layer in range(1, layers + 1)])

    @classmethod
    def from_text(cls, text: str) -> NeuronSet:
        """Read the released code's form; double entries, which it writes, count once.

        Raises ValueError where the text is not a list of lists of integers.
        """
        try:
            rows = json.loads(text)
            if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
                raise ValueError("it must be a list of lists of integers")
            return cls(dict(enumerate(rows, start=1)))
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"neurons text {text!r:.80} can't be read: {error}") from error

    def to_json(self) -> str:
        """A JSON object from layer (as text) to indices, `{"1": [12, 40]}`."""
        return json.dumps({str(layer): list(indices) for layer, indices in self._layers.items()})

    @classmethod
    def from_json(cls, text: str) -> NeuronSet:
        """Read what `to_json` wrote; raises ValueError for anything else."""
        try:
            found = json.loads(text)
            return cls({int(layer): indices for layer, indices in found.items()})
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"neurons JSON {text!r:.80} can't be read: {error}") from error

    def __len__(self) -> int:
        return sum(map(len, self._layers.values()))

    def __iter__(self) -> Iterator[Neuron]:
        return ((layer, index) for layer, indices in self._layers.items() for index in indices)

    def __contains__(self, neuron: object) -> bool:
        if not isinstance(neuron, tuple) or len(neuron) != 2:
            return False
        return neuron[1] in self._layers.get(neuron[0], ())

    def __or__(self, other: NeuronSet) -> NeuronSet:
        return _combine(self, other, set.union)

    def __and__(self, other: NeuronSet) -> NeuronSet:
        return _combine(self, other, set.intersection)

    def __sub__(self, other: NeuronSet) -> NeuronSet:
        return _combine(self, other, set.difference)

    def __eq__(self, other: object) -> bool:
        return self._layers == other._layers if isinstance(other, NeuronSet) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self._layers.items()))

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("a NeuronSet can't be changed; build a new one")

    def __reduce__(self) -> tuple[Any, ...]:
        return NeuronSet, (self.layers,)

    def __repr__(self) -> str:
        inside = ", ".join(f"{layer}: {list(v)}" for layer, v in self._layers.items())
        return f"NeuronSet({{{inside}}})"


def _combine(one: NeuronSet, other: object, how: Any) -> Any:
    if not isinstance(other, NeuronSet):
        return NotImplemented
    layers = one._layers.keys() | other._layers.keys()
    pick = [(k, set(one._layers.get(k, ())), set(other._layers.get(k, ()))) for k in layers]
    return NeuronSet({layer: how(a, b) for layer, a, b in pick})


def frequency(sets: Iterable[NeuronSet]) -> pd.DataFrame:
    """In how many sets each neuron occurs, most frequent first.

    Returns a frame with columns layer, neuron, prompts (count, at least 1).
    Parameters: `sets`, one set a prompt.
    Source: section 4 (the most frequent neurons, figures 5a and 8).
    """
    import pandas as pd

    counts = sorted(Counter(neuron for one in sets for neuron in one).items())
    rows = [(*neuron, count) for neuron, count in sorted(counts, key=lambda pair: -pair[1])]
    return pd.DataFrame(rows, columns=["layer", "neuron", "prompts"], dtype=int)


def random_neurons(
    like: NeuronSet,
    widths: Mapping[int, int],
    exclude: NeuronSet | None = None,
    seed: int = 0,
    overflow: bool = False,
) -> NeuronSet:
    """As many random neurons in each layer as `like` has there: the paper's control.

    Parameters: `widths`, layer -> number of neurons; `exclude`, neurons never drawn (the paper
    leaves out all that were found for any prompt; the released code forgets to); `overflow`, what
    a layer can't give comes from the other layers, drawn evenly: those of a small model are narrow.
    Raises ValueError where a layer, or with `overflow` all together, have too few neurons left.
    Source: section 4, "random neurons"; difference 7 between paper and code.
    """
    rng = np.random.default_rng(seed)
    barred = exclude or NeuronSet()
    drawn = {}
    for layer, count in like.check(widths).counts().items():
        free = sorted(set(range(widths[layer])) - set(barred.layers.get(layer, ())))
        if len(free) < count and not overflow:
            raise ValueError(
                f"exclude leaves {len(free)} neurons in layer {layer}, but {count} are needed"
            )
        drawn[layer] = rng.choice(free, size=min(count, len(free)), replace=False).tolist()
    chosen = NeuronSet(drawn)
    if lacking := len(like) - len(chosen):
        every = NeuronSet({layer: range(width) for layer, width in widths.items()})
        free = list(every - barred - chosen)
        if len(free) < lacking:
            raise ValueError(f"exclude leaves {len(free)} more neurons, but {lacking} are needed")
        chosen |= NeuronSet.of(free[place] for place in rng.permutation(len(free))[:lacking])
    return chosen
