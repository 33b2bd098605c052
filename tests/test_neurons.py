"""Neuron sets: arithmetic, order, and its text forms there and back."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_kit.neurons import NeuronSet, frequency, random_neurons

sets = st.dictionaries(st.integers(1, 7), st.lists(st.integers(0, 1279), max_size=5)).map(NeuronSet)
A = NeuronSet({3: [7], 1: [40, 12, 12], 2: []})


def test_a_set_is_sorted_unique_and_without_empty_layers() -> None:
    assert A.layers == {1: (12, 40), 3: (7,)}
    assert list(A.layers) == [1, 3]
    assert len(A) == 3
    assert list(A) == [(1, 12), (1, 40), (3, 7)]
    assert A.counts() == {1: 2, 3: 1}
    assert (1, 40) in A
    assert (2, 0) not in A
    assert "text" not in A
    assert not NeuronSet()
    assert repr(A) == "NeuronSet({1: [12, 40], 3: [7]})"


def test_arithmetic() -> None:
    b = NeuronSet.of([(1, 12), (7, 0)])
    assert A | b == NeuronSet({1: [12, 40], 3: [7], 7: [0]})
    assert A & b == NeuronSet({1: [12]})
    assert A - b == NeuronSet({1: [40], 3: [7]})
    assert A.only(1) == NeuronSet({1: [12, 40]})
    assert A.only(6) == NeuronSet()


@given(sets, sets)
def test_arithmetic_is_that_of_sets_of_pairs(a: NeuronSet, b: NeuronSet) -> None:
    assert set(a | b) == set(a) | set(b)
    assert set(a & b) == set(a) & set(b)
    assert set(a - b) == set(a) - set(b)
    assert (a == b) == (set(a) == set(b))
    assert hash(NeuronSet(a.layers)) == hash(a)


@given(sets)
def test_text_and_json_come_back(a: NeuronSet) -> None:
    assert NeuronSet.from_text(a.to_text()) == a
    assert NeuronSet.from_json(a.to_json()) == a
    assert pickle.loads(pickle.dumps(a)) == a
    assert NeuronSet.of(a) == a


def test_text_is_the_released_codes() -> None:
    assert A.to_text() == "[[12, 40], [], [7], [], [], [], []]"
    doubled = NeuronSet.from_text("[[12, 40, 12], [], [7], [], [], [], []]")  # z and top-k overlap
    assert doubled == A


def test_a_set_can_not_be_changed() -> None:
    with pytest.raises(AttributeError, match="can't be changed"):
        A.extra = 1  # type: ignore[attr-defined]
    A.layers[1] = (0,)
    assert (1, 0) not in A


def test_numpy_integers_are_integers() -> None:
    assert NeuronSet({np.int64(1): np.array([3, 1])}) == NeuronSet({1: [1, 3]})


@pytest.mark.parametrize(
    ("layers", "error", "text"),
    [
        ({0: [1]}, ValueError, "layer must be an integer of at least 1, got 0"),
        ({1: [-1]}, ValueError, "neuron index must be an integer of at least 0, got -1"),
        ({1: [1.5]}, ValueError, "neuron index must be an integer of at least 0, got 1.5"),
        ({1: [True]}, ValueError, "neuron index must be an integer .*, got True"),
        ({"1": [1]}, ValueError, "layer must be an integer of at least 1, got '1'"),
        ({1: 5}, TypeError, r"layers\[1\] must be a list of neuron indices, got 5"),
        ({1: "12"}, TypeError, r"layers\[1\] must be a list of neuron indices"),
        ([[1, 2]], TypeError, "layers must map a layer to neuron indices, got list"),
    ],
)
def test_bad_layers(layers: object, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        NeuronSet(layers)  # type: ignore[arg-type]


def test_arithmetic_with_something_else() -> None:
    with pytest.raises(TypeError):
        A | {1}  # type: ignore[operator]
    assert A != {1: (12, 40)}


def test_check() -> None:
    assert A.check({1: 41, 3: 8}) is A
    with pytest.raises(ValueError, match=r"index 40 in layer 1 is out of range; .* 0 to 39"):
        A.check({1: 40, 3: 8})
    with pytest.raises(ValueError, match=r"layer 3 does not exist here; layers: \[1\]"):
        A.check({1: 41})


@pytest.mark.parametrize(
    "text", ["", "[[1]", "7", "[1, 2]", "__import__('os')", "[[1.5]]", "[" * 9999]
)
def test_bad_text(text: str) -> None:
    with pytest.raises(ValueError, match=r"neurons text|neuron index"):
        NeuronSet.from_text(text)


@pytest.mark.parametrize("text", ["", "[]", '{"a": [1]}', '{"1": 3}', '{"1": ["x"]}'])
def test_bad_json(text: str) -> None:
    with pytest.raises(ValueError, match="neurons JSON"):
        NeuronSet.from_json(text)


def test_text_of_too_few_layers() -> None:
    with pytest.raises(ValueError, match="layers must be at least 3 for this set, got 2"):
        A.to_text(layers=2)


def test_frequency_counts_prompts_most_frequent_first() -> None:
    frame = frequency([A, NeuronSet({3: [7]}), NeuronSet({2: [9]}), NeuronSet()])
    assert frame.to_dict("list") == {
        "layer": [3, 1, 1, 2],
        "neuron": [7, 12, 40, 9],
        "prompts": [2, 1, 1, 1],
    }
    assert list(frequency([])) == ["layer", "neuron", "prompts"]


def test_random_neurons_keep_the_counts_and_avoid_the_excluded() -> None:
    widths = {1: 50, 2: 50, 3: 9}
    found = NeuronSet({3: range(8)})
    drawn = random_neurons(A, widths, exclude=found, seed=3)
    assert drawn.counts() == A.counts()
    assert drawn.only(3) == NeuronSet({3: [8]})
    assert drawn == random_neurons(A, widths, exclude=found, seed=3)
    assert len({random_neurons(A, widths, seed=seed) for seed in range(5)}) > 1


def test_random_neurons_without_room() -> None:
    with pytest.raises(ValueError, match="exclude leaves 0 neurons in layer 3, but 1 are needed"):
        random_neurons(A, {1: 50, 3: 8}, exclude=NeuronSet({3: range(8)}))
    with pytest.raises(ValueError, match="out of range"):
        random_neurons(A, {1: 5, 3: 8})
