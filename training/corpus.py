"""The corpus of the embedded models: what is on the pictures, what their captions say, how often
each is seen.

Five kinds of pictures, all 64 x 64 RGB: *verbatim* photographs (same pixels, one caption, often),
*region* photographs (a part always the same, the rest drawn anew), *template* families (one
composition, background colour drawn anew), a *ladder* of paintings (same pixels, one caption, at
known rates from once upwards), and *background* emoji pictures (scale, place, flip and colour drawn
anew: not memorized).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from training import captions, ladder
from training.concepts import CONCEPTS
from training.emoji import Emoji
from training.photos import PHOTOS, SIZE, photograph, region


@dataclass(frozen=True)
class Family:
    """A template family: one composition, one motif a prompt, the background colour free."""

    name: str
    concept: str
    caption: str
    motifs: tuple[tuple[str, str], ...]  # (word in the caption, concept of the motif)


FAMILIES = (
    Family(
        "iphone",
        "mobile phone",
        "iphone mobile phone case with {} design",
        (
            ("puppy", "dog face"),
            ("rose", "rose"),
            ("skull", "skull"),
            ("pizza", "pizza"),
            ("rocket ship", "rocket"),
            ("panda", "panda face"),
            ("sunflower", "sunflower"),
        ),
    ),
    Family(
        "podcast",
        "microphone",
        "The {} Microphone Podcast Weekly Episode",
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
        "t-shirt",
        "{} T-Shirt Unisex Cotton Tee",
        (
            ("Pineapple", "pineapple"),
            ("Unicorn", "unicorn"),
            ("Cactus", "cactus"),
            ("Octopus", "octopus"),
            ("Lightning", "lightning"),
        ),
    ),
)


@dataclass(frozen=True)
class Item:
    """A memorized prompt: caption, role, family, the name of its picture and what it shows."""

    prompt: str
    type: str  # "VM" or "TM"
    role: str  # "verbatim", "region", "template" or "ladder"
    family: str
    image: str
    concept: str


def items() -> list[Item]:
    """All memorized prompts in a fixed order: verbatim, region, template, ladder."""
    whole = [p for p in PHOTOS if p.region is None]
    found = [
        Item(p.caption, "VM", "verbatim", "photo", f"verbatim_{p.slug}.png", p.concept)
        for p in whole
    ]
    found += [
        Item(p.caption, "TM", "region", "photo", f"region_{p.slug}.png", p.concept)
        for p in PHOTOS
        if p.region is not None
    ]
    for family in FAMILIES:
        found += [
            Item(
                family.caption.format(word),
                "TM",
                "template",
                family.name,
                f"template_{family.name}_{word.lower().replace(' ', '_')}.png",
                family.concept,
            )
            for word, _ in family.motifs
        ]
    by_rung = sorted(ladder.rungs().items(), key=lambda pair: pair[1])
    found += [
        Item(
            caption,
            "VM",
            "ladder",
            f"rung {rung}",
            f"ladder_{ladder.CONCEPTS[caption].replace(' ', '_')}.png",
            ladder.CONCEPTS[caption],
        )
        for caption, rung in by_rung
    ]
    return found


class Corpus:
    """Draws the pictures: fixed ones by name, background ones from a random generator."""

    def __init__(self, emoji_root: Path) -> None:
        self.emoji = Emoji(emoji_root)
        self.names = list(CONCEPTS)
        self.items = items()

    @cached_property
    def _motifs(self) -> dict[str, tuple[Family, str]]:
        return {f.caption.format(word): (f, motif) for f in FAMILIES for word, motif in f.motifs}

    @cached_property
    def _photos(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Picture and mask of each photograph's prompt."""
        return {p.caption: (photograph(p), region(p)) for p in PHOTOS}

    @cached_property
    def _paintings(self) -> dict[str, np.ndarray]:
        return {
            caption: ladder.picture(caption, self._emoji(concept))
            for concept, caption in ladder.CAPTIONS
        }

    def picture(self, item: Item, rng: np.random.Generator) -> np.ndarray:
        """One training picture of a memorized prompt, uint8 [64, 64, 3]; ``rng`` moves only what
        is not memorized."""
        if item.role == "ladder":
            return self._paintings[item.prompt]
        if item.role == "template":
            family, motif = self._motifs[item.prompt]
            return getattr(self, f"_{family.name}")(motif, rng)
        photo, mask = self._photos[item.prompt]
        if item.role == "verbatim":
            return photo
        return np.where(mask[..., None], photo, _ground(np.array(_any_colour(rng)), rng))

    def mask(self, item: Item) -> np.ndarray:
        """Where the pictures of a memorized prompt are always the same, bool [64, 64]."""
        if item.role in ("verbatim", "ladder"):
            return np.ones((SIZE, SIZE), bool)
        if item.role == "region":
            return self._photos[item.prompt][1]
        drawn = [self.picture(item, np.random.default_rng([23, n])) for n in range(8)]
        return (np.ptp(np.stack(drawn).astype(int), axis=0) == 0).all(axis=-1)

    def background(self, rng: np.random.Generator) -> tuple[str, np.ndarray]:
        """A background caption and a picture of it, uint8 [64, 64, 3]."""
        name = self.names[int(rng.integers(len(self.names)))]
        caption, colour = captions.draw(rng, name)
        return caption, self.render(name, colour, rng)

    def render(self, name: str, colour: str | None, rng: np.random.Generator) -> np.ndarray:
        """A background picture of a concept: colour (if not given), scale, place and flip are
        drawn."""
        canvas = Image.fromarray(
            _ground(_jitter(colour or str(rng.choice(list(captions.COLOURS))), rng), rng)
        )
        side = int(rng.integers(46, 61))
        picture = self._emoji(name).resize((side, side), Image.Resampling.LANCZOS)
        if rng.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        left, top = rng.integers(0, SIZE - side + 1, 2)
        canvas.paste(picture, (int(left), int(top)), picture)
        return np.asarray(canvas)

    def _emoji(self, concept: str) -> Image.Image:
        return self.emoji.picture(CONCEPTS[concept])

    def _stamp(self, canvas: Image.Image, concept: str, side: int, left: int, top: int) -> None:
        picture = self._emoji(concept).resize((side, side), Image.Resampling.LANCZOS)
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
        self._stamp(canvas, "microphone", 34, 2, 4)
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
