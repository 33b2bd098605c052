"""The baseline: a plain reading of the released algorithm, with what it costs.

Scope: Algorithms 1 to 4 as the released code runs them. It makes two U-Net calls for each check
and discards the first (difference 1), evaluates all ten seeds whether they memorize or not, runs
the U-Net for the activations, and scores one set at a time. Verdicts are those of Algorithm 4, on
the seeds that memorize, so that its neurons are those of the search mode `sequential`.
Source: "Finding NeMo" (arXiv 2406.02366), Algorithms 1 to 4, and the authors' released code.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nemo_kit.calibration import check_threshold, resolve
from nemo_kit.checks import check_seeds, check_text
from nemo_kit.hooks import capture, scale_neurons
from nemo_kit.localization.candidates import candidates, mean_activations, z_scores
from nemo_kit.localization.detection import kept, upper
from nemo_kit.localization.differences import Differences
from nemo_kit.localization.information import check_informative
from nemo_kit.localization.result import STAGES, Localization
from nemo_kit.localization.search import Refinement, Selection, refine, select_initial
from nemo_kit.neurons import NeuronSet
from nemo_kit.settings import LocalizationSettings
from nemo_kit.similarity import noise_differences, pairwise, similarity

if TYPE_CHECKING:
    from nemo_kit.models import DiffusionModel

VERSION = 1  # raised where results change (see nemo_kit.keys)


def localize_released(
    model: DiffusionModel, prompt: str, seeds: Iterable[int] = range(1, 11)
) -> tuple[Localization, float]:
    """Algorithms 1 to 4 at the released code's costs, under the model's own calibration.

    Returns a `Localization` (`search` is "released"), and the smallest distance of any score to
    the threshold it was held against, below which another rounding could turn a verdict.
    Raises TypeError or ValueError for a bad prompt or seeds, and for a model without calibration.
    Source: Algorithms 1 to 4 and the released code.
    """
    if model.calibration is None:
        raise ValueError(f"model {model.name!r} has no calibration; set model.calibration")
    run = _Released(model, check_text(prompt), check_seeds(seeds, least=2, distinct=True))
    return run.result(), run.nearest


class _Released:
    """One prompt's run; keeps counts and times by algorithm."""

    def __init__(self, model: DiffusionModel, prompt: str, seeds: list[int]) -> None:
        self.model, self.prompt, self.seeds = model, prompt, seeds
        self.detection, self.similarity = resolve(model.calibration)
        self.settings = LocalizationSettings(detection=self.detection, similarity=self.similarity)
        self.threshold = check_threshold(model, None, self.detection, self.similarity)
        self.limit, self.nearest = self.threshold, math.inf
        self.steps = model.timesteps(self.detection.steps)
        self.samples = dict.fromkeys(STAGES, 0)
        self.times = dict.fromkeys(STAGES, 0.0)

    def result(self) -> Localization:
        """Run all four algorithms."""
        check_informative(Differences(self.model, self.detection))
        with self._stage("detect"):
            self.noise = self.model.noise(self.seeds, self.detection.noise)
            self.text = self.model.embed(self.prompt).expand(len(self.noise), -1, -1)
            self.unblocked = self._difference(NeuronSet())
            pairs = pairwise(self.unblocked, self.similarity).cpu()
            self.mask = kept(pairs, self.threshold)
        score = upper(pairs).max().item()
        if not self.mask.any():
            return self._found(score, None, None)
        with self._stage("activations"):
            activations, z = self._activations()
        with self._stage("select"):
            selection = select_initial(
                self.score,
                lambda theta, k: candidates(activations, z, theta, k, self.settings.two_sided),
                self.threshold,
                self.settings,
                max(layer.width for layer in self.model.searched),
            )
        self.limit = selection.refinement_threshold
        with self._stage("refine"):
            found = refine(
                self.score, selection.candidates, self.limit, initial_score=selection.score
            )
        return self._found(score, selection, found)

    def score(self, sets: Sequence[NeuronSet]) -> Tensor:
        """[sets]: one after the other, each from two calls over all seeds."""
        scores = [self._score(one) for one in sets]
        self.nearest = min([self.nearest, *(abs(s - self.limit) for s in scores)])
        return torch.tensor(scores)

    def _score(self, neurons: NeuronSet) -> float:
        alike = similarity(self.unblocked, self._difference(neurons), self.similarity).cpu()
        return alike[self.mask].max().item()

    @torch.no_grad()
    def _difference(self, neurons: NeuronSet) -> Tensor:
        """The noise differences of all seeds; the call at the first timestep is thrown away."""
        model = self.model
        with scale_neurons(model.denoiser, model.value_layers, neurons, self.settings.factor):
            model.predict_noise(self.noise, self.steps[0], self.text)
            predicted = model.predict_noise(
                self.noise, self.steps[self.detection.timestep_index], self.text
            )
        return noise_differences(predicted, self.noise)

    @torch.no_grad()
    def _activations(self) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """Activations of the prompt and their z, from a run of the U-Net over all seeds."""
        model = self.model
        with capture(model.denoiser, model.searched) as seen:
            model.predict_noise(self.noise, self.steps[0], self.text)
        found = mean_activations({layer: value[:1].float() for layer, value in seen.items()})
        own = {layer: values[0].cpu() for layer, values in found.items()}
        return own, z_scores(own, model.calibration.statistics)  # type: ignore[union-attr]

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        before, start = self.model.samples_evaluated, time.perf_counter()
        yield
        self.times[name] = time.perf_counter() - start
        self.samples[name] = self.model.samples_evaluated - before

    def _found(
        self, score: float, selection: Selection | None, refinement: Refinement | None
    ) -> Localization:
        numbers = zip(self.seeds, self.mask.tolist(), strict=True)
        detected = Localization(
            prompt=self.prompt,
            flagged=False,
            score=score,
            kept_seeds=tuple(seed for seed, keep in numbers if keep),
            threshold=self.threshold,
            settings=self.settings,
            search="released",
            samples=self.samples,
            times=self.times,
        )
        return detected.after(selection, refinement) if selection and refinement else detected
