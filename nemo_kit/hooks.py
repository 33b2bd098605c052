"""Context managers that read or scale what projections put out, and leave nothing behind.

Scope: projections of the attention, channels of convolutions, and `hooked` for what others hook.
One context manager an intent; hooks are registered on entering and removed on leaving, whatever
raises. Outputs are never written in place. Nothing of the method lives here.
Source: "Finding NeMo" (arXiv 2406.02366), section 3: deactivating a neuron multiplies its output
by 0, scaling by any factor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from nemo_kit.checks import check_number
from nemo_kit.layers import Convolution, Projection
from nemo_kit.neurons import NeuronSet

Hook = Callable[[nn.Module, tuple, Tensor], Tensor | None]
Place = Projection | Convolution


@contextmanager
def capture(denoiser: nn.Module, projections: Iterable[Projection]) -> Iterator[dict[int, Tensor]]:
    """Keep what the projections put out in the latest call inside the block.

    Returns (as the target of `with`) a dict, layer -> [batch, tokens, width], filled by each
    call of the denoiser. Inside `scale_neurons` it holds the scaled outputs.
    Raises ValueError where the denoiser lacks a projection.
    """
    seen: dict[int, Tensor] = {}

    def keeper(index: int) -> Hook:
        def keep(_module: nn.Module, _inputs: tuple, output: Tensor) -> None:
            seen[index] = output.detach()

        return keep

    with hooked(denoiser, {p.name: keeper(p.index) for p in projections}):
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
    plan = _plan(by_layer, sets, float(factor))
    with hooked(denoiser, plan):
        yield


@contextmanager
def scale_channels(
    denoiser: nn.Module,
    convolutions: Iterable[Convolution],
    channels: NeuronSet,
    factor: float = 0.0,
) -> Iterator[None]:
    """Multiply output channels of convolutions by a factor inside the block, for the whole batch.

    Parameters: `convolutions`, where the channels are; `channels`, convolution number -> output
    channels, as a `NeuronSet`; `factor`, 0 switches them off.
    Raises ValueError where a channel does not exist or the factor is not finite.
    Source: figure 20 of the paper.
    """
    by_number = {c.index: c for c in convolutions}
    check_number("factor", factor)
    rows = _checked([channels], by_number)
    plan = {
        by_number[i].name: _scaler(_gains(by_number[i], rows, factor).reshape(1, -1, 1, 1), True)
        for i in channels.layers
    }
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

    def gater(gate: Tensor) -> Hook:
        return lambda _module, _inputs, output: output * gate.to(output)

    with hooked(denoiser, {by_layer[i].name: gater(gate) for i, gate in gates.items()}):
        yield


def _plan(
    by_layer: dict[int, Projection], sets: NeuronSet | Sequence[NeuronSet], factor: float
) -> dict[str, Hook]:
    alone = isinstance(sets, NeuronSet)
    rows = _checked([sets] if alone else sets, by_layer)  # type: ignore[list-item]
    touched = sorted({layer for one in rows for layer in one.layers})
    if not alone and not touched:
        touched = sorted(by_layer)[:1]  # nothing to scale, yet the batch length is to be checked
    return {by_layer[i].name: _scaler(_gains(by_layer[i], rows, factor), alone) for i in touched}


def _checked(sets: object, by_layer: Mapping[int, Place]) -> list[NeuronSet]:
    if not isinstance(sets, Sequence) or not all(isinstance(one, NeuronSet) for one in sets):
        raise TypeError(f"sets must be a NeuronSet or a list of them, got {type(sets).__name__}")
    if not sets:
        raise ValueError("sets must hold one NeuronSet for each sample of the batch, got none")
    widths = {index: projection.width for index, projection in by_layer.items()}
    return [one.check(widths) for one in sets]


def sample_gains(
    projections: Iterable[Projection], sets: Sequence[NeuronSet], factor: float
) -> dict[int, Tensor]:
    """What `scale_neurons` multiplies by: layer -> [sets, 1, width], 1 where nothing is scaled.

    Raises TypeError where `sets` is no list of neuron sets, ValueError where it is empty, a neuron
    does not exist or the factor is not finite.
    """
    by_layer = {p.index: p for p in projections}
    check_number("factor", factor)
    rows = _checked(sets, by_layer)
    return {index: _gains(p, rows, factor) for index, p in by_layer.items()}


def _gains(projection: Place, rows: Sequence[NeuronSet], factor: float) -> Tensor:
    """[rows, 1, width]: the factor at the neurons of each row, 1 elsewhere."""
    gains = torch.ones(len(rows), 1, projection.width)
    for row, neurons in enumerate(rows):
        gains[row, 0, list(neurons.layers.get(projection.index, ()))] = factor
    return gains


def _scaler(gains: Tensor, for_all: bool) -> Hook:
    def scale(_module: nn.Module, _inputs: tuple, output: Tensor) -> Tensor:
        nonlocal gains
        if not for_all and len(gains) != len(output):
            raise ValueError(
                f"sets holds {len(gains)} neuron sets, but the batch has {len(output)} samples; "
                "give one set for the whole batch or one for each sample"
            )
        gains = gains.to(output)  # moved once: device and dtype stay the same inside a block
        return output * gains

    return scale


@contextmanager
def hooked(denoiser: nn.Module, hooks: Mapping[str, Hook]) -> Iterator[None]:
    """Call a function after each run of a module inside the block.

    Parameters: `hooks`, module name -> function of (module, inputs, output), whose result, unless
    None, takes the output's place.
    Raises ValueError where the denoiser lacks a module.
    """
    handles = []
    try:
        for name, hook in hooks.items():
            handles.append(_module(denoiser, name).register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _module(denoiser: nn.Module, name: str) -> nn.Module:
    try:
        return denoiser.get_submodule(name)
    except AttributeError as error:
        raise ValueError(
            f"this denoiser has no module {name!r}; nemo_kit.layers finds those it has"
        ) from error
