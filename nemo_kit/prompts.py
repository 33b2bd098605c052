"""Prompt files: the lists of the field as they are, and those that people write.

Scope: which columns are meant, by whatever name; the labels that lists use; what a duplicate is.
How a file is read is `tables`' part. Nothing is fetched from a URL.
Source: the prompt lists of "Finding NeMo" (arXiv 2406.02366), of Wen et al. (ICLR 2024) and of
Webster (arXiv 2305.08694), whose labels are MV, RV, TV and N.
"""

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from nemo_kit import lab
from nemo_kit.tables import read_csv, read_json, read_parquet, read_text

# column -> what files call it, in any case; the first of these that is there
_NAMES = {
    "prompt": ("prompt", "caption", "text"),
    "type": ("type", "overfit_type"),
    "role": ("role",),
    "family": ("family",),
    "image": ("image", "index"),
    "repetitions": ("repetitions",),
    "url": ("url",),
}
_TYPES = {
    "VM": ("vm", "mv", "rv", "verbatim", "verbatim memorization", "verbatim memorized",
           "matching verbatim", "memorized verbatim", "retrieved verbatim", "retrieval verbatim"),
    "TM": ("tm", "tv", "template", "template memorization", "template memorized",
           "template verbatim"),
    "": ("", "n", "none", "normal", "non memorized", "not memorized", "nonmemorized",
         "unmemorized"),
}  # fmt: skip
_TYPE_OF = {label: kind for kind, labels in _TYPES.items() for label in labels}
_ROLE_OF_TYPE = {"VM": "verbatim", "TM": "template", "": "non_memorized"}
_ROLES = {label: _ROLE_OF_TYPE[kind] for label, kind in _TYPE_OF.items() if label}
_ROLES |= {"holdout": "holdout", "hold out": "holdout", "ladder": "ladder"}
_TYPE_OF_ROLE = {role: kind for kind, role in _ROLE_OF_TYPE.items()} | {"holdout": ""}


def prompt_table(files: Sequence[str | Path] = (), model: str = "lab") -> pd.DataFrame:
    """Prompts to work on: those of the files given, or an embedded model's own.

    Returns the columns of ``lab.prompts()``: prompt, type ("VM", "TM", ""), role, family, image,
    repetitions; each prompt once, at its first place. Of rows with one prompt the first that has a
    type counts; a warning says how many were left out, and how many differed in their type.
    Parameters: `files`: CSV (separated by commas, semicolons or tabs), TSV, JSON, JSON lines or
    parquet with a column prompt (or caption, text) and any of type (or overfit_type), role, family,
    image (or index), repetitions; or text with one prompt a line; `model`, whose prompts are taken
    where there are no files: lab's for one that is not embedded.
    Raises ValueError that names the file, and the row (from 0) where one is to blame: a prompt that
    is empty or no text, an unknown type or role, a file that can't be read or holds no prompt;
    FileNotFoundError for a missing one.
    """
    if not files:
        return lab.prompts(model=model if model in lab.TABLES else "lab")
    rows = prompt_rows(files).drop(columns="url")
    labelled = rows.sort_values("type", key=lambda kinds: kinds == "", kind="stable")
    once = labelled.drop_duplicates("prompt").set_index("prompt").loc[rows["prompt"].unique()]
    if len(once) < len(rows):
        kinds = rows[rows["type"] != ""].groupby("prompt")["type"].nunique()
        told = f"{len(rows) - len(once)} of {len(rows)} rows repeat a prompt, {len(once)} are kept"
        if differ := int((kinds > 1).sum()):
            told += f"; {differ} prompts have two types, the first of them counts"
        warnings.warn(told, stacklevel=2)
    return once.reset_index()


def prompt_rows(files: Sequence[str | Path]) -> pd.DataFrame:
    """Every row of the files, as `prompt_table` reads them, with its `url` ("" where it has none).

    Returns the columns of `prompt_table` and url, prompts as often as they are in the files: what
    a released result CSV has a row for.
    Raises ValueError or FileNotFoundError as `prompt_table`.
    """
    return pd.concat([_read(Path(name)) for name in files], ignore_index=True)


def _read(path: Path) -> pd.DataFrame:
    columns = _columns(path)
    if not columns or not len(next(iter(columns.values()))):
        raise ValueError(f"{path} holds no prompt")
    return _checked(path, _named(path, columns))


def _columns(path: Path) -> dict[str, list[Any]]:
    """What a file holds, by name of the column."""
    match path.suffix.lower():
        case ".csv" | ".tsv" as ending:
            frame = read_csv(path, "\t" if ending == ".tsv" else ",;\t")
            return {name: list(frame[name]) for name in frame if name}  # an index has no name
        case ".json" | ".jsonl":  # objects with a column each, or prompts alone
            rows = [row if isinstance(row, dict) else {"prompt": row} for row in read_json(path)]
            names = dict.fromkeys(name for row in rows for name in row)
            return {name: [row.get(name) for row in rows] for name in names}
        case ".parquet":
            return read_parquet(path)
        case ".txt":
            lines = read_text(path).replace("\r\n", "\n").split("\n")
            return {"prompt": [line.strip(" \t") for line in lines if line.strip()]}
    raise ValueError(
        f"a prompt file must end in .csv, .tsv, .json, .jsonl, .parquet, .txt; got {path}"
    )


def _named(path: Path, columns: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """The columns that are meant, by their name here."""
    found = {}
    for name, others in _NAMES.items():
        for other in others:
            same = [one for one in columns if one.strip().casefold() == other]
            if len(same) > 1:
                raise ValueError(f"{path} has the column {other!r} more than once: {same}")
            if same:
                found[name] = columns[same[0]]
                break
    if "prompt" not in found:
        raise ValueError(
            f"{path} needs a column 'prompt' (or 'caption', 'text'), got {list(columns)}"
        )
    return found


def _checked(path: Path, columns: Mapping[str, list[Any]]) -> pd.DataFrame:
    """The rows of `prompt_rows`; what a file leaves out follows from what it has."""
    size = len(columns["prompt"])
    cells: dict[str, list[Any]] = {}
    for name in _NAMES:
        read, cells[name] = _CELLS.get(name, _text), []
        for row, value in enumerate(columns.get(name, [None] * size)):
            try:
                cells[name].append(read(value))
            except ValueError as error:
                raise ValueError(f"{path}: the {name} of row {row} {error}") from error
    for row, (kind, role) in enumerate(zip(cells["type"], cells["role"], strict=True)):
        role = cells["role"][row] = role or _ROLE_OF_TYPE[kind]
        kind = cells["type"][row] = kind or _TYPE_OF_ROLE.get(role, "")
        if kind != _TYPE_OF_ROLE.get(role, kind):
            raise ValueError(f"{path}: the role of row {row} is {role}, its type {kind}: not both")
    return pd.DataFrame(cells)


def _text(value: Any) -> str:
    """A cell as text: "" for a null and for what is neither text nor number, as a picture is."""
    if isinstance(value, float):  # a whole number in a column with nulls
        return str(int(value)) if value.is_integer() else "" if value != value else str(value)
    return str(value) if isinstance(value, (str, int)) else ""


def _prompt(value: Any) -> str:
    if value is None or not str(value).strip():
        raise ValueError("is empty")
    if not isinstance(value, str):
        raise ValueError(f"must be text, got {value!r:.80} ({type(value).__name__})")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # half an emoji, which JSON can write
        raise ValueError(f"is no text: {error}") from error
    return value


def _label(value: Any, known: Mapping[str, str], allowed: str) -> str:
    label = "" if value is None else re.sub(r"[\s_-]+", " ", str(value)).strip().casefold()
    if label not in known:
        raise ValueError(f"must be {allowed}; got {value!r:.80}")
    return known[label]


def _count(value: Any) -> int:
    text = _text(value).strip()
    if not re.fullmatch(r"(\d+(\.0*)?)?", text, re.ASCII):
        raise ValueError(f"must be a whole number from 0, got {value!r:.80}")
    return int(text.split(".")[0] or 0)


_CELLS = {
    "prompt": _prompt,
    "type": lambda cell: _label(
        cell, _TYPE_OF, "VM, TM or empty (MV and RV count as VM, TV as TM, N as empty)"
    ),
    "role": lambda cell: _label(
        cell, _ROLES | {"": ""}, "verbatim, template, non_memorized, holdout, ladder or empty"
    ),
    "repetitions": _count,
}
