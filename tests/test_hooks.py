"""Interventions: exact numbers on a hand-set model, and hooks that never stay."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from toys import ToyDenoiser, count_hooks, trace_only

from nemo_kit.hooks import InterventionError, calling, capture, gate_neurons, scale_neurons
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


def test_gates_of_another_number_type_have_a_slope_in_every_call(
    toy_denoiser: ToyDenoiser,
) -> None:
    gate = torch.ones(1, 1, 3, dtype=torch.float64, requires_grad=True)
    with gate_neurons(toy_denoiser, value_layers(toy_denoiser), {1: gate}):
        run(toy_denoiser)  # without a gradient
        for _ in range(2):
            (slope,) = torch.autograd.grad(toy_denoiser(TEXT).sum(), gate)
            torch.testing.assert_close(slope[0, 0], MEAN.sum(dim=0).double())


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
        assert count_hooks(toy_denoiser) == 2 + 2  # its layers', and the denoiser's own
        with capture(toy_denoiser, layers), scale_neurons(toy_denoiser, layers, neurons):
            assert count_hooks(toy_denoiser) == 7 + 6
        assert count_hooks(toy_denoiser) == 2 + 2
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


# What can't act


class Bypassing(ToyDenoiser):
    """Computes with the layers' weights, and never runs the layers of `passed`."""

    passed: tuple[int, ...] = (1,)

    def forward(self, text: Tensor) -> Tensor:
        """text [N, tokens, 3] -> [N, 3]."""
        parts = self.attentions()
        return torch.stack([
            F.linear(text, one.to_v.weight).mean(1) if number in self.passed else one(text)
            for number, one in enumerate(parts)
        ]).sum(0)  # fmt: skip


ALL = NeuronSet({1: [0], 2: [0], 3: [0]})
BLOCKS: dict[str, Callable[[nn.Module], Any]] = {
    "scale": lambda model: scale_neurons(model, value_layers(model), ALL),
    "scale each": lambda model: scale_neurons(model, value_layers(model), [ALL, ALL]),
    "capture": lambda model: capture(model, value_layers(model)),
    "gate": lambda model: gate_neurons(
        model, value_layers(model), {layer: torch.zeros(1, 1, 3) for layer in (1, 2, 3)}
    ),
}


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_a_layer_that_never_runs_is_named(block: Callable[[nn.Module], Any]) -> None:
    model = Bypassing()
    names = [layer.name for layer in value_layers(model)]
    names_by_place = [
        name for one in model.attentions() for name in names
        if model.get_submodule(name) is one.to_v
    ]  # fmt: skip
    for passed in ((), (0,), (1,), (0, 1, 2)):
        model.passed = passed
        told = (
            pytest.raises(InterventionError, match=r"did not run.*fused projections.*compiled")
            if passed
            else nullcontext()
        )
        with told as caught, block(model):
            run(model)
        if passed:
            said = str(caught.value).split(" did not run")[0]
            assert {name for name in names if name in said} == {names_by_place[i] for i in passed}
        assert count_hooks(model) == 0


def test_it_is_told_at_the_first_call_and_an_untouched_layer_is_none_of_it() -> None:
    model = Bypassing()
    layers = {model.get_submodule(layer.name): layer.index for layer in value_layers(model)}
    passed = layers[model.attentions()[1].to_v]
    for layer in layers.values():
        calls = 0
        told = pytest.raises(InterventionError) if layer == passed else nullcontext()
        with told, scale_neurons(model, value_layers(model), NeuronSet({layer: [0]})):
            for _ in range(3):
                run(model)
                calls += 1
        assert calls == (0 if layer == passed else 3)


def test_a_layer_that_runs_twice_a_call_is_refused(toy_denoiser: ToyDenoiser) -> None:
    first, *_, last = toy_denoiser.attentions()
    plain = last.forward
    last.forward = lambda text: plain(text) + first.to_v(text).mean(dim=1)  # shares its weights
    with pytest.raises(InterventionError, match="ran 2 times"), BLOCKS["capture"](toy_denoiser):
        run(toy_denoiser)


def test_without_a_call_nothing_is_said() -> None:
    model = Bypassing()
    for block in BLOCKS.values():
        with block(model):
            pass


def test_errors_inside_stay_what_they_are() -> None:
    model = Bypassing()
    with pytest.raises(KeyError, match="mine"), BLOCKS["scale"](model):
        raise KeyError("mine")
    with (
        pytest.raises(InterventionError),
        BLOCKS["capture"](ToyDenoiser()),
        BLOCKS["scale"](model),
    ):
        run(model)


def test_calls_that_fail_half_way_do_not_count(toy_denoiser: ToyDenoiser) -> None:
    """As where memory runs out and half the batch is tried."""
    last = toy_denoiser.attentions()[-1].to_v
    with BLOCKS["scale"](toy_denoiser):
        handle = last.register_forward_pre_hook(lambda *_: 1 / 0)
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                run(toy_denoiser)
        handle.remove()
        torch.testing.assert_close(run(toy_denoiser)[:, 0], torch.zeros(2))


def test_checkpointing_runs_layers_again_in_the_backward_pass(toy_denoiser: ToyDenoiser) -> None:
    first = toy_denoiser.attentions()[0]
    plain = first.forward
    first.forward = lambda text: checkpoint(plain, text, use_reentrant=False)
    text = TEXT.clone().requires_grad_()
    with scale_neurons(toy_denoiser, value_layers(toy_denoiser), ALL, 0.5):
        for _ in range(2):
            text.grad = None
            toy_denoiser(text).sum().backward()
    torch.testing.assert_close(text.grad[0, 0], torch.tensor([1.5, 3.0, 3.0]) / 2)


@pytest.mark.parametrize("way", ["wrapped", "in place", "inner", "forward"])
def test_compiled_modules_are_refused_before_and_after_their_first_call(
    toy_denoiser: ToyDenoiser, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    trace_only(monkeypatch)
    names, model = value_layers(toy_denoiser), toy_denoiser
    if way == "wrapped":
        model = torch.compile(toy_denoiser)
    elif way == "in place":
        model.compile()
    elif way == "inner":
        model.mid_block.compile()
    else:
        model.forward = torch.compile(model.forward)
    for _ in range(2):
        with pytest.raises(InterventionError, match="compiled module"), capture(model, names):
            pass
        torch.testing.assert_close(run(model), 3 * MEAN)


def announced(model: nn.Module, called: Callable[[Tensor], Tensor]) -> None:
    with calling(model):
        called(TEXT)


def test_a_call_is_noticed_where_the_denoiser_does_not_say_it() -> None:
    """`calling` is what a model's `predict` says; code compiled by others is like this one."""
    model, other = Bypassing(), ToyDenoiser()
    with pytest.raises(InterventionError, match="did not run"), BLOCKS["capture"](model):
        announced(model, model.forward)
    around = nn.Sequential(other)
    with pytest.raises(InterventionError, match="inside Sequential"), BLOCKS["capture"](other):
        announced(around, around)
    with pytest.raises(InterventionError, match="another denoiser"), BLOCKS["capture"](model):
        announced(other, other)
    mine = ToyDenoiser()
    with BLOCKS["capture"](mine), BLOCKS["scale"](other):  # two models, each with its own
        announced(other, other)
        announced(mine, mine)


def test_blocks_of_other_threads_are_none_of_ours(toy_denoiser: ToyDenoiser) -> None:
    failed: list[BaseException] = []

    def elsewhere() -> None:
        other = ToyDenoiser()
        try:
            with BLOCKS["scale"](other), calling(other):
                run(other)
        except BaseException as error:
            failed.append(error)

    with BLOCKS["capture"](toy_denoiser):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert not failed
