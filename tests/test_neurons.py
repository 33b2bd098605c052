"""Neuron sets: arithmetic, order, and every file form there and back."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_kit.neurons import (
    NeuronSet,
    frequency,
    load_sets,
    random_neurons,
    read_results_csv,
    save_sets,
    write_results_csv,
)

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
    assert A.without(1) == NeuronSet({3: [7]})


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
        ({0: [1]}, ValueError, "layer must be at least 1, got 0"),
        ({1: [-1]}, ValueError, "neuron index must be at least 0, got -1"),
        ({1: [1.5]}, TypeError, "neuron index must be an integer, got 1.5"),
        ({1: [True]}, TypeError, "neuron index must be an integer, got True"),
        ({"1": [1]}, TypeError, "layer must be an integer, got '1'"),
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


def results() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "Caption": ['Say "hi"; <i>now</i> 🎉', "=SUM(A1)", "'=quoted", "NA"],
            "URL": ["https://a", "@b", "", "nan"],
            "Initial Neurons": [A, NeuronSet({7: [3]}), NeuronSet(), NeuronSet()],
            "Initial SSIM": [0.4279999, 0.1, 0.0, 0.0],
            "Refined Neurons": [
                NeuronSet({1: [12]}),
                NeuronSet({7: [3]}),
                NeuronSet(),
                NeuronSet(),
            ],
            "Refined SSIM": [0.41, 0.1, 0.0, 0.0],
        }
    )


def test_results_csv_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    write_results_csv(path, results())
    pd.testing.assert_frame_equal(read_results_csv(path), results())
    lines = path.read_text("utf-8").splitlines()
    assert lines[0].startswith(HEADER.strip())
    assert "[[12, 40], [], [7], [], [], [], []]" in lines[1]
    assert lines[2].startswith("'=SUM")
    assert list(tmp_path.iterdir()) == [path]


HEADER = "Caption;URL;Initial Neurons;Initial SSIM;Refined Neurons;Refined SSIM\n"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("", "results.csv: a result CSV needs the columns"),
        ("Caption;URL\na;b\n", "needs the columns"),
        (HEADER + "a;b;[[x]];0;[];0\n", "row 0, column 'Initial Neurons'"),
        (HEADER + "a;b;[];high;[];0\n", "row 0, column 'Initial SSIM'"),
        (HEADER + "a;b;c;d;e;f;g;h\n1;2", "results.csv"),
    ],
)
def test_malformed_results_csv(tmp_path: Path, content: str, text: str) -> None:
    path = tmp_path / "results.csv"
    path.write_text(content, "utf-8")
    with pytest.raises(ValueError, match=text):
        read_results_csv(path)


def test_captions_of_the_authors_keep_their_apostrophes_and_are_no_numbers(tmp_path: Path) -> None:
    captions = ["'@home", "'=1+1", "007", "1e5", "NA", "a\u2028b"]
    rows = "".join(f"{caption};;[];0;[];0\n" for caption in captions)
    (tmp_path / "r.csv").write_text(HEADER + rows, "utf-8")
    assert list(read_results_csv(tmp_path / "r.csv")["Caption"]) == captions


def test_results_without_a_column(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs the columns \['URL'\]"):
        write_results_csv(tmp_path / "r.csv", results().drop(columns="URL"))


def test_sets_come_back_from_parquet(tmp_path: Path) -> None:
    found = {"b": A, "a; 'quoted'": NeuronSet(), "=c": NeuronSet({7: [1279]})}
    save_sets(tmp_path / "sets.parquet", found)
    loaded = load_sets(tmp_path / "sets.parquet")
    assert loaded == found
    assert list(loaded) == list(found)
    save_sets(tmp_path / "none.parquet", {})
    assert load_sets(tmp_path / "none.parquet") == {}


def test_other_files_are_no_sets(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("no parquet")
    pd.DataFrame({"prompt": ["x"]}).to_parquet(tmp_path / "b.parquet")
    for name in "ab":
        with pytest.raises(ValueError, match="holds no neuron sets"):
            load_sets(tmp_path / f"{name}.parquet")
    with pytest.raises(FileNotFoundError):
        load_sets(tmp_path / "none.parquet")
