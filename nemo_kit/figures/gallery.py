"""The gallery: one static page over all figures of a folder, ``index.html``.

Scope: HTML from the manifests and CSV files that lie there, by the template ``gallery.html.j2``,
which escapes what others wrote (prompts in tables, names). The page needs no script, no server and
no other host: it opens from disk, in light and dark, and can be copied with its folder.
"""

from __future__ import annotations

import csv
import json
from itertools import islice
from pathlib import Path
from shlex import quote
from typing import Any

from jinja2 import Environment, FileSystemLoader

from nemo_kit.figures.jobs import read_manifest
from nemo_kit.figures.registry import FIGURES, NOTEBOOKS, Figure, Parameters, parameters
from nemo_kit.files import write_atomically

PAGE = "index.html"
ROWS = 12  # of a table that are shown; the rest is in its file
_KINDS = {".csv": "data as CSV", ".png": "PNG", ".pdf": "PDF", ".svg": "SVG"}
_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
)  # fmt: skip


def write(out: Path) -> Path:
    """Write the page over the figures that a folder holds.

    Returns its path, ``out/index.html``; left as it is where nothing changed. Without any figure it
    says so.
    """
    out = out.resolve()
    path = out / PAGE
    text = page(out)
    if not (path.is_file() and path.read_text(encoding="utf-8") == text):
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))
    return path


def page(out: Path) -> str:
    """The page as HTML: a section for each notebook that left a manifest, a card for a figure."""
    manifests = {name: read_manifest(out, name) for name in NOTEBOOKS}
    drawn = {name: found for name, found in manifests.items() if found}
    rows = [row for row in FIGURES if _there(out, row, drawn)]
    sections = [
        _section(out, name, found, [row for row in rows if row.notebook == name])
        for name, found in drawn.items()
    ]
    template = _TEMPLATES.get_template("gallery.html.j2")
    return template.render(models=_models(drawn), rows=rows, sections=sections)


def _there(out: Path, row: Figure, drawn: dict[str, Any]) -> bool:
    return row.notebook in drawn and all((out / name).is_file() for name in row.files)


def _models(drawn: dict[str, Any]) -> str:
    names = [(found.get("model") or {}).get("name") for found in drawn.values()]
    return ", ".join(dict.fromkeys(Path(name).name if Path(name).is_absolute() else name
                                   for name in names if name)) or "none yet"  # fmt: skip


def _section(out: Path, notebook: str, manifest: dict[str, Any], rows: list[Figure]) -> Any:
    title = (NOTEBOOKS[notebook].parameters.__doc__ or notebook).splitlines()[0].rstrip(".")
    cards = [_card(out, row, manifest) for row in rows]
    options = _options(notebook, manifest)
    return {"title": title, "cards": cards, "options": options, "facts": _facts(manifest)}


def _card(out: Path, row: Figure, manifest: dict[str, Any]) -> dict[str, Any]:
    shows = row.shows[:1].upper() + row.shows[1:]
    files = [Path(n) for n in manifest.get("files", {}).get(row.name, ()) if (out / n).is_file()]
    return {
        "name": row.name,
        "title": f"{row.paper}: {row.shows}" if row.paper else shows,
        "table": None if row.picture else _table(out / f"{row.name}.csv"),
        "files": [(p.name, _KINDS[p.suffix]) for p in files if p.suffix in _KINDS],
    }


def _options(notebook: str, manifest: dict[str, Any]) -> str:
    """What else the command needs to draw these very figures, where it is no default."""
    given = manifest.get("parameters", {})
    preset = manifest.get("preset") or "quick"
    model = (manifest.get("model") or {}).get("name") or "lab"
    options = [("preset", preset)] if preset != "quick" else []
    options += [("model", model)] if model != "lab" else []
    options += [(name, given[name]) for name in ("revision",) if given.get(name)]
    options += [("prompts", name) for name in given.get("prompt_files", ())]
    if given.get("training_images"):
        options.append(("training-images", given["training_images"]))
    usual = parameters(notebook, preset).model_dump(mode="json")
    own = [name for name in given if name in usual and name not in Parameters.model_fields]
    options += [("set", f"{n}={_typed(given[n])}") for n in own if given[n] != usual[n]]
    return "".join(f" --{name} {quote(str(value))}" for name, value in options)


def _typed(value: Any) -> str:
    """A value as ``--set`` reads it: text as it is, unless that would be read as JSON."""
    try:
        json.loads(value)
    except (TypeError, ValueError):
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return json.dumps(value, ensure_ascii=False)


def _table(path: Path) -> dict[str, Any]:
    """The first rows of a CSV, and whether there are more."""
    with path.open(encoding="utf-8", newline="") as file:
        head, *lines = islice(csv.reader(file), ROWS + 2)
    body = [[_cell(text) for text in line] for line in lines[:ROWS]]
    return {"head": head, "body": body, "more": len(lines) > ROWS}


def _cell(text: str) -> tuple[bool, str]:
    """Whether it is a number, and the text shown."""
    try:
        return True, f"{float(text):.4g}"
    except ValueError:
        return False, text


def _facts(manifest: dict[str, Any]) -> dict[str, Any]:
    """Parameters, model, versions and commit of a notebook's figures."""
    model = manifest.get("model") or {}
    return {
        "model": ", ".join(str(model[k]) for k in ("name", "revision") if model.get(k)),
        "computed on": ", ".join(str(model[k]) for k in ("device", "dtype") if model.get(k)),
        "parameters": _pairs(manifest.get("parameters", {})),
        "versions": _pairs(manifest.get("versions", {})),
        **{name: manifest.get(name) for name in ("preset", "commit", "finished", "seconds")},
    }


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{k} {'all' if v is None else v}" for k, v in values.items() if v != [])
