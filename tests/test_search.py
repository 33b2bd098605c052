"""Initial selection and refinement over hand-written scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nemo_kit.localization import refine, select_initial
from nemo_kit.localization.search import SEARCHES, find_search, schedule
from nemo_kit.localization.verdicts import Verdicts
from nemo_kit.neurons import NeuronSet
from nemo_kit.settings import LocalizationSettings


class Recorder(Verdicts):
    """A score function that remembers what it was called with; it answers questions, too."""

    def __init__(self, of: Callable[[NeuronSet], float]) -> None:
        super().__init__(seeds=1)
        self.of, self.calls = of, []

    def __call__(self, sets: Sequence[NeuronSet]) -> Tensor:
        self.calls += sets
        return torch.tensor([self.of(one) for one in sets])

    def evaluate(self, sets: Sequence[NeuronSet], seeds: Sequence[int]) -> list[float]:
        return self(sets).tolist()


def necessary(*neurons: tuple[int, int]) -> Callable[[NeuronSet], float]:
    """0.9 unless all of these are deactivated, then 0.2."""
    return lambda one: 0.2 if set(neurons) <= set(one) else 0.9


def by_k(theta: float, k: int) -> NeuronSet:
    return NeuronSet({1: range(k)})


def test_the_schedule_of_the_paper_and_of_the_code() -> None:
    paper = schedule(LocalizationSettings(), 1280)
    assert paper[0] == (5.0, 0)
    assert paper[1] == (4.75, 1)
    assert paper[-1] == (1.0, 16)
    assert len(paper) == 17
    code = schedule(LocalizationSettings.released(), 1280)
    assert code == paper[:-1]  # θ = 1 is never scored


def test_the_schedule_ends_where_k_adds_nothing() -> None:
    only_k = LocalizationSettings(theta=math.inf)
    assert schedule(only_k, 3) == [(math.inf, 0), (math.inf, 1), (math.inf, 2), (math.inf, 3)]
    code = LocalizationSettings(theta=math.inf, k=1275, score_theta_min=False)
    assert [k for _, k in schedule(code, 1300)] == [*range(1275, 1280)]  # k = 1280 is never scored
    only_theta = LocalizationSettings(k_step=0)
    assert schedule(only_theta, 3)[-1] == (1.0, 0)
    assert len(schedule(LocalizationSettings(theta=1.0), 3)) == 1
    assert len(schedule(LocalizationSettings(theta=1.0, score_theta_min=False), 3)) == 1


def test_selection_stops_at_the_threshold() -> None:
    score = Recorder(lambda one: 1.0 - 0.1 * len(one))
    found = select_initial(score, by_k, 0.65)
    assert (found.theta, found.k) == (4.0, 4)
    assert found.candidates == NeuronSet({1: range(4)})
    assert found.score == pytest.approx(0.6)
    assert found.refinement_threshold == 0.65
    assert score.calls == [by_k(0, k) for k in range(5)]


def test_selection_stops_at_equality() -> None:
    assert select_initial(Recorder(lambda one: 0.5), by_k, 0.5).k == 0


def test_where_theta_runs_out_the_score_is_the_new_threshold() -> None:
    found = select_initial(Recorder(lambda one: 1.0 - 0.01 * len(one)), by_k, 0.4)
    assert (found.theta, found.k) == (1.0, 16)
    assert found.score == found.refinement_threshold == pytest.approx(0.84)
    code = LocalizationSettings.released()
    found = select_initial(Recorder(lambda one: 1.0 - 0.01 * len(one)), by_k, 0.4, code)
    assert (found.theta, found.k) == (1.25, 15)


def test_refinement_walks_layers_then_neurons_last_to_first() -> None:
    score = Recorder(necessary((1, 0), (3, 1)))
    found = refine(score, NeuronSet({1: [0, 2], 2: [5], 3: [1, 4]}), 0.4)
    assert found.neurons == NeuronSet({1: [0], 3: [1]})
    assert found.score == pytest.approx(0.2)
    assert found.checks == len(score.calls) == 7
    assert score.calls == [
        NeuronSet({1: [0, 2], 2: [5]}),  # layer 3 re-activated: memorized again, kept
        NeuronSet({1: [0, 2], 3: [1, 4]}),  # layer 2: dropped
        NeuronSet({3: [1, 4]}),  # layer 1: kept
        NeuronSet({1: [0, 2], 3: [4]}),  # neuron 1 of layer 3: kept
        NeuronSet({1: [0, 2], 3: [1]}),  # neuron 4: dropped
        NeuronSet({1: [2], 3: [1]}),  # neuron 0 of layer 1: kept
        NeuronSet({1: [0], 3: [1]}),  # neuron 2: dropped
    ]


def test_a_score_at_the_threshold_is_not_below() -> None:
    found = refine(Recorder(lambda one: 0.4), NeuronSet({1: [0]}), 0.4, initial_score=0.35)
    assert found.neurons == NeuronSet({1: [0]})
    assert found.score == 0.35


LISTS = {1: [2, 5, 7, 7, 3, 2]}  # outliers 2, 5, 7; then the largest activations 7, 3, 2


@pytest.mark.parametrize("search", ["sequential", "speculative", "bisect"])
def test_doubles_are_tried_at_their_second_place(search: str) -> None:
    """Which of two equal neurons stays follows from the order of their last places."""
    either = Recorder(lambda one: 0.2 if (1, 2) in one or (1, 3) in one else 0.9)
    mode, sets = SEARCHES[search], NeuronSet(LISTS)
    by_index = mode.refine(either, sets, 0.4, initial_score=0.2)
    assert by_index.neurons == NeuronSet({1: [3]})
    released = mode.refine(either, sets, 0.4, initial_score=0.2, order=LISTS)
    assert released.neurons == NeuronSet({1: [2]})
    first = mode.refine(either, sets, 0.4, initial_score=0.2, order={1: [3, 2, 5, 7]})
    assert first.neurons == NeuronSet({1: [2]})


@pytest.mark.parametrize("search", ["sequential", "speculative"])
def test_doubles_stay_while_the_score_equals_the_threshold(search: str) -> None:
    """θ ran out: the score 0.5 is the threshold itself. 5 is the first to go, when 2 has been
    looked at: 2 stays for good, 7 and 3 come later and go."""
    at = Recorder(lambda one: (0.5 if (1, 5) in one else 0.3) if one else 0.9)
    found = SEARCHES[search].refine(at, NeuronSet(LISTS), 0.5, initial_score=0.5, order=LISTS)
    assert found.neurons == NeuronSet({1: [2]})
    assert found.score == pytest.approx(0.3)
    fixed = Recorder(lambda one: 0.5)
    found = SEARCHES[search].refine(fixed, NeuronSet(LISTS), 0.5, initial_score=0.5, order=LISTS)
    assert found.neurons == NeuronSet(LISTS)


def test_a_list_with_doubles_is_walked_entry_by_entry() -> None:
    score = Recorder(necessary((1, 5)))
    lists = {1: [5, 2, 2], 3: [4]}
    found = refine(score, NeuronSet(lists), 0.4, initial_score=0.2, order=lists)
    assert found.neurons == NeuronSet({1: [5]})
    assert score.calls == [
        NeuronSet({1: [2, 5]}),  # layer 3 re-activated: dropped
        NeuronSet(),  # layer 1: kept
        NeuronSet({1: [2]}),  # neuron 5: kept
        NeuronSet({1: [2, 5]}),  # one copy of neuron 2: changes nothing, taken out
        NeuronSet({1: [5]}),  # its other copy: dropped
    ]


def test_redundant_neurons_keep_the_one_that_suffices() -> None:
    either = Recorder(lambda one: 0.2 if (2, 0) in one or (2, 1) in one else 0.9)
    assert refine(either, NeuronSet({2: [0, 1]}), 0.4).neurons == NeuronSet({2: [1]})


def test_no_candidates() -> None:
    found = refine(Recorder(lambda one: 1.0), NeuronSet(), 0.4, initial_score=1.0)
    assert (found.neurons, found.score, found.checks) == (NeuronSet(), 1.0, 0)


def test_reports() -> None:
    reports: list[tuple] = []
    report = lambda *call: reports.append(call)  # noqa: E731
    select_initial(Recorder(lambda one: 1.0 - 0.1 * len(one)), by_k, 0.85, report=report)
    assert reports == [(1, 17), (2, 17), (3, 17)]
    reports.clear()
    refine(Recorder(necessary((1, 0))), NeuronSet({1: [0, 2], 2: [5, 6]}), 0.4, report=report)
    assert reports == [(1, 6), (2, 6), (3, 4), (4, 4)]


pairs = st.tuples(st.integers(1, 4), st.integers(0, 5))


@given(st.sets(pairs, max_size=8), st.sets(pairs, max_size=4))
def test_what_is_left_is_necessary_and_enough(candidates: set, wanted: set) -> None:
    """Where the score is monotone, refinement returns exactly the necessary candidates."""
    wanted &= candidates
    score = Recorder(necessary(*wanted))
    found = refine(score, NeuronSet.of(candidates), 0.4, initial_score=0.2)
    assert set(found.neurons) == wanted
    assert found.score == pytest.approx(0.2)


@given(st.sets(pairs, max_size=8), st.randoms(use_true_random=False))
def test_any_score_leaves_a_subset_below_the_threshold(candidates: set, random: object) -> None:
    values: dict[NeuronSet, float] = {}
    score = Recorder(lambda one: values.setdefault(one, random.random()))  # type: ignore[attr-defined]
    found = refine(score, NeuronSet.of(candidates), 0.4, initial_score=0.3)
    assert set(found.neurons) <= candidates
    assert found.score < 0.4
    assert found.checks == len(score.calls)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_scores_must_be_finite(value: float) -> None:
    with pytest.raises(ValueError, match=f"score must be finite, got {value}"):
        select_initial(Recorder(lambda one: value), by_k, 0.4)
    with pytest.raises(ValueError, match="score must be finite"):
        refine(Recorder(lambda one: value), NeuronSet({1: [0]}), 0.4)
    for call in (
        lambda: select_initial(Recorder(lambda one: 0.5), by_k, value),
        lambda: refine(Recorder(lambda one: 0.5), NeuronSet({1: [0]}), value),
    ):
        with pytest.raises(ValueError, match="threshold must be finite"):
            call()


def test_each_mode_counts_with_the_version_of_its_own_file() -> None:
    homes = [
        SEARCHES[name].__module__ for name in ("sequential", "speculative", "bisect", "attributed")
    ]
    files = [f"nemo_kit.localization.search.{name}" for name in (
        "sequential", "speculative", "halving", "attributed")]  # fmt: skip
    assert homes == files


def test_search_modes_are_named() -> None:
    assert find_search("sequential") is SEARCHES["sequential"]
    with pytest.raises(ValueError, match=r"search must be one of .*sequential.*; got 'quick'"):
        find_search("quick")
