"""What a notebook calls to write: one figure with its data, and the manifest at its end.

Scope: files, each there in full or not at all, and without dates: equal figures are equal files.
The manifest is the last one; without it the runner counts the notebook as failed.
"""

import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_kit.files import write_atomically, write_json, write_table
from nemo_kit.notebooks import PLACES, place, read
from nemo_kit.progress import followed
from nemo_kit.provenance import describe_model, git_commit, versions

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure as Drawing

DPI = 200
LARGE = 500_000  # bytes: a PNG above it is kept with 256 colours
_DATES = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
_started = time.monotonic()
_written: dict[Path, dict[str, list[str]]] = {}  # folder → figure → files, in this process


def save(
    fig: "Drawing | None",
    frame: "pd.DataFrame",
    name: str,
    out: str | Path,
    shows: str = "",
    parquet: bool = False,
) -> list[Path]:
    """Write a figure as ``out/name.png`` at 200 dpi and the data behind it as ``out/name.csv``.

    Returns the paths written. ``fig=None`` writes a table, the CSV alone; ``shows`` says in a line
    what is seen, for ``nemo-kit figures --list`` and the gallery, which read it from the notebook;
    ``parquet`` writes the data so as well, for results that others go on with.
    Raises ValueError for a name with other characters than letters, digits, ``.``, ``_``, ``-``.
    """
    folder = _folder(out, name)
    paths = [folder / f"{name}.{kind}" for kind in ("png", *followed.also) if fig is not None]
    for path in paths:
        write_atomically(path, lambda part, kind=path.suffix[1:]: _draw(fig, part, kind))
    tables = [folder / f"{name}.{kind}" for kind in ("csv", "parquet")[: 1 + parquet]]
    for path in tables:
        write_table(path, frame)
    paths += tables
    _written.setdefault(folder, {})[name] = [path.name for path in paths]
    return paths


def write_manifest(
    out: str | Path, notebook: str, values: Mapping[str, Any], model: Any = None
) -> Path:
    """Write ``out/NOTEBOOK.manifest.json``, the last thing a notebook does.

    Returns its path. ``values`` may be ``globals()``: what the notebook's parameters cell names is
    picked. ``model`` is what ``load`` returned. Raises ValueError for a name as ``save`` does.
    """
    folder, source = _folder(out, notebook), place(f"{notebook}.ipynb")
    names = set(read(source).kinds) - PLACES if source.is_file() else ()
    content = {
        "notebook": notebook,
        "parameters": {name: values[name] for name in values if name in names},
        "model": describe_model(model),
        "versions": versions(),
        "commit": git_commit(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - _started, 1),
        "files": _written.get(folder, {}),
    }
    return write_json(folder / f"{notebook}.manifest.json", content)


def _draw(fig: "Drawing", part: Path, kind: str) -> None:
    """Save without dates and with names drawn from the content: equal figures, equal bytes."""
    import matplotlib as mpl
    from PIL import Image

    with mpl.rc_context({"svg.hashsalt": "nemo_kit", "pdf.fonttype": 42}):
        fig.savefig(part, format=kind, dpi=DPI, bbox_inches="tight", metadata=_DATES[kind])
    if kind == "png" and part.stat().st_size > LARGE:  # photographs: a third of the size, dithered
        with Image.open(part) as image:
            few = image.convert("RGB").quantize(256)
        few.save(part, format="PNG", dpi=(DPI, DPI), optimize=True)


def _folder(out: str | Path, name: str) -> Path:
    """The folder, made, for a name that can't leave it."""
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name):
        raise ValueError(f"name must consist of letters, digits, '.', '_' and '-', got {name!r}")
    folder = place(out)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
