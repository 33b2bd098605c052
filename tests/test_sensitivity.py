"""Thresholds over prompts: the sweep, what it does to pictures, prompt by prompt."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from nemo_kit import sensitivity
from nemo_kit.models import DiffusionModel
from nemo_kit.neurons import NeuronSet

A, B = NeuronSet({1: [4], 3: [7]}), NeuronSet({3: [7]})


def test_effects_are_those_of_each_pair_s_neurons(
    toy_model: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets: list[Any] = []

    def generate_all(
        model: Any, prompts: Any, seeds: list[int], neurons: Any = None, **more: Any
    ) -> pd.DataFrame:
        sets.append(neurons)
        shade = 200 if neurons is None else 40 * len(neurons["a"])
        image = np.full((64, 64, 3), shade, np.uint8)
        return pd.DataFrame(
            [{"prompt": p, "seed": s, "image": image} for p in prompts for s in seeds]
        )

    def look(images: np.ndarray) -> np.ndarray:
        angle = images[:, 0, 0, 0] / 200
        return np.stack([angle, np.sqrt(1 - angle**2)], axis=1)

    monkeypatch.setattr(sensitivity, "generate_all", generate_all)
    monkeypatch.setattr(sensitivity.effects, "look", look)
    frame = pd.DataFrame(
        {"prompt": "a", "initial_deviations": [0.0, 0.0], "refinement_deviations": [0.0, 1.0],
         "refined": [A, B]}
    )  # fmt: skip
    got = sensitivity.threshold_effects(toy_model, frame, [101, 102], store="x")
    assert sets == [None, {"a": A}, {"a": B}]
    assert got["gen"].tolist() == pytest.approx([0.4, 0.2])
    assert got["orig"].isna().all()


def test_a_prompt_that_failed_with_a_pair_s_neurons_has_no_row_for_it(
    toy_model: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    failed = {("a", None), ("b", A)}  # a undisturbed, b without the neurons of one pair

    def generate_all(
        model: Any, prompts: Any, seeds: list[int], neurons: Any = None, **more: Any
    ) -> pd.DataFrame:
        good = [p for p in prompts if (p, neurons and neurons[p]) not in failed]
        rows = [(p, s, image) for p in good for s in seeds]
        return pd.DataFrame(rows, columns=["prompt", "seed", "image"])

    monkeypatch.setattr(sensitivity, "generate_all", generate_all)
    monkeypatch.setattr(sensitivity.effects, "look", lambda images: np.ones((len(images), 1)))
    pairs = [(0.0, 0.0, A), (0.0, 1.0, B)]
    frame = pd.DataFrame(
        [(prompt, "VM", *pair) for prompt in "abc" for pair in pairs],
        columns=["prompt", "group", *sensitivity.PAIR, "refined"],
    )
    got = sensitivity.threshold_effects(toy_model, frame, [101, 102], store="x")
    assert got[["prompt", "refinement_deviations"]].to_numpy().tolist() == [
        ["c", 0], ["b", 1], ["c", 1]
    ]  # fmt: skip
    failed.add(("c", None))
    with pytest.raises(ValueError, match="of 3 prompts none has them"):
        sensitivity.threshold_effects(toy_model, frame, [101, 102], store="x")
