"""Localization methods: registry, budgets, and numbers on hand-set and random models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from nemo_kit import localize
from nemo_kit.localization.candidates import text_activations, z_scores
from nemo_kit.localization.methods import LOSSES, METHODS, Memory, Ranking, method, rank
from nemo_kit.localization.methods.base import Method, by_layer
from nemo_kit.localization.methods.memory import rounds
from nemo_kit.models import DiffusionModel
from nemo_kit.neurons import NeuronSet
from nemo_kit.similarity import noise_differences, similarity

PROMPT, SEEDS, BUDGET = "red cup 3", range(1, 4), 120


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


@pytest.fixture
def registered() -> Iterator[dict[str, Method]]:
    """The registry; what a test adds is forgotten."""
    before = dict(METHODS)
    yield METHODS
    METHODS.clear()
    METHODS.update(before)


def neurons(model: DiffusionModel) -> int:
    return sum(layer.width for layer in model.searched)


# every method


@pytest.mark.parametrize("name", METHODS)
def test_a_method_scores_every_searched_neuron_and_counts_what_it_took(
    name: str, toy_model: DiffusionModel, image: np.ndarray
) -> None:
    got = rank(name, toy_model, PROMPT, SEEDS, BUDGET, image)
    assert {k: len(v) for k, v in got.scores.items()} == {
        layer.index: layer.width for layer in toy_model.searched
    }
    assert len(got.order) == len(set(got.order)) == neurons(toy_model)
    assert got.samples == toy_model.samples_evaluated <= BUDGET + 64
    free = {"|z|", "activation", "Wanda"}
    assert (got.samples == 0) == (name in free)
    assert METHODS[name].source, "says who proposed it"
    assert METHODS[name].loss == got.loss
    again = rank(name, toy_model, PROMPT, SEEDS, BUDGET, image)
    assert again.order == got.order, "nothing is drawn anew"
    assert not any(module._forward_hooks for module in toy_model.denoiser.modules())


@pytest.mark.parametrize("name", [n for n in METHODS if "NeMo" not in n and n != "random"])
def test_a_budget_is_never_exceeded(
    name: str, toy_model: DiffusionModel, image: np.ndarray
) -> None:
    for budget in (20, 2 * neurons(toy_model) + 5):
        assert rank(name, toy_model, PROMPT, SEEDS, budget, image).samples <= budget


@pytest.mark.parametrize(
    ("name", "least"), [("gradient × activation", 5), ("patching", 2), ("slimming", 5)]
)
def test_a_budget_that_pays_for_nothing_is_refused(
    name: str, least: int, toy_model: DiffusionModel
) -> None:
    rank(name, toy_model, PROMPT, SEEDS, least)
    with pytest.raises(ValueError, match=rf"pay for one seed, {least} denoiser samples, got"):
        rank(name, toy_model, PROMPT, SEEDS, least - 1)


def test_bad_arguments_are_refused(toy_model: DiffusionModel) -> None:
    with pytest.raises(ValueError, match=r"method must be one of .*NeMo.*got 'x'"):
        rank("x", toy_model, PROMPT)
    with pytest.raises(TypeError, match="method must be a name or a function, got 3"):
        rank(3, toy_model, PROMPT)
    with pytest.raises(ValueError, match=r"budget must be .* got 0"):
        rank("|z|", toy_model, PROMPT, budget=0)
    with pytest.raises(ValueError, match="image must be the prompt's training image"):
        rank("gradient × activation, image", toy_model, PROMPT, SEEDS)
    with pytest.raises(ValueError, match=r"loss must be gap or image .*no slope"):
        rank("gradient × activation", toy_model, PROMPT, SEEDS, loss="score")
    with pytest.raises(ValueError, match="loss must be one of score, gap, image; got 'y'"):
        rank("integrated gradients", toy_model, PROMPT, SEEDS, loss="y")


# what they compute


def test_memory_is_what_its_loss_says(toy_model: DiffusionModel, image: np.ndarray) -> None:
    model, seeds = toy_model, [1, 2]
    gates = torch.ones(2, neurons(model))
    for kind in LOSSES:
        memory = Memory(model, PROMPT, seeds, kind, image)
        before = model.samples_evaluated
        open_ = memory(gates, [0, 1])
        assert open_.tolist() == pytest.approx([-1.0 if kind == "image" else 1.0] * 2, abs=1e-4)
        assert model.samples_evaluated - before == 2
    off = NeuronSet({1: range(8)})
    shut = gates.clone()
    shut[:, :8] = 0
    noise, text = model.noise(seeds), model.embed(PROMPT)
    timestep = model.timesteps(50)[1]
    from nemo_kit.hooks import scale_neurons

    def predicted(words: torch.Tensor) -> torch.Tensor:
        return model.predict_noise(noise, timestep, words.expand(2, -1, -1))

    with torch.no_grad():
        plain, empty = predicted(text), predicted(model.embed(""))
        with scale_neurons(model.denoiser, model.value_layers, off):
            blocked = predicted(text)
        pair = (noise_differences(one, noise) for one in (blocked, plain))
        score = similarity(*pair, model.calibration.similarity)
        gap = (blocked - empty).flatten(1).norm(dim=1) / (plain - empty).flatten(1).norm(dim=1)
    for kind, wanted in (("score", score), ("gap", gap)):
        got = Memory(model, PROMPT, seeds, kind)(shut, [0, 1])
        assert got.tolist() == pytest.approx(wanted.tolist(), abs=1e-4)


def test_slopes_are_derivatives(toy_model: DiffusionModel, image: np.ndarray) -> None:
    for kind in LOSSES:
        memory = Memory(toy_model, PROMPT, [1, 2], kind, image)
        gates = torch.full((2, memory.neurons), 0.5)
        before = toy_model.samples_evaluated
        slopes = memory.slopes(gates, [0, 1])
        assert toy_model.samples_evaluated - before == 6, "a backward pass counts as two"
        place = int(slopes[0].abs().argmax())
        step = torch.zeros_like(gates)
        step[:, place] = 0.02
        with torch.no_grad():
            rise = (memory(gates + step, [0, 1]) - memory(gates - step, [0, 1])) / 0.04
        assert slopes[:, place].tolist() == pytest.approx(rise.tolist(), rel=0.05, abs=1e-3)


def test_the_two_halves_of_candidates_are_algorithm_2_s(toy_model: DiffusionModel) -> None:
    known = text_activations(toy_model, [PROMPT])
    plain = rank("activation", toy_model, PROMPT).scores
    assert all(torch.equal(plain[layer], known[layer][0]) for layer in known)
    z = z_scores({k: v[0] for k, v in known.items()}, toy_model.calibration.statistics)
    far = rank("|z|", toy_model, PROMPT).scores
    assert all(torch.equal(far[layer], z[layer].abs()) for layer in z)


@pytest.fixture
def memorizing(toy_model: DiffusionModel, monkeypatch: pytest.MonkeyPatch) -> DiffusionModel:
    """The model with a threshold that its prompts are above."""
    own = toy_model.calibration
    monkeypatch.setattr(toy_model, "calibration", replace(own, threshold=0.5))
    return toy_model


def test_nemo_ranks_what_it_refined_then_candidates(memorizing: DiffusionModel) -> None:
    toy_model = memorizing
    found = localize(toy_model, PROMPT, range(1, 5))
    assert found.refined
    got = rank("NeMo", toy_model, PROMPT, range(1, 5))
    assert got.found == found.refined
    assert got.samples == found.samples_evaluated
    assert got.best(len(found.refined)) == found.refined
    assert got.best(len(found.initial)) == found.initial
    cut = rank("NeMo", toy_model, PROMPT, range(1, 5), 6)
    assert cut.found is None, "stopped"
    assert cut.samples < got.samples
    assert set(torch.cat(list(cut.scores.values())).floor().tolist()) <= {0.0, 1.0}


def test_patching_is_each_neuron_off_alone(toy_model: DiffusionModel) -> None:
    got = rank("patching", toy_model, PROMPT, SEEDS)
    assert got.samples == 3 * (neurons(toy_model) + 1)
    few = rank("patching", toy_model, PROMPT, SEEDS, 21)
    far = rank("|z|", toy_model, PROMPT)
    assert few.samples == 21
    assert few.best(20) == far.best(20), "those of the largest |z|"
    assert few.order[20:] == far.order[20:]
    memory = Memory(toy_model, PROMPT, [*SEEDS], "score")
    layer, index = got.order[0]
    gates = by_layer(torch.ones(memory.neurons), toy_model.searched)
    gates[layer][index] = 0
    with torch.no_grad():
        left = memory(torch.cat(list(gates.values())).expand(3, -1), [0, 1, 2]).mean()
    assert got.scores[layer][index].item() == pytest.approx(1 - left.item(), abs=1e-4)


def test_integrated_gradients_sum_to_the_whole_effect(toy_model: DiffusionModel) -> None:
    got = rank("integrated gradients", toy_model, PROMPT, SEEDS)
    total = sum(one.sum().item() for one in got.scores.values())
    memory = Memory(toy_model, PROMPT, [*SEEDS], "gap")
    with torch.no_grad():
        ends = [memory(torch.full((3, memory.neurons), gate), [0, 1, 2]).mean() for gate in (0, 1)]
    assert total == pytest.approx((ends[1] - ends[0]).item(), abs=0.05)


@pytest.mark.parametrize("name", ["slimming", "hard concrete"])
def test_learned_gates_lose_memory_for_few_neurons(name: str, toy_model: DiffusionModel) -> None:
    cheap = rank(name, toy_model, PROMPT, SEEDS, 300, price=1e-4)
    dear = rank(name, toy_model, PROMPT, SEEDS, 60, price=0.5)
    assert len(cheap.found) > len(dear.found) == 0
    memory = Memory(toy_model, PROMPT, [*SEEDS], "gap")
    gates = by_layer(torch.ones(memory.neurons), toy_model.searched)
    for layer, index in cheap.found:
        gates[layer][index] = 0
    with torch.no_grad():
        left = memory(torch.cat(list(gates.values())).expand(3, -1), [0, 1, 2])
    assert left.mean() < 0.9
    assert cheap.best(len(cheap.found)) == cheap.found


def test_wanda_reads_weights_and_text(toy_model: DiffusionModel) -> None:
    layer = toy_model.searched[0]
    weight = toy_model.denoiser.get_submodule(layer.name).weight
    own, empty = (toy_model.embed(text)[0] for text in (PROMPT, ""))
    wanted = [sum(abs(w) * (own[:, j].norm() - empty[:, j].norm()) for j, w in enumerate(row))
              for row in weight.tolist()]  # fmt: skip
    got = rank("Wanda", toy_model, PROMPT).scores[layer.index]
    assert got.tolist() == pytest.approx([float(one) for one in wanted], rel=1e-3, abs=1e-3)


def test_random_has_nemo_s_count_in_each_layer(memorizing: DiffusionModel) -> None:
    toy_model = memorizing
    found = localize(toy_model, PROMPT, range(1, 5)).refined
    got = rank("random", toy_model, PROMPT, range(1, 5))
    assert got.found.counts() == found.counts()
    assert got.best(len(found)) == got.found
    assert rank("random", toy_model, "cat 2", range(1, 5)).order != got.order


# one's own


def test_an_own_method_is_checked(registered: dict[str, Method], toy_model: DiffusionModel) -> None:
    widths = {layer.index: layer.width for layer in toy_model.searched}

    @method("first", "none at all", last=False)
    def first(model: Any, prompt: str, seeds: Any, budget: Any, last: bool = True) -> Any:
        """The first neurons.

        Source: nobody.
        """
        return {k: torch.arange(w, 0.0, -1) for k, w in widths.items()}, NeuronSet({1: [0]})

    assert registered["first"].defaults == {"last": False}
    got = rank("first", toy_model, PROMPT)
    assert (got.found, got.loss, got.samples) == (NeuronSet({1: [0]}), "none at all", 0)
    with pytest.raises(TypeError, match=r"'bad' must take \(model, prompt, seeds, budget\): "):
        method("bad")(lambda model, prompt: None)
    wrong = {
        r"must return scores of layers \[1, 2, .*got None": lambda *_, **__: None,
        r"scores of layer 1 must be \d+, one a neuron, got 2": lambda *_, **__: {
            k: torch.ones(2) for k in widths
        },
        "index 9999 in layer 1 is out of range": lambda *_, **__: (
            {k: torch.ones(w) for k, w in widths.items()}, NeuronSet({1: [9999]})
        ),
    }  # fmt: skip
    for text, function in wrong.items():
        with pytest.raises((TypeError, ValueError), match=text):
            rank(function, toy_model, PROMPT)
    nan = {k: torch.full((w,), torch.nan) for k, w in widths.items()}
    with pytest.raises(FloatingPointError, match="scores of layer 1 became NaN"):
        rank(lambda *_, **__: nan, toy_model, PROMPT)


def test_a_ranking_is_what_its_row_says(toy_model: DiffusionModel) -> None:
    for name in ("|z|", "random"):
        one = rank(name, toy_model, PROMPT, range(1, 5))
        row = one.to_row()
        assert list(row) == ["method", "prompt", "scores", "found", "loss", "samples", "seconds"]
        same = Ranking.from_row(row | {"scores": np.array(row["scores"])}, toy_model.searched)
        assert (same.order, same.found, same.to_row()) == (one.order, one.found, row)


def test_budgets() -> None:
    def of(budget: int | None) -> tuple[int, int]:
        kept, questions = rounds(budget, [1, 2, 3], "gap", 10)
        return len(kept), questions

    assert [of(b) for b in (None, 5, 12, 15, 28, 999)] == [
        (3, 10), (1, 1), (2, 1), (3, 1), (3, 2), (3, 10)
    ]  # fmt: skip
    with pytest.raises(ValueError, match="budget must pay for one seed, 5 denoiser samples, got 4"):
        of(4)
