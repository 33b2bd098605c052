"""Compiled calls against calls with hooks: equal, for any batch, with nothing left behind."""

from __future__ import annotations

import shutil
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from toys import ToyDenoiser, count_hooks

from nemo_kit import localize
from nemo_kit.compilation import scale_compiled
from nemo_kit.hooks import scale_neurons
from nemo_kit.layers import value_layers
from nemo_kit.models import DiffusionModel
from nemo_kit.neurons import NeuronSet
from nemo_kit.settings import LocalizationSettings

SETS = [NeuronSet({1 + i % 3: [i % 3]}) for i in range(5)]
TEXT = torch.arange(60.0).reshape(5, 4, 3)
needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler here"
)


class Model(SimpleNamespace):
    """What `scale_compiled` reads of a model."""

    __hash__ = object.__hash__


@pytest.fixture
def small() -> Any:
    torch.compiler.reset()
    denoiser = ToyDenoiser()
    return Model(
        denoiser=denoiser,
        run=denoiser,
        value_layers=value_layers(denoiser),
        device=torch.device("cpu"),
        dtype=torch.float32,
    )


def by_hooks(model: Any, count: int, factor: float) -> torch.Tensor:
    with scale_neurons(model.denoiser, model.value_layers, SETS[:count], factor):
        return model.denoiser(TEXT[:count])


@needs_compiler
@torch.no_grad()
def test_compiled_calls_scale_as_hooks_do_and_compile_twice(
    small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []

    def counting(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return torch._dynamo.lookup_backend("inductor")(graph, inputs)

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counting))
    for count, factor in ((1, 0.0), (3, 0.0), (5, 0.5), (2, 0.0), (1, -1.0)):
        with scale_compiled(small, SETS[:count], factor):
            found = small.run(TEXT[:count])
        assert torch.equal(found, by_hooks(small, count, factor)), (count, factor)
    assert len(compiled) == 2  # for one sample, and for any other number
    assert count_hooks(small.denoiser) == 0
    assert small.run is small.denoiser


@torch.no_grad()
def test_nothing_is_left_behind_whatever_raises(
    small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    with pytest.raises(ValueError, match="layer 9"), scale_compiled(small, [NeuronSet({9: [0]})]):
        pass
    told = "sets holds 2 neuron sets, but the batch has 5 samples"
    with pytest.raises(ValueError, match=told), scale_compiled(small, SETS[:2]):
        small.run(TEXT)

    def refuses(*_: Any) -> Any:
        raise OSError("no compiler")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=refuses))
    other = Model(**vars(small))
    told = "compile: torch.compile does not work here; on a CPU it needs a C[+][+] compiler"
    with pytest.raises(RuntimeError, match=told), scale_compiled(other, SETS):
        other.run(TEXT)
    assert count_hooks(small.denoiser) == 0
    assert small.run is other.run is small.denoiser


@pytest.mark.slow
def test_localization_finds_the_same_neurons(
    toy_model: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced as for compilation and run by torch, so that no C++ is compiled."""
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    options: Any = {"seeds": range(1, 4), "threshold": 0.6}
    plain = localize(toy_model, "a red cup", **options)
    found = localize(toy_model, "a red cup", **options, settings=LocalizationSettings(compile=True))
    assert plain.memorized
    assert found.settings.compile
    assert (found.initial, found.refined) == (plain.initial, plain.refined)
    assert found.samples_evaluated == plain.samples_evaluated
    assert count_hooks(toy_model.denoiser) == 0
