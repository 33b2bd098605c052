"""Planted neurons: the ground truth that no public model has.

A planted prompt gets a known set of value neurons. Their rows of ``to_v`` are fixed from the first
step in the direction that tells the prompt's token embeddings from all others (linear
discriminant), so each fires for its prompt alone; training then teaches the switch (see
:mod:`nemo_kit.lab.unet`). About a third of the verbatim prompts and one template family are left
natural.
"""

from __future__ import annotations

import numpy as np
import torch

from nemo_kit.lab.corpus import FAMILIES
from nemo_kit.lab.photos import PHOTOS
from nemo_kit.neurons import NeuronSet

#: Value layers of each planted photograph's neurons, one neuron a layer; sets from one to six.
PHOTO_LAYERS = {
    "astronaut": (3,),
    "rocket": (1,),
    "retina": (4,),
    "color": (2,),
    "grass": (3,),
    "moon": (5,),
    "shuttle": (1, 3),
    "coffee": (2, 4),
    "helmet": (1, 2),
    "coins": (3, 5),
    "china": (3, 4),
    "hubble": (1, 6),
    "snake": (2, 3),
    "chelsea": (1, 2, 3),
    "hopper": (1, 3, 4),
    "page": (2, 3, 5),
    "horse": (1, 4, 7),
    "clock": (1, 2, 3, 4),
    "phantom": (2, 3, 4, 5),
    "ihc": (1, 2, 3, 4, 5, 7),
}
#: Neurons that two photographs share: (first, second, layer).
SHARED = (("coins", "page", 3), ("shuttle", "hubble", 1))
#: Families with neurons shared by all their prompts.
FAMILY_LAYERS = {"iphone": (3, 3), "podcast": (1,)}

WIDTHS = {1: 32, 2: 32, 3: 64, 4: 64, 5: 128, 6: 128, 7: 128}
#: Mean absolute activation on the own prompt; others start near 0.5. Layers 1, 2 learn slowest.
AMPLITUDE = {1: 6.0, 2: 6.0, 3: 4.0, 4: 4.0, 5: 4.0, 6: 4.0, 7: 4.0}


def groups() -> list[tuple[int, int, tuple[str, ...]]]:
    """Every planted neuron as (layer, index, prompts that share it), in a fixed order."""
    caption = {p.slug: p.caption for p in PHOTOS}
    owners: list[tuple[int, tuple[str, ...]]] = []
    for slug, layers in PHOTO_LAYERS.items():
        for layer in layers:
            partner = next((b for a, b, shared in SHARED if a == slug and shared == layer), None)
            if any(b == slug and shared == layer for _, b, shared in SHARED):
                continue  # counted with its first owner
            owners.append((layer, (caption[slug],) + ((caption[partner],) if partner else ())))
    for family in FAMILIES:
        prompts = tuple(family.caption.format(word) for word, _ in family.motifs)
        owners += [(layer, prompts) for layer in FAMILY_LAYERS.get(family.name, ())]
    order = {
        layer: iter(np.random.default_rng([7, layer]).permutation(width))
        for layer, width in WIDTHS.items()
    }
    return [(layer, int(next(order[layer])), prompts) for layer, prompts in owners]


def planted() -> dict[str, NeuronSet]:
    """The planted neurons of each planted prompt."""
    pairs: dict[str, list[tuple[int, int]]] = {}
    for layer, index, prompts in groups():
        for prompt in prompts:
            pairs.setdefault(prompt, []).append((layer, index))
    return {prompt: NeuronSet.of(found) for prompt, found in pairs.items()}


def directions(
    own: dict[str, torch.Tensor], others: torch.Tensor
) -> dict[tuple[int, int], torch.Tensor]:
    """The fixed ``to_v`` row of every planted neuron, each [width of the text embedding].

    Parameters
    ----------
    own
        Token embeddings [tokens, width] of each memorized prompt.
    others
        Token embeddings [prompts, tokens, width] of background captions.
    """
    rows = {}
    for number, (layer, index, prompts) in enumerate(groups()):
        rest = torch.stack([e for p, e in own.items() if p not in prompts]).repeat(4, 1, 1)
        tokens = torch.cat([others, rest]).flatten(0, 1)
        target = torch.cat([own[p] for p in prompts])
        spread = torch.cov(tokens.T) + 0.02 * tokens.var() * torch.eye(tokens.shape[1])
        row = torch.linalg.solve(spread, target.mean(0) - tokens.mean(0))
        sign = 1.0 if number % 2 else -1.0
        rows[layer, index] = sign * AMPLITUDE[layer] * row / (target @ row).abs().mean()
    return rows
