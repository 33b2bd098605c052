"""NeMo as a ranking: what was refined, then the candidates, then the rest, each by |z|."""

from contextlib import suppress

from torch import Tensor

from nemo_kit.localization.methods.base import method, squashed
from nemo_kit.localization.methods.z_score import absolute_z
from nemo_kit.localization.nemo import Run
from nemo_kit.models.base import DiffusionModel
from nemo_kit.neurons import NeuronSet

VERSION = 1  # raised where results change (see nemo_kit.keys)
LOSS = "memorization score"


class _Spent(Exception):
    """The budget is used up."""


@method("NeMo", LOSS)
@method("NeMo, sequential", LOSS, search="sequential")
@method("NeMo, bisect", LOSS, search="bisect")
@method("NeMo, attributed", LOSS, search="attributed")
def nemo(
    model: DiffusionModel,
    prompt: str,
    seeds: list[int],
    budget: int | None = None,
    search: str = "speculative",
) -> tuple[dict[int, Tensor], NeuronSet | None]:
    """Algorithms 1 to 4; where the budget ends first, no set, and the stages that were reached.

    Scores: 2 for a refined neuron, 1 for a candidate, and |z|/(1 + |z|) within each. The budget is
    looked at between calls of the denoiser, so that the last may exceed it.
    Parameters: `seeds`, at least two; `search`, a name in `SEARCHES`.
    Source: "Finding NeMo" (arXiv 2406.02366), section 3.
    """
    start = model.samples_evaluated

    def watch(*_: object) -> None:
        if budget is not None and model.samples_evaluated - start > budget:
            raise _Spent

    run, refined = Run(model, prompt, seeds, search, progress=watch), None
    scores = squashed(absolute_z(model, prompt))
    with suppress(_Spent):
        refined = run().refined
    candidates = run.selection.candidates if run.selection else NeuronSet()
    for layer, index in [*candidates, *(refined or ())]:
        scores[layer][index] += 1
    return scores, refined
