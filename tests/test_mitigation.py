"""Mitigations: exactly known effects on small models, and nothing left behind."""

from __future__ import annotations

from dataclasses import replace
from time import process_time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from toys import count_hooks, tokenizer

from nemo_kit.generation import generate
from nemo_kit.keys import value_digest
from nemo_kit.mitigation import (
    MITIGATIONS,
    Found,
    Mitigation,
    NeMo,
    NoiseOptimisation,
    RandomNeurons,
    RandomNumbers,
    RandomTokens,
    WordRepetition,
    table_rows,
)
from nemo_kit.models import DiffusionModel
from nemo_kit.neurons import NeuronSet

FOUND = NeuronSet({1: [0, 3, 5], 4: range(6)})
OTHER = NeuronSet({1: [1, 2]})
WORDS = SimpleNamespace(tokenizer=tokenizer())  # all that rewriting needs of a model


def close(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.abs(a.astype(int) - b.astype(int)).max() <= 1)


def test_every_mitigation_is_found_by_its_name() -> None:
    assert all(kind.name == name for name, kind in MITIGATIONS.items())
    assert all(len(kind.source) > 10 for kind in MITIGATIONS.values())
    permanent = {name for name, kind in MITIGATIONS.items() if kind.permanent}
    assert {"NeMo", "random neurons"} <= permanent
    assert not {"default", "random tokens"} & permanent


def test_digests_differ_by_kind_and_by_parameter() -> None:
    ways = [
        Mitigation(), NeMo(FOUND), NeMo(OTHER), NeMo(FOUND, 0.5),
        RandomNeurons(FOUND), RandomNeurons(FOUND, seed=1), RandomTokens(4), RandomTokens(1),
        RandomNumbers(4), WordRepetition(4), NeMo({"a": FOUND}), NeMo({"b": FOUND}),
    ]  # fmt: skip
    assert len({value_digest(way) for way in ways}) == len(ways)
    assert value_digest(NeMo(FOUND)) == value_digest(NeMo(NeuronSet(FOUND.layers)))


def test_rows_of_table_1_in_its_order_then_the_others() -> None:
    found = Found({"a": FOUND}, {"a": FOUND | OTHER}, {"b": OTHER})
    got = table_rows(found, repeats=3, options={"initial-noise optimisation": {"candidates": 2}})
    names = [name for name, _ in got]
    assert list(dict.fromkeys(names)) == [
        "default", "prompt embedding adjustment", "random neurons", "attention scaling",
        "1 random token", "4 random tokens", "10 random tokens", "NeMo", "initial candidates",
        "attention masking", "attention masking and scaling", "random numbers", "word repetition",
        "embedding noise", "initial-noise optimisation", "Wanda pruning",
    ]  # fmt: skip
    assert names.count("random neurons") == 3
    assert names.count("NeMo") == names.count("attention scaling") == 1
    last = dict(got)
    assert last["NeMo"] == NeMo({"a": FOUND})
    assert last["initial candidates"] == NeMo({"a": FOUND | OTHER})
    assert last["10 random tokens"] == RandomTokens(10, seed=2)
    random = RandomNeurons({"a": FOUND}, found={"b": OTHER}, seed=2, overflow=True)
    assert last["random neurons"] == random
    assert last["initial-noise optimisation"] == NoiseOptimisation(candidates=2)
    assert "initial candidates" not in dict(table_rows(Found(FOUND)))
    with pytest.raises(ValueError, match="repeats must be an integer of at least 1"):
        table_rows(found, 0)
    with pytest.raises(ValueError, match=r"options must be one of default, .*; got 'Nemo'"):
        table_rows(found, options={"Nemo": {}})


def test_nemo_is_the_shorthand(toy_model: DiffusionModel) -> None:
    prompts, sets = ["a", "b", "c"], [FOUND, OTHER, NeuronSet()]
    short = generate(toy_model, prompts, [1, 2], sets, factor=0.5, steps=2)
    mapping = dict(zip(prompts[:2], sets[:2], strict=True))
    found = generate(toy_model, prompts, [1, 2], steps=2, mitigation=NeMo(mapping, 0.5))
    listed = [NeMo(one, 0.5) for one in sets]
    assert close(short, found)
    assert close(short, generate(toy_model, prompts, [1, 2], steps=2, mitigation=listed))
    assert not close(short[0], generate(toy_model, "a", [1, 2], steps=2, mitigation=Mitigation()))
    assert count_hooks(toy_model.denoiser) == 0


def test_random_neurons_never_hit_found_ones(toy_model: DiffusionModel) -> None:
    neurons = {"a": FOUND, "b": OTHER}
    barred = NeuronSet({4: range(8, 10)})
    draws = set()
    for seed in range(20):
        way = RandomNeurons(neurons, found=barred, seed=seed)
        for prompt, like in neurons.items():
            drawn = way.chosen(toy_model, prompt)
            assert drawn.counts() == like.counts()
            assert not drawn & (FOUND | OTHER | barred)
            draws.add(drawn)
    assert len(draws) > 10
    assert way.chosen(toy_model, "unknown") == NeuronSet()
    assert way.chosen(toy_model, "a") == RandomNeurons(neurons, found=barred, seed=19).chosen(
        toy_model, "a"
    )


def test_many_prompts_are_drawn_for_in_no_time() -> None:
    """What must not be drawn is gathered once, neuron by neuron."""
    sets = {str(n): NeuronSet({1: [n, n + 1], 2: range(n, n + 9)}) for n in range(600)}
    way, widths = RandomNeurons(sets), {1: 2000, 2: 2000}
    layers = [SimpleNamespace(index=n, width=width) for n, width in widths.items()]
    model: Any = SimpleNamespace(searched=layers, value_layers=layers)
    started = process_time()
    drawn = [way.chosen(model, prompt) for prompt in sets]
    assert process_time() - started < 5
    assert way.barred.counts() == {1: 601, 2: 608}
    assert not any(one & way.barred for one in drawn)


def test_random_neurons_need_room(toy_model: DiffusionModel) -> None:
    way = RandomNeurons(NeuronSet({1: range(5)}))
    with pytest.raises(ValueError, match="leaves 3 neurons in layer 1, but 5 are needed"):
        generate(toy_model, "a", [1], steps=1, mitigation=way)
    assert count_hooks(toy_model.denoiser) == 0
    drawn = replace(way, overflow=True).chosen(toy_model, "a")
    assert drawn.layers[1] == (5, 6, 7)
    assert len(drawn) == 5
    assert max(drawn.layers) <= 7  # layers that are searched
    beyond = RandomNeurons(NeuronSet({16: [0]}), overflow=True)
    assert beyond.chosen(toy_model, "a").counts() == {16: 1}


@pytest.mark.parametrize("count", [1, 4, 10])
def test_inserted_words_leave_the_prompt_in_order(count: int) -> None:
    prompt = "a red cup on the table"
    for kind in (RandomTokens, RandomNumbers, WordRepetition):
        made = {kind(count).rewrite(WORDS, prompt, seed) for seed in range(8)}  # type: ignore
        assert len(made) >= 5, "each image has a draw of its own"
        for text in made:
            rest = iter(text.split())
            assert len(text.split()) == 6 + count
            assert all(word in rest for word in prompt.split()), "the words stay, in their order"


def test_what_is_inserted() -> None:
    prompt, seen = "zwei Wörter", set()
    for seed in range(30):
        added = RandomNumbers(2).rewrite(WORDS, prompt, seed).split()  # type: ignore[arg-type]
        seen |= {int(word) for word in added if word not in prompt.split()}
        again = WordRepetition(2).rewrite(WORDS, prompt, seed).split()  # type: ignore[arg-type]
        assert set(again) == set(prompt.split())
        token = RandomTokens(1).rewrite(WORDS, prompt, seed)  # type: ignore[arg-type]
        assert "<|" not in token
    assert len(seen) > 50
    assert max(seen) < 100_000


def test_draws_follow_prompt_seed_and_mitigation_alone(toy_model: DiffusionModel) -> None:
    way = RandomTokens(2, seed=5)
    assert way.rewrite(toy_model, "a b", 1) == RandomTokens(2, 5).rewrite(toy_model, "a b", 1)
    assert way.rewrite(toy_model, "a b", 1) != RandomTokens(2, 6).rewrite(toy_model, "a b", 1)
    together = generate(toy_model, ["a b", "c"], [1, 2], steps=2, mitigation=way)
    alone = generate(toy_model, "c", [2], steps=2, mitigation=way)
    assert close(together[1, 1], alone[0])
    told = way.rewrite(toy_model, "c", 2)
    assert close(alone, generate(toy_model, told, [2], steps=2))


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: NeMo({1: [0]}), TypeError, "neurons must be a NeuronSet or a mapping"),
        (lambda: NeMo("a"), TypeError, "neurons must be a NeuronSet or a mapping.*got 'a'"),
        (lambda: NeMo(FOUND, float("nan")), ValueError, "factor must be a finite number"),
        (lambda: RandomNeurons(FOUND, found={"a": 3}), TypeError, "found must be a Neur.*'a': 3"),
        (lambda: RandomNeurons(FOUND, seed=-1), ValueError, "seed must be an integer of at least"),
        (lambda: RandomTokens(0), ValueError, "count must be an integer of at least 1, got 0"),
        (lambda: RandomNumbers(1.5), ValueError, "count must be an integer"),
        (lambda: WordRepetition(1, -1), ValueError, "seed must be an integer of at least 0"),
        (lambda: table_rows(Found([FOUND])), TypeError, "neurons must be a NeuronSet or a mapping"),
    ],
)
def test_bad_parameters(make: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make()


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"mitigation": "NeMo"}, TypeError, "mitigation must be a Mitigation or one for each"),
        ({"mitigation": NeMo}, TypeError, "mitigation must be a Mitigation or one for each"),
        ({"mitigation": [Mitigation()] * 2}, ValueError, "mitigation holds 2, but there are 1"),
        ({"mitigation": Mitigation(), "neurons": FOUND}, ValueError, "can't both be given"),
        ({"mitigation": NeMo(NeuronSet({40: [0]}))}, ValueError, "layer 40 does not exist"),
    ],
)
def test_generate_refuses(
    toy_model: DiffusionModel, options: dict, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        generate(toy_model, ["a"], [1], steps=1, **options)
    assert count_hooks(toy_model.denoiser) == 0
