"""First-order effects: how fast the score rises as each neuron's gate opens, from one gradient.

Scope: the backward pass behind the search mode `attributed`. A gate multiplies a neuron's output;
at the state where a set is deactivated its gates stand at the factor (0), and the derivative of
the similarity by a gate tells what re-activating that neuron does to first order. At the state
where nothing is deactivated the similarity is at its maximum, and all derivatives are 0.
Source: ours.
"""

import torch
from torch import Tensor

from nemo_kit.hooks import gate_neurons
from nemo_kit.localization.differences import Differences
from nemo_kit.memory import BatchSize
from nemo_kit.neurons import Neuron, NeuronSet
from nemo_kit.settings import SimilaritySettings
from nemo_kit.similarity import noise_differences, similarity

AT_ONCE = 2  # denoiser samples of a call with its backward pass, which takes much memory
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
    set; `settings`, how differences are compared. A call takes `AT_ONCE` denoiser samples, or half
    as many where memory runs out. Counts `SAMPLES` denoiser samples a seed.
    Source: ours; the score is that of section 3.2.
    """
    model = draw.model

    def slopes(part: slice) -> dict[int, Tensor]:
        """Layer -> [width], summed over these seeds."""
        gates, before = _gates(draw, neurons, len(noise[part])), model.samples_evaluated
        with torch.enable_grad():
            with gate_neurons(model.denoiser, model.value_layers, draw.in_halves(gates)):
                predicted = draw.predict(noise[part], text.expand(len(noise[part]), -1, -1))
            model.samples_evaluated += (SAMPLES - 1) * (model.samples_evaluated - before)
            blocked = noise_differences(predicted, noise[part])
            pairs = zip(blocked.split(1), unblocked[part].split(1), strict=True)
            rise = sum(objective(*pair, settings) for pair in pairs)
            found = torch.autograd.grad(rise, list(gates.values()))  # of each seed, its own
        return {layer: slope.sum(dim=(0, 1)) for layer, slope in zip(gates, found, strict=True)}

    parts = BatchSize(AT_ONCE).run(slopes, len(noise), draw.per_item)
    scale = (1 - draw.factor) / len(noise)
    total = {layer: sum(part[layer] for part in parts) * scale for layer in neurons.layers}
    listed = {layer: effects.tolist() for layer, effects in total.items()}
    return {(layer, index): listed[layer][index] for layer, index in neurons}


def _gates(draw: Differences, neurons: NeuronSet, count: int) -> dict[int, Tensor]:
    """layer -> [count, 1, width]: the factor at the set's neurons, 1 elsewhere, with a gradient."""
    model, gates = draw.model, {}
    widths = {layer.index: layer.width for layer in model.value_layers}
    for layer, indices in neurons.layers.items():
        gate = torch.ones(count, 1, widths[layer])
        gate[:, 0, list(indices)] = draw.factor
        gates[layer] = gate.to(model.device).requires_grad_()
    return gates


def objective(blocked: Tensor, unblocked: Tensor, settings: SimilaritySettings) -> Tensor:
    """The similarity; where a scale is anti-correlated, its slope is none, minus the distance.

    Returns a number. Parameters: `blocked`, `unblocked`, [1, C, H, W] noise differences.
    """
    value = similarity(unblocked, blocked, settings).sum()
    if value > 0:
        return value
    return -(unblocked - blocked).square().mean()
