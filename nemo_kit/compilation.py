"""Denoiser calls with neurons scaled, as compiled code (torch.compile).

Scope: what `hooks.scale_neurons` does, for many calls of one model. Compiled code does not see
hooks that come later, so here the same hooks serve every call: they multiply each value layer's
outputs by gains that the code takes as inputs, 1 where nothing is scaled. Outside the block the
denoiser runs as ever, and sees every hook.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from nemo_kit.hooks import Hook, gains, hooked
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
    Raises ValueError where a neuron does not exist; at a call, ValueError where the batch has
    another length than the list, RuntimeError where torch can't compile here.
    Source: section 3.2, "deactivating".
    """
    if model not in _compiled:
        _compiled[model] = _Compiled(model.denoiser)
    code, before = _compiled[model], model.run
    made = gains(model.value_layers, sets, factor)
    code.gains = {layer: gain.to(model.device, model.dtype) for layer, gain in made.items()}
    with hooked(model.denoiser, [(p, code.hook(p.index)) for p in model.value_layers]):
        model.run = code
        try:
            yield
        finally:
            model.run, code.gains = before, {}


class _Compiled:
    """A denoiser as compiled code, with the hooks it was compiled with."""

    def __init__(self, denoiser: nn.Module) -> None:
        self.gains: dict[int, Tensor] = {}
        self._denoiser = denoiser
        self._run = torch.compile(self._scaled)
        self._hooks: dict[int, Hook] = {}

    def hook(self, layer: int) -> Hook:
        """The one hook of a layer."""

        def scale(_module: nn.Module, _inputs: tuple, output: Tensor) -> Tensor:
            return output * self.gains[layer].to(output.dtype)

        return self._hooks.setdefault(layer, scale)

    def __call__(self, latents: Tensor, *others: Any, **named: Any) -> Any:
        held = len(next(iter(self.gains.values())))
        if held != len(latents):
            raise ValueError(
                f"sets holds {held} neuron sets, but the batch has {len(latents)} samples; give "
                "one for each sample"
            )
        for tensor in (latents, *self.gains.values(), *named.values()):
            if isinstance(tensor, Tensor):
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
        try:
            return self._run(self.gains, latents, *others, **named)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise RuntimeError(
                "compile: torch.compile does not work here; on a CPU it needs a C++ compiler, on a "
                f"GPU Triton ({' '.join(str(error).split())[:200]})"
            ) from error

    def _scaled(self, gains: dict[int, Tensor], *inputs: Any, **named: Any) -> Any:
        self.gains = gains  # inside, so that the code takes them as inputs of any batch size
        return self._denoiser(*inputs, **named)


_compiled: WeakKeyDictionary[DiffusionModel, _Compiled] = WeakKeyDictionary()
