"""`score(sets)`: how much of the memorized prediction is left with each neuron set deactivated.

Scope: the engine under every search mode. Many sets share a denoiser call, one set a sample; only
the seeds that memorize are drawn; unblocked differences and text embeddings are computed once a
prompt; nothing is drawn twice, and the empty set, which blocks nothing, not at all. What runs
before the first layer in which two sets of one seed differ is the same for both, but is not reused:
that spared too little (docs/search-modes.md, "What is not done").
Source: "Finding NeMo" (arXiv 2406.02366), section 3.2: the largest similarity, over the seeds that
memorize, between the unblocked noise difference and the same seed's blocked one.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from nemo_kit.hooks import gate_neurons
from nemo_kit.localization.differences import Differences
from nemo_kit.localization.verdicts import Verdicts
from nemo_kit.memory import BatchSize
from nemo_kit.neurons import Neuron, NeuronSet
from nemo_kit.settings import SimilaritySettings
from nemo_kit.similarity import noise_differences, similarity

AT_ONCE = 2  # denoiser samples of a call with its backward pass, which takes much memory
SAMPLES = 3  # what a sample with its backward pass counts: that pass costs two forward ones


class Score(Verdicts):
    """A function from neuron sets to scores, that batches sets × seeds and counts samples.

    Called with a list of sets it returns [sets], float32 on the CPU: 1 means that blocking
    changes nothing, low values that nothing of the memorized prediction is left. The questions of
    `Verdicts` are answered from fewer samples; `effects` are what the search `attributed` asks.
    Parameters: `draw`, which draws blocked noise differences; `noise` and `unblocked`,
    [seeds, C, H, W], of the seeds that memorize, without blocking; `text`, [1, tokens, dim];
    `settings`, how differences are compared; `batch`, denoiser samples a call.
    Attribute: `samples`, seed–set pairs drawn so far.
    Source: section 3.2, Algorithms 3 and 4.
    """

    def __init__(
        self,
        draw: Differences,
        noise: Tensor,
        text: Tensor,
        unblocked: Tensor,
        settings: SimilaritySettings,
        batch: BatchSize,
    ) -> None:
        super().__init__(len(noise), together=settings.data_range == "batch")
        self.draw, self.noise, self.text, self.unblocked = draw, noise, text, unblocked
        self.settings, self.batch, self.samples = settings, batch, 0

    def evaluate(self, sets: Sequence[NeuronSet], seeds: Sequence[int]) -> list[float]:
        """The similarity of each pair of a set and a seed; 1 without drawing for the empty set."""
        blocking = [place for place, one in enumerate(sets) if one]
        own = [seeds[place] for place in blocking]
        found = [1.0] * len(sets)
        if not blocking:
            return found
        texts, some = self.text.expand(len(own), -1, -1), [sets[place] for place in blocking]
        blocked = self.draw.in_batches(self.noise[own], texts, some, self.batch)
        self.samples += len(own)
        at_once = self.seeds if self._together else len(own)  # a set's own seeds are the batch
        both = zip(self.unblocked[own].split(at_once), blocked.split(at_once), strict=True)
        scores = torch.cat([similarity(a, b, self.settings) for a, b in both])
        for place, score in zip(blocking, scores.tolist(), strict=True):
            found[place] = score
        return found

    def effects(self, neurons: NeuronSet, most: int) -> dict[Neuron, float]:
        """How fast the score rises as each neuron's gate opens, all of the set deactivated.

        Returns neuron -> derivative by the gate that multiplies its output: the effect of
        re-activating it to first order, mean over at most `most` leading seeds. (Where nothing is
        deactivated the similarity is at its maximum, and all derivatives are 0.) A call takes
        `AT_ONCE` denoiser samples, or half as many where memory runs out, and counts `SAMPLES` for
        each seed.
        Source: ours; the score is that of section 3.2.
        """
        draw, model, seeds = self.draw, self.draw.model, self.leading()[:most]

        def slopes(part: slice) -> dict[int, Tensor]:
            """Layer -> [width], summed over these seeds."""
            noise, unblocked = self.noise[seeds[part]], self.unblocked[seeds[part]]
            gates, before = self._gates(neurons, len(noise)), model.samples_evaluated
            with torch.enable_grad():
                with gate_neurons(model.denoiser, model.value_layers, draw.in_halves(gates)):
                    predicted = draw.predict(noise, self.text.expand(len(noise), -1, -1))
                model.samples_evaluated += (SAMPLES - 1) * (model.samples_evaluated - before)
                blocked = noise_differences(predicted, noise)
                pairs = zip(blocked.split(1), unblocked.split(1), strict=True)
                rise = sum(objective(*pair, self.settings) for pair in pairs)
                found = torch.autograd.grad(rise, list(gates.values()))  # of each seed, its own
            return {layer: slope.sum(dim=(0, 1)) for layer, slope in zip(gates, found, strict=True)}

        parts = BatchSize(AT_ONCE).run(slopes, len(seeds), draw.per_item)
        scale = (1 - draw.factor) / len(seeds)
        total = {k: (sum(part[k] for part in parts) * scale).tolist() for k in neurons.layers}
        return {(layer, index): total[layer][index] for layer, index in neurons}

    def _gates(self, neurons: NeuronSet, count: int) -> dict[int, Tensor]:
        """layer -> [count, 1, width]: the factor at the neurons, 1 elsewhere, with a gradient."""
        model, gates = self.draw.model, {}
        widths = {layer.index: layer.width for layer in model.value_layers}
        for layer, indices in neurons.layers.items():
            gate = torch.ones(count, 1, widths[layer])
            gate[:, 0, list(indices)] = self.draw.factor
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
