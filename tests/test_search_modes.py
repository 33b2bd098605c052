"""The search modes against one another, over random score functions; no model."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_kit.localization.search import SEARCHES, refine, select_initial, unnecessary
from nemo_kit.localization.search.halving import bisected
from nemo_kit.localization.search.speculative import Chain
from nemo_kit.localization.search.steps import layer_parts, neuron_parts
from nemo_kit.localization.verdicts import Verdicts
from nemo_kit.neurons import Neuron, NeuronSet

LIMIT = 0.4
BATCHED = ("speculative", "bisect", "attributed")
pairs = st.tuples(st.integers(1, 4), st.integers(0, 7))
candidate_sets = st.sets(pairs, min_size=1, max_size=20).map(NeuronSet.of)


class Plain(Verdicts):
    """Verdicts without effects."""

    def evaluate(self, sets: Sequence[NeuronSet], seeds: Sequence[int]) -> list[float]:
        return [0.1] * len(sets)


class Seeds(Verdicts):
    """Scores by hand, one function a seed, and effects as given."""

    def __init__(
        self, *of: Callable[[NeuronSet], float], effects: Mapping[Neuron, float] | None = None
    ) -> None:
        super().__init__(len(of))
        self.of, self.given, self.samples = of, effects or {}, 0

    def __call__(self, sets: Sequence[NeuronSet]) -> list[float]:
        return [max(f(one) for f in self.of) for one in sets]

    def evaluate(self, sets: Sequence[NeuronSet], seeds: Sequence[int]) -> list[float]:
        self.samples += len(sets)
        return [self.of[seed](one) for one, seed in zip(sets, seeds, strict=True)]

    def effects(self, neurons: NeuronSet, most: int) -> dict[Neuron, float]:
        return {neuron: self.given.get(neuron, 0.0) for neuron in neurons}


def noise(seed: int, spread: float = 1.0) -> Callable[[NeuronSet], float]:
    """Any score: not monotone at all; the same for the same set."""
    return lambda one: random.Random(f"{seed}{one}").random() * spread


def additive(weights: Mapping[Neuron, float], base: float = 0.2) -> Callable[[NeuronSet], float]:
    """Re-activating a neuron adds its weight: monotone for weights from 0."""
    return lambda one: base + sum(w for neuron, w in weights.items() if neuron not in one)


def random_weights(candidates: NeuronSet, seed: int) -> dict[Neuron, float]:
    rng = random.Random(seed)
    return {n: rng.choice([0.0, 0.01, 0.05, 0.3]) * rng.random() for n in candidates}


@given(candidate_sets, st.integers(0, 10**6))
def test_speculative_is_sequential_for_any_score(candidates: NeuronSet, seed: int) -> None:
    score = Seeds(noise(seed))
    expected = refine(score, candidates, LIMIT, initial_score=0.1)
    found = SEARCHES["speculative"].refine(score, candidates, LIMIT, initial_score=0.1)
    assert (found.neurons, found.score) == (expected.neurons, expected.score)


@given(candidate_sets, st.integers(0, 10**6))
def test_speculative_is_sequential_seed_by_seed(candidates: NeuronSet, seed: int) -> None:
    """With all seeds watched, for scores that jump from set to set and from seed to seed."""
    score = Seeds(*(noise(seed + place, 0.6) for place in range(5)))
    expected = refine(score, candidates, LIMIT, initial_score=0.1)
    everything = type("Careful", (Chain,), {"margin": math.inf})
    walk = everything(score, candidates, LIMIT)
    walk.through(layer_parts(candidates))
    walk.through(neuron_parts(walk.neurons))
    assert walk.neurons == expected.neurons


lists = st.dictionaries(
    st.integers(1, 3), st.lists(st.integers(0, 7), min_size=1, max_size=10), min_size=1
)


@given(lists, st.integers(0, 10**6), st.booleans())
def test_speculative_is_sequential_on_lists_with_doubles(
    given_lists: dict[int, list[int]], seed: int, at_the_threshold: bool
) -> None:
    """Each index at most twice, as in the released lists; also where θ ran out."""
    order = {
        layer: [one for place, one in enumerate(row) if row[:place].count(one) < 2]
        for layer, row in given_lists.items()
    }
    candidates, any_score = NeuronSet(order), noise(seed)
    start = 0.4 if at_the_threshold else 0.1
    score = Seeds(lambda one: start if one == candidates else any_score(one))
    options = {"initial_score": start, "order": order}
    expected = refine(score, candidates, LIMIT, **options)
    found = SEARCHES["speculative"].refine(score, candidates, LIMIT, **options)
    assert (found.neurons, found.score) == (expected.neurons, expected.score)


@pytest.mark.parametrize("search", ["speculative", "bisect"])
@given(candidate_sets, st.integers(0, 10**6))
def test_on_monotone_scores_the_sets_are_sequential(
    search: str, candidates: NeuronSet, seed: int
) -> None:
    score = Seeds(*(additive(random_weights(candidates, seed + place)) for place in range(5)))
    expected = refine(score, candidates, LIMIT, initial_score=0.2)
    found = SEARCHES[search].refine(score, candidates, LIMIT, initial_score=0.2)
    assert found.neurons == expected.neurons
    assert found.score == expected.score
    assert not found.fell_back


@pytest.mark.parametrize("search", ["bisect", "attributed"])
@given(candidate_sets, st.integers(0, 10**6), st.booleans())
def test_verified_modes_return_verified_sets(
    search: str, candidates: NeuronSet, seed: int, monotone: bool
) -> None:
    """Whatever the score does: all below, and each neuron alone brings it to the threshold."""
    if monotone:
        of = [additive(random_weights(candidates, seed + place)) for place in range(4)]
    else:
        of = [noise(seed + place, 0.6) for place in range(4)]
    score = Seeds(*of, effects=random_weights(candidates, seed))
    found = SEARCHES[search].refine(score, candidates, LIMIT, initial_score=0.2)
    assert found.verified
    assert not found.neurons - candidates
    if found.neurons != candidates:
        assert found.score == score([found.neurons])[0] < LIMIT
    for neuron in found.neurons:
        assert score([found.neurons - NeuronSet.of([neuron])])[0] >= LIMIT


@pytest.mark.parametrize("search", BATCHED)
@given(st.sets(pairs, max_size=12), st.sets(pairs, max_size=4))
def test_what_is_left_is_necessary_and_enough(search: str, candidates: set, wanted: set) -> None:
    wanted &= candidates
    score = Seeds(lambda one: 0.2 if wanted <= set(one) else 0.9)
    found = SEARCHES[search].refine(score, NeuronSet.of(candidates), LIMIT, initial_score=0.2)
    assert set(found.neurons) == wanted
    assert found.score == pytest.approx(0.2)


@pytest.mark.parametrize("search", BATCHED)
@given(st.integers(0, 17), st.integers(0, 10**6))
@settings(max_examples=50)
def test_selection_ends_where_the_sequential_one_does(search: str, enough: int, seed: int) -> None:
    def propose(theta: float, k: int) -> NeuronSet:
        return NeuronSet({1: range(k)})

    falling = Seeds(lambda one: 0.3 if len(one) >= enough else 0.6 - 0.001 * len(one))
    expected = select_initial(falling, propose, LIMIT)
    assert SEARCHES[search].select(falling, propose, LIMIT) == expected
    anything = Seeds(*(noise(seed + place, 0.5) for place in range(3)))
    found = SEARCHES[search].select(anything, propose, LIMIT)
    if search == "speculative":
        assert found == select_initial(anything, propose, LIMIT)
    elif found.refinement_threshold == LIMIT:  # a step below whose predecessor is above
        assert found.score <= LIMIT
        assert found.k == 0 or anything([propose(0, found.k - 1)])[0] > LIMIT


def test_a_score_at_the_threshold_stops_the_selection_and_keeps_the_neuron() -> None:
    at = Seeds(lambda one: 0.4, lambda one: 0.1, effects={(1, 0): 1.0})
    for search in BATCHED:
        found = SEARCHES[search].select(at, lambda theta, k: NeuronSet({1: range(k)}), 0.4)
        assert (found.k, found.score) == (0, 0.4)
        left = SEARCHES[search].refine(at, NeuronSet({1: [0]}), 0.4, initial_score=0.35)
        assert (left.neurons, left.score) == (NeuronSet({1: [0]}), 0.35)


def test_what_fails_verification_is_walked_again_and_named() -> None:
    """Neuron 0 must stay while 1 is off; with 1 on it no longer matters."""
    scores = {(): 0.1, (0,): 0.9, (1,): 0.2, (1, 2): 0.9, (0, 1): 0.3, (0, 1, 2): 0.9}

    def tricky(one: NeuronSet) -> float:
        return scores[tuple(i for _, i in NeuronSet({1: range(3)}) - one)]

    found = SEARCHES["bisect"].refine(Seeds(tricky), NeuronSet({1: range(3)}), LIMIT)
    assert found.verified
    assert found.fell_back == NeuronSet({1: [0]})
    assert found.neurons == NeuronSet({1: [2]})
    assert not unnecessary(Seeds(tricky), found.neurons, LIMIT)


def test_one_seed_is_enough_to_stay_and_all_are_needed_to_go() -> None:
    stays = Seeds(lambda one: 0.9, lambda one: 0.1, lambda one: 0.1)
    SEARCHES["speculative"].refine(stays, NeuronSet({1: [0]}), LIMIT, initial_score=0.1)
    assert stays.samples == 1  # the layer, then the same set as a neuron: known
    goes = Seeds(*[lambda one: 0.1] * 3)
    SEARCHES["speculative"].refine(goes, NeuronSet({1: [0]}), LIMIT, initial_score=0.1)
    assert goes.samples == 3


def test_long_chains_cost_few_samples() -> None:
    """60 candidates, 3 necessary, 10 seeds: checks of the released algorithm cost 20 each."""
    candidates = NeuronSet({1: range(20), 2: range(20), 3: range(20)})
    wanted = {(1, 3), (2, 19), (3, 7)}
    effects = dict.fromkeys(wanted, 1.0)
    samples = {}
    for search in BATCHED:
        of = [lambda one: 0.2 if wanted <= set(one) else 0.9] * 10
        score = Seeds(*of, effects=effects)
        score.exact(candidates)
        assert set(SEARCHES[search].refine(score, candidates, LIMIT).neurons) == wanted
        samples[search] = score.samples
    released = 20 * (3 + 60)
    assert samples["speculative"] <= released / 6
    assert samples["bisect"] <= released / 10
    # all candidates; 1, 2, 4, 8 and 3 of them on one seed; the three on the others; two of them
    # re-activated alone (without the third is what 2 of them were)
    assert samples["attributed"] == 10 + 5 + 9 + 2


@given(st.integers(1, 40), st.integers(0, 40))
def test_doubling_and_halving_find_the_first_that_holds(count: int, first: int) -> None:
    looked: list[int] = []

    def holds(places: Sequence[int]) -> int:
        looked.extend(places)
        return next((i for i, place in enumerate(places) if place >= first), len(places))

    assert bisected(count, holds) == min(first, count)
    assert len(looked) <= 3 * count.bit_length() + 2


@pytest.mark.parametrize("search", BATCHED)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_scores_must_be_finite(search: str, value: float) -> None:
    mode, score = SEARCHES[search], Seeds(lambda one: value)
    with pytest.raises(ValueError, match=f"score must be finite, got {value}"):
        mode.select(score, lambda theta, k: NeuronSet({1: [0]}), LIMIT)
    with pytest.raises(ValueError, match=f"score must be finite, got {value}"):
        mode.refine(score, NeuronSet({1: [0]}), LIMIT)
    with pytest.raises(ValueError, match="threshold must be finite"):
        mode.refine(Seeds(lambda one: 0.1), NeuronSet({1: [0]}), value)
    with pytest.raises(ValueError, match="threshold must be finite"):
        mode.select(Seeds(lambda one: 0.1), lambda theta, k: NeuronSet(), value)


def test_attributed_needs_effects() -> None:
    with pytest.raises(ValueError, match="search 'attributed' needs a Score with effects"):
        SEARCHES["attributed"].refine(Plain(2), NeuronSet({1: [0]}), LIMIT)


@pytest.mark.parametrize("search", BATCHED)
def test_selection_reports_steps_of_its_schedule(search: str) -> None:
    calls: list[tuple] = []
    report = lambda *call: calls.append(call)  # noqa: E731
    falling = Seeds(lambda one: 1.0 - 0.1 * len(one))
    mode = SEARCHES[search]
    found = mode.select(falling, lambda _, k: NeuronSet({1: range(k)}), 0.65, report=report)
    assert found.k == 4
    assert all(1 <= done <= total == 17 for done, total in calls)
    assert any(done == 5 for done, _ in calls)  # the step that it ends with


def test_progress_ends_at_its_total() -> None:
    calls: list[tuple] = []
    report = lambda *call: calls.append(call)  # noqa: E731
    for search in BATCHED:
        score = Seeds(lambda one: 0.2 if (1, 2) in one else 0.9)
        SEARCHES[search].refine(score, NeuronSet({1: range(5), 2: [1]}), LIMIT, report)
        assert calls[-1][0] == calls[-1][1]
        calls.clear()
