"""Denoiser calls with neurons scaled, as compiled code (torch.compile).

Scope: what `hooks.scale_neurons` does, for many calls of one model. The same hooks serve every
call: they multiply each value layer's outputs by gains that the code takes as inputs, 1 where
nothing is scaled, so that other sets are no reason to compile anew. Other hooks on the denoiser
are. Outside the block the denoiser runs as ever.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from nemo_kit.checks import MachineError
from nemo_kit.hooks import Block, Hook, sample_gains
from nemo_kit.neurons import NeuronSet

if TYPE_CHECKING:
    from nemo_kit.models import DiffusionModel


@contextmanager
def scale_compiled(
    model: DiffusionModel, sets: Sequence[NeuronSet], factor: float = 0.0
) -> Iterator[None]:
    """Multiply value neurons' outputs by a factor inside the block, whose calls are compiled.

    The first call of a model compiles for minutes, one of a single sample apart from larger ones.
    Parameters: `sets`, one set for each sample of the batch; `factor`, 0 deactivates.
    Raises as `hooks.scale_neurons`, RuntimeError inside another such block of this model; at a
    call, ValueError where the batch has another length than the list, MachineError where torch
    can't compile here.
    Source: section 3.2, "deactivating".
    """
    if model.compiled is not None:
        raise RuntimeError("scale_compiled: blocks of one model can't lie inside each other")
    code = _code(model)
    made = sample_gains(model.value_layers, sets, factor)
    code.gains = {layer: gain.to(model.device, model.dtype) for layer, gain in made.items()}
    with code.block.open(by_hooks=False):
        model.compiled = code
        try:
            yield
        finally:
            model.compiled, code.gains = None, {}


def _code(model: DiffusionModel) -> _Compiled:
    """The model's compiled code, made anew where it has another denoiser by now."""
    found = _compiled.get(model)
    if found is None or found.denoiser is not model.denoiser:
        found = _compiled[model] = _Compiled(model)
    return found


class _Compiled:
    """A denoiser as compiled code, with the hooks it was compiled with."""

    def __init__(self, model: DiffusionModel) -> None:
        self.gains: dict[int, Tensor] = {}
        self.denoiser = model.denoiser
        self.block = Block(self.denoiser, {p.name: self._hook(p.index) for p in model.value_layers})
        self._run = torch.compile(self._scaled)

    def _hook(self, layer: int) -> Hook:
        def scale(_module: nn.Module, _inputs: tuple, output: Tensor) -> Tensor:
            return output * self.gains[layer].to(output.dtype)

        return scale

    def __call__(self, latents: Tensor, *others: Any, **named: Any) -> Any:
        held = len(next(iter(self.gains.values())))
        if held != len(latents):
            raise ValueError(
                f"sets holds {held} neuron sets, but the batch has {len(latents)} samples; give "
                "one for each sample"
            )
        gains = {layer: _batched(gain) for layer, gain in self.gains.items()}
        named = {name: _batched(value) for name, value in named.items()}
        try:
            self.block.begin()
            with torch._dynamo.config.patch(skip_nnmodule_hook_guards=False):
                output = self._run(gains, _batched(latents), *others, **named)
            self.block.end()
            return output
        except torch._dynamo.exc.BackendCompilerFailed as error:
            raise MachineError(
                "compile: torch.compile does not work here; on a CPU it needs a C++ compiler, on a "
                f"GPU Triton ({' '.join(str(error).split())[:200]})"
            ) from error

    def _scaled(self, gains: dict[int, Tensor], *inputs: Any, **named: Any) -> Any:
        self.gains = gains  # inside, so that the code takes them as inputs of any batch size
        return self.denoiser(*inputs, **named)


def _batched(value: Any) -> Any:
    """A tensor as the code takes it: laid out plainly, of any batch size; others as they are."""
    if isinstance(value, Tensor):
        value = value.contiguous()
        torch._dynamo.maybe_mark_dynamic(value, 0)
    return value


_compiled: WeakKeyDictionary[DiffusionModel, _Compiled] = WeakKeyDictionary()
