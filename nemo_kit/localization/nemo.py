"""NeMo for one prompt: detection, candidates, initial selection, refinement in turn.

Scope: puts Algorithms 1 to 4 together, with their times and denoiser samples.
Source: "Finding NeMo" (arXiv 2406.02366), section 3.
"""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from nemo_kit.calibration import ActivationStatistics, check_statistics, check_threshold, resolve
from nemo_kit.checks import check_kind, check_seeds, check_text
from nemo_kit.localization.candidates import candidate_lists, text_activations, z_scores
from nemo_kit.localization.detection import kept, upper
from nemo_kit.localization.differences import Differences, Progress
from nemo_kit.localization.result import STAGES, Localization
from nemo_kit.localization.scoring import Score
from nemo_kit.localization.search import Propose, Refinement, Report, Selection, find_search
from nemo_kit.localization.verdicts import Verdicts
from nemo_kit.memory import BatchSize, fitting
from nemo_kit.models.base import DiffusionModel
from nemo_kit.neurons import NeuronSet
from nemo_kit.settings import LocalizationSettings
from nemo_kit.similarity import pairwise

VERSION = 2  # raised where results change (see nemo_kit.keys)


def localize(
    model: DiffusionModel,
    prompt: str,
    seeds: Iterable[int] = range(1, 11),
    search: str = "speculative",
    statistics: ActivationStatistics | None = None,
    threshold: float | None = None,
    settings: LocalizationSettings | None = None,
    progress: Progress | None = None,
) -> Localization:
    """Find the neurons by which the model memorizes a prompt's image.

    Returns a `Localization`; `.refined` holds the neurons, empty where it is not flagged.
    Parameters: `seeds`, for detection (evaluate with others); `search`, a name in `SEARCHES`:
    "sequential" (the paper, call by call), "speculative" (the same sets, batched), "bisect" and
    "attributed" (cheaper, verified, see there when their sets may differ);
    `statistics`, `threshold`, by default the model's calibration's; `settings`, by default the
    code's behaviour where it fixes the published threshold, the paper's elsewhere; `progress`,
    called with (stage, done, total or None), may raise to cancel.
    Raises TypeError or ValueError for a bad prompt, seed, search or settings, and where the model
    has no statistics or threshold and none was given; UninformativeError where the model's
    predictions can't tell prompts apart, InterventionError where a value layer can't be reached.
    Source: Algorithms 1 to 4; default timesteps[1] on the unchanged x_T, MS-SSIM, |z|.
    """
    return Run(model, check_text(prompt), seeds, search, settings, progress)(threshold, statistics)


class Run:
    """One prompt on its way through the algorithms; keeps what they share.

    Called with `threshold` and `statistics`, by default the model's calibration's, it goes all the
    way. Attributes: `kept_seeds`, those that memorize, once detection has run; `selection`, what
    the initial selection ended with, None before.
    """

    def __init__(
        self,
        model: DiffusionModel,
        prompt: str,
        seeds: Iterable[int],
        search: str,
        settings: LocalizationSettings | None = None,
        progress: Progress | None = None,
    ) -> None:
        check_kind("settings", settings, LocalizationSettings)
        settings = settings or LocalizationSettings()
        self.model, self.prompt, self.progress = model, prompt, progress
        self.seeds = check_seeds(seeds, least=2, distinct=True)
        self.mode, self.name = find_search(search), search
        given = settings.detection, settings.similarity
        self.detection, self.similarity = resolve(model.calibration, *given)
        self.similarity.check(*model.latent_shape[1:])
        self.settings = replace(settings, detection=self.detection, similarity=self.similarity)
        self.draw = Differences(model, self.detection, settings)
        self.batch = BatchSize(settings.batch_size) if settings.batch_size else fitting(model)
        self.samples = dict.fromkeys(STAGES, 0)
        self.times = dict.fromkeys(STAGES, 0.0)
        self.selection: Selection | None = None

    def __call__(
        self, threshold: float | None = None, statistics: ActivationStatistics | None = None
    ) -> Localization:
        limit = check_threshold(self.model, threshold, self.detection, self.similarity)
        known = check_statistics(self.model, statistics)
        score = self.detect(limit)
        detected = Localization(
            prompt=self.prompt,
            flagged=False,
            score=score,
            kept_seeds=self.kept_seeds,
            threshold=limit,
            settings=self.settings,
            search=self.name,
            samples=self.samples,
            times=self.times,
        )
        if not self.kept_seeds:
            return detected
        propose, ask = self.propose(known), self.score()
        self.selection = chosen = self.select(ask, propose, limit)
        return detected.after(chosen, self.refine(ask, chosen, chosen.refinement_threshold))

    def detect(self, threshold: float) -> float:
        """Algorithm 1: the memorization score; keeps the seeds that memorize."""
        with self._stage("detect"):
            noise = self.model.noise(self.seeds, self.detection.noise)
            text = self.model.embed(self.prompt)
            rows = text.expand(len(noise), -1, -1)
            drawn = self.draw.in_batches(noise, rows, None, self.batch)
            pairs = pairwise(drawn, self.similarity).cpu()
            mask = kept(pairs, threshold)
            where = mask.to(noise.device)
            self.noise, self.text, self.unblocked = noise[where], text, drawn[where]
        self.kept_seeds = tuple(s for s, keep in zip(self.seeds, mask, strict=True) if keep)
        return upper(pairs).max().item()

    def propose(self, statistics: ActivationStatistics) -> Propose:
        """Algorithm 2 as a function of θ and k; activations are computed once."""
        with self._stage("activations"):
            found = text_activations(self.model, [self.prompt])
            activations = {layer: values[0] for layer, values in found.items()}
            z = z_scores(activations, statistics)
        self.lists = partial(candidate_lists, activations, z, two_sided=self.settings.two_sided)
        return lambda theta, k: NeuronSet(self.lists(theta, k))

    def score(self) -> Score:
        """What the search modes ask, over the kept seeds."""
        drawn = self.noise, self.text, self.unblocked
        return Score(self.draw, *drawn, self.similarity, self.batch)

    def select(self, ask: Verdicts, propose: Propose, threshold: float) -> Selection:
        """Algorithm 3 in the chosen search mode."""
        widest, report = max(one.width for one in self.model.searched), self._report("select")
        with self._stage("select"):
            return self.mode.select(ask, propose, threshold, self.settings, widest, report)

    def refine(self, ask: Verdicts, selection: Selection, threshold: float) -> Refinement:
        """Algorithm 4 in the chosen search mode, or the candidates as they are."""
        report, reached = self._report("refine"), selection.score
        with self._stage("refine"):
            if not self.settings.refine:
                return Refinement(selection.candidates, reached, 0)
            order = None
            if self.settings.order == "released":
                order = self.lists(selection.theta, selection.k)
            return self.mode.refine(ask, selection.candidates, threshold, report, reached, order)

    def _report(self, stage: str) -> Report | None:
        progress = self.progress
        return progress and (lambda done, total: progress(stage, done, total))

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        """Report the start of a stage; note its time and samples where it ends well."""
        if self.progress:
            self.progress(name, 0, None)
        before, start = self.model.samples_evaluated, time.perf_counter()
        yield
        self.times[name] = time.perf_counter() - start
        self.samples[name] = self.model.samples_evaluated - before
