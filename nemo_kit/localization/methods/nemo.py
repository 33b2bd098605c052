"""NeMo as a ranking: what was refined, then the candidates, then the rest, each by |z|."""

from torch import Tensor

from nemo_kit.calibration import check_statistics, check_threshold
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

    run = Run(model, prompt, seeds, search, progress=watch)
    limit = check_threshold(model, None, run.detection, run.similarity)
    scores = squashed(absolute_z(model, prompt))
    candidates, refined = NeuronSet(), None
    try:
        run.detect(limit)
        refined = NeuronSet() if not run.kept_seeds else None
        if run.kept_seeds:
            propose, score = run.propose(check_statistics(model, None)), run.score()
            selection = run.select(score, propose, limit)
            candidates = selection.candidates
            refined = run.refine(score, selection, selection.refinement_threshold).neurons
    except _Spent:
        pass
    for stage in (candidates, refined or NeuronSet()):
        for layer, index in stage:
            scores[layer][index] += 1
    return scores, refined
