"""First-order effects: how fast the score rises as each neuron's gate opens, from one gradient.

Scope: the backward pass behind the search mode `attributed`. A gate multiplies a neuron's output;
at the state where a set is deactivated its gates stand at the factor (0), and the derivative of
the similarity by a gate tells what re-activating that neuron does to first order. At the state
where nothing is deactivated the similarity is at its maximum, and all derivatives are 0.
Source: ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nemo_kit.hooks import gate_neurons
from nemo_kit.localization.differences import Differences
from nemo_kit.neurons import Neuron, NeuronSet
from nemo_kit.similarity import SimilaritySettings, noise_differences, similarity

SAMPLES = 3  # what a sample with its backward pass counts: that pass costs two forward ones


def first_order_effects(
    draw: Differences,
    noise: Tensor,
    text: Tensor,
    unblocked: Tensor,
    neurons: NeuronSet,
    settings: SimilaritySettings,
) -> dict[Neuron, float]:
    """Derivative of the score by each neuron's gate, all of the set deactivated.

    Returns neuron -> effect of re-activating it to first order, mean over the seeds.
    Parameters: `noise` and `unblocked`, [seeds, C, H, W]; `text`, [1, tokens, dim]; `neurons`, the
    set; `settings`, how differences are compared. Seeds are taken one by one, which bounds memory.
    Counts `SAMPLES` denoiser samples a seed.
    Source: ours; the score is that of section 3.2.
    """
    total = dict.fromkeys(neurons, 0.0)
    for place in range(len(noise)):
        here = slice(place, place + 1)
        gates = _gates(draw, neurons)
        with torch.enable_grad():
            blocked = _gated(draw, gates, noise[here], text)
            rise = _objective(blocked, unblocked[here], settings)
            slopes = torch.autograd.grad(rise, list(gates.values()))
        slope = dict(zip(gates, (s.flatten().tolist() for s in slopes), strict=True))
        for layer, index in neurons:
            total[layer, index] += slope[layer][index] * (1 - draw.factor) / len(noise)
    return total


def _gates(draw: Differences, neurons: NeuronSet) -> dict[int, Tensor]:
    """layer -> [1, 1, width]: the factor at the set's neurons, 1 elsewhere, with a gradient."""
    model, gates = draw.model, {}
    widths = {layer.index: layer.width for layer in model.value_layers}
    for layer, indices in neurons.layers.items():
        gate = torch.ones(1, 1, widths[layer])
        gate[0, 0, list(indices)] = draw.factor
        gates[layer] = gate.to(model.device).requires_grad_()
    return gates


def _gated(draw: Differences, gates: dict[int, Tensor], noise: Tensor, text: Tensor) -> Tensor:
    model = draw.model
    before = model.samples_evaluated
    with gate_neurons(model.denoiser, model.value_layers, draw.in_halves(gates)):
        prediction = draw.predict(noise, text)
    model.samples_evaluated += (SAMPLES - 1) * (model.samples_evaluated - before)
    return noise_differences(prediction, noise)


def _objective(blocked: Tensor, unblocked: Tensor, settings: SimilaritySettings) -> Tensor:
    """The similarity; where a scale is anti-correlated, its slope is none, minus the distance."""
    value = similarity(unblocked, blocked, settings).sum()
    if value > 0:
        return value
    return -(unblocked - blocked).square().mean()
