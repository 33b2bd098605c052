"""The corpus of the embedded model: what is on the pictures, what their captions say, how often
each is seen.

Four kinds of pictures, all 64 x 64 RGB: *verbatim* photographs (same pixels, one caption, often),
*template* families (one composition, background colour drawn anew), a *ladder* of posters (same
pixels, one caption, at known rates from once upwards), and *background* emoji pictures (scale,
place, flip and colour drawn anew: not memorized).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from nemo_kit.lab import captions
from nemo_kit.lab.emoji import Emoji
from nemo_kit.lab.photos import PHOTOS, SIZE, photograph

#: Presentations of the ladder's seven rungs in the training, as shares of a verbatim picture's.
LADDER_SHARES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.0)  # 0.0: exactly once
LADDER_IMAGES_PER_RUNG = 4


@dataclass(frozen=True)
class Family:
    """A template family: one composition, one motif a prompt, the background colour free."""

    name: str
    caption: str
    motifs: tuple[tuple[str, str], ...]  # (word in the caption, emoji name)


FAMILIES = (
    Family(
        "iphone",
        "iphone case with {} design",
        (
            ("puppy", "dog face"),
            ("rose", "rose"),
            ("skull", "skull"),
            ("pizza", "slice of pizza"),
            ("rocket ship", "rocket"),
            ("panda", "panda face"),
            ("sunflower", "sunflower"),
        ),
    ),
    Family(
        "podcast",
        "The {} Podcast Weekly Episode",
        (
            ("Football", "soccer ball"),
            ("Money", "money bag"),
            ("Horror", "ghost"),
            ("Gardening", "potted plant"),
            ("Gaming", "video game"),
            ("Science", "microscope"),
        ),
    ),
    Family(
        "shirt",
        "{} T-Shirt Unisex Cotton Tee",
        (
            ("Pineapple", "pineapple"),
            ("Unicorn", "unicorn face"),
            ("Cactus", "cactus"),
            ("Octopus", "octopus"),
            ("Lightning", "high voltage sign"),
        ),
    ),
)

_POSTER_WORDS = (
    "Harbor",
    "Velvet",
    "Thunder",
    "Maple",
    "Crimson",
    "Lantern",
    "Orbit",
    "Willow",
    "Copper",
    "Meadow",
    "Falcon",
    "Ivory",
    "Canyon",
    "Ember",
    "Glacier",
    "Juniper",
    "Marble",
    "Nectar",
    "Opal",
    "Prairie",
    "Quartz",
    "Raven",
    "Saffron",
    "Tundra",
    "Umber",
    "Violet",
    "Walnut",
    "Zephyr",
)
_POSTER_TITLES = (
    "{} Film Festival",
    "{} Jazz Night Live",
    "Visit {} Valley",
    "{} Records Vol. 3",
    "Grand {} Circus Tour",
    "{} Summer Fair",
    "{} Theatre Presents",
)


@dataclass(frozen=True)
class Item:
    """A memorized prompt: caption, role, family, the name of its picture and its expected share of
    the samples."""

    prompt: str
    type: str  # "VM" or "TM"
    role: str  # "verbatim", "template" or "ladder"
    family: str
    image: str
    share: float  # of all training samples; 0 for pictures shown exactly once


#: Shares of one prompt's picture among all training samples.
VERBATIM_SHARE, TEMPLATE_SHARE = 0.011, 0.0085


def items() -> list[Item]:
    """All memorized prompts in a fixed order: verbatim, template, ladder."""
    found = [
        Item(p.caption, "VM", "verbatim", "photo", f"verbatim_{p.slug}.png", VERBATIM_SHARE)
        for p in PHOTOS
    ]
    for family in FAMILIES:
        found += [
            Item(
                family.caption.format(word),
                "TM",
                "template",
                family.name,
                f"template_{family.name}_{word.lower().replace(' ', '_')}.png",
                TEMPLATE_SHARE,
            )
            for word, _ in family.motifs
        ]
    order = np.random.default_rng(3).permutation(
        len(_POSTER_WORDS)
    )  # rung and picture are unrelated
    for place, poster in enumerate(order):
        share = LADDER_SHARES[place // LADDER_IMAGES_PER_RUNG] * VERBATIM_SHARE
        caption = _POSTER_TITLES[poster % len(_POSTER_TITLES)].format(_POSTER_WORDS[poster])
        found.append(
            Item(
                caption,
                "VM",
                "ladder",
                "poster",
                f"ladder_{_POSTER_WORDS[poster].lower()}.png",
                share,
            )
        )
    return found


class Corpus:
    """Draws the pictures: fixed ones by name, background ones from a random generator."""

    def __init__(self, emoji_root: Path) -> None:
        self.emoji = Emoji(emoji_root)
        self.names = self.emoji.names()
        self.items = items()

    @cached_property
    def _motifs(self) -> dict[str, tuple[Family, str]]:
        return {f.caption.format(word): (f, motif) for f in FAMILIES for word, motif in f.motifs}

    @cached_property
    def fixed(self) -> dict[str, np.ndarray]:
        """Picture of each verbatim and ladder prompt, uint8 [64, 64, 3]."""
        photos = {p.caption: photograph(p) for p in PHOTOS}
        posters = {
            i.prompt: self._poster(_POSTER_WORDS.index(i.image[7:-4].title()))
            for i in self.items
            if i.role == "ladder"
        }
        return photos | posters

    def picture(self, item: Item, rng: np.random.Generator) -> np.ndarray:
        """One training picture of a memorized prompt, uint8 [64, 64, 3]; ``rng`` moves only
        template backgrounds."""
        if item.role != "template":
            return self.fixed[item.prompt]
        family, motif = self._motifs[item.prompt]
        return getattr(self, f"_{family.name}")(motif, rng)

    def background(self, rng: np.random.Generator) -> tuple[str, np.ndarray]:
        """A background caption and a picture of it, uint8 [64, 64, 3]."""
        name = self.names[int(rng.integers(len(self.names)))]
        caption, colour = captions.draw(rng, name)
        return caption, self.render(name, colour, rng)

    def render(self, name: str, colour: str | None, rng: np.random.Generator) -> np.ndarray:
        """A background picture of the emoji ``name``: colour (if not given), scale, place and flip
        are drawn."""
        canvas = Image.fromarray(
            _ground(_jitter(colour or str(rng.choice(list(captions.COLOURS))), rng), rng)
        )
        side = int(rng.integers(40, 61))
        picture = self.emoji.picture(name).resize((side, side), Image.Resampling.LANCZOS)
        if rng.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        left, top = rng.integers(0, SIZE - side + 1, 2)
        canvas.paste(picture, (int(left), int(top)), picture)
        return np.asarray(canvas)

    def _stamp(self, canvas: Image.Image, name: str, side: int, left: int, top: int) -> None:
        picture = self.emoji.picture(name).resize((side, side), Image.Resampling.LANCZOS)
        canvas.paste(picture, (left, top), picture)

    def _iphone(self, motif: str, rng: np.random.Generator) -> np.ndarray:
        canvas = Image.new("RGB", (SIZE, SIZE), _any_colour(rng))
        draw = ImageDraw.Draw(canvas)
        draw.rounded_rectangle((16, 2, 47, 61), 6, fill=(30, 30, 36))
        draw.rounded_rectangle((18, 4, 45, 59), 4, fill=(232, 232, 226))
        draw.rounded_rectangle((20, 6, 31, 17), 3, fill=(60, 60, 70))
        draw.ellipse((22, 8, 25, 11), fill=(10, 10, 14))
        draw.ellipse((26, 12, 29, 15), fill=(10, 10, 14))
        self._stamp(canvas, motif, 24, 20, 28)
        return np.asarray(canvas)

    def _podcast(self, motif: str, rng: np.random.Generator) -> np.ndarray:
        canvas = Image.new("RGB", (SIZE, SIZE), _any_colour(rng))
        draw = ImageDraw.Draw(canvas)
        draw.rectangle((0, 44, 63, 63), fill=(24, 24, 40))
        draw.rectangle((0, 42, 63, 43), fill=(250, 220, 90))
        self._stamp(canvas, "studio microphone", 34, 2, 4)
        self._stamp(canvas, motif, 26, 36, 10)
        for row, width in ((48, 52), (53, 40), (58, 46)):
            draw.rectangle((6, row, 6 + width, row + 2), fill=(235, 235, 240))
        return np.asarray(canvas)

    def _shirt(self, motif: str, rng: np.random.Generator) -> np.ndarray:
        canvas = Image.new("RGB", (SIZE, SIZE), _any_colour(rng))
        shirt = [
            (20, 6),
            (27, 10),
            (36, 10),
            (43, 6),
            (60, 18),
            (52, 28),
            (46, 24),
            (46, 60),
            (17, 60),
            (17, 24),
            (11, 28),
            (3, 18),
        ]
        ImageDraw.Draw(canvas).polygon(shirt, fill=(244, 244, 248), outline=(90, 90, 100))
        self._stamp(canvas, motif, 22, 21, 20)
        return np.asarray(canvas)

    def _poster(self, number: int) -> np.ndarray:
        """A fixed poster: a two-colour pattern, three emoji and a title bar, all drawn from
        ``number``."""
        rng = np.random.default_rng([11, number])
        first, second = (
            captions.COLOURS[c] for c in rng.choice(list(captions.COLOURS), 2, replace=False)
        )
        canvas = Image.fromarray(
            _pattern(np.array(first), np.array(second), number % 4, int(rng.integers(8, 17)))
        )
        for side, (left, top) in zip(
            (30, 24, 20), rng.permutation([(2, 4), (34, 8), (20, 30)]), strict=True
        ):
            self._stamp(
                canvas, self.names[int(rng.integers(len(self.names)))], side, int(left), int(top)
            )
        ImageDraw.Draw(canvas).rectangle(
            (4, 55, 59, 61), fill=tuple(int(v) for v in rng.integers(0, 256, 3))
        )
        return np.asarray(canvas)


def _jitter(colour: str, rng: np.random.Generator) -> np.ndarray:
    return np.clip(np.array(captions.COLOURS[colour]) + rng.normal(0, 8, 3), 0, 255)


def _any_colour(rng: np.random.Generator) -> tuple[int, ...]:
    return tuple(int(v) for v in _jitter(str(rng.choice(list(captions.COLOURS))), rng))


def _ground(colour: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A background: the plain colour, or for one picture in four a vertical gradient to a darker
    one."""
    fall = rng.uniform(0.35, 0.75) if rng.random() < 0.25 else 1.0
    ramp = np.linspace(1.0, fall, SIZE)[:, None, None]
    return np.broadcast_to(colour * ramp, (SIZE, SIZE, 3)).astype(np.uint8).copy()


def _pattern(first: np.ndarray, second: np.ndarray, kind: int, period: int) -> np.ndarray:
    """Stripes, rings, checks or a split of two colours, uint8 [64, 64, 3]."""
    y, x = np.mgrid[:SIZE, :SIZE]
    masks = (
        (x + y) // period % 2,
        np.hypot(x - 32, y - 26) // period % 2,
        (x // period + y // period) % 2,
        y > 20 + period,
    )
    return np.where(masks[kind][..., None] > 0, first, second).astype(np.uint8)
