"""Noise differences of prompts and seeds under an intervention: one denoiser prediction each.

Scope: drawing them in batches; how they are compared is in `nemo_kit.similarity`.
Source: "Finding NeMo" (arXiv 2406.02366), Algorithm 1.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from nemo_kit.calibration import resolve
from nemo_kit.checks import check_seeds, check_texts
from nemo_kit.hooks import intervened, scale_neurons
from nemo_kit.localization.information import check_informative
from nemo_kit.memory import BatchSize
from nemo_kit.models.base import DiffusionModel
from nemo_kit.neurons import NeuronSet
from nemo_kit.settings import DetectionSettings, LocalizationSettings
from nemo_kit.similarity import noise_differences

Progress = Callable[[str, int, int | None], None]
AT_ONCE = 32  # denoiser samples a call, where nothing else is said


class Differences:
    """Draws noise differences of one model under fixed settings.

    Called with `noise` [N, C, H, W] and `embeddings` [N, tokens, dim], and optionally one
    `NeuronSet` for each sample, it returns [N, C, H, W] in [0, 1] from one denoiser call (of 2N
    samples where there is guidance, N otherwise). Without sets and outside of interventions it
    raises UninformativeError where the model's prediction can't tell prompts apart.
    Parameters: `settings`, steps and guidance; `how`, of whose settings three count: `factor` and
    `halves`, how neurons are scaled and in which halves of a guided batch, and `precision`, of the
    denoiser's operations (autocast; "model" and "float32" leave them in the model's own).
    Source: Algorithm 1; guidance is the ablation of table 4.
    """

    def __init__(
        self,
        model: DiffusionModel,
        settings: DetectionSettings,
        how: LocalizationSettings | None = None,
    ) -> None:
        how = how or LocalizationSettings()
        self.model, self.settings = model, settings
        self.factor, self.halves, self.precision = how.factor, how.halves, how.precision
        self.timestep = model.timesteps(settings.steps)[settings.timestep_index]
        self._empty = model.embed("") if settings.guidance else None

    @torch.no_grad()
    def __call__(
        self, noise: Tensor, embeddings: Tensor, sets: Sequence[NeuronSet] | None = None
    ) -> Tensor:
        if sets is None and not intervened():
            check_informative(self)
        return noise_differences(self.predict(noise, embeddings, sets), noise)

    def predict(
        self, noise: Tensor, embeddings: Tensor, sets: Sequence[NeuronSet] | None = None
    ) -> Tensor:
        """The predicted noise behind the difference: [N, C, H, W], with a gradient if wanted."""
        if self._empty is not None:  # both halves in one call, the conditional one first
            samples = len(noise)
            noise = torch.cat([noise, noise])
            embeddings = torch.cat([embeddings, self._empty.expand(samples, -1, -1)])
            if sets is not None:
                sets = [*sets, *(sets if self.halves == "both" else [NeuronSet()] * samples)]
        with self._cast(), self._scaled(sets):
            found = self.model.predict_compared(noise, self.timestep, embeddings)
        if self._empty is None:
            return found
        text, empty = found.chunk(2)
        if self.settings.swapped:
            text, empty = empty, text
        return empty + self.settings.guidance * (text - empty)  # ε_∅ + g · (ε_c − ε_∅)

    def _scaled(self, sets: Sequence[NeuronSet] | None) -> AbstractContextManager:
        if sets is None:
            return nullcontext()
        return scale_neurons(self.model.denoiser, self.model.value_layers, sets, self.factor)

    def _cast(self) -> AbstractContextManager:
        if self.precision == "model" or self.precision == str(self.model.dtype)[6:]:
            return nullcontext()
        kind = getattr(torch, self.precision)
        return torch.autocast(self.model.device.type, dtype=kind)

    def in_halves(self, gates: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Gates [N, 1, width] of N samples as their batch needs them: for both halves if guided."""
        if self._empty is None:
            return dict(gates)
        open_ = {k: g if self.halves == "both" else torch.ones_like(g) for k, g in gates.items()}
        return {layer: torch.cat([gate, open_[layer]]) for layer, gate in gates.items()}

    def in_batches(
        self,
        noise: Tensor,
        embeddings: Tensor,
        sets: Sequence[NeuronSet] | None = None,
        batch: BatchSize | None = None,
    ) -> Tensor:
        """The same for any N, in batches, by default of `AT_ONCE` denoiser samples."""

        def draw(part: slice) -> Tensor:
            return self(noise[part], embeddings[part], sets and sets[part])

        return torch.cat((batch or BatchSize(AT_ONCE)).run(draw, len(noise), self.per_item))

    @property
    def per_item(self) -> int:
        """Denoiser samples of one noise difference: 2 where there is guidance."""
        return 1 if self._empty is None else 2


def prompt_differences(
    model: DiffusionModel,
    prompts: str | Sequence[str],
    seeds: Iterable[int] = range(1, 11),
    neurons: NeuronSet | None = None,
    factor: float = 0.0,
    settings: DetectionSettings | None = None,
) -> Tensor:
    """Noise differences of every prompt and seed, optionally with neurons scaled.

    Returns [prompts, seeds, C, H, W], float32 in [0, 1].
    Parameters: `neurons`, scaled by `factor` (0 deactivates); `settings`, by default those of the
    model's calibration.
    Raises TypeError and ValueError for prompts that are no text or empty, and for bad seeds.
    Source: Algorithm 1; figure 13 shows them as pictures.
    """
    texts, numbers = check_texts(prompts), check_seeds(seeds)
    how = LocalizationSettings(factor=factor)
    draw = Differences(model, resolve(model.calibration, settings)[0], how)
    noise = model.noise(numbers, draw.settings.noise).repeat(len(texts), 1, 1, 1)
    embeddings = model.embed(texts).repeat_interleave(len(numbers), dim=0)
    sets = None if neurons is None else [neurons] * len(noise)
    return draw.in_batches(noise, embeddings, sets).unflatten(0, (len(texts), len(numbers)))
