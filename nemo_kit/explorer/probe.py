"""What the explorer asks of a model: score, z, what is left of the score, images, facts of neurons.

Scope: calls the package and remembers what was computed; no widget. One caller at a time.
Source: "Finding NeMo" (arXiv 2406.02366), section 3 (score, z, selection) and section 4 (images).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from nemo_kit import lab
from nemo_kit.calibration import resolve
from nemo_kit.checks import check_seeds, check_text
from nemo_kit.explorer.values import View
from nemo_kit.generation import Progress as Tick
from nemo_kit.generation import generate
from nemo_kit.localization import Localization, candidates, localize, prompt_differences, z_scores
from nemo_kit.localization.candidates import text_activations
from nemo_kit.localization.detection import kept, upper
from nemo_kit.metrics import as_embedder, lab_descriptor
from nemo_kit.metrics.images import same_seed
from nemo_kit.models.base import DiffusionModel
from nemo_kit.neurons import NeuronSet
from nemo_kit.similarity import pairwise, similarity

GIVEN = "set in a cell"
_REMEMBERED = 24  # results of each kind


@dataclass(frozen=True, eq=False)
class Look:
    """One prompt without intervention.

    `score`, its memorization score; `flagged`, whether it is above τ, None without one; `kept`,
    [seeds] bool, those above τ; `differences`, [seeds, C, H, W]; `activations`, layer -> [width];
    `z` the same, None without statistics.
    """

    prompt: str
    score: float
    flagged: bool | None
    kept: Tensor
    differences: Tensor
    activations: dict[int, Tensor]
    z: dict[int, Tensor] | None

    def z_of(self, layer: int, neuron: int) -> float:
        """z of one neuron; NaN without statistics."""
        return self.z[layer][neuron].item() if self.z else np.nan


@dataclass(frozen=True)
class Left:
    """What is left of a prompt's score with neurons scaled.

    `same_seed`, largest similarity of a kept seed's noise difference with and without (the score of
    Algorithms 3 and 4); `pairs`, the memorization score of the scaled ones.
    """

    same_seed: float
    pairs: float


@dataclass(frozen=True, eq=False)
class Pictures:
    """Images and noise differences of the same seeds, undisturbed and disturbed.

    `before`, `after`, uint8 [S, H, W, 3]; `noise_before`, `noise_after`, [S, C, H, W] in [0, 1];
    `measured`, a row a seed: `seed`; where training images are known `nearest_before`,
    `copy_before`, `nearest_after`, `copy_after` (prompt of the nearest one, and the cosine to it)
    and `same_seed` (cosine with to without); `how`, what was done, in words.
    """

    view: View
    before: np.ndarray
    after: np.ndarray
    noise_before: np.ndarray
    noise_after: np.ndarray
    measured: pd.DataFrame
    how: str

    @property
    def given(self) -> bool:
        """Whether the disturbed ones are of the user's making, whatever is selected."""
        return self.how == GIVEN


@dataclass(frozen=True)
class Case:
    """What is known of a prompt under the selection: `left` and `pictures` None until computed."""

    look: Look
    left: Left | None = None
    pictures: Pictures | None = None


class Probe:
    """A model with its prompts, and what was found about them.

    Parameters: `model`; `prompts`, a frame with `prompt` and `role`, that the explorer offers;
    `seeds`, of detection; `training`, prompt -> its training image, uint8 [H, W, 3], and
    `embedder`, which compares pictures with them (both by default the lab's, for the lab model).
    Attributes: those, `threshold` (None without calibration), `widths` (layer -> neurons), `found`
    (prompt -> its memorization neurons, once localized), `tick` (where progress is reported to).
    Raises TypeError or ValueError for bad seeds, and for images without an embedder.
    """

    tick: Tick = staticmethod(lambda stage, done, total: None)

    def __init__(
        self,
        model: DiffusionModel,
        prompts: pd.DataFrame,
        seeds: Sequence[int] = range(1, 11),
        training: Mapping[str, np.ndarray] | None = None,
        embedder: Callable[[np.ndarray], Any] | None = None,
    ) -> None:
        self.model, self.prompts = model, prompts
        self.seeds = check_seeds(seeds, least=2, distinct=True)
        self.widths = {layer.index: layer.width for layer in model.searched}
        self.found: dict[str, NeuronSet] = {}
        self.similarity = resolve(model.calibration)[1]
        self.threshold = model.calibration.threshold if model.calibration else None
        self.is_lab = model.name in lab.TABLES
        if training and embedder is None and not self.is_lab:
            raise ValueError("training images need an embedder that compares pictures with them: "
                             "give explore(…, embedder=…), such as SSCD")  # fmt: skip
        if self.is_lab:
            embedder = embedder or lab_descriptor()
            if training is None:
                training = dict(zip(*lab.training_images(), strict=True))
        self.training = dict(training or {})
        self.embedder = embedder and as_embedder(embedder)
        for name in ("look", "left", "images", "localize"):
            setattr(self, name, lru_cache(_REMEMBERED)(getattr(self, name)))

    @cached_property
    def _originals(self) -> np.ndarray:
        return np.concatenate([self.embedder(image[None]) for image in self.training.values()])

    def look(self, prompt: str) -> Look:
        """Detection and activations of a prompt; raises as `detect` for a bad one."""
        self.tick("noise differences", 0, None)
        differences = prompt_differences(self.model, check_text(prompt), self.seeds)[0]
        pairs = pairwise(differences, self.similarity).cpu()
        limit, own = self.threshold, self.model.calibration
        mask = kept(pairs, limit if limit is not None else -2.0)
        activations = {k: v[0] for k, v in text_activations(self.model, [prompt]).items()}
        return Look(
            prompt=prompt,
            score=upper(pairs).max().item(),
            flagged=None if limit is None else bool(mask.any()),
            kept=mask if mask.any() else torch.ones_like(mask),
            differences=differences,
            activations=activations,
            z=z_scores(activations, own.statistics) if own and own.statistics else None,
        )

    def left(self, prompt: str, neurons: NeuronSet, factor: float) -> Left:
        """What is left of the score with these neurons scaled."""
        look = self.look(prompt)
        self.tick("scaled neurons", 0, None)
        scaled = prompt_differences(self.model, prompt, self.seeds, neurons, factor)[0]
        mask = look.kept.to(scaled.device)
        same = similarity(look.differences[mask], scaled[mask], self.similarity)
        return Left(same.max().item(), upper(pairwise(scaled, self.similarity).cpu()).max().item())

    def candidates(self, look: Look, theta: float, k: int) -> NeuronSet:
        """The candidates of Algorithm 2; without statistics only those of the k largest."""
        z = look.z or {layer: torch.zeros_like(a) for layer, a in look.activations.items()}
        return candidates(look.activations, z, theta, k)

    def case(self, view: View, draw: bool, given: np.ndarray | None = None) -> Case:
        """What is known of a prompt under a selection; with `draw`, its pictures too."""
        left = self.left(view.prompt, view.neurons, view.factor) if view.neurons else None
        return Case(self.look(view.prompt), left, self.pictures(view, given) if draw else None)

    def images(self, view: View) -> tuple[np.ndarray, np.ndarray]:
        """Images, uint8 [S, H, W, 3], and noise differences, [S, C, H, W], with the selection."""
        scaled = {"neurons": view.neurons or None, "factor": view.factor}
        name = "images with the selection scaled" if view.neurons else "images undisturbed"
        images = generate(
            self.model, view.prompt, view.seeds, steps=view.steps, guidance=view.guidance,
            progress=lambda _, done, total: self.tick(name, done, total), **scaled,
        )  # fmt: skip
        noise = prompt_differences(self.model, view.prompt, view.seeds, **scaled)[0]
        return images, noise.cpu().numpy()

    def pictures(self, view: View, given: np.ndarray | None = None) -> Pictures:
        """Pictures with and without the selection; those given are shown in place of the former."""
        before, noise = self.images(replace(view, neurons=NeuronSet(), factor=0.0))
        after, changed, how = before, noise, scaled_words(len(view.neurons), view.factor)
        if given is not None:
            after, changed, how = given, noise[:0], GIVEN
        elif view.neurons and view.factor != 1:
            after, changed = self.images(view)
        measured = self.measure(view.seeds, before, after)
        return Pictures(view, before, after, noise, changed, measured, how)

    def measure(self, seeds: Sequence[int], before: np.ndarray, after: np.ndarray) -> pd.DataFrame:
        """How near pictures come to a training image, and to those of the same seed: a row a seed.

        Returns the columns that `Pictures.measured` has.
        """
        frame = pd.DataFrame({"seed": list(seeds)})
        if not self.training:
            return frame
        names, vectors = list(self.training), {}
        for end, images in (("before", before), ("after", after)):
            vectors[end] = self.embedder(images)
            cosines = vectors[end] @ self._originals.T  # [seeds, training images]
            frame[f"nearest_{end}"] = [names[place] for place in cosines.argmax(axis=1)]
            frame[f"copy_{end}"] = cosines.max(axis=1)
        return frame.assign(same_seed=same_seed(vectors["before"], vectors["after"]))

    def localize(self, prompt: str, search: str) -> Localization:
        """Algorithms 1 to 4; the neurons found are kept for the facts of neurons."""
        result = localize(self.model, prompt, self.seeds, search=search, progress=self.tick)
        if result.flagged:
            self.found[prompt] = result.refined
        return result

    def facts(self, prompt: str, layer: int, neuron: int) -> dict[str, Any]:
        """What is known of one neuron, which must exist.

        Returns `layer`, `neuron`, its mean `activation` and `z` for the prompt (NaN without
        statistics), `strongest` (of the prompts offered those that drive it most, with their
        activations) and `sets` (prompts whose memorization neurons it is one of).
        """
        look = self.look(prompt)
        of_each = self._activations[layer][:, neuron] if len(self.prompts) else ()
        strongest = pd.Series(of_each, self.prompts["prompt"], dtype=float).nlargest(5)
        return {
            "layer": layer,
            "neuron": neuron,
            "activation": look.activations[layer][neuron].item(),
            "z": look.z_of(layer, neuron),
            "strongest": list(strongest.items()),
            "sets": [text for text, one in self.found.items() if (layer, neuron) in one],
        }

    @cached_property
    def _activations(self) -> dict[int, Tensor]:
        return text_activations(self.model, list(self.prompts["prompt"]))

    def extremes(self, look: Look, most: int) -> dict[int, list[tuple[int, float]]]:
        """Layer -> its neurons with the largest |z| (activation, without statistics), with that."""
        found = {}
        for layer, values in (look.z or look.activations).items():
            places = values.abs().nan_to_num(posinf=1e9).topk(min(most, len(values))).indices
            found[layer] = [(place, values[place].item()) for place in places.tolist()]
        return found


def scaled_words(count: int, factor: float) -> str:
    """ "2 neurons off", or "2 neurons × 0.5"."""
    return f"{count} neuron{'s' * (count != 1)} {'off' if factor == 0 else f'× {factor:g}'}"
