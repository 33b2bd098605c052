"""Parts of the denoiser switched off while it generates: whole layers, halves of convolutions.

Scope: not a mitigation that anybody would use, but one in form, so that it is a setting of a study.
Source: Hintersdorf et al., "Finding NeMo", NeurIPS 2024, figures 16 to 20.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar, get_args

import numpy as np

from nemo_kit.checks import UnsupportedError, check_choice, check_number, check_whole
from nemo_kit.hooks import scale_neurons
from nemo_kit.layers import Kind, Projection, down_convolutions
from nemo_kit.mitigation.base import Mitigation
from nemo_kit.models.base import DiffusionModel
from nemo_kit.neurons import NeuronSet
from nemo_kit.sampling import Run

VERSION = 1  # raised where results change (see nemo_kit.keys)


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

    def place(self, model: DiffusionModel) -> Projection:
        """The projection or convolution; ValueError where the model has none of that number."""
        places = {place.index: place for place in places_of(model, self.kind)}
        if self.layer not in places:
            raise ValueError(f"layer must be 1 to {len(places)} ({self.kind}), got {self.layer}")
        return places[self.layer]

    def title(self, model: DiffusionModel) -> str:
        """What is cut, in words: "value 3 (mid)", "down 0 downsampler"."""
        return self.place(model).title

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


def places_of(model: DiffusionModel, kind: Kind) -> Sequence[Projection]:
    """The model's layers of a kind, numbered from 1 in forward order."""
    if kind == "convolution":
        return down_convolutions(model.denoiser)
    return model.value_layers if kind == "value" else model.key_layers


def cuts(model: DiffusionModel, kind: Kind, share: float = 1.0, draw: int = 0) -> list[Cut]:
    """One cut for each of the model's layers of a kind; a warning where it has none of it."""
    try:
        return [Cut(kind, place.index, share, draw) for place in places_of(model, kind)]
    except UnsupportedError as error:
        warnings.warn(f"nothing is cut: {error}", stacklevel=2)
        return []
