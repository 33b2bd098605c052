"""Context managers that read or scale what projections put out, and leave nothing behind.

Scope: projections of the attention, and `hooked` for what others hook.
One context manager an intent; hooks are registered on entering and removed on leaving, whatever
raises. Outputs are never written in place. Nothing of the method lives here.

Nothing acts silently: at the end of each call of the denoiser every hooked module must have run
once, else `InterventionError` is raised.
Source: "Finding NeMo" (arXiv 2406.02366), section 3: deactivating a neuron multiplies its output
by 0, scaling by any factor.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nemo_kit.checks import MachineError, check_number, listed
from nemo_kit.layers import Projection
from nemo_kit.neurons import NeuronSet

Hook = Callable[[nn.Module, tuple, Tensor], Tensor | None]
Before = Callable[[nn.Module, tuple, dict[str, Any]], tuple[tuple, dict[str, Any]]]


class InterventionError(MachineError):
    """A layer that was to be read or changed did not run, once, in a call of the denoiser."""


@contextmanager
def capture(denoiser: nn.Module, projections: Iterable[Projection]) -> Iterator[dict[int, Tensor]]:
    """Keep what the projections put out in the latest call inside the block.

    Returns (as the target of `with`) a dict, layer -> [batch, tokens, width], filled by each
    call of the denoiser. Inside `scale_neurons` it holds the scaled outputs.
    Raises ValueError where the denoiser lacks a projection.
    """
    seen: dict[int, Tensor] = {}

    def keeper(projection: Projection) -> Hook:
        def keep(_module: nn.Module, _inputs: tuple, output: Tensor | tuple) -> None:
            image = output[0] if isinstance(output, tuple) else output  # of joint attention
            seen[projection.index] = image[:, : projection.tokens].detach()

        return keep

    with hooked(denoiser, {p.name: keeper(p) for p in projections}):
        yield seen


@contextmanager
def scale_neurons(
    denoiser: nn.Module,
    projections: Iterable[Projection],
    sets: NeuronSet | Sequence[NeuronSet],
    factor: float = 0.0,
) -> Iterator[None]:
    """Multiply neurons' outputs by a factor inside the block.

    Parameters: `projections`, where the layers of the sets are; `sets`, one set for the whole
    batch, or a list with one for each sample of the batch; `factor`, 0 deactivates, 1 changes
    nothing.
    Raises ValueError where a neuron does not exist, the factor is not finite or, at the call
    of the denoiser, the batch has another length than the list.
    Source: section 3.2, "deactivating"; table 4 for other factors.
    """
    by_layer = {p.index: p for p in projections}
    check_number("factor", factor)
    alone = isinstance(sets, NeuronSet)
    rows: Sequence[NeuronSet] = [sets] if alone else sets  # type: ignore[assignment]
    if not isinstance(rows, Sequence) or not all(isinstance(one, NeuronSet) for one in rows):
        raise TypeError(f"sets must be a NeuronSet or a list of them, got {type(sets).__name__}")
    if not rows:
        raise ValueError("sets must hold one NeuronSet for each sample of the batch, got none")
    widths = {index: projection.width for index, projection in by_layer.items()}
    touched = sorted({layer for one in rows for layer in one.check(widths).layers})
    if not alone and not touched:
        touched = sorted(by_layer)[:1]  # nothing to scale, yet the batch length is to be checked
    plan = {}
    for layer in touched:
        gains = torch.ones(len(rows), 1, widths[layer])
        for row, neurons in enumerate(rows):
            gains[row, 0, list(neurons.layers.get(layer, ()))] = float(factor)
        samples = None if alone else len(rows)
        plan[by_layer[layer].name] = _scaler(by_layer[layer], gains, samples)
    with hooked(denoiser, plan):
        yield


@contextmanager
def gate_neurons(
    denoiser: nn.Module, projections: Iterable[Projection], gates: Mapping[int, Tensor]
) -> Iterator[None]:
    """Multiply neurons' outputs by gates that may carry a gradient, inside the block.

    Parameters: `projections`, where the gates' layers are; `gates`, layer -> [batch, 1, width] or
    [1, 1, width]: 1 changes nothing, 0 deactivates.
    Raises ValueError for a layer or a width that the projections don't have.
    """
    by_layer = {p.index: p for p in projections}
    for layer, gate in gates.items():
        if layer not in by_layer or gate.ndim != 3 or gate.shape[1:] != (1, by_layer[layer].width):
            raise ValueError(
                f"gates: layer {layer} must be one of {sorted(by_layer)} with a gate "
                f"[batch, 1, width] of its width, got {list(gate.shape)}"
            )

    with hooked(denoiser, {by_layer[i].name: _scaler(by_layer[i], g) for i, g in gates.items()}):
        yield


def _scaler(projection: Projection, gains: Tensor, samples: int | None = None) -> Hook:
    """What multiplies an output by gains [N or 1, 1, width].

    Parameters: `samples`, how many the batch must have; by default any.
    """

    def scale(_module: nn.Module, _inputs: tuple, output: Tensor) -> Tensor:
        nonlocal gains
        if samples is not None and samples != len(output):
            raise ValueError(
                f"sets holds {samples} neuron sets, but the batch has {len(output)} samples; "
                "give one set for the whole batch or one for each sample"
            )
        moved = gains.to(output)
        if not gains.requires_grad:  # else each call needs its own way back to the gates
            gains = moved  # once: device and dtype stay the same inside a block
        return scaled(projection, output, moved)

    return scale


def scaled(projection: Projection, output: Tensor, gains: Tensor) -> Tensor:
    """An output times gains [N or 1, 1, width], those of the text's tokens where it has others."""
    if projection.tokens is None:
        return output * gains
    text, image = output[:, : projection.tokens], output[:, projection.tokens :]
    return torch.cat([text * gains, image], dim=1)


@dataclass(eq=False)
class _Block:
    """What is hooked to a denoiser, and whether each of it ran once in every call."""

    denoiser: nn.Module
    names: tuple[str, ...]
    ran: list[str] = field(default_factory=list)  # in the present call
    called: bool = False
    other: str = ""  # another denoiser, which was called

    def noting(self, name: str, hook: Callable) -> Callable:
        """The hook, of which it is known that it ran."""

        def noted(*given: Any) -> Any:
            self.ran.append(name)
            return hook(*given)

        return noted

    def begin(self, *_: Any) -> None:
        """A call begins; what ran in one that failed is forgotten."""
        self.ran = []

    def end(self, *_: Any) -> None:
        """A call is complete. Raises InterventionError where a module did not run once in it."""
        self.called = True
        wrong = [name for name in self.names if self.ran.count(name) != 1]
        if wrong:
            times = self.ran.count(wrong[0])
            raise _idle(wrong, f"ran {times} times" if times else "did not run")


class _Open(threading.local):
    """The blocks that are open in this thread."""

    def __init__(self) -> None:
        self.blocks: list[_Block] = []


_open = _Open()


@contextmanager
def hooked(
    denoiser: nn.Module, hooks: Mapping[str, Hook], before: Mapping[str, Before] | None = None
) -> Iterator[None]:
    """Call functions after (or before) each run of modules inside the block.

    Parameters: `hooks`, module name -> function of (module, inputs, output), called after it,
    whose result, unless None, takes the output's place; `before`, module name -> function of
    (module, inputs, named inputs), called before it, that returns what it gets instead.
    Raises ValueError where the denoiser lacks a module, InterventionError where one is compiled,
    did not run once, or only another denoiser was called.
    """
    before = before or {}
    block = _Block(denoiser, (*hooks, *before))
    if not block.names:
        yield
        return
    handles = []
    try:
        handles.append(denoiser.register_forward_pre_hook(block.begin))
        for name, hook in before.items():
            module, noted = _module(denoiser, name), block.noting(name, hook)
            handles.append(module.register_forward_pre_hook(noted, with_kwargs=True))
        for name, hook in hooks.items():
            noted = block.noting(name, hook)
            handles.append(_module(denoiser, name).register_forward_hook(noted))
        handles.append(denoiser.register_forward_hook(block.end))
        _open.blocks.append(block)
        yield
    finally:
        for handle in handles:
            handle.remove()
        if block in _open.blocks:
            _open.blocks.remove(block)
    if block.other and not block.called:
        raise _idle(block.names, f"did not run, but {block.other} did")


@contextmanager
def calling(denoiser: nn.Module) -> Iterator[None]:
    """Tell the blocks open in this thread that a call of this denoiser is made inside.

    Compiled code runs no hook that came later, so a model says when it calls its denoiser.
    Raises InterventionError where this denoiser holds a block's inside it, or a layer of its own
    blocks did not run once.
    """
    own = [block for block in _open.blocks if block.denoiser is denoiser]
    for block in _open.blocks:
        if block.denoiser is denoiser:
            block.begin()
        elif any(module is block.denoiser for module in denoiser.modules()):
            raise _idle(block.names, f"would run inside {type(denoiser).__name__}")
        else:
            block.other = f"another denoiser ({type(denoiser).__name__})"
    yield
    for block in own:
        block.end()


def intervened() -> bool:
    """Whether a block is open in this thread."""
    return bool(_open.blocks)


def _idle(names: Sequence[str], what: str) -> InterventionError:
    return InterventionError(
        f"{listed(names)} {what}: a layer that is hooked must run once in each call "
        "of the denoiser; likely causes: fused projections (unfuse_qkv_projections()), a compiled "
        "module, a replaced attention processor (set_default_attn_processor()), a replaced denoiser"
    )


def _module(denoiser: nn.Module, name: str) -> nn.Module:
    try:
        found = denoiser.get_submodule(name)
    except AttributeError as error:
        raise ValueError(
            f"this denoiser has no module {name!r}; nemo_kit.layers finds those it has"
        ) from error
    place = denoiser
    for part in ("", *name.split(".")):
        place = getattr(place, part) if part else place
        forward = vars(place).get("forward")
        if place._compiled_call_impl is not None or hasattr(forward, "_torchdynamo_orig_callable"):
            raise InterventionError(
                f"{name} lies in a compiled module, which runs no hook that comes later and keeps "
                "those of its first call; use the denoiser as it was before torch.compile (its "
                "_orig_mod)"
            )
    return found
