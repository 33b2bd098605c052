"""`score(sets)`: how much of the memorized prediction is left with each neuron set deactivated.

Scope: batching sets × seeds; the model comes in as a function that draws noise differences.
Source: "Finding NeMo" (arXiv 2406.02366), section 3.2: the largest similarity, over the seeds that
memorize, between the unblocked noise difference and the same seed's blocked one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nemo_kit.checks import check_whole
from nemo_kit.neurons import NeuronSet
from nemo_kit.similarity import SimilaritySettings, similarity

Draw = Callable[[list[int], list[NeuronSet]], Tensor]


class Score:
    """A function from neuron sets to scores, that batches sets × seeds and counts samples.

    Called with a list of sets it returns [sets], float32 on the CPU: 1 means that blocking
    changes nothing, low values that nothing of the memorized prediction is left.
    Parameters: `draw`, called with seed places and one set for each, returns their blocked noise
    differences [n, C, H, W]; `unblocked`, [seeds, C, H, W], computed once; `settings`, how they
    are compared; `batch_size`, seed–set pairs a call of `draw`.
    Attribute: `samples`, seed–set pairs drawn so far.
    Source: section 3.2, Algorithms 3 and 4.
    """

    def __init__(
        self,
        draw: Draw,
        unblocked: Tensor,
        settings: SimilaritySettings | None = None,
        batch_size: int = 32,
    ) -> None:
        if unblocked.ndim != 4 or not len(unblocked):
            raise ValueError(
                f"unblocked must be [seeds, C, H, W] with a seed, got {list(unblocked.shape)}"
            )
        check_whole("batch_size", batch_size, 1)
        self.draw, self.unblocked = draw, unblocked
        self.settings = settings or SimilaritySettings.sd()
        self.batch_size = batch_size
        self.samples = 0

    def __call__(self, sets: Sequence[NeuronSet]) -> Tensor:
        return self.per_seed(sets).amax(dim=1)

    def per_seed(self, sets: Sequence[NeuronSet]) -> Tensor:
        """The similarity of each set and seed: [sets, seeds], float32 on the CPU."""
        seeds = len(self.unblocked)
        if not sets:
            return torch.zeros(0, seeds)
        if self.settings.data_range == "batch":  # as the code: a set's own seeds are the batch
            return torch.stack([self._scores(range(seeds), [one] * seeds) for one in sets])
        places = [place for _ in sets for place in range(seeds)]
        repeated = [one for one in sets for _ in range(seeds)]
        return self._scores(places, repeated).unflatten(0, (len(sets), seeds))

    def _scores(self, places: Sequence[int], sets: Sequence[NeuronSet]) -> Tensor:
        parts = []
        for start in range(0, len(places), self.batch_size):
            here = list(places[start : start + self.batch_size])
            parts.append(self.draw(here, list(sets[start : start + self.batch_size])))
            self.samples += len(here)
        blocked = torch.cat(parts)
        return similarity(self.unblocked[list(places)], blocked, self.settings).cpu()
