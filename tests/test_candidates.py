"""Algorithm 2: activations, z-scores and candidates by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from nemo_kit.calibration import ActivationStatistics
from nemo_kit.localization import candidates, mean_activations, z_scores
from nemo_kit.localization.candidates import candidate_lists, text_activations
from nemo_kit.models import DiffusionModel
from nemo_kit.neurons import NeuronSet


def test_activations_and_z_scores_by_hand() -> None:
    values = {1: torch.tensor([[[1.0, -2.0, 0.0], [3.0, 4.0, 0.0]]])}
    activations = mean_activations(values)
    torch.testing.assert_close(activations[1], torch.tensor([[2.0, 3.0, 0.0]]))
    statistics = ActivationStatistics(
        (torch.tensor([1.0, 5.0, 0.0]),), (torch.tensor([0.5, 1.0, 0.0]),)
    )
    z = z_scores({1: activations[1][0]}, statistics)
    torch.testing.assert_close(z[1], torch.tensor([2.0, -2.0, 0.0]))
    steady = ActivationStatistics((torch.tensor([1.0, 5.0, 0.0]),), (torch.zeros(3),))
    assert z_scores({1: activations[1][0]}, steady)[1].tolist() == [math.inf, -math.inf, 0.0]


def test_candidates_by_hand() -> None:
    activations = {1: torch.tensor([0.1, 0.9, 0.5]), 2: torch.tensor([3.0, 1.0])}
    z = {1: torch.tensor([5.5, 0.0, -6.0]), 2: torch.tensor([5.0, -math.inf])}
    assert candidates(activations, z, 5, 0) == NeuronSet({1: [0, 2], 2: [1]})
    assert candidates(activations, z, 5, 0, two_sided=False) == NeuronSet({1: [0]})
    assert candidates(activations, z, 5.5, 1) == NeuronSet({1: [1, 2], 2: [0, 1]})
    assert candidates(activations, z, math.inf, 99) == NeuronSet({1: [0, 1, 2], 2: [0, 1]})


def test_activations_need_no_denoiser_call(toy_model: DiffusionModel) -> None:
    found = text_activations(toy_model, ["a", "b"])
    assert {layer: list(a.shape) for layer, a in found.items()} == {
        1: [2, 8], 2: [2, 8], 3: [2, 16], 4: [2, 16], 5: [2, 16], 6: [2, 16], 7: [2, 16],
    }  # fmt: skip
    assert toy_model.samples_evaluated == 0


GOOD = {1: torch.ones(2)}
STATISTICS = ActivationStatistics((torch.ones(2),), (torch.ones(2),))
NAN = {1: torch.tensor([1.0, math.nan])}


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: mean_activations({1: torch.ones(2, 2)}), r"layer 1 must be \[N, tokens, width\]"),
        (lambda: mean_activations({1: torch.full((1, 2, 2), math.nan)}), "layer 1 became NaN"),
        (lambda: z_scores(NAN, STATISTICS), "activations: layer 1 became NaN or infinite"),
        (lambda: z_scores({1: torch.ones(3)}, STATISTICS), "the statistics have 2 there"),
        (lambda: z_scores({2: torch.ones(2)}, STATISTICS), "the statistics have none there"),
        (lambda: candidates(GOOD, NAN, 5, 0), "z: layer 1 holds NaN"),
        (lambda: candidates(NAN, GOOD, 5, 0), "activations: layer 1 became NaN"),
        (lambda: candidates({1: torch.ones(3)}, GOOD, 5, 0), "layer 1 must both be"),
        (lambda: candidates(GOOD, GOOD, -1, 0), "theta must be a number of at least 0, got -1"),
        (lambda: candidates(GOOD, GOOD, math.nan, 0), "theta must be a number of at least 0"),
        (lambda: candidates(GOOD, GOOD, 5, -1), "k must be an integer of at least 0, got -1"),
    ],
)  # fmt: skip
def test_bad_activations(call: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call()


def test_the_released_lists_have_outliers_by_index_then_the_largest_first() -> None:
    z = {1: torch.tensor([3.0, 0.0, -4.0, 0.5, 2.5])}
    activations = {1: torch.tensor([1.0, 7.0, 9.0, 8.0, 0.0])}
    assert candidate_lists(activations, z, 2.0, 3) == {1: [0, 2, 4, 2, 3, 1]}
    assert candidates(activations, z, 2.0, 3) == NeuronSet({1: [0, 1, 2, 3, 4]})
    assert candidate_lists(activations, z, 2.0, 0, two_sided=False) == {1: [0, 4]}
