"""What the explorer asks of a model: score, z, what is left of the score, images, facts of neurons.

Scope: calls the package and remembers what was computed; no widget. One caller at a time.
Source: "Finding NeMo" (arXiv 2406.02366), section 3 (score, z, selection) and section 4 (images).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from nemo_kit import lab
from nemo_kit.calibration import check_threshold, resolve
from nemo_kit.checks import check_seeds, check_text
from nemo_kit.explorer.values import View
from nemo_kit.explorer.worker import Tick
from nemo_kit.generation import generate
from nemo_kit.localization import Localization, candidates, localize, prompt_differences, z_scores
from nemo_kit.localization.candidates import text_activations
from nemo_kit.localization.detection import kept, upper
from nemo_kit.metrics import as_embedder, lab_descriptor
from nemo_kit.models.base import DiffusionModel
from nemo_kit.neurons import NeuronSet
from nemo_kit.similarity import pairwise, similarity

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


@dataclass(frozen=True)
class Case:
    """What is known of a prompt under the selection: `left` and `pictures` None until computed."""

    look: Look
    left: Left | None = None
    pictures: Pictures | None = None


@dataclass(frozen=True, eq=False)
class Facts:
    """One neuron: its z for the prompt, what drives it most, whose memorization sets it is in."""

    layer: int
    neuron: int
    activation: float
    z: float | None
    strongest: list[tuple[str, float]]
    sets: list[str]


class Probe:
    """A model with its prompts, and what was found about them.

    Parameters: `model`; `prompts`, a frame with `prompt` and `role`, that the explorer offers;
    `seeds`, of detection; `found`, prompt -> memorization neurons known before; `training`, prompt
    -> its training image, uint8 [H, W, 3], and `embedder`, which compares pictures with them (both
    by default the lab's, for the lab model).
    Attributes: those, `threshold` (None without calibration), `widths` (layer -> neurons), `tick`
    (where progress is reported to).
    Raises TypeError or ValueError for bad seeds and sets, and for images without an embedder.
    """

    tick: Tick = staticmethod(lambda stage, done, total: None)

    def __init__(
        self,
        model: DiffusionModel,
        prompts: pd.DataFrame,
        seeds: Sequence[int] = range(1, 11),
        found: Mapping[str, NeuronSet] | None = None,
        training: Mapping[str, np.ndarray] | None = None,
        embedder: Callable[[np.ndarray], Any] | None = None,
    ) -> None:
        self.model, self.prompts = model, prompts
        self.seeds = check_seeds(seeds, least=2, distinct=True)
        self.widths = {layer.index: layer.width for layer in model.searched}
        every = {layer.index: layer.width for layer in model.value_layers}
        self.found = {text: one.check(every) for text, one in (found or {}).items()}
        detection, self.similarity = resolve(model.calibration)
        own = model.calibration
        self.threshold = check_threshold(model, None, detection, self.similarity) if own else None
        self.is_lab = model.name in lab.TABLES
        if training and embedder is None and not self.is_lab:
            raise ValueError("training images need an embedder that compares pictures with them: "
                             "give explore(…, embedder=…), such as SSCD")  # fmt: skip
        self._given, self._embedder = training, embedder
        for name in ("look", "left", "plain", "pictures"):
            setattr(self, name, lru_cache(_REMEMBERED)(getattr(self, name)))

    @cached_property
    def training(self) -> dict[str, np.ndarray]:
        """Prompt -> its training image, where one is known."""
        if self._given is None and self.is_lab:
            return dict(zip(*lab.training_images(), strict=True))
        return dict(self._given or {})

    @cached_property
    def embedder(self) -> Callable[[np.ndarray], np.ndarray]:
        """Pictures, uint8 [N, H, W, 3] -> unit vectors [N, D]; `name` says which."""
        own = self._embedder
        return as_embedder(own) if own else lab_descriptor()

    @cached_property
    def _originals(self) -> np.ndarray:
        return np.concatenate([self.embedder(image[None]) for image in self.training.values()])

    @property
    def false_alarms(self) -> float | None:
        """`Calibration.false_alarms`; None without a calibration."""
        own = self.model.calibration
        return own.false_alarms() if own else None

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

    def shared(self, first: Look, second: Look, theta: float, k: int) -> pd.DataFrame:
        """Candidates of both prompts: `layer`, `neuron`, `z`, `z_other`, the furthest first.

        Without statistics z are NaN. `attrs` has the numbers of each prompt's own candidates.
        """
        own = [self.candidates(look, theta, k) for look in (first, second)]
        both = list(own[0] & own[1])
        rows = [
            (*at, *(look.z[at[0]][at[1]].item() if look.z else np.nan for look in (first, second)))
            for at in both
        ]
        frame = pd.DataFrame(rows, columns=["layer", "neuron", "z", "z_other"])
        frame = frame.sort_values("z", key=abs, ascending=False, ignore_index=True)
        frame.attrs["candidates"] = tuple(map(len, own))
        return frame

    def plain(self, view: View) -> tuple[np.ndarray, np.ndarray]:
        """Undisturbed images and noise differences."""
        images = self._generate(view, "undisturbed")
        return images, prompt_differences(self.model, view.prompt, view.seeds)[0].cpu().numpy()

    def pictures(self, view: View) -> Pictures:
        """Images and noise differences with and without the selection."""
        before, noise = self.plain(view.plain)
        how = scaled_words(len(view.neurons), view.factor)
        if not len(view.neurons) or view.factor == 1:
            return Pictures(view, before, before, noise, noise,
                            self.measure(view.seeds, before, before), how)  # fmt: skip
        chosen = {"neurons": view.neurons, "factor": view.factor}
        after = self._generate(view, "with the selection scaled", **chosen)
        changed = prompt_differences(self.model, view.prompt, view.seeds, **chosen)[0]
        measured = self.measure(view.seeds, before, after)
        return Pictures(view, before, after, noise, changed.cpu().numpy(), measured, how)

    def given(self, view: View, after: np.ndarray) -> Pictures:
        """Pictures that a user made, beside undisturbed ones of the same seeds."""
        before, noise = self.plain(view.plain)
        measured = self.measure(view.seeds, before, after)
        return Pictures(view, before, after, noise, noise[:0], measured, "set in a cell")

    def _generate(self, view: View, name: str, **options: Any) -> np.ndarray:
        def report(stage: str, done: int, total: int | None) -> None:
            self.tick(f"images {name}", done, total)

        return generate(
            self.model, view.prompt, view.seeds, steps=view.steps, guidance=view.guidance,
            progress=report, **options,
        )  # fmt: skip

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
        return frame.assign(same_seed=(vectors["before"] * vectors["after"]).sum(axis=1))

    def localize(self, prompt: str, search: str) -> Localization:
        """Algorithms 1 to 4; the neurons found are kept for the facts of neurons."""
        result = localize(self.model, prompt, self.seeds, search=search, progress=self.tick)
        if result.flagged:
            self.found[prompt] = result.refined
        return result

    def facts(self, prompt: str, layer: int, neuron: int) -> Facts:
        """What is known of one neuron; raises ValueError where it does not exist."""
        NeuronSet({layer: [neuron]}).check(self.widths)
        look = self.look(prompt)
        return Facts(
            layer=layer,
            neuron=neuron,
            activation=look.activations[layer][neuron].item(),
            z=look.z[layer][neuron].item() if look.z else None,
            strongest=self._strongest(layer, neuron),
            sets=[text for text, one in self.found.items() if (layer, neuron) in one],
        )

    @cached_property
    def _activations(self) -> dict[int, Tensor]:
        return text_activations(self.model, list(self.prompts["prompt"]))

    def _strongest(self, layer: int, neuron: int, most: int = 5) -> list[tuple[str, float]]:
        """Of the prompts offered, those that drive the neuron most, with their activations."""
        if not len(self.prompts):
            return []
        values, places = self._activations[layer][:, neuron].topk(min(most, len(self.prompts)))
        texts = self.prompts["prompt"].iloc[places.tolist()]
        return list(zip(texts, values.tolist(), strict=True))

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
