"""What a notebook calls to write: one figure with its data, and the manifest at its end.

Scope: files only. A figure is a PNG at 200 dpi and the tidy frame behind it as CSV, both written
to a temporary file and renamed, so that a figure is there in full or not at all. On request (the
environment variable ``NEMO_KIT_ALSO``) it is a PDF or SVG too; neither holds a date, so that equal
figures are equal files. The manifest is the last file a notebook writes; without it the runner
counts the run as failed.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_kit.figures.registry import NOTEBOOKS
from nemo_kit.files import spreadsheet_safe, write_atomically, write_json
from nemo_kit.keys import PACKAGE

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure as MatplotlibFigure

DPI = 200
LARGE = 500_000  # bytes: a PNG above it is kept with 256 colours
ALSO = "NEMO_KIT_ALSO"  # environment variable: further formats, as "pdf" or "pdf,svg"
_DATES = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
PLACES = {"out", "store", "device"}  # where and on what it ran: no part of what was computed
_LIBRARIES = ("numpy", "pandas", "torch", "diffusers", "transformers", "torchmetrics")
_DRAWING = ("matplotlib", "seaborn")
_started = time.monotonic()
_written: dict[Path, dict[str, list[str]]] = {}  # folder → figure → files, in this process


def save(
    fig: MatplotlibFigure | None, frame: pd.DataFrame, name: str, out: str | Path, shows: str = ""
) -> list[Path]:
    """Write a figure as ``out/name.png`` at 200 dpi and the data behind it as ``out/name.csv``.

    Returns the paths written. ``fig=None`` writes a table, the CSV alone.
    Raises ValueError for a name with other characters than letters, digits, ``.``, ``_``, ``-``.
    """
    folder = _folder(out)
    paths = [_target(folder, name, ".csv")]
    write_atomically(paths[0], lambda part: spreadsheet_safe(frame).to_csv(part, index=False))
    if fig is not None:
        pictures = [_target(folder, name, f".{kind}") for kind in _formats()]
        for path in pictures:
            write_atomically(path, lambda part, kind=path.suffix[1:]: _draw(fig, part, kind))
        paths = [*pictures, *paths]
    _written.setdefault(folder, {})[name] = [path.name for path in paths]
    return paths


def write_manifest(
    out: str | Path, notebook: str, parameters: Mapping[str, Any], model: Any = None
) -> Path:
    """Write ``out/NOTEBOOK.manifest.json``, the last thing a notebook does.

    Returns its path. ``parameters`` may be ``globals()``: what the notebook's parameters cell names
    is picked and validated. ``model`` is what ``load`` returned. Raises ValueError for an unknown
    notebook or parameters that it does not accept.
    """
    if notebook not in NOTEBOOKS:
        raise ValueError(f"notebook must be one of {', '.join(NOTEBOOKS)}, got {notebook!r}")
    fields = NOTEBOOKS[notebook].parameters.model_fields
    given = {name: parameters[name] for name in fields if name in parameters}
    checked = NOTEBOOKS[notebook].parameters(**given)
    folder = _folder(out)
    content = {
        "notebook": notebook,
        "parameters": checked.model_dump(mode="json", exclude=PLACES),
        "model": describe_model(model),
        "versions": versions(),
        "commit": git_commit(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - _started, 1),
        "files": dict(_written.get(folder, {})),
    }
    return write_json(manifest_path(folder, notebook), content)


def manifest_path(out: Path, notebook: str) -> Path:
    """Where the manifest of a notebook lies in an output folder."""
    return out / f"{notebook}.manifest.json"


def describe_model(model: Any) -> dict[str, str | None] | None:
    """Name, revision, device and dtype of a loaded model as JSON; None for None."""
    if model is None:
        return None
    device = str(model.device)
    described = {"name": str(model.name), "revision": model.revision and str(model.revision)}
    return {**described, "device": _device_name(device), "dtype": str(model.dtype)}


def versions() -> dict[str, str]:
    """Versions of nemo_kit, Python and the libraries that results depend on."""
    found = {"python": platform.python_version()}
    for name in ("nemo_kit", *_LIBRARIES, *_DRAWING):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """Commit of the clone the package lies in, ``+changes`` where the tree differs; else None."""
    root = PACKAGE.parent
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", "nemo_kit")
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+changes" if changed else "")


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=20
    )
    return done.stdout.strip()


def _device_name(device: str) -> str:
    if not device.startswith("cuda"):
        return f"{device} ({platform.machine()}, {os.cpu_count()} cores)"
    import torch

    return f"{device} ({torch.cuda.get_device_name(torch.device(device))})"


def _formats() -> list[str]:
    more = [kind for kind in os.environ.get(ALSO, "").split(",") if kind]
    if unknown := sorted(set(more) - set(_DATES)):
        raise ValueError(f"{ALSO} must hold pdf, svg or both, got {unknown[0]!r}")
    return list(dict.fromkeys(["png", *more]))


def _draw(fig: MatplotlibFigure, part: Path, kind: str) -> None:
    """Save without dates and with names drawn from the content: equal figures, equal bytes."""
    import matplotlib as mpl

    with mpl.rc_context({"svg.hashsalt": "nemo_kit", "pdf.fonttype": 42}):
        fig.savefig(part, format=kind, dpi=DPI, bbox_inches="tight", metadata=_DATES[kind])
    if kind == "png" and part.stat().st_size > LARGE:
        _with_palette(part)


def _with_palette(part: Path) -> None:
    """The same PNG with 256 colours, dithered: a page of photographs at a third of its size."""
    from PIL import Image

    with Image.open(part) as image:
        few = image.convert("RGB").quantize(256)
        few.save(part, format="PNG", dpi=(DPI, DPI), optimize=True)


def _folder(out: str | Path) -> Path:
    folder = Path(out).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _target(folder: Path, name: str, suffix: str) -> Path:
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name):
        raise ValueError(f"name must consist of letters, digits, '.', '_' and '-', got {name!r}")
    return folder / f"{name}{suffix}"
