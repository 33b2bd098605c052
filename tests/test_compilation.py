"""Compiled calls against calls with hooks: equal, for any batch, with nothing left behind."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch
from toys import ToyDenoiser, count_hooks, trace_only

from nemo_kit.checks import MachineError
from nemo_kit.compilation import scale_compiled
from nemo_kit.hooks import hooked, scale_neurons
from nemo_kit.layers import value_layers
from nemo_kit.models import DiffusionModel
from nemo_kit.neurons import NeuronSet
from nemo_kit.settings import LocalizationSettings
from nemo_kit.store import localize_all

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
        compiled=None,
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
            found = small.compiled(TEXT[:count])
        assert torch.equal(found, by_hooks(small, count, factor)), (count, factor)
    assert len(compiled) == 2  # for one sample, and for any other number
    assert count_hooks(small.denoiser) == 0
    assert small.compiled is None


@torch.no_grad()
def test_nothing_is_left_behind_whatever_raises(
    small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace_only(monkeypatch)
    with pytest.raises(ValueError, match="layer 9"), scale_compiled(small, [NeuronSet({9: [0]})]):
        pass
    told = "sets holds 2 neuron sets, but the batch has 5 samples"
    with pytest.raises(ValueError, match=told), scale_compiled(small, SETS[:2]):
        small.compiled(TEXT)

    def refuses(*_: Any) -> Any:
        raise OSError("no compiler")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=refuses))
    other = Model(**vars(small))
    told = "compile: torch.compile does not work here; on a CPU it needs a C[+][+] compiler"
    with pytest.raises(MachineError, match=told), scale_compiled(other, SETS):
        other.compiled(TEXT)
    assert count_hooks(small.denoiser) == 0
    assert small.compiled is other.compiled is None


@torch.no_grad()
def test_other_hooks_are_seen_and_a_new_denoiser(
    small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace_only(monkeypatch)
    place = small.value_layers[0].name.removesuffix(".to_v")
    for factor in (None, 3.0, None, 0.5):
        hooks = {} if factor is None else {place: lambda *seen, by=factor: seen[2] * by}
        with hooked(small.denoiser, hooks):
            with scale_compiled(small, SETS):
                found = small.compiled(TEXT)
            assert torch.equal(found, by_hooks(small, 5, 0.0)), factor
    small.denoiser = ToyDenoiser()
    small.denoiser.attentions()[0].to_v.weight.mul_(2)
    with scale_compiled(small, SETS):
        found = small.compiled(TEXT)
    assert torch.equal(found, by_hooks(small, 5, 0.0))


@torch.no_grad()
def test_layout_and_batch_are_no_reason_to_compile_anew(
    small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = trace_only(monkeypatch)
    for text in (TEXT[:3], TEXT, TEXT[:1].expand(4, -1, -1), TEXT.mT.contiguous().mT):
        with scale_compiled(small, SETS[: len(text)]):
            small.compiled(text)
    assert len(pieces) == 1


@torch.no_grad()
def test_blocks_inside_each_other_are_refused(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trace_only(monkeypatch)
    with scale_compiled(small, SETS, 0.5):
        with pytest.raises(RuntimeError, match="can't lie inside"), scale_compiled(small, SETS):
            pass
        found = small.compiled(TEXT)
    assert torch.equal(found, by_hooks(small, 5, 0.5))


@torch.no_grad()
def test_an_error_of_the_code_stays_what_it_is(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trace_only(monkeypatch)
    with pytest.raises(RuntimeError, match="reduction dim") as caught, scale_compiled(small, SETS):
        small.compiled(TEXT[..., :2])  # of another width
    assert not isinstance(caught.value, MachineError)


def test_a_sweep_without_a_compiler_ends_at_once(
    toy_model: DiffusionModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuses(*_: Any, **__: Any) -> Any:
        raise torch._dynamo.exc.BackendCompilerFailed(min, OSError("no compiler"), None)

    monkeypatch.setattr(torch, "compile", lambda _function: refuses)
    monkeypatch.setattr("nemo_kit.compilation._compiled", WeakKeyDictionary())  # kept for a model
    options: Any = {"threshold": 0.6, "settings": LocalizationSettings(compile=True)}
    with pytest.raises(MachineError, match=r"compile: torch\.compile does not work here"):
        localize_all(
            toy_model, ["a red cup"], range(1, 4), store=tmp_path, progress=False, **options
        )
    assert not list(tmp_path.rglob("*.parquet"))  # no fault of the prompt
