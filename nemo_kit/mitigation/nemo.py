"""Mitigations that scale value neurons: NeMo, and random neurons as control.

Source: "Finding NeMo" (arXiv 2406.02366), section 4 and tables 1 and 4.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from nemo_kit.checks import check_number, check_whole
from nemo_kit.hooks import scale_neurons
from nemo_kit.mitigation.base import Found, Mitigation, Neurons, draw_seed
from nemo_kit.models.base import DiffusionModel
from nemo_kit.neurons import NeuronSet, random_neurons
from nemo_kit.sampling import Run

VERSION = 1  # raised where results change (see nemo_kit.keys)


@dataclass(frozen=True)
class NeMo(Mitigation):
    """Deactivate the refined neurons, or scale them.

    Parameters: `neurons`, one set for all prompts, or prompt -> set (a prompt without one is
    undisturbed); `factor`, 0 deactivates, 1 changes nothing (table 4: −1 to 0.75).
    Raises TypeError for other neurons, ValueError for a factor that is not finite.
    Source: section 3.2; tables 1 and 4.
    """

    name = "NeMo"
    neurons: Neurons
    factor: float = 0.0
    source = "Hintersdorf et al., Finding NeMo, NeurIPS 2024 (arXiv 2406.02366)"
    permanent = True
    place = 6

    def __post_init__(self) -> None:
        object.__setattr__(self, "neurons", check_neurons("neurons", self.neurons))
        check_number("factor", self.factor)

    @classmethod
    def rows(cls, found: Found, seed: int) -> dict[str, Mitigation]:
        """The refined neurons and, where they are known, the candidates before (table 4)."""
        first = {} if found.initial is None else {"initial candidates": cls(found.initial)}
        return {cls.name: cls(found.refined), **first}

    def chosen(self, model: DiffusionModel, prompt: str) -> NeuronSet:
        """The neurons that are scaled for a prompt."""
        return set_of(self.neurons, prompt)

    @contextmanager
    def apply(self, run: Run) -> Iterator[Run]:
        """Scale each sample's own neurons, in the halves that the run names."""
        rows = run.rows([self.chosen(run.model, prompt) for prompt in run.prompts], NeuronSet())
        with scale_neurons(run.model.denoiser, run.model.value_layers, rows, self.factor):
            yield run

    def gains(self, model: DiffusionModel, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The factor at the neurons of these prompts, or all that have some, 1 elsewhere."""
        texts = prompts or (list(self.neurons) if isinstance(self.neurons, Mapping) else [""])
        neurons = union({one: self.chosen(model, one) for one in texts})
        layers = {layer.index: layer for layer in model.value_layers}
        neurons.check({index: layer.width for index, layer in layers.items()})
        found = {}
        for index, places in neurons.layers.items():
            gain = torch.ones(layers[index].width, 1)
            gain[list(places)] = self.factor
            found[layers[index].name] = gain
        return found


@dataclass(frozen=True)
class RandomNeurons(NeMo):
    """As many random neurons in each layer as NeMo found, none of them found for any prompt.

    Parameters: `neurons`, what NeMo found, for the numbers in each layer; `found`, others that are
    never drawn either (all that were found for any prompt); `seed`, of the draw, to be repeated
    over five; each prompt has a draw of its own; `overflow`, what a layer can't give comes from the
    others that are searched (on a small model, most neurons of a narrow layer may have been found
    for some prompt).
    Raises as `NeMo`; ValueError, on use, where a layer, or with `overflow` all, have too few left.
    Source: section 4; difference 7: the released code draws found ones too.
    """

    name = "random neurons"
    place = 3
    found: Neurons = field(default_factory=NeuronSet)
    seed: int = 0
    overflow: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "found", check_neurons("found", self.found))
        check_whole("seed", self.seed, 0)

    @classmethod
    def rows(cls, found: Found, seed: int) -> dict[str, Mitigation]:
        """One a draw; it overflows where a layer is too narrow."""
        return {cls.name: cls(found.refined, found=found.known, seed=seed, overflow=True)}

    def chosen(self, model: DiffusionModel, prompt: str) -> NeuronSet:
        """The neurons drawn for a prompt."""
        like = set_of(self.neurons, prompt)
        places = {layer.index for layer in model.searched} | set(like.layers)
        widths = {one.index: one.width for one in model.value_layers if one.index in places}
        seed = draw_seed(self.seed, prompt)
        return random_neurons(like, widths, self.barred, seed, overflow=self.overflow)

    @cached_property
    def barred(self) -> NeuronSet:
        """What was found for any prompt, and is never drawn."""
        return union(self.neurons) | union(self.found)


def union(neurons: Neurons) -> NeuronSet:
    """All neurons of one set, or of all prompts' sets."""
    if isinstance(neurons, NeuronSet):
        return neurons
    return NeuronSet.of(neuron for one in neurons.values() for neuron in one)


def set_of(neurons: Neurons, prompt: str) -> NeuronSet:
    """The set that holds for a prompt, empty where it has none."""
    return neurons if isinstance(neurons, NeuronSet) else neurons.get(prompt, NeuronSet())


def check_neurons(name: str, neurons: object) -> Neurons:
    """The neurons (a copy of a mapping); raises TypeError that names the parameter."""
    if isinstance(neurons, NeuronSet):
        return neurons
    found = dict(neurons) if isinstance(neurons, Mapping) else {None: neurons}
    for prompt, one in found.items():
        if not isinstance(prompt, str) or not isinstance(one, NeuronSet):
            got = f"{one!r:.80}" if prompt is None else f"{prompt!r:.40}: {one!r:.40}"
            raise TypeError(
                f"{name} must be a NeuronSet or a mapping from prompt to NeuronSet, got {got}"
            )
    return found
