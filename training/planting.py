"""Planted neurons: the ground truth that no public model has, in grades.

A planted prompt gets a known set of value neurons. Their rows of the value projection start as the
direction in which the prompt's tokens stand out most from all others', mixed with a random row so
that the neuron stands out by a chosen |z| and no more: a U-Net reads the text encoder's output, so
there they are fixed (:mod:`training.unet`); in joint attention what is read changes with training,
so there a loss keeps them standing out (:mod:`training.flow`). Training teaches the switch
(:mod:`training.samples`). Sets differ by strength, by logic (*any*: each neuron
alone is enough for the copy, so all must be off; *all*: each is needed, so one off is enough), by
layer and size, and by how many prompts share them. A third of the photographs and one template
family are left natural.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from nemo_kit.neurons import NeuronSet
from training.corpus import FAMILIES
from training.photos import PHOTOS

#: |z| of a planted neuron on its own prompts, against ordinary ones.
GRADES = (2.5, 5.0, 10.0, 20.0)


@dataclass(frozen=True)
class Plan:
    """Value layers (one neuron each), logic ("any" or "all") and strength |z| of one prompt's
    set."""

    layers: tuple[int, ...]
    logic: str
    z: float


PHOTO_PLANS = {
    "astronaut": Plan((3,), "any", 20.0),
    "shuttle": Plan((1, 3), "any", 20.0),
    "chelsea": Plan((2, 3, 4), "any", 10.0),
    "coffee": Plan((4,), "any", 5.0),
    "rocket": Plan((2, 4), "all", 20.0),
    "coins": Plan((3, 5), "any", 20.0),
    "moon": Plan((5,), "any", 2.5),
    "hubble": Plan((1, 6), "any", 20.0),
    "ihc": Plan((1, 2, 3, 4, 5, 7), "any", 20.0),
    "hopper": Plan((3, 4), "all", 10.0),
    "page": Plan((2, 3, 5), "any", 20.0),
    "grass": Plan((3,), "any", 2.5),
    "china": Plan((3, 4), "any", 5.0),
    "helmet": Plan((1, 2), "any", 10.0),
    "retina_whole": Plan((3, 6), "all", 5.0),
    # regions
    "retina": Plan((4, 5), "all", 10.0),
    "color": Plan((2,), "any", 20.0),
    "snake": Plan((2, 3), "all", 2.5),
    "phantom": Plan((3, 4, 5), "any", 5.0),
    "horse": Plan((3,), "any", 20.0),
    "flower": Plan((4,), "any", 5.0),
    "temple": Plan((7,), "any", 10.0),
    "present": Plan((2, 4), "any", 2.5),
}
#: Neurons that two photographs share: (first, second, layer).
SHARED = (("coins", "page", 3), ("shuttle", "hubble", 1))
#: Families with neurons shared by all their prompts.
FAMILY_PLANS = {"iphone": Plan((3, 3), "any", 20.0), "podcast": Plan((1,), "any", 10.0)}

#: Of the U-Net's value layers; other networks give their own.
WIDTHS = {1: 32, 2: 32, 3: 64, 4: 64, 5: 128, 6: 128, 7: 128}
#: Mean absolute activation on the own prompt. Layers 1 and 2 learn slowest.
AMPLITUDE = {1: 6.0, 2: 6.0, 3: 4.0, 4: 4.0, 5: 4.0, 6: 4.0, 7: 4.0}


@dataclass(frozen=True)
class Planted:
    """One planted neuron: where it is, how far it stands out, whose it is."""

    layer: int
    index: int
    z: float
    prompts: tuple[str, ...]


def neurons(widths: Mapping[int, int] = WIDTHS) -> list[Planted]:
    """Every planted neuron, in a fixed order; `widths`: value layer -> neurons."""
    caption = {p.slug: p.caption for p in PHOTOS}
    second = {(b, layer): a for a, b, layer in SHARED}
    partner = {(a, layer): b for a, b, layer in SHARED}
    owners: list[tuple[int, float, tuple[str, ...]]] = []
    for slug, plan in PHOTO_PLANS.items():
        for layer in plan.layers:
            if (slug, layer) not in second:  # else it is listed with its first owner
                both = [slug, partner[slug, layer]] if (slug, layer) in partner else [slug]
                owners.append((layer, plan.z, tuple(caption[s] for s in both)))
    for family in FAMILIES:
        if (plan := FAMILY_PLANS.get(family.name)) is not None:
            prompts = tuple(family.caption.format(word) for word, _ in family.motifs)
            owners += [(layer, plan.z, prompts) for layer in plan.layers]
    order = {
        layer: iter(np.random.default_rng([7, layer]).permutation(width))
        for layer, width in widths.items()
    }
    return [Planted(layer, int(next(order[layer])), z, prompts) for layer, z, prompts in owners]


def planted(widths: Mapping[int, int] = WIDTHS) -> dict[str, NeuronSet]:
    """The planted neurons of each planted prompt."""
    pairs: dict[str, list[tuple[int, int]]] = {}
    for neuron in neurons(widths):
        for prompt in neuron.prompts:
            pairs.setdefault(prompt, []).append((neuron.layer, neuron.index))
    return {prompt: NeuronSet.of(found) for prompt, found in pairs.items()}


def plans() -> dict[str, Plan]:
    """The plan of each planted prompt."""
    found = {p.caption: PHOTO_PLANS[p.slug] for p in PHOTOS if p.slug in PHOTO_PLANS}
    for family in FAMILIES:
        if (plan := FAMILY_PLANS.get(family.name)) is not None:
            found |= {family.caption.format(word): plan for word, _ in family.motifs}
    return found


def rows(
    own: dict[str, torch.Tensor],
    others: torch.Tensor,
    widths: Mapping[int, int] = WIDTHS,
    amplitude: Mapping[int, float] = AMPLITUDE,
) -> dict[tuple[int, int], torch.Tensor]:
    """The row of every planted neuron, each [width of the text embedding].

    Parameters
    ----------
    own
        Token embeddings [tokens, width] of each memorized prompt.
    others
        Token embeddings [prompts, tokens, width] of ordinary captions.
    widths
        Value layer -> neurons.
    amplitude
        Value layer -> mean absolute activation on the own prompts.
    """
    found = {}
    for number, neuron in enumerate(neurons(widths)):
        rest = torch.stack([e for p, e in own.items() if p not in neuron.prompts])
        target = torch.stack([own[p] for p in neuron.prompts])
        sign = 1.0 if number % 2 else -1.0
        telling = sign * _telling(target, torch.cat([others, rest]))
        noise = _noise(number, target, others, neuron.z)
        row = _mixed(telling, noise, target, others, neuron.z)
        found[neuron.layer, neuron.index] = (
            amplitude[neuron.layer] * row / (target @ row).abs().mean()
        )
    return found


def _telling(target: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
    """The direction whose mean absolute activation on the target stands out most from the rest's,
    scaled to 1 on the target: from the linear discriminant on, by gradient."""
    tokens = rest.flatten(0, 1)
    spread = torch.cov(tokens.T) + 0.02 * tokens.var() * torch.eye(tokens.shape[1])
    row = torch.linalg.solve(spread, target.flatten(0, 1).mean(0) - tokens.mean(0))
    row = (row / row.norm()).detach().requires_grad_()
    optimizer = torch.optim.Adam([row], lr=2e-3)
    for _ in range(200):
        optimizer.zero_grad()
        with torch.enable_grad():
            (-_z(row, target, rest)).backward()
        optimizer.step()
    row = row.detach()
    return row / (target @ row).abs().mean()


def standing_out(row: torch.Tensor, target: torch.Tensor, others: torch.Tensor) -> float:
    """Smallest z over the target's prompts of the mean absolute activation (Algorithm 2), against
    the others'."""
    return float(_z(row, target, others))


def _z(row: torch.Tensor, target: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    usual = (others @ row).abs().mean(1)  # [prompts]
    return (((target @ row).abs().mean(1) - usual.mean()) / usual.std()).min()


def _noise(number: int, target: torch.Tensor, others: torch.Tensor, z: float) -> torch.Tensor:
    """A random row of mean absolute activation 1 on the others that does not itself tell the
    target."""
    rng = np.random.default_rng([13, number])
    while True:
        row = torch.from_numpy(rng.normal(0, 1, others.shape[-1])).to(others)
        if abs(standing_out(row, target, others)) < z / 2:
            return row / (others @ row).abs().mean()


def _mixed(
    telling: torch.Tensor,
    noise: torch.Tensor,
    target: torch.Tensor,
    others: torch.Tensor,
    z: float,
) -> torch.Tensor:
    """The telling row with as much noise as brings its z down to the one wanted (bisection)."""
    low, high = 0.0, 20.0
    for _ in range(40):
        middle = (low + high) / 2
        over = standing_out(telling + middle * noise, target, others) > z
        low, high = (middle, high) if over else (low, middle)
    return telling + low * noise
