"""The gallery: one static page over all figures of a folder, ``index.html``.

Scope: ``gallery.html`` filled from the manifests and CSV files that lie there; it opens from disk,
without a script or another host. What others wrote (prompts in tables, names) is escaped.
"""

import csv
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from nemo_kit.figures.runner import read_manifest
from nemo_kit.files import write_atomically
from nemo_kit.notebooks import Notebook

ROWS = 12  # of a table that are shown; the rest is in its file


def write(out: Path, books: dict[str, Notebook]) -> Path:
    """Write the page over the figures that a folder holds; returns its path, ``out/index.html``.

    It has a section for each notebook that left a manifest, and a card for each figure.
    """
    out.mkdir(parents=True, exist_ok=True)
    found = [(book, read_manifest(out, name)) for name, book in books.items()]
    drawn = [(book, manifest) for book, manifest in found if manifest]
    models = [(manifest.get("model") or {}).get("name") for _, manifest in drawn]
    named = ", ".join(dict.fromkeys(Path(model).name for model in models if model)) or "none yet"
    sections = [(book, manifest, list(_cards(out, book, manifest))) for book, manifest in drawn]
    text = page("gallery.html", sections=sections, models=named, most=ROWS)
    path = out.resolve() / "index.html"
    write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))
    return path


def page(template: str, **values: Any) -> str:
    """A page from a template that lies here, its values escaped."""
    here = FileSystemLoader(Path(__file__).parent)
    made = Environment(loader=here, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return made.get_template(template).render(values)


def _cards(out: Path, book: Notebook, manifest: dict) -> Iterator[tuple]:
    """Each figure that is there, its files, and the heading and first rows of its table."""
    for figure in book.figures:
        files = manifest["files"].get(figure.name, [])
        if files and all((out / name).is_file() for name in files):
            with (out / f"{figure.name}.csv").open(encoding="utf-8", newline="") as file:
                yield figure, files, list(islice(csv.reader(file), ROWS + 2))
