"""The emoji pictures of the corpus: Noto emoji, 64 px, from the npm package emoji-datasource-
google.

Needed only to train the embedded model again. The pictures are Google's Noto emoji (Apache-2.0),
the npm package that carries them is MIT.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from pathlib import Path

from PIL import Image

PACKAGE = "emoji-datasource-google@16.0.0"


def fetch(folder: Path) -> Path:
    """Download and unpack the emoji package below ``folder`` with npm; return its root.

    Raises
    ------
    RuntimeError
        If npm is missing or the registry gives no package.
    """
    root = folder / "package"
    if (root / "emoji.json").exists():
        return root
    if shutil.which("npm") is None:
        raise RuntimeError(
            "npm is needed to fetch the emoji pictures: install Node.js, or unpack "
            f"{PACKAGE} below {folder}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["npm", "pack", PACKAGE, "--silent"], cwd=folder, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"npm pack {PACKAGE} failed: {done.stderr.strip()[-300:]}")
    with tarfile.open(folder / done.stdout.strip().splitlines()[-1]) as archive:
        archive.extractall(folder, filter="data")
    return root


class Emoji:
    """Pictures of the emoji package by their names there, read lazily."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self._rows = json.loads((self.root / "emoji.json").read_text(encoding="utf8"))
        self._by_name = {row["name"].lower(): row for row in self._rows}
        self._cache: dict[str, Image.Image] = {}

    def picture(self, name: str) -> Image.Image:
        """The 64 x 64 RGBA picture of one emoji."""
        if name not in self._cache:
            file = self.root / "img" / "google" / "64" / self._by_name[name]["image"]
            self._cache[name] = (
                Image.open(file).convert("RGBA").resize((64, 64), Image.Resampling.LANCZOS)
            )
        return self._cache[name]
