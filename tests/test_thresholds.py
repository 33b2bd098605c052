"""Notebook 09's pairs of thresholds: the same results as one by one, from fewer samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from books import cell, imported, run

from nemo_kit import lab, load
from nemo_kit.localization import detect, localize
from nemo_kit.localization.nemo import Run
from nemo_kit.models import DiffusionModel
from nemo_kit.neurons import NeuronSet
from nemo_kit.settings import SimilaritySettings

SEEDS = [1, 2, 3]
A, B = NeuronSet({1: [0]}), NeuronSet({1: [1]})


def names(**own: Any) -> dict[str, Any]:
    """The names after the notebook's imports, with some in place of its own."""
    return imported("09_thresholds", "import pandas as pd", seeds=3) | own


def swept(folder: Path, model: DiffusionModel, deviations: Any, *prompts: str) -> dict[str, Any]:
    """The names after the cell that localizes, over prompts of the group VM."""
    rows = pd.DataFrame({"prompt": prompts, "group": "VM"})
    own = {"net": model, "results": folder, "deviations": deviations, "prompts": rows}
    return run([cell("09_thresholds", "class Recalled")], names(**own, detection_seeds=SEEDS))


class Counted:
    """A score of two seeds that counts what it is asked: the set's size, and 10 for seed 1."""

    seeds, settings = 2, SimilaritySettings()

    def __init__(self) -> None:
        self.calls: list[tuple[list[NeuronSet], list[int]]] = []

    def evaluate(self, sets: list[NeuronSet], seeds: list[int]) -> list[float]:
        self.calls.append((list(sets), list(seeds)))
        return [len(one) + 10.0 * seed for one, seed in zip(sets, seeds, strict=True)]


def test_a_set_is_scored_once_and_counted_by_each_that_asks() -> None:
    source = cell("09_thresholds", "class Recalled").split("\n\n\n")[0]
    recalled = run([source], names())["Recalled"]
    score, memory = Counted(), {}
    first, second = recalled(score, memory), recalled(score, memory)
    assert first([A]).tolist() == [11.0]
    assert second([A, B]).tolist() == [11.0, 11.0]
    assert second([A]).tolist() == [11.0]
    assert second([NeuronSet()]).tolist() == [10.0]
    assert score.calls == [([A] * 2, [0, 1]), ([B] * 2, [0, 1]), ([NeuronSet()] * 2, [0, 1])]
    assert (first.samples, second.samples) == (2, 4)


@pytest.fixture
def model(toy_model: DiffusionModel) -> Iterator[DiffusionModel]:
    """The toy model with a calibration under which it memorizes "a red cup"."""
    own = toy_model.calibration
    toy_model.calibration = replace(own, mean=0.5, std=0.1, threshold=0.6)
    yield toy_model
    toy_model.calibration = own


def test_each_pair_is_what_localization_by_itself_finds(
    model: DiffusionModel, tmp_path: Path
) -> None:
    grid = swept(tmp_path, model, [1.0, 0.0], "a red cup")["swept"]
    pairs = grid[["initial_deviations", "refinement_deviations"]].to_numpy().tolist()
    assert pairs == [[0, 0], [0, 1], [1, 1]]
    assert (grid["samples"] == model.samples_evaluated).all()
    assert model.samples_evaluated < grid["samples_alone"].sum()
    own = localize(model, "a red cup", SEEDS)
    last = grid.iloc[-1]
    assert (last["initial"], last["refined"]) == (own.initial, own.refined)
    assert last["samples_alone"] == own.samples_evaluated
    for row in grid.itertuples():
        model.samples_evaluated = 0
        alone = Run(model, "a red cup", SEEDS, "speculative")
        alone.detect(0.6)
        propose, score = alone.propose(model.calibration.statistics), alone.score()
        first = alone.select(score, propose, 0.5 + 0.1 * row.initial_deviations)
        limit = max(0.5 + 0.1 * row.refinement_deviations, first.score)
        assert row.initial == first.candidates
        assert row.refined == alone.refine(score, first, limit).neurons
        assert row.samples_alone == model.samples_evaluated
        assert (row.n_initial, row.n_refined) == (len(row.initial), len(row.refined))


def test_a_memorized_prompt_of_the_embedded_model(tmp_path: Path) -> None:
    text = lab.prompts("verbatim")["prompt"].iloc[0]
    grid = swept(tmp_path, load("lab", device="cpu"), [0.0, 1.0], text)["swept"]
    numbers = grid[["n_initial", "n_refined", "samples_alone", "samples"]]
    assert numbers.to_numpy().tolist() == [[1, 1, 6, 6]] * 3
    assert set(grid["refined"]) == {NeuronSet({3: [41]})}


def test_a_prompt_below_the_threshold_has_no_pair(model: DiffusionModel, tmp_path: Path) -> None:
    low, high = detect(model, ["a red cup", "cat 0"], SEEDS)["score"]
    assert low < high
    model.calibration = replace(model.calibration, threshold=(low + high) / 2)
    found = swept(tmp_path, model, [1.0], "a red cup", "cat 0")
    assert found["swept"]["prompt"].tolist() == ["cat 0"]
    before = model.samples_evaluated
    again = swept(tmp_path, model, [1.0], "a red cup", "cat 0")["swept"]
    assert again.equals(found["swept"])
    assert model.samples_evaluated == before, "also what is not flagged comes from the store"
    for deviations, prompt in (([1.0], "a red cup"), ([], "cat 0")):
        with pytest.raises(RuntimeError, match="no prompt is flagged, or deviations is empty"):
            swept(tmp_path, model, deviations, prompt)


def test_bad_input_is_named(model: DiffusionModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="deviations must be a finite number, got nan"):
        swept(tmp_path, model, [float("nan")], "a red cup")
    for calibration in (None, replace(model.calibration, statistics=None)):
        model.calibration = calibration
        with pytest.raises(RuntimeError, match=r"the first with .*has none; give statistics"):
            swept(tmp_path, model, [0.0], "a red cup")
