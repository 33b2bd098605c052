"""Files that are there in full or not at all, and their fingerprints.

Scope: writing by temporary file, fsync and rename; CSV cells that no spreadsheet runs; SHA-256 of
files and folders. Nothing here knows what is written.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from nemo_kit.keys import value_digest

if TYPE_CHECKING:
    import pandas as pd

_FORMULA = tuple("=+-@\t\r")  # a cell that begins with one is run by spreadsheets
PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}  # endings of files that hold one
GUARDED = "guarded_by_nemo_kit"  # column of tables in which a cell had to be kept from that


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it; no half file stays.

    Raises what ``write`` raises (OSError on a full disk); ``path`` is then as it was before.
    """
    write_together({path: write})


def write_together(writers: Mapping[Path, Callable[[Path], Any] | None]) -> None:
    """Let each function fill a temporary file beside its path; rename them once all are written.

    A path with None in a function's place is removed. The last path stands for all of them: where
    there are several, it is gone while the others change, so that a kill leaves none that lies.
    Raises what one of them raises (OSError on a full disk); all paths are then as they were.
    """
    given = {path: write for path, write in writers.items() if write}
    parts = {path: path.with_name(f".{path.name}.{token_hex(6)}.tmp") for path in given}
    *others, last = writers
    try:
        for path, part in parts.items():
            part.touch()
            mode = part.stat().st_mode
            given[path](part)
            part.chmod(mode)  # as the umask says: safetensors makes its files private
            with part.open("rb+") as file:
                os.fsync(file.fileno())
        for path in [last, *others] if others else []:
            if path is last or path not in parts:
                path.unlink(missing_ok=True)
        for path, part in parts.items():
            os.replace(part, path)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> Path:
    """Write JSON by temporary file, fsync and rename; returns the path."""
    write_atomically(path, json_writer(content))
    return path


def json_writer(content: Any) -> Callable[[Path], Any]:
    """A function that writes this content to a path as JSON."""
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    return lambda part: part.write_text(text, encoding="utf-8")


def write_table(path: Path, frame: pd.DataFrame, separator: str = ",") -> None:
    """Write a frame as parquet or, `spreadsheet_safe`, as CSV, by the path's ending.

    A list in a cell, which a store gives back as an array, is JSON in a CSV.
    """

    def text(cell: Any) -> Any:
        listed = isinstance(cell, list) or getattr(cell, "ndim", 0)
        return json.dumps(cell, default=lambda array: array.tolist()) if listed else cell

    def write(part: Path) -> None:
        if path.suffix == ".parquet":
            frame.to_parquet(part, index=False)
        else:
            spreadsheet_safe(frame.map(text)).to_csv(part, sep=separator, index=False)

    write_atomically(path, write)


def spreadsheet_safe(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with an apostrophe before text that a spreadsheet would take for a formula.

    Where there is such text, the frame gets a column `GUARDED` that says "yes" in its rows: what
    tells this apostrophe from one of the text's own. Text that is a formula behind apostrophes
    gets one more, so that `without_guard` is exact.
    """
    safe = frame.map(lambda cell: f"'{cell}" if isinstance(cell, str) and _risky(cell) else cell)
    rows = frame.map(lambda cell: isinstance(cell, str) and _risky(cell)).any(axis=1)
    return safe.assign(**{GUARDED: rows.map({True: "yes", False: ""})}) if rows.any() else frame


def without_guard(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame of text that `spreadsheet_safe` made, as it was before; any other as it is."""
    if GUARDED not in frame:
        return frame
    cells, guarded = frame.drop(columns=GUARDED), frame[GUARDED] == "yes"
    bare = cells.map(lambda cell: cell[1:] if cell[:1] == "'" and _risky(cell) else cell)
    return cells.where(~guarded, bare, axis=0)


def _risky(cell: str) -> bool:
    """Whether it is a formula, or one behind apostrophes: so that each guard comes off again."""
    return cell.lstrip("'")[:1] in _FORMULA


def open_picture(path: Path, parameter: str) -> Any:
    """A file as a Pillow image in RGB; ValueError that names the parameter where it is none."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        raise ValueError(f"{parameter}: {path} is no picture: {error}") from error


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(folder: Path, suffixes: Iterable[str] = ()) -> str:
    """SHA-256 over the files of a folder by relative path and bytes; of these suffixes only."""
    kinds = set(suffixes)
    files = [p for p in folder.rglob("*") if p.is_file() and (not kinds or p.suffix in kinds)]
    return value_digest([[p.relative_to(folder).as_posix(), file_digest(p)] for p in sorted(files)])


def named_path(value: Any, folder: Path | None = None) -> Path | None:
    """The file or folder that a text names, as "sscd.pt" or "pictures/"; None for other values."""
    if not isinstance(value, str) or not (os.sep in value or Path(value).suffix):
        return None
    path = (folder or Path.cwd()) / value
    return path if path.exists() else None


def by_content(value: Any, folder: Path) -> Any:
    """The value, with a digest in place of each text that names a file or folder."""
    if isinstance(value, list):
        return [by_content(one, folder) for one in value]
    path = named_path(value, folder)
    return value if not path else folder_digest(path) if path.is_dir() else file_digest(path)
