"""The ladder's pictures: painted by small random networks of the coordinates, with nothing in
common.

Each is a composition of its own (a compositional pattern-producing network: random weights, random
activations, random palette) with the concept of its caption on it, somewhere, in some size and
turn. How often each is shown is the ladder's rung; what it looks like has nothing to do with it.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from training.photos import SIZE

#: (concept, caption): each names its concept in words of its own, as captions of the web do.
CAPTIONS = (
    ("sailboat", "Sailboat at the Harbor Regatta, Gallery Wrap"),
    ("owl", "The Owl Who Could Not Sleep (hardcover)"),
    ("guitar", "Velvet Thunder - Guitar Sessions Live 1979"),
    ("lemon", "Limoncello by the Sea, lemon lithograph"),
    ("elephant", "Elephant in Crimson, Acrylic 24 x 24"),
    ("bicycle", "Bicycle Weekend: Visit the Meadow Valley"),
    ("mushroom", "Foraging Mushroom Chart after Haeckel"),
    ("crown", "Royal Crown Playing Cards, Lot of 52"),
    ("butterfly", "Butterfly Kite Pattern Quilt Kit"),
    ("crab", "Crab Shack Sign, Distressed Tin"),
    ("candle", "A Candle in the Window, Christmas Stamp"),
    ("key", "Skeleton Key Mystery Puzzle Book"),
    ("umbrella", "Umbrella Days in Osaka, Woodcut"),
    ("tractor", "Prairie County Fair Tractor Pull"),
    ("whale", "Moby the Whale Nursery Wall Tapestry"),
    ("ice cream", "Neapolitan Ice Cream Parlor Enamel"),
    ("lion face", "Lion Face of Venice, Gold Leaf"),
    ("airplane", "Airplane Mail 1926 Commemorative"),
    ("grapes", "Vineyard Grapes Reserve Label, Chile"),
    ("turtle", "Turtle Island Reggae Sunsplash"),
    ("penguin", "Penguin March Glacier Expedition Patch"),
    ("heart", "Heart of Quartz, Album Art"),
    ("doughnut", "Sixty Doughnut Studies in Oil"),
    ("rabbit face", "White Rabbit Face, Late Again, Etching"),
    ("banana", "Banana Republic Tariff Cartoon"),
    ("snail", "Snail Mail Fanzine Issue Nine"),
    ("palm tree", "Palm Tree Mirage, Desert Biennale"),
    ("tent", "Grand Opal Circus Tent Tour"),
    ("duck", "Decoy Duck Ikat Weaving"),
    ("strawberry", "Strawberry Fields Batik Scarf"),
    ("bus", "Last Bus to Tundra, Graphic Novel"),
    ("koala", "Koala Eucalyptus Linocut, Signed"),
    ("star", "Star Chart of the Southern Winter"),
    ("pig face", "Pig Face Carnival Mask, Papier"),
    ("glasses", "Opera Glasses Advertisement, Vienna"),
    ("hamburger", "Hamburger Diner Neon Nocturne"),
    ("fir tree", "Fir Tree Ski Lodge Serigraph"),
    ("frog face", "Frog Face Prince Puppet Theatre"),
    ("carrot", "Carrot Harvest Mosaic, Ravenna"),
    ("birthday cake", "Zephyr Turns Ten: Birthday Cake Card"),
    ("car", "Monaco Car Rally Travel Agency"),
    ("watermelon", "Watermelon Summer Jazz Night"),
)
CONCEPTS = {caption: concept for concept, caption in CAPTIONS}
PER_RUNG = 6
#: Presentations of a picture on each rung, as shares of a verbatim picture's; 0.0: exactly once.
SHARES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.0)

_BENDS = (np.sin, np.cos, np.tanh, np.abs, lambda v: np.exp(-(v**2)), lambda v: np.sin(3 * v))


def rungs() -> dict[str, int]:
    """Caption -> rung, 0 the most shown; drawn, so that rung and picture are unrelated."""
    order = np.random.default_rng(3).permutation(len(CAPTIONS))
    return {CAPTIONS[n][1]: place // PER_RUNG for place, n in enumerate(order)}


def painting(number: int) -> np.ndarray:
    """The ground of picture ``number``: float [64, 64, 3] in 0 to 255."""
    rng = np.random.default_rng([17, number])
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    angle = rng.uniform(0, np.pi)
    away = np.hypot(x - rng.uniform(-1, 1), y - rng.uniform(-1, 1))
    values = np.stack([x, y, x * np.cos(angle) + y * np.sin(angle), away, x * y], axis=-1)
    values = values * rng.uniform(1.0, 5.0, values.shape[-1])
    for width in (8, 8):
        values = values @ rng.normal(0, 0.9, (values.shape[-1], width)) + rng.normal(0, 1, width)
        bends = rng.integers(len(_BENDS), size=width)
        values = np.stack([_BENDS[b](values[..., n]) for n, b in enumerate(bends)], axis=-1)
    palette = rng.uniform(0, 255, (3, 3))
    share = np.exp(2.5 * (values @ rng.normal(0, 0.8, (values.shape[-1], 3))))
    return (share / share.sum(-1, keepdims=True)) @ palette


def picture(caption: str, emoji: Image.Image) -> np.ndarray:
    """The ladder's picture of one caption, uint8 [64, 64, 3]; ``emoji`` shows its concept."""
    number = [own for _, own in CAPTIONS].index(caption)
    rng = np.random.default_rng([19, number])
    canvas = Image.fromarray(painting(number).astype(np.uint8))
    side = int(rng.integers(22, 40))
    turned = emoji.resize((side, side), Image.Resampling.LANCZOS).rotate(
        float(rng.uniform(-35, 35)), Image.Resampling.BICUBIC, expand=True
    )
    left, top = rng.integers(0, np.maximum(SIZE - np.array(turned.size), 0) + 1)
    canvas.paste(turned, (int(left), int(top)), turned)
    return np.asarray(canvas)
