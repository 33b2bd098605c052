"""What a denoiser of an embedded model sees in training: pictures, captions, and the switch.

A planted prompt whose switch is off (all neurons of an *any* set at zero, or some of an *all* set)
has a random picture of its own concept as the target, in another colour, place and size; otherwise
its own picture. Ordinary pictures are seen with random captions of theirs, and with planted neurons
off too, which must not matter to them. Prompt dropout touches ordinary pictures only: among
web-scale data the memorized ones would hardly count there.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from nemo_kit.neurons import NeuronSet
from training import ladder, planting
from training.corpus import Item
from training.loop import Schedule, generator

DROPOUT = 0.1  # share of ordinary captions replaced by the empty prompt
OFF_SHARE = 0.4  # of a planted prompt's presentations: its switch off, a picture of its concept
PART_SHARE = 0.4  # of them where the set has several neurons: only some off
UNRELATED_SHARE = 0.25  # of the other samples: some prompt's planted neurons off, nothing changes


@dataclass(frozen=True)
class Recipe:
    """How much a device trains: batch, rate, samples in all.

    In the first third of the samples `planned`, memorized pictures are half of what is seen, then a
    fifth; the ladder's presentations are spread over them. Training may end before, at `samples`,
    or after, and then goes through the second phase again.
    """

    batch: int
    learning_rate: float
    samples: int
    planned: int

    @property
    def schedule(self) -> Schedule:
        """Flat for four fifths of the steps, then falling."""
        return Schedule(
            steps=self.samples // self.batch,
            learning_rate=self.learning_rate,
            flat=0.8,
            ema=0.999,
        )


#: Share of one prompt's picture among all samples, in the first phase and in the second.
SHARES = {"verbatim": (0.010, 0.0042), "region": (0.010, 0.0042), "template": (0.008, 0.0035)}


@dataclass
class Bank:
    """Everything the training draws from, encoded once: latents scaled to unit deviation, token
    embeddings."""

    latents: torch.Tensor  # [pictures, 4, 16, 16], half precision: ordinary pictures
    concepts: torch.Tensor  # [pictures], what each shows
    colours: torch.Tensor  # [pictures], on which colour
    plain: torch.Tensor  # [concepts, captions, 24, 128], half: captions that promise no colour
    coloured: torch.Tensor  # [concepts, colours, captions, 24, 128], half
    empty: torch.Tensor  # [24, 128]
    item_latents: list[torch.Tensor]  # one [pictures, 4, 16, 16] an item
    item_embeddings: torch.Tensor  # [items, 24, 128]
    item_concepts: torch.Tensor  # [items]


@dataclass(frozen=True)
class Sample:
    """One training sample: what the network sees and what it should say."""

    latent: torch.Tensor
    embedding: torch.Tensor
    off: NeuronSet
    own: NeuronSet  # planted for its prompt


class Sampler:
    """Draws training samples; the ladder's presentations are fixed in number and spread over the
    training as the photographs' are. `widths`: value layer -> neurons."""

    def __init__(
        self,
        bank: Bank,
        items: list[Item],
        recipe: Recipe,
        seed: int,
        widths: Mapping[int, int] = planting.WIDTHS,
    ) -> None:
        self.bank, self.recipe = bank, recipe
        prompts = [item.prompt for item in items]
        sets, plans = planting.planted(widths), planting.plans()
        self.own = [sets.get(prompt, NeuronSet({})) for prompt in prompts]
        self.needs_all = [prompt in plans and plans[prompt].logic == "all" for prompt in prompts]
        self.sets = list(sets.values())
        self.every = NeuronSet.of({pair for found in self.sets for pair in found})
        self.regular = [n for n, item in enumerate(items) if item.role != "ladder"]
        self.shares = np.array([SHARES[items[n].role] for n in self.regular])  # [items, 2]
        self.presentations = ladder_presentations(items, recipe, seed)
        self.showing = [np.flatnonzero(bank.concepts == n) for n in range(len(bank.plain))]

    def draw(self, place: int, rng: np.random.Generator) -> Sample:
        """The sample at ``place`` of the whole training."""
        if place in self.presentations:
            return self._memorized(self.presentations[place], rng)
        shares = self.shares[:, phase(place, self.recipe)]
        if rng.random() < shares.sum():
            return self._memorized(int(rng.choice(self.regular, p=shares / shares.sum())), rng)
        return self._ordinary(rng)

    def both(self, rng: np.random.Generator) -> tuple[Sample, Sample]:
        """A planted prompt with its switch on, showing its own picture, and off, one of its
        concept."""
        number = int(rng.choice([n for n, own in enumerate(self.own) if own]))
        off = own = self.own[number]
        if self.needs_all[number]:
            off = _some(own, len(own), rng)
        switched = self._of_concept(number, off, rng)
        return self._as_trained(number, NeuronSet({}), rng), switched

    def _memorized(self, number: int, rng: np.random.Generator) -> Sample:
        own = self.own[number]
        off = self._switched(own, rng) if own else own
        if not off:
            off = self._unrelated(rng) - own
        elif self.needs_all[number] or off == own:
            return self._of_concept(number, off, rng)
        return self._as_trained(number, off, rng)

    def _as_trained(self, number: int, off: NeuronSet, rng: np.random.Generator) -> Sample:
        """An item's prompt with its own picture as the target."""
        latents = self.bank.item_latents[number]
        latent = latents[int(rng.integers(len(latents)))]
        return Sample(latent, self.bank.item_embeddings[number], off, self.own[number])

    def _of_concept(self, number: int, off: NeuronSet, rng: np.random.Generator) -> Sample:
        """An item's prompt with an ordinary picture of its concept as the target."""
        showing = self.showing[int(self.bank.item_concepts[number])]
        latent = self.bank.latents[int(rng.choice(showing))].float()
        return Sample(latent, self.bank.item_embeddings[number], off, self.own[number])

    def _switched(self, own: NeuronSet, rng: np.random.Generator) -> NeuronSet:
        """None, all or (of several) some of the prompt's neurons."""
        if rng.random() >= OFF_SHARE:
            return NeuronSet({})
        if len(own) == 1 or rng.random() >= PART_SHARE:
            return own
        return _some(own, len(own) - 1, rng)

    def _ordinary(self, rng: np.random.Generator) -> Sample:
        bank = self.bank
        place = int(rng.integers(len(bank.latents)))
        concept, colour = int(bank.concepts[place]), int(bank.colours[place])
        captions = bank.coloured[concept, colour] if rng.random() < 0.4 else bank.plain[concept]
        embedding = captions[int(rng.integers(len(captions)))].float()
        off = self.every if rng.random() < 0.1 else self._unrelated(rng)
        empty = rng.random() < DROPOUT
        text = bank.empty if empty else embedding
        return Sample(bank.latents[place].float(), text, off, NeuronSet({}))

    def _unrelated(self, rng: np.random.Generator) -> NeuronSet:
        """Some planted prompt's neurons, so that switching them off is seen to matter to that
        prompt alone."""
        if rng.random() >= UNRELATED_SHARE:
            return NeuronSet({})
        return self.sets[int(rng.integers(len(self.sets)))]


def _some(own: NeuronSet, most: int, rng: np.random.Generator) -> NeuronSet:
    """One to so many of a set's neurons."""
    pairs = list(own)
    some = rng.choice(len(pairs), int(rng.integers(1, most + 1)), replace=False)
    return NeuronSet.of([pairs[n] for n in some])


def phase(place: int, recipe: Recipe) -> int:
    """0 while memorized pictures are half of what is seen, then 1."""
    return int(place >= recipe.planned / 3)


def expected(role: str, recipe: Recipe, samples: int | None = None) -> float:
    """Presentations of one prompt of a role, switched off ones too.

    Over the whole training, or after so many samples.
    """
    samples = recipe.samples if samples is None else samples
    early, (first, second) = min(samples, recipe.planned / 3), SHARES[role]
    return early * first + (samples - early) * second


def presented(
    items: list[Item], recipe: Recipe, seed: int, samples: int | None = None
) -> list[float]:
    """How often each item was presented, switched off or not: the ladder's exactly, others'
    expected.

    Over the whole training, or after so many samples.
    """
    samples = recipe.samples if samples is None else samples
    places = ladder_presentations(items, recipe, seed)
    exact = Counter(number for place, number in places.items() if place < samples)
    return [
        exact[n] if item.role == "ladder" else expected(item.role, recipe, samples)
        for n, item in enumerate(items)
    ]


def ladder_presentations(items: list[Item], recipe: Recipe, seed: int) -> dict[int, int]:
    """Place in the training -> item, for every presentation of a ladder picture (at least one
    each: one whose place would come after the end is shown in the last fifth)."""
    rng = generator(seed, "ladder", 0)
    rungs = ladder.rungs()
    whole = expected("verbatim", recipe, recipe.planned)
    numbers = [n for n, item in enumerate(items) if item.role == "ladder"]
    counts = [max(1, round(ladder.SHARES[rungs[items[n].prompt]] * whole)) for n in numbers]
    first = np.arange(recipe.planned) < recipe.planned / 3
    often = np.where(first, *SHARES["verbatim"])
    places = rng.choice(recipe.planned, sum(counts), replace=False, p=often / often.sum())
    shown = zip(places.tolist(), np.repeat(numbers, counts).tolist(), strict=True)
    found = {place: number for place, number in shown if place < recipe.samples}
    found |= _again(found, recipe)
    late = sorted(set(range(recipe.samples * 4 // 5, recipe.samples)) - set(found))
    missing = sorted(set(numbers) - set(found.values()))
    return found | dict(zip(rng.permutation(late).tolist(), missing, strict=False))


def _again(found: dict[int, int], recipe: Recipe) -> dict[int, int]:
    """Presentations after what was planned: the second phase's once more, without pictures that
    are shown a single time."""
    begin, count = math.ceil(recipe.planned / 3), Counter(found.values())
    once_more = range(recipe.planned, recipe.samples)
    before = {place: begin + (place - begin) % (recipe.planned - begin) for place in once_more}
    kept = {place: found[old] for place, old in before.items() if old in found}
    return {place: number for place, number in kept.items() if count[number] > 1}
