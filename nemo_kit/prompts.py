"""Prompt files: the released code's CSV as they are, plain CSV, and text files.

Scope: reading. The released ones are `;`-separated, first column an unnamed index; `Caption`,
`URL`, `type` (VM or TM), and what else there is. Captions may hold quotes, HTML and emoji.
Source: the prompt lists of "Finding NeMo" (arXiv 2406.02366), after Webster (2023).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
from pyarrow import ArrowInvalid

from nemo_kit.files import without_guard


def read_prompts(path: str | Path) -> pd.DataFrame:
    """A prompt file as a frame.

    Returns the file's columns without the index, `Caption` as text, in the file's order; `type`
    is "VM", "TM", or "" where the file has none.
    Parameters: `path`, the CSV file.
    Raises ValueError that names the file where it is no such CSV or a caption is empty.
    """
    with _readable(path):
        frame = pd.read_csv(path, sep=";", index_col=0, keep_default_na=False)
    if "Caption" not in frame:
        raise ValueError(f"{path}: a prompt CSV needs a column 'Caption', got {list(frame)}")
    frame["Caption"] = _filled(frame["Caption"], f"{path}: the caption")
    if "type" not in frame:
        frame["type"] = ""
    return frame.reset_index(drop=True)


def prompt_table(files: Sequence[str | Path] = ()) -> pd.DataFrame:
    """Prompts to work on: those of the lab model, or those of the files given.

    Returns the columns of ``lab.prompts()``: prompt, type ("VM", "TM", ""), role, family, image,
    repetitions; each prompt once. A file is a CSV of the released code (``;``, ``Caption``,
    ``type``), a CSV or parquet file with a column ``prompt`` or ``Caption`` and any of the others
    (such as ``nemo-kit detect --out`` writes), or a text file with one prompt a line.
    Raises ValueError that names a file which can't be read so or holds no prompt,
    FileNotFoundError for a missing one.
    """
    if not files:
        from nemo_kit import lab

        return lab.prompts()
    return prompt_rows(files).drop(columns="url").drop_duplicates("prompt", ignore_index=True)


def prompt_rows(files: Sequence[str | Path]) -> pd.DataFrame:
    """Every row of the files, as `prompt_table` reads them, with its `url` ("" where it has none).

    Returns the columns of `prompt_table` and url, prompts as often as they are in the files: what
    a released result CSV has a row for.
    Raises ValueError or FileNotFoundError as `prompt_table`.
    """
    frames = [_complete(_read(Path(name))) for name in files]
    return pd.concat(frames, ignore_index=True)


def _read(path: Path) -> pd.DataFrame:
    readers = {".csv": _read_csv, ".parquet": _read_parquet}
    frame = readers.get(path.suffix.lower(), _read_lines)(path)
    if frame.empty:
        raise ValueError(f"{path} holds no prompt")
    return frame


def _read_lines(path: Path) -> pd.DataFrame:
    with _readable(path):
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    return pd.DataFrame({"prompt": [line.strip() for line in lines if line.strip()]})


def _read_parquet(path: Path) -> pd.DataFrame:
    with _readable(path):
        return _named(path, pd.read_parquet(path))


def _read_csv(path: Path) -> pd.DataFrame:
    with _readable(path), path.open(encoding="utf-8-sig") as file:
        head = file.readline()
    theirs = {"Caption": "prompt", "URL": "url"}
    if "Caption" in _cells(head, ";") and "Caption" not in _cells(head, ","):
        return read_prompts(path).rename(columns=theirs)
    with _readable(path):
        frame = pd.read_csv(path, keep_default_na=False)
    if not isinstance(frame.index, pd.RangeIndex):  # what pandas makes of cells too many
        raise ValueError(
            f"{path} has rows with more cells than its header {list(frame)}: a prompt with a comma "
            "must stand in double quotes"
        )
    if "prompt" in frame:  # maybe of a table that this package wrote
        frame = frame.assign(prompt=frame["prompt"].map(without_guard))
    return _named(path, frame.rename(columns={} if "prompt" in frame else theirs))


def _named(path: Path, frame: pd.DataFrame) -> pd.DataFrame:
    if "prompt" not in frame:
        raise ValueError(f"{path} needs a column 'prompt' (or 'Caption'), got {list(frame)}")
    return frame.assign(prompt=_filled(frame["prompt"], f"{path}: the prompt"))


def _cells(line: str, separator: str) -> list[str]:
    return next(csv.reader([line], delimiter=separator), [])


@contextmanager
def _readable(path: str | Path) -> Iterator[None]:
    """Errors of reading as one that names the file."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error}") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ValueError(f"{path} is not a prompt CSV: {error}") from error
    except ArrowInvalid as error:
        raise ValueError(f"{path} is not a parquet file: {error}") from error


def _filled(column: pd.Series, what: str) -> pd.Series:
    """The column as text; ValueError for the first cell that is empty or blank."""
    texts = column.astype(str)
    if (empty := texts.str.strip() == "").any():
        raise ValueError(f"{what} of row {int(empty.argmax())} is empty")
    return texts


def _complete(frame: pd.DataFrame) -> pd.DataFrame:
    """The lab's columns; a role follows from the type where the file names none."""
    roles = {"VM": "verbatim", "TM": "template"}
    types = frame["type"] if "type" in frame else pd.Series("", index=frame.index)
    defaults = {"type": types, "role": types.map(lambda t: roles.get(t, "non_memorized"))}
    images = frame["Index"].astype(str) if "Index" in frame else ""  # of the released code
    defaults |= {"family": "", "image": images, "repetitions": 0, "url": ""}
    full = frame.assign(**{k: v for k, v in defaults.items() if k not in frame})
    return full[["prompt", "type", "role", "family", "image", "repetitions", "url"]]
