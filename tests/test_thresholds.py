"""Many thresholds at once: the same results as one by one, from fewer samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from nemo_kit.localization import localize
from nemo_kit.localization.thresholds import Recalled, localize_thresholds
from nemo_kit.models import DiffusionModel
from nemo_kit.neurons import NeuronSet
from nemo_kit.settings import LocalizationSettings, SimilaritySettings

SEEDS = [1, 2, 3]
QUICK = LocalizationSettings(theta=2, theta_step=0.5, theta_min=1, k_step=2)
A, B = NeuronSet({1: [0]}), NeuronSet({1: [1]})


class Counted:
    """A score of two seeds that counts what it is asked: the set's size, and 10 for seed 1."""

    seeds, settings = 2, SimilaritySettings()

    def __init__(self) -> None:
        self.calls: list[tuple[list[NeuronSet], list[int]]] = []

    def evaluate(self, sets: list[NeuronSet], seeds: list[int]) -> list[float]:
        self.calls.append((list(sets), list(seeds)))
        return [len(one) + 10.0 * seed for one, seed in zip(sets, seeds, strict=True)]


def test_a_set_is_scored_once_and_counted_by_each_that_asks() -> None:
    score, memory = Counted(), {}
    first, second = Recalled(score, memory), Recalled(score, memory)
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


def test_each_pair_is_what_localization_by_itself_finds(model: DiffusionModel) -> None:
    grid = localize_thresholds(model, "a red cup", (1.0, 0.0), SEEDS, QUICK)
    pairs = grid[["initial_deviations", "refinement_deviations"]]
    assert pairs.to_numpy().tolist() == [[0, 0], [0, 1], [1, 1]]
    assert (grid["samples"] == model.samples_evaluated).all()
    own = localize(model, "a red cup", SEEDS, settings=QUICK)
    last = grid.iloc[-1]
    assert NeuronSet.from_json(last["initial"]) == own.initial
    assert NeuronSet.from_json(last["refined"]) == own.refined
    assert last["samples_alone"] == own.samples_evaluated
    assert last["samples"] < grid["samples_alone"].sum()


def test_rows_hold_each_pair(model: DiffusionModel) -> None:
    grid = localize_thresholds(model, "a red cup", (1.0,), SEEDS, replace(QUICK, refine=False))
    [row] = grid.to_dict("records")
    assert row["flagged"]
    assert row["initial"] == row["refined"]
    assert row["n_initial"] == row["n_refined"] == len(NeuronSet.from_json(row["initial"])) > 0
    assert (row["initial_deviations"], row["refinement_deviations"]) == (1.0, 1.0)


def test_a_prompt_below_the_threshold_has_no_pair(model: DiffusionModel) -> None:
    model.calibration = replace(model.calibration, threshold=0.999)
    grid = localize_thresholds(model, "cat 0", (0.0,), range(1, 4))
    [row] = grid.to_dict("records")
    assert 0 < row.pop("score") < 0.999
    assert row == {"prompt": "cat 0", "flagged": False, "samples": 3}


def test_bad_input_is_named(toy_model: DiffusionModel) -> None:
    with pytest.raises(ValueError, match="deviations must hold at least one"):
        localize_thresholds(toy_model, "cat 0", ())
    with pytest.raises(ValueError, match="deviations must be a finite number"):
        localize_thresholds(toy_model, "cat 0", (float("nan"),))
    with pytest.raises(ValueError, match="seeds must hold at least 2"):
        localize_thresholds(toy_model, "cat 0", seeds=[1])
    with pytest.raises(TypeError, match="prompt must be one text"):
        localize_thresholds(toy_model, ["cat"])
    with pytest.raises(ValueError, match="search must be one of speculative, sequential, bisect"):
        localize_thresholds(toy_model, "cat 0", search="attributed")
    known = toy_model.calibration
    for calibration in (None, replace(known, statistics=None)):
        toy_model.calibration = calibration
        with pytest.raises(ValueError, match="has none; give statistics"):
            localize_thresholds(toy_model, "cat 0")
    toy_model.calibration = known
