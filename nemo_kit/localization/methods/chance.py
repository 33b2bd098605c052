"""At random, with NeMo's count in each layer: what a method must beat."""

import torch
from torch import Tensor

from nemo_kit.localization.methods.base import method
from nemo_kit.localization.methods.nemo import nemo
from nemo_kit.mitigation.base import draw_seed
from nemo_kit.models.base import DiffusionModel
from nemo_kit.neurons import NeuronSet

VERSION = 1  # raised where results change (see nemo_kit.keys)


@method("random")
def chance(
    model: DiffusionModel, prompt: str, seeds: list[int], budget: int | None = None
) -> tuple[dict[int, Tensor], NeuronSet]:
    """A random order of all neurons; the set has NeMo's count in each layer, and ranks first.

    No neuron is left out, as the paper leaves out those found for any prompt: on known truth that
    would be worse than chance. Costs what NeMo costs; where its budget ends first, the set is
    empty. The draw follows from the prompt and the seeds.
    Source: "Finding NeMo" (arXiv 2406.02366), section 4.
    """
    _, like = nemo(model, prompt, seeds, budget)
    drawn = torch.Generator().manual_seed(draw_seed("chance", prompt, *seeds))
    scores = {one.index: torch.rand(one.width, generator=drawn) for one in model.searched}
    counts = like.counts() if like else {}
    found = NeuronSet({k: scores[k].topk(count).indices.tolist() for k, count in counts.items()})
    for layer, index in found:
        scores[layer][index] += 1
    return scores, found
