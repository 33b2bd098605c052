"""What the explorer asks of a model: score, z, what is left of the score, images, facts of neurons.

Scope: calls the package and remembers what was computed; no widget. One caller at a time.
Source: "Finding NeMo" (arXiv 2406.02366), section 3 (score, z, selection) and section 4 (images).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from nemo_kit import effects
from nemo_kit.calibration import check_threshold, resolve
from nemo_kit.checks import check_seeds, check_text
from nemo_kit.explorer.state import Selection, View
from nemo_kit.explorer.worker import Tick
from nemo_kit.generation import generate
from nemo_kit.localization import Localization, candidates, localize, prompt_differences, z_scores
from nemo_kit.localization.candidates import text_activations
from nemo_kit.localization.detection import kept, upper
from nemo_kit.neurons import NeuronSet
from nemo_kit.originals import TrainingImages
from nemo_kit.similarity import pairwise, similarity

if TYPE_CHECKING:
    from nemo_kit.models import DiffusionModel

T = TypeVar("T")
_REMEMBERED = 24  # results of each kind


@dataclass(frozen=True)
class Look:
    """One prompt without intervention.

    `score`, its memorization score; `memorized`, None without a threshold; `kept`, [seeds] bool,
    those that memorize; `differences`, [seeds, C, H, W]; `activations`, layer -> [width]; `z` the
    same, None without statistics; `training`, uint8 [H, W, 3] where one is known.
    """

    prompt: str
    score: float
    memorized: bool | None
    kept: Tensor
    differences: Tensor
    activations: dict[int, Tensor]
    z: dict[int, Tensor] | None
    training: np.ndarray | None


@dataclass(frozen=True)
class Left:
    """What is left of a prompt's score with neurons scaled.

    `same_seed`, largest similarity of a kept seed's noise difference with and without (the score of
    Algorithms 3 and 4); `pairs`, the memorization score of the scaled ones.
    """

    same_seed: float
    pairs: float


@dataclass(frozen=True)
class Pictures:
    """Images and noise differences of the same seeds, undisturbed and disturbed.

    `before`, `after`, uint8 [S, H, W, 3]; `noise_before`, `noise_after`, [S, C, H, W] in [0, 1];
    `copies`, a row a seed: `copy_before`, `copy_after` (to the training image), `same_seed`.
    """

    view: View
    before: np.ndarray
    after: np.ndarray
    noise_before: np.ndarray
    noise_after: np.ndarray
    copies: pd.DataFrame


@dataclass(frozen=True)
class Facts:
    """One neuron: its z for the prompt, what drives it most, whose memorization sets it is in."""

    layer: int
    neuron: int
    activation: float
    z: float | None
    strongest: list[tuple[str, float]]
    sets: list[str]


class Session:
    """A model with its prompts, and what was found about them.

    Parameters: `model`; `prompts`, a frame with `prompt` and `role`, that the explorer offers;
    `seeds`, of detection; `found`, prompt -> memorization neurons known before.
    Raises TypeError or ValueError for bad seeds and sets.
    """

    def __init__(
        self,
        model: DiffusionModel,
        prompts: pd.DataFrame,
        seeds: Sequence[int] = range(1, 11),
        found: Mapping[str, NeuronSet] | None = None,
    ) -> None:
        self.model, self.prompts = model, prompts
        self.seeds = check_seeds(seeds, least=2, distinct=True)
        self.widths = {layer.index: layer.width for layer in model.searched}
        self.found = {text: one.check(self._all_widths()) for text, one in (found or {}).items()}
        self.detection, self.similarity = resolve(model, None, None)
        own = model.calibration
        self.threshold = (
            check_threshold(model, None, self.detection, self.similarity) if own else None
        )
        self.statistics = own.statistics if own else None
        self._kept: dict[str, OrderedDict[Hashable, Any]] = {}
        self._table: dict[int, Tensor] | None = None

    def _all_widths(self) -> dict[int, int]:
        return {layer.index: layer.width for layer in self.model.value_layers}

    def look(self, prompt: str) -> Look:
        """Detection and activations of a prompt; raises as `detect` for a bad one."""
        return self._remember("look", check_text(prompt), lambda: self._look(prompt))

    def _look(self, prompt: str) -> Look:
        differences = prompt_differences(self.model, prompt, self.seeds)[0]
        pairs = pairwise(differences, self.similarity).cpu()
        limit = self.threshold
        mask = kept(pairs, limit if limit is not None else -2.0)
        memorized = None if limit is None else bool(mask.any())
        activations = {k: v[0] for k, v in text_activations(self.model, [prompt]).items()}
        return Look(
            prompt=prompt,
            score=upper(pairs).max().item(),
            memorized=memorized,
            kept=mask if mask.any() else torch.ones_like(mask),
            differences=differences,
            activations=activations,
            z=z_scores(activations, self.statistics) if self.statistics else None,
            training=TrainingImages().one(prompt) if self.is_lab else None,
        )

    @property
    def is_lab(self) -> bool:
        """Whether this is the embedded model, whose training images are known."""
        return self.model.name == "lab"

    def left(self, prompt: str, neurons: NeuronSet, factor: float) -> Left:
        """What is left of the score with these neurons scaled."""
        key = (prompt, neurons, factor)
        return self._remember("left", key, lambda: self._left(prompt, neurons, factor))

    def _left(self, prompt: str, neurons: NeuronSet, factor: float) -> Left:
        look = self.look(prompt)
        scaled = prompt_differences(self.model, prompt, self.seeds, neurons, factor)[0]
        mask = look.kept.to(scaled.device)
        same = similarity(look.differences[mask], scaled[mask], self.similarity)
        return Left(same.max().item(), upper(pairwise(scaled, self.similarity).cpu()).max().item())

    def candidates(self, look: Look, theta: float, k: int) -> Selection:
        """The candidates of Algorithm 2; without statistics only those of the k largest."""
        z = look.z or {layer: torch.zeros_like(a) for layer, a in look.activations.items()}
        origin = f"θ = {theta:g}, k = {k} for {look.prompt!r}"
        return Selection(candidates(look.activations, z, theta, k), origin)

    def pictures(self, view: View, tick: Tick) -> Pictures:
        """Images and noise differences with and without; the undisturbed ones are kept."""
        before, noise = self._remember("plain", view.plain_key(), lambda: self._plain(view, tick))
        neurons, factor = view.selection.neurons, view.factor
        if not len(neurons) or factor == 1:
            copies = self._copies(view, before, before)
            return Pictures(view, before, before, noise, noise, copies)
        after = self._generate(
            view, tick, "with the selection scaled", neurons=neurons, factor=factor
        )
        changed = prompt_differences(self.model, view.prompt, view.seeds, neurons, factor)[0]
        copies = self._copies(view, before, after)
        return Pictures(view, before, after, noise, changed.cpu().numpy(), copies)

    def _plain(self, view: View, tick: Tick) -> tuple[np.ndarray, np.ndarray]:
        images = self._generate(view, tick, "undisturbed")
        return images, prompt_differences(self.model, view.prompt, view.seeds)[0].cpu().numpy()

    def _generate(self, view: View, tick: Tick, name: str, **options: Any) -> np.ndarray:
        def report(stage: str, done: int, total: int | None) -> None:
            tick(f"images {name}", done, total)

        return generate(
            self.model, view.prompt, view.seeds, steps=view.steps, guidance=view.guidance,
            progress=report, **options,
        )  # fmt: skip

    def _copies(self, view: View, before: np.ndarray, after: np.ndarray) -> pd.DataFrame:
        """Cosines of the lab's descriptor, which has only seen the lab's kind of pictures."""
        if not self.is_lab:
            return pd.DataFrame()
        return effects.by_seed(view.prompt, before, after, view.seeds)

    def localize(self, prompt: str, search: str, tick: Tick) -> Localization:
        """Algorithms 1 to 4; the neurons found are kept for the facts of neurons."""
        result = localize(self.model, prompt, self.seeds, search=search, progress=tick)
        if result.memorized:
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

    def _strongest(self, layer: int, neuron: int, most: int = 5) -> list[tuple[str, float]]:
        """Of the prompts offered, those that drive the neuron most, with their activations."""
        if not len(self.prompts):
            return []
        if self._table is None:
            self._table = text_activations(self.model, list(self.prompts["prompt"]))
        values, places = self._table[layer][:, neuron].topk(min(most, len(self.prompts)))
        texts = self.prompts["prompt"].iloc[places.tolist()]
        return list(zip(texts, values.tolist(), strict=True))

    def neuron_table(self, look: Look, selected: NeuronSet) -> pd.DataFrame:
        """A row a neuron of the searched layers, for `plots.z_map`; z is 0 without statistics."""
        parts = []
        for layer, width in self.widths.items():
            z = look.z[layer].numpy() if look.z else np.zeros(width)
            chosen = np.isin(np.arange(width), selected.layers.get(layer, ()))
            parts.append(
                pd.DataFrame({"layer": layer, "neuron": range(width), "z": z, "selected": chosen})
            )
        return pd.concat(parts, ignore_index=True)

    def extremes(self, look: Look, most: int) -> dict[int, list[tuple[int, float]]]:
        """Layer -> its neurons with the largest |z| (activation, without statistics), with that."""
        source = look.z or look.activations
        found = {}
        for layer, values in source.items():
            places = values.abs().nan_to_num(posinf=1e9).topk(min(most, len(values))).indices
            found[layer] = [(place, values[place].item()) for place in places.tolist()]
        return found

    def _remember(self, kind: str, key: Hashable, compute: Callable[[], T]) -> T:
        shelf = self._kept.setdefault(kind, OrderedDict())
        if key not in shelf:
            shelf[key] = compute()
            if len(shelf) > _REMEMBERED:
                shelf.popitem(last=False)
        shelf.move_to_end(key)
        return shelf[key]
