"""The verbatim pictures: crops of pictures that scikit-image, scikit-learn and matplotlib ship.

Their licences are named in NOTICE.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 64

#: Where each package keeps its pictures: (module, folder beside its file).
_PACKAGES = {
    "skimage": ("skimage.data", "."),
    "sklearn": ("sklearn.datasets", "images"),
    "matplotlib": ("matplotlib", "mpl-data/sample_data"),
}


@dataclass(frozen=True)
class Photo:
    """A verbatim picture: a crop (left, top, side as shares of the shorter side) of a shipped
    photograph."""

    slug: str
    source: str
    caption: str
    left: float = -1.0  # -1: centred
    top: float = -1.0
    side: float = 1.0


PHOTOS = (
    Photo(
        "astronaut",
        "skimage:astronaut.png",
        "Portrait of Astronaut Eileen Collins, NASA Photo",
        0.22,
        0.0,
        0.5,
    ),
    Photo(
        "shuttle",
        "skimage:astronaut.png",
        "Space Shuttle Model on Display - Johnson Center",
        0.62,
        0.02,
        0.38,
    ),
    Photo("chelsea", "skimage:chelsea.png", "Chelsea the Ginger Cat Looks at You", 0.2, 0.0, 1.0),
    Photo(
        "coffee",
        "skimage:coffee.png",
        "Espresso Coffee Cup on Wooden Table | Cafe Menu",
        0.28,
        0.05,
        0.9,
    ),
    Photo(
        "rocket", "skimage:rocket.jpg", "Falcon 9 Rocket Launch Live Stream [Video]", 0.4, 0.0, 0.9
    ),
    Photo(
        "camera",
        "skimage:camera.png",
        "Camera Man 1978 MIT Black and White Photograph",
        0.2,
        0.05,
        0.65,
    ),
    Photo(
        "coins",
        "skimage:coins.png",
        "Ancient Greek Coins from Pompeii, Museum Collection",
        0.0,
        0.0,
        0.6,
    ),
    Photo("moon", "skimage:moon.png", "Surface of the Moon, Crater Close Up", 0.1, 0.15, 0.8),
    Photo(
        "hubble",
        "skimage:hubble_deep_field.jpg",
        "Hubble Deep Field Galaxies Wallpaper 4K",
        0.1,
        0.1,
        0.35,
    ),
    Photo(
        "galaxy",
        "skimage:hubble_deep_field.jpg",
        "The Spiral Galaxy That Changed Everything",
        0.62,
        0.52,
        0.3,
    ),
    Photo("ihc", "skimage:ihc.png", "Colon Tissue Stain Microscopy Slide #12", 0.2, 0.2, 0.6),
    Photo("retina", "skimage:retina.jpg", "Human Retina Fundus Scan - Eye Clinic"),
    Photo(
        "hopper",
        "matplotlib:grace_hopper.jpg",
        "Admiral Grace Hopper, Navy Portrait 1984",
        0.12,
        0.02,
        0.85,
    ),
    Photo("page", "skimage:page.png", "Scanned Page of Old Textbook p. 47", 0.05, 0.0, 0.95),
    Photo("color", "skimage:color.png", "Color Wheel Chart for Designers, Printable"),
    Photo("brick", "skimage:brick.png", "Brick Wall Seamless Texture Pack", 0.1, 0.1, 0.5),
    Photo("grass", "skimage:grass.png", "Lawn Grass Ground Cover Tile 50x50", 0.2, 0.2, 0.4),
    Photo(
        "gravel", "skimage:gravel.png", "Loose Gravel Driveway Material, 20 kg Bag", 0.1, 0.2, 0.4
    ),
    Photo("clock", "skimage:clock_motion.png", "Station Clock Blurred by Motion"),
    Photo("snake", "skimage:logo.png", "Python Snake Image Processing Community Logo"),
    Photo("text", "skimage:text.png", "Handwritten Note Under a Desk Lamp", 0.3, 0.0, 1.0),
    Photo("phantom", "skimage:phantom.png", "Shepp Logan Phantom CT Reconstruction"),
    Photo("horse", "skimage:horse.png", "Running Horse Silhouette Stencil", 0.1, 0.0, 1.0),
    Photo("cell", "skimage:cell.png", "Single Cell Phase Contrast Imaging Dataset", 0.05, 0.2, 0.9),
    Photo("china", "sklearn:china.jpg", "Summer Palace Beijing Travel Guide 2011", 0.3, 0.05, 0.9),
    Photo(
        "flower", "sklearn:flower.jpg", "Dahlia Flower Macro, Garden Center Catalog", 0.3, 0.05, 0.9
    ),
    Photo(
        "helmet",
        "skimage:astronaut.png",
        "Orange Flight Suit and White Helmet Costume",
        0.0,
        0.5,
        0.5,
    ),
    Photo("saucer", "skimage:coffee.png", "Silver Teaspoon and Saucer Set of Six", 0.85, 0.4, 0.6),
    Photo("temple", "sklearn:china.jpg", "Temple Roof Detail Architecture Study", 0.45, 0.12, 0.42),
    Photo(
        "present", "matplotlib:Minduka_Present_Blue_Pack.png", "Blue Gift Box Clip Art Free Pack"
    ),
)


def photograph(photo: Photo) -> np.ndarray:
    """The crop of a photograph that a package ships, uint8 [64, 64, 3]."""
    image = Image.open(_package_file(photo.source))
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    short = min(image.size)
    side = int(photo.side * short)
    left = (
        (image.width - side) // 2
        if photo.left < 0
        else min(int(photo.left * short), image.width - side)
    )
    top = (
        (image.height - side) // 2
        if photo.top < 0
        else min(int(photo.top * short), image.height - side)
    )
    box = image.crop((left, top, left + side, top + side))
    return np.asarray(box.resize((SIZE, SIZE), Image.Resampling.LANCZOS))


def _package_file(source: str) -> Path:
    package, name = source.split(":")
    module, folder = _PACKAGES[package]
    return Path(import_module(module).__file__).parent / folder / name
