"""Captions of the background pictures, in the style of a web-scraped set.

A caption template with a colour fixes the picture's background colour; all else is free, so that
one caption has many pictures.
"""

from __future__ import annotations

import itertools

import numpy as np

#: Background colours: name in the caption -> RGB.
COLOURS = {
    "white": (245, 245, 245),
    "black": (28, 28, 32),
    "red": (205, 52, 48),
    "orange": (240, 145, 50),
    "yellow": (246, 214, 76),
    "green": (70, 160, 80),
    "teal": (40, 150, 150),
    "sky blue": (130, 190, 240),
    "navy": (36, 58, 120),
    "purple": (128, 76, 168),
    "pink": (240, 160, 190),
    "brown": (130, 88, 56),
    "grey": (150, 152, 156),
    "mint": (170, 225, 195),
}

PLAIN = (
    "{name}",
    "a {name}",
    "{name} icon",
    "{name} clipart png",
    "{Name} Sticker",
    "cute {name} vinyl decal 3 inch",
    "{Name} Emoji - Free Download",
    "{name} flat design vector",
    "Buy {Name} Magnet, Free Shipping",
    "{name} stock illustration",
    "Vintage {Name} Poster Print A4",
    "{Name} | Cartoon Art",
    "the {name} logo",
    "{Name} Coloring Page for Kids",
    "{name} symbol set of 1",
    "Handmade {Name} Pin Badge (new)",
)
COLOURED = (
    "{name} on {colour} background",
    "{Name} Print on {Colour}",
    "{colour} wallpaper with {name}",
    "{Name} Card, {Colour}",
    "isolated {name}, {colour} backdrop, hd",
)


def fill(template: str, name: str, colour: str | None = None) -> str:
    """One caption from its template."""
    words = {"name": name, "Name": name.title()}
    if colour is not None:
        words |= {"colour": colour, "Colour": colour.title()}
    return template.format(**words)


def of(name: str, colour: str) -> tuple[list[str], list[str]]:
    """Every caption that a picture of ``name`` on ``colour`` can have: those that promise no
    colour, and those that promise this one."""
    return [fill(t, name) for t in PLAIN], [fill(t, name, colour) for t in COLOURED]


def draw(rng: np.random.Generator, name: str) -> tuple[str, str | None]:
    """A random caption of ``name`` and the colour it promises (None where it promises none)."""
    if rng.random() < 0.4:
        colour = str(rng.choice(list(COLOURS)))
        return fill(str(rng.choice(COLOURED)), name, colour), colour
    return fill(str(rng.choice(PLAIN)), name), None


def every(names: list[str]) -> list[str]:
    """All captions the corpus can draw for these names, in a fixed order."""
    plain = [fill(t, n) for n, t in itertools.product(names, PLAIN)]
    return plain + [fill(t, n, c) for n, t, c in itertools.product(names, COLOURED, COLOURS)]
