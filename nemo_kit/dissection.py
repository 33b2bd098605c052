"""Parts of the denoiser switched off while it generates: whole layers, halves of convolutions.

Scope: what is switched off (`Cut`), pictures under every cut, and what they have lost. Not a
mitigation that anybody would use, but one in form, so that pictures are made and kept as others.
Source: Hintersdorf et al., "Finding NeMo", NeurIPS 2024, figures 16 to 20.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import numpy as np
import pandas as pd

from nemo_kit import effects, metrics
from nemo_kit.checks import check_choice, check_number, check_whole
from nemo_kit.hooks import scale_neurons
from nemo_kit.layers import down_convolutions
from nemo_kit.mitigation import Mitigation
from nemo_kit.neurons import NeuronSet
from nemo_kit.originals import TrainingImages
from nemo_kit.store import Keyed, generate_all

if TYPE_CHECKING:
    from nemo_kit.generation import Run
    from nemo_kit.models import DiffusionModel

VERSION = 1  # raised where results change (see nemo_kit.keys)
Kind = Literal["value", "key", "convolution"]


@dataclass(frozen=True)
class Cut(Mitigation):
    """A share of one layer's outputs at zero, in both halves of a guided batch.

    Parameters: `kind`, "value" or "key" (a cross-attention projection, whole by default) or
    "convolution" (of a down-block); `layer`, its number from 1; `share`, in (0, 1], of the outputs;
    `draw`, seed of which ones, where it is not all.
    Raises ValueError for other values, and on use where the model has no such layer.
    Source: figures 16 to 20.
    """

    name: str = field(init=False, default="part switched off")
    kind: Kind
    layer: int
    share: float = 1.0
    draw: int = 0
    source: ClassVar[str] = "Hintersdorf et al., Finding NeMo, NeurIPS 2024 (arXiv 2406.02366)"

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, get_args(Kind))
        check_whole("layer", self.layer, 1)
        check_whole("draw", self.draw, 0)
        check_number("share", self.share, 0)
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, got {self.share!r}")

    def place(self, model: DiffusionModel) -> Any:
        """The projection or convolution; ValueError where the model has none of that number."""
        places = {place.index: place for place in places_of(model, self.kind)}
        if self.layer not in places:
            raise ValueError(f"layer must be 1 to {len(places)} ({self.kind}), got {self.layer}")
        return places[self.layer]

    def outputs(self, model: DiffusionModel) -> NeuronSet:
        """The outputs that are switched off."""
        width = self.place(model).width
        count = max(1, round(self.share * width))
        rng = np.random.default_rng([self.draw, self.layer])
        return NeuronSet({self.layer: rng.choice(width, count, replace=False).tolist()})

    @contextmanager
    def apply(self, run: Run) -> Iterator[Run]:
        """Switch them off for the whole batch."""
        outputs = self.outputs(run.model)
        with scale_neurons(run.model.denoiser, [self.place(run.model)], outputs):
            yield run


def places_of(model: DiffusionModel, kind: Kind) -> Sequence[Any]:
    """The model's layers of a kind, numbered from 1 in forward order."""
    if kind == "convolution":
        return down_convolutions(model.denoiser)
    return model.value_layers if kind == "value" else model.key_layers


def cuts(model: DiffusionModel, kind: Kind, share: float = 1.0, draw: int = 0) -> list[Cut]:
    """One cut for each of the model's layers of a kind."""
    return [Cut(kind, place.index, share, draw) for place in places_of(model, kind)]


def cut_all(
    model: DiffusionModel,
    prompts: Iterable[str],
    seeds: Sequence[int],
    parts: Sequence[Cut],
    *,
    store: str | Path,
    progress: bool = True,
    **options: Any,
) -> pd.DataFrame:
    """Pictures of every prompt with each part switched off in turn, and undisturbed; resumable.

    Returns a frame with `prompt`, `kind` ("none" for undisturbed), `layer` (0 for none), `block`,
    `place` (in words), `seed`, `image` (uint8 [H, W, 3]).
    Parameters: `parts`, from `cuts`; `seeds`, of the pictures; `options`, of `generate`.
    Raises what `generate_all` raises.
    """
    texts, keyed = list(prompts), Keyed.of(model)
    options |= {"store": store, "progress": progress}
    plain = generate_all(keyed, texts, seeds, **options)
    frames = [plain.assign(kind="none", layer=0, block="", place="undisturbed")]
    for cut in parts:
        made = generate_all(keyed, texts, seeds, mitigation=cut, **options)
        about = {"kind": cut.kind, "layer": cut.layer, "block": cut.place(model).block}
        frames.append(made.assign(**about, place=_words(cut, model)))
    return pd.concat(frames, ignore_index=True)


def _words(cut: Cut, model: DiffusionModel) -> str:
    place = cut.place(model)
    if cut.kind == "convolution":
        return place.title
    return f"{cut.kind} {cut.layer} ({place.block.replace('.', ' ')})"


def losses(
    pictures: pd.DataFrame,
    prompts: pd.DataFrame,
    group: str,
    training: TrainingImages | None = None,
) -> pd.DataFrame:
    """How close a group's pictures stay to the training image, and to the prompt (F16, F17).

    Returns a frame with `prompt`, `group`, `kind`, `layer`, `block`, `reference`, `median` and
    `maximum` (cosine over seeds), `alignment` (median over seeds). Where some prompts have a
    training image those are compared with it, the others left out; where none has one, the
    reference is the undisturbed picture of the same seed. A prompt that lacks pictures under one of
    the cuts, or undisturbed, is left out, so that every layer is about the same prompts.
    Parameters: `pictures`, from `cut_all`; `prompts`, with `prompt` and `group`; `group`, VM or TM;
    `training`, by default the lab's.
    Raises ValueError where no prompt of the group has all pictures.
    Source: figures 16 and 17.
    """
    made = [part for _, part in pictures.groupby(["kind", "layer"])]
    rows = effects.with_pictures(prompts[prompts["group"] == group], *made)
    images = {prompt: (training or TrainingImages()).one(prompt) for prompt in rows["prompt"]}
    known = {prompt: image for prompt, image in images.items() if image is not None}
    chosen = pictures[pictures["prompt"].isin(list(known or images))]
    keys = ["prompt", "kind", "layer", "block"]
    undisturbed = {
        prompt: np.stack(list(part["image"]))
        for prompt, part in chosen[chosen["kind"] == "none"].groupby("prompt")
    }
    parts = []
    for values, part in chosen.groupby(keys, sort=False):
        about = dict(zip(keys, values, strict=True))
        seen = np.stack(list(part["image"]))
        cosines = _cosines(seen, known.get(about["prompt"]), undisturbed[about["prompt"]])
        parts.append(
            {"group": group, **about}
            | {"reference": "training image" if known else "undisturbed picture"}
            | {"median": float(np.median(cosines)), "maximum": float(np.max(cosines))}
            | {"alignment": float(np.median(effects.align(seen, about["prompt"])))}
        )
    names = ["group", *keys, "reference", "median", "maximum", "alignment"]
    return pd.DataFrame(parts, columns=names)


def _cosines(images: np.ndarray, original: np.ndarray | None, others: np.ndarray) -> np.ndarray:
    """[seeds]: to the training image, or where there is none to the other picture of each seed."""
    if original is not None:
        return metrics.copy_similarities(images, original, effects.look)
    return (effects.look(images) * effects.look(others)).sum(axis=1)
