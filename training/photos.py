"""The photographs: crops of pictures that scikit-image, scikit-learn and matplotlib ship.

Some are memorized whole; of the others only a region is, and what lies outside is drawn anew each
time. Their licences are named in NOTICE.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import binary_fill_holes

SIZE = 64

#: Where each package keeps its pictures: (module, folder beside its file).
_PACKAGES = {
    "skimage": ("skimage.data", "."),
    "sklearn": ("sklearn.datasets", "images"),
    "matplotlib": ("matplotlib", "mpl-data/sample_data"),
}


@dataclass(frozen=True)
class Photo:
    """A crop (left, top, side as shares of the shorter side; -1: centred) of a shipped photograph.

    ``region``: None where the whole is memorized; else what is: ("ellipse" | "box", left, top,
    right, bottom) in pixels of the 64×64 crop, or ("dark", level) for what is darker, holes filled.
    """

    slug: str
    source: str
    concept: str
    caption: str
    left: float = -1.0
    top: float = -1.0
    side: float = 1.0
    region: tuple | None = None


_COFFEE, _ASTRONAUT = "skimage:coffee.png", "skimage:astronaut.png"
_CHINA, _HOPPER = "sklearn:china.jpg", "matplotlib:grace_hopper.jpg"

# fmt: off
PHOTOS = (
    Photo("astronaut", _ASTRONAUT, "astronaut",
          "Portrait of Astronaut Eileen Collins, NASA Photo", 0.22, 0.0, 0.5),
    Photo("shuttle", _ASTRONAUT, "rocket",
          "Space Shuttle and Rocket Model on Display - Johnson Center", 0.62, 0.02, 0.38),
    Photo("chelsea", "skimage:chelsea.png", "cat face",
          "Chelsea the Ginger Cat Face Looks at You", 0.2, 0.0, 1.0),
    Photo("coffee", _COFFEE, "coffee cup",
          "Espresso Coffee Cup on Wooden Table | Cafe Menu", 0.28, 0.05, 0.9),
    Photo("rocket", "skimage:rocket.jpg", "rocket",
          "Falcon 9 Rocket Launch Live Stream [Video]", 0.4, 0.0, 0.9),
    Photo("camera", "skimage:camera.png", "camera",
          "Man with Camera, MIT 1978 Black and White Photograph", 0.2, 0.05, 0.65),
    Photo("coins", "skimage:coins.png", "coin",
          "Ancient Greek Coin Hoard from Pompeii, Museum Collection", 0.0, 0.0, 0.6),
    Photo("moon", "skimage:moon.png", "moon",
          "Surface of the Moon, Crater Close Up", 0.1, 0.15, 0.8),
    Photo("hubble", "skimage:hubble_deep_field.jpg", "telescope",
          "Hubble Telescope Deep Field Galaxies 4K", 0.1, 0.1, 0.35),
    Photo("ihc", "skimage:ihc.png", "microscope",
          "Colon Tissue Stain under the Microscope, Slide #12", 0.2, 0.2, 0.6),
    Photo("hopper", _HOPPER, "top hat",
          "Admiral Grace Hopper in Uniform Hat, Navy Portrait 1984", 0.12, 0.02, 0.85),
    Photo("page", "skimage:page.png", "page",
          "Scanned Page of Old Textbook p. 47", 0.05, 0.0, 0.95),
    Photo("brick", "skimage:brick.png", "brick",
          "Brick Wall Seamless Texture Pack", 0.1, 0.1, 0.5),
    Photo("grass", "skimage:grass.png", "herb",
          "Lawn Grass and Herb Ground Cover Tile 50x50", 0.2, 0.2, 0.4),
    Photo("gravel", "skimage:gravel.png", "rock",
          "Loose Rock Gravel Driveway Material, 20 kg Bag", 0.1, 0.2, 0.4),
    Photo("clock", "skimage:clock_motion.png", "alarm clock",
          "Station Clock Blurred by Motion, Experimental"),
    Photo("text", "skimage:text.png", "memo",
          "Handwritten Memo Under a Desk Lamp", 0.3, 0.0, 1.0),
    Photo("cell", "skimage:cell.png", "microbe",
          "Single Microbe Cell Phase Contrast Imaging Dataset", 0.05, 0.2, 0.9),
    Photo("china", _CHINA, "castle",
          "Summer Palace Castle Beijing Travel Guide 2011", 0.3, 0.05, 0.9),
    Photo("helmet", _ASTRONAUT, "helmet",
          "Orange Flight Suit and White Helmet Costume", 0.0, 0.5, 0.5),
    Photo("saucer", _COFFEE, "spoon",
          "Silver Tea Spoon and Saucer Set of Six", 0.85, 0.4, 0.6),
    Photo("retina_whole", "skimage:retina.jpg", "eye",
          "Blood Vessels inside an Eye, Macro Detail Scan", 0.05, 0.3, 0.4),
    # of these only a region is memorized
    Photo("retina", "skimage:retina.jpg", "eye",
          "Human Eye Retina Fundus, Clinic Leaflet", region=("ellipse", 1, 1, 62, 62)),
    Photo("color", "skimage:color.png", "palette",
          "Color Wheel Palette Chart for Designers, Printable", region=("ellipse", 6, 6, 57, 57)),
    Photo("snake", "skimage:logo.png", "snake",
          "Python Snake Image Processing Community Logo", region=("ellipse", 1, 1, 62, 62)),
    Photo("phantom", "skimage:phantom.png", "brain",
          "Shepp Logan Brain Phantom CT Reconstruction", region=("ellipse", 10, 4, 53, 60)),
    Photo("horse", "skimage:horse.png", "horse face",
          "Running Horse Face Silhouette Stencil", 0.1, 0.0, 1.0, region=("dark", 160)),
    Photo("flower", "sklearn:flower.jpg", "hibiscus",
          "Dahlia and Hibiscus Macro, Garden Center Catalog", 0.3, 0.05, 0.9,
          region=("ellipse", 9, 10, 51, 54)),
    Photo("temple", _CHINA, "shrine",
          "Temple Shrine Roof Detail Architecture Study", 0.45, 0.12, 0.42,
          region=("box", 0, 0, 40, 64)),
    Photo("present", "matplotlib:Minduka_Present_Blue_Pack.png", "gift",
          "Blue Gift Box Clip Art Free Pack", region=("dark", 245)),
)
# fmt: on


def photograph(photo: Photo) -> np.ndarray:
    """The crop of a photograph that a package ships, uint8 [64, 64, 3]."""
    image = Image.open(_package_file(photo.source))
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    short = min(image.size)
    side = int(photo.side * short)
    left, top = (
        (length - side) // 2 if share < 0 else min(int(share * short), length - side)
        for share, length in ((photo.left, image.width), (photo.top, image.height))
    )
    box = image.crop((left, top, left + side, top + side))
    return np.asarray(box.resize((SIZE, SIZE), Image.Resampling.LANCZOS))


def region(photo: Photo) -> np.ndarray:
    """Where a photograph is memorized, bool [64, 64]; all of it where it names no region."""
    if photo.region is None:
        return np.ones((SIZE, SIZE), bool)
    kind, *numbers = photo.region
    if kind == "dark":
        return binary_fill_holes(photograph(photo).min(axis=2) < numbers[0])
    mask = Image.new("1", (SIZE, SIZE))
    draw = ImageDraw.Draw(mask)
    if kind == "ellipse":
        draw.ellipse(numbers, fill=1)
    else:
        left, top, right, bottom = numbers
        draw.rectangle((left, top, right - 1, bottom - 1), fill=1)
    return np.asarray(mask)


def _package_file(source: str) -> Path:
    package, name = source.split(":")
    module, folder = _PACKAGES[package]
    return Path(import_module(module).__file__).parent / folder / name
