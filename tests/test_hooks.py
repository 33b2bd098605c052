"""Interventions: exact numbers on a hand-set model, and hooks that never stay."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from toys import ToyDenoiser, count_hooks

from nemo_kit.hooks import capture, scale_neurons
from nemo_kit.layers import Projection, value_layers
from nemo_kit.neurons import NeuronSet

TEXT = torch.tensor([[[1.0, 2.0, 3.0], [3.0, 4.0, 5.0]], [[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]]])
MEAN = TEXT.mean(dim=1)  # [[2, 3, 4], [0, 1, 2]]; undisturbed the model gives 3 · MEAN


def run(model: ToyDenoiser) -> Tensor:
    with torch.no_grad():
        return model(TEXT)


def test_capture_reads_every_layer(toy_denoiser: ToyDenoiser) -> None:
    with capture(toy_denoiser, value_layers(toy_denoiser)) as seen:
        run(toy_denoiser)
    assert sorted(seen) == [1, 2, 3]
    for values in seen.values():
        torch.testing.assert_close(values, TEXT)


def test_one_set_for_the_batch(toy_denoiser: ToyDenoiser) -> None:
    layers = value_layers(toy_denoiser)
    with scale_neurons(toy_denoiser, layers, NeuronSet({1: [0], 3: [0, 2]})):
        found = run(toy_denoiser)
    torch.testing.assert_close(found, MEAN * torch.tensor([1.0, 3.0, 2.0]))
    torch.testing.assert_close(run(toy_denoiser), 3 * MEAN)


@pytest.mark.parametrize("factor", [-1.0, 0.0, 0.25, 1.0, 3])
def test_factors(toy_denoiser: ToyDenoiser, factor: float) -> None:
    with scale_neurons(toy_denoiser, value_layers(toy_denoiser), NeuronSet({2: [1]}), factor):
        found = run(toy_denoiser)
    torch.testing.assert_close(found, MEAN * torch.tensor([3.0, 2.0 + factor, 3.0]))


def test_one_set_for_each_sample(toy_denoiser: ToyDenoiser) -> None:
    sets = [NeuronSet({1: [0]}), NeuronSet({1: [1], 2: [1]})]
    with scale_neurons(toy_denoiser, value_layers(toy_denoiser), sets):
        found = run(toy_denoiser)
    torch.testing.assert_close(found, MEAN * torch.tensor([[2.0, 3.0, 3.0], [3.0, 1.0, 3.0]]))


def test_outputs_are_not_written_in_place(toy_denoiser: ToyDenoiser) -> None:
    layers = value_layers(toy_denoiser)
    with (
        capture(toy_denoiser, layers) as seen,
        scale_neurons(toy_denoiser, layers, NeuronSet({1: [0]})),
    ):
        run(toy_denoiser)
    torch.testing.assert_close(seen[1], TEXT)  # captured before the scaling, and still as it was


def test_capture_inside_scaling_sees_the_scaled(toy_denoiser: ToyDenoiser) -> None:
    layers = value_layers(toy_denoiser)
    with (
        scale_neurons(toy_denoiser, layers, NeuronSet({1: [0]})),
        capture(toy_denoiser, layers) as seen,
    ):
        run(toy_denoiser)
    assert seen[1][..., 0].eq(0).all()
    torch.testing.assert_close(seen[1][..., 1:], TEXT[..., 1:])


def test_gradients_flow_through_the_scaling(toy_denoiser: ToyDenoiser) -> None:
    text = TEXT.clone().requires_grad_()
    with scale_neurons(toy_denoiser, value_layers(toy_denoiser), NeuronSet({1: [0]}), 0.5):
        toy_denoiser(text).sum().backward()
    torch.testing.assert_close(text.grad[0, 0], torch.tensor([2.5, 3.0, 3.0]) / 2)


def test_hooks_before_inside_and_after(toy_denoiser: ToyDenoiser) -> None:
    layers, neurons = value_layers(toy_denoiser), NeuronSet({1: [0], 2: [0]})
    assert count_hooks(toy_denoiser) == 0
    manager = scale_neurons(toy_denoiser, layers, neurons)
    assert count_hooks(toy_denoiser) == 0  # registered on entering only
    with manager:
        assert count_hooks(toy_denoiser) == 2
        with capture(toy_denoiser, layers), scale_neurons(toy_denoiser, layers, neurons):
            assert count_hooks(toy_denoiser) == 7
        assert count_hooks(toy_denoiser) == 2
    assert count_hooks(toy_denoiser) == 0


def test_no_hook_stays_when_something_raises(toy_denoiser: ToyDenoiser) -> None:
    layers = value_layers(toy_denoiser)
    with (
        pytest.raises(KeyboardInterrupt),
        capture(toy_denoiser, layers),
        scale_neurons(toy_denoiser, layers, NeuronSet({1: [0]})),
    ):
        raise KeyboardInterrupt
    assert count_hooks(toy_denoiser) == 0


def test_no_hook_stays_when_a_hook_raises(toy_denoiser: ToyDenoiser) -> None:
    layers = value_layers(toy_denoiser)
    with (
        pytest.raises(ValueError, match="sets holds 3 neuron sets, but the batch has 2 samples"),
        scale_neurons(toy_denoiser, layers, [NeuronSet({3: [0]})] * 3),
    ):
        run(toy_denoiser)
    assert count_hooks(toy_denoiser) == 0


def test_no_hook_stays_when_a_later_layer_is_missing(toy_denoiser: ToyDenoiser) -> None:
    layers = [
        *value_layers(toy_denoiser),
        Projection(4, "value", "up_blocks.9.attn2.to_v", 3, "up.9"),
    ]
    for manager in (
        capture(toy_denoiser, layers),
        scale_neurons(toy_denoiser, layers, NeuronSet({1: [0], 4: [0]})),
    ):
        with pytest.raises(ValueError, match=r"this denoiser has no module 'up_blocks\.9"), manager:
            pass
        assert count_hooks(toy_denoiser) == 0


@pytest.mark.parametrize("length", [1, 3])
def test_a_list_of_another_length_than_the_batch(toy_denoiser: ToyDenoiser, length: int) -> None:
    for neurons in (NeuronSet({1: [0]}), NeuronSet()):  # also where nothing is to be scaled
        with (
            pytest.raises(ValueError, match=f"holds {length} neuron sets, but the batch has 2"),
            scale_neurons(toy_denoiser, value_layers(toy_denoiser), [neurons] * length),
        ):
            run(toy_denoiser)


def test_empty_sets_change_nothing(toy_denoiser: ToyDenoiser) -> None:
    for sets in (NeuronSet(), [NeuronSet(), NeuronSet()]):
        with scale_neurons(toy_denoiser, value_layers(toy_denoiser), sets):
            torch.testing.assert_close(run(toy_denoiser), 3 * MEAN)


@pytest.mark.parametrize(
    ("sets", "factor", "error", "text"),
    [
        (NeuronSet({1: [3]}), 0.0, ValueError, "index 3 in layer 1 is out of range"),
        (NeuronSet({9: [0]}), 0.0, ValueError, "layer 9 does not exist here"),
        (NeuronSet({1: [0]}), float("nan"), ValueError, "factor must be a finite number, got nan"),
        (NeuronSet({1: [0]}), "0", ValueError, "factor must be a finite number, got '0'"),
        ({1: [0]}, 0.0, TypeError, "sets must be a NeuronSet or a list of them, got dict"),
        ([{1: [0]}], 0.0, TypeError, "sets must be a NeuronSet or a list of them"),
        ([], 0.0, ValueError, "got none"),
    ],
)
def test_bad_interventions(
    toy_denoiser: ToyDenoiser, sets: object, factor: object, error: type[Exception], text: str
) -> None:
    layers = value_layers(toy_denoiser)
    with pytest.raises(error, match=text), scale_neurons(toy_denoiser, layers, sets, factor):  # type: ignore
        pass
    assert count_hooks(toy_denoiser) == 0
