"""The gallery: one static page over all figures of a folder, ``index.html``.

Scope: HTML from the manifests and CSV files that lie there. The page needs no script, no server and
no other host: it opens from disk, in light and dark, and can be copied with its folder. What others
wrote (prompts in tables, names) is escaped.
"""

from __future__ import annotations

import csv
import json
from html import escape
from itertools import islice
from pathlib import Path
from shlex import quote
from typing import Any

from nemo_kit.figures.jobs import read_manifest
from nemo_kit.figures.registry import FIGURES, NOTEBOOKS, Figure, Parameters, parameters
from nemo_kit.files import write_atomically

PAGE = "index.html"
ROWS = 12  # of a table that are shown; the rest is in its file
_STYLE = """
:root { color-scheme: light dark; --text: #1b1b1b; --soft: #5a5a5a; --page: #fafaf8;
  --card: #ffffff; --line: #d9d9d4; --link: #00527f; }
@media (prefers-color-scheme: dark) { :root { --text: #e8e8e4; --soft: #aaaaa4; --page: #17181a;
  --card: #202225; --line: #3a3c40; --link: #7cc4f0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem; max-width: 62rem; background: var(--page);
  color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
h1 { margin: 0 0 .3rem; font-size: 1.7rem; line-height: 1.2; }
h2 { margin: 2.5rem 0 .8rem; font-size: 1.25rem; }
h3 { margin: 0; font-size: 1.05rem; }
p { margin: .2rem 0; }
a { color: var(--link); }
a:focus-visible, summary:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
.soft { color: var(--soft); font-size: .9rem; }
nav { display: flex; flex-wrap: wrap; gap: .2rem .9rem; margin-top: 1rem; }
figure { margin: 0 0 1.5rem; padding: 1rem; background: var(--card); border-radius: .5rem;
  border: 1px solid var(--line); }
figure img { display: block; max-width: 100%; height: auto; margin: .8rem 0; padding: .5rem;
  background: #ffffff; border-radius: .3rem; }
.scroll { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: .5rem 0;
  font-size: .9rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
summary { cursor: pointer; font-size: .9rem; color: var(--soft); }
"""


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
    links = "".join(f'<a href="#{row.name}">{escape(row.paper or row.name)}</a>' for row in rows)
    sections = "".join(
        _section(out, name, found, [row for row in rows if row.notebook == name])
        for name, found in drawn.items()
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Figures: {escape(_models(drawn))}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<header>\n<h1>Figures: {escape(_models(drawn))}</h1>\n"
        f'<p class="soft">{escape(_about(rows))}</p>\n'
        f'<nav aria-label="Figures">{links}</nav>\n</header>\n<main>\n{sections}</main>\n'
        "</body>\n</html>\n"
    )


def _there(out: Path, row: Figure, drawn: dict[str, Any]) -> bool:
    return row.notebook in drawn and all((out / name).is_file() for name in row.files)


def _models(drawn: dict[str, Any]) -> str:
    names = [(found.get("model") or {}).get("name") for found in drawn.values()]
    return ", ".join(dict.fromkeys(Path(name).name if Path(name).is_absolute() else name
                                   for name in names if name)) or "none yet"  # fmt: skip


def _about(rows: list[Figure]) -> str:
    if not rows:
        return "No figure is here yet: nemo-kit figures draws them."
    paper = sum(bool(row.paper) for row in rows)
    return (
        f"{len(rows)} figures and tables, {paper} of them with a number in “Finding NeMo” "
        "(Hintersdorf et al., NeurIPS 2024). Below each: the data behind it, and what it was "
        "drawn from."
    )


def _section(out: Path, notebook: str, manifest: dict[str, Any], rows: list[Figure]) -> str:
    cards = "".join(_card(out, row, manifest) for row in rows)
    title = (NOTEBOOKS[notebook].parameters.__doc__ or notebook).splitlines()[0].rstrip(".")
    return f"<section>\n<h2>{escape(title)}</h2>\n{cards}{_provenance(manifest)}</section>\n"


def _card(out: Path, row: Figure, manifest: dict[str, Any]) -> str:
    title = f"{row.paper}: {row.shows}" if row.paper else row.shows[:1].upper() + row.shows[1:]
    shown = (
        f'<a href="{row.name}.png"><img src="{row.name}.png" alt="{escape(title)}" '
        'loading="lazy"></a>'
        if row.picture
        else _table(out / f"{row.name}.csv")
    )
    files = [name for name in manifest.get("files", {}).get(row.name, ()) if (out / name).is_file()]
    kinds = {".csv": "data as CSV", ".png": "PNG", ".pdf": "PDF", ".svg": "SVG"}
    links = " · ".join(
        f'<a href="{escape(name)}" download>{kinds[Path(name).suffix]}</a>'
        for name in files
        if Path(name).suffix in kinds
    )
    return (
        f'<figure id="{row.name}">\n<figcaption><h3>{escape(title)}</h3></figcaption>\n{shown}\n'
        f'<p class="soft">{links} · drawn by '
        f"<code>nemo-kit figures --only {row.name}{_options(row.notebook, manifest)}</code></p>\n"
        "</figure>\n"
    )


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
    return escape("".join(f" --{name} {quote(str(value))}" for name, value in options))


def _typed(value: Any) -> str:
    """A value as ``--set`` reads it: text as it is, unless that would be read as JSON."""
    try:
        json.loads(value)
    except (TypeError, ValueError):
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return json.dumps(value, ensure_ascii=False)


def _table(path: Path) -> str:
    """The first rows of a CSV as a table; prompts and names in it are text, never markup."""
    with path.open(encoding="utf-8", newline="") as file:
        lines = list(islice(csv.reader(file), ROWS + 2))
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in lines[0])
    body = "".join(f"<tr>{''.join(map(_cell, line))}</tr>\n" for line in lines[1 : ROWS + 1])
    more = '<p class="soft">More rows are in the file.</p>' if len(lines) > ROWS + 1 else ""
    return (
        f'<div class="scroll" tabindex="0"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}</tbody>\n</table></div>{more}"
    )


def _cell(text: str) -> str:
    try:
        number = float(text)
    except ValueError:
        return f"<td>{escape(text)}</td>"
    return f'<td class="number">{number:.4g}</td>'


def _provenance(manifest: dict[str, Any]) -> str:
    """Parameters, model, versions and commit of a notebook's figures, folded."""
    model = manifest.get("model") or {}
    facts = {
        "model": ", ".join(str(model[k]) for k in ("name", "revision") if model.get(k)),
        "computed on": ", ".join(str(model[k]) for k in ("device", "dtype") if model.get(k)),
        "preset": manifest.get("preset"),
        "parameters": _pairs(manifest.get("parameters", {})),
        "versions": _pairs(manifest.get("versions", {})),
        "commit": manifest.get("commit"),
        "finished": manifest.get("finished"),
        "seconds": manifest.get("seconds"),
    }
    rows = "".join(
        f"<dt>{name}</dt><dd>{escape(str(value))}</dd>\n" for name, value in facts.items() if value
    )
    return f"<details><summary>What these were drawn from</summary><dl>\n{rows}</dl></details>\n"


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{k} {'all' if v is None else v}" for k, v in values.items() if v != [])
