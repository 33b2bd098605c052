"""Neuron sets in files: the released code's result CSV, and whatever else holds them.

Scope: `write_released` and `read_released`, a sweep of `localize` as that CSV and back, one row a
row of the prompt files; `read_neurons`, one function for the command line and notebooks.
Source: the result CSV is that of the authors' released code of "Finding NeMo" (arXiv 2406.02366).
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nemo_kit.files import spreadsheet_safe, write_atomically
from nemo_kit.neurons import NeuronSet
from nemo_kit.tables import read_csv, read_json

_RELEASED = {  # its columns -> ours
    "Caption": "prompt", "URL": "url", "Initial Neurons": "initial",
    "Initial SSIM": "initial_score", "Refined Neurons": "refined", "Refined SSIM": "refined_score",
}  # fmt: skip
_SETS = ("initial", "refined")
_SCORES = ("initial_score", "refined_score")
_ALLOWED = (
    'neurons must be a file (.parquet, .csv, .json or .jsonl) or text such as {"1": [12, 40]} or '
    "[[12, 40], []]"
)


def write_released(path: str | Path, found: pd.DataFrame, rows: pd.DataFrame | None = None) -> None:
    """Write what `localize_all` gave as a released result CSV.

    Parameters: `found`, with prompt, initial, refined (NeuronSet or its JSON), initial_score,
    refined_score; `rows`, the prompt files' rows (`prompts.prompt_rows`) for order and URLs, by
    default one a prompt without URL. A prompt that is not flagged has SSIM 0, as there; one that
    failed has no row. A caption that a spreadsheet would run as a formula is guarded, see
    `files.spreadsheet_safe`.
    Raises ValueError for a missing column.
    """
    if lacking := {"prompt", *_SETS, *_SCORES} - set(found):
        raise ValueError(f"found needs the columns {sorted(lacking)}; it has {list(found)}")
    given = found.assign(url="")[["prompt", "url"]] if rows is None else rows[["prompt", "url"]]
    table = given.merge(found.drop_duplicates("prompt").drop(columns="url", errors="ignore"))
    sets = {column: [_as_set(one) for one in table[column]] for column in _SETS}
    layers = max([7, *(max(one.layers, default=0) for one in sets["initial"])])
    for column in _SETS:
        table[column] = [one.to_text(layers) for one in sets[column]]
    for column in _SCORES:
        table[column] = table[column].astype(float).fillna(0.0)
    safe = spreadsheet_safe(table[[*_RELEASED.values()]].set_axis([*_RELEASED], axis=1))
    write_atomically(Path(path), lambda part: safe.to_csv(part, sep=";", index=False))


def read_released(path: str | Path) -> pd.DataFrame:
    """A released result CSV in the form of `localize_all`.

    Returns one row a row: prompt, url, flagged (a skipped prompt, with SSIM 0 and no neurons, was
    not), initial, refined (NeuronSet), n_initial, n_refined, initial_score, refined_score (NaN
    where skipped). What the file doesn't hold (score, threshold, settings) has no column.
    Raises ValueError that names the file and, where a cell is bad, its row.
    """
    given = read_csv(path, ";")
    if missing := [column for column in _RELEASED if column not in given]:
        raise ValueError(f"{path}: a result CSV needs the columns {missing}; got {list(given)}")
    frame = given[[*_RELEASED]].set_axis([*_RELEASED.values()], axis=1)
    for theirs, ours in _RELEASED.items():
        if ours in _SETS + _SCORES:
            read = NeuronSet.from_text if ours in _SETS else float
            cells = enumerate(given[theirs])
            frame[ours] = [_cell(path, theirs, row, text, read) for row, text in cells]
    skipped = (frame["initial"].map(len) == 0) & (frame["initial_score"] == 0)
    for column in _SCORES:
        frame[column] = frame[column].mask(skipped, np.nan)
    counts = {f"n_{name}": frame[name].map(len).astype(int) for name in _SETS}
    return frame.assign(flagged=~skipped, **counts)


def _as_set(value: NeuronSet | str) -> NeuronSet:
    return value if isinstance(value, NeuronSet) else NeuronSet.from_json(value)


def _cell(path: str | Path, column: str, row: int, text: str, read: Callable[[str], Any]) -> Any:
    try:
        return read(text)
    except ValueError as error:
        raise ValueError(f"{path}, row {row}, column {column!r}: {error}") from error


def read_neurons(sources: str | Path | Iterable[str | Path]) -> dict[str, NeuronSet]:
    """Neuron sets of files and texts, those of one prompt united.

    Returns prompt -> set; a set that names no prompt has the prompt "".
    Parameters: `sources`, one or several: a file that `localize --out` or `localize --json` wrote,
    a result CSV of the released code, a JSON file, or a text of the form {"1": [12]} (layer ->
    indices) or [[12], []] (a list for each layer, the released form).
    Raises ValueError that names the source, FileNotFoundError for a missing file.
    """
    given = [sources] if isinstance(sources, (str, Path)) else list(sources)
    if not given:
        raise ValueError(f"{_ALLOWED}; got none")
    return _united(pair for source in given for pair in _read(source).items())


def _read(source: str | Path) -> dict[str, NeuronSet]:
    text = str(source).strip()
    if text.startswith(("{", "[")):
        return {"": NeuronSet.from_json(text) if text[0] == "{" else NeuronSet.from_text(text)}
    path = Path(source)
    read = _READERS.get(path.suffix)
    if read is None:
        raise ValueError(f"{_ALLOWED}; got {text!r:.80}")
    if not path.is_file():
        raise FileNotFoundError(f"neurons: there is no file {path}")
    try:
        if found := read(path):
            return found
        raise ValueError("it is empty")
    except (KeyError, OSError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"neurons: {path} holds no neuron sets: {error}") from error


def _csv(path: Path) -> dict[str, NeuronSet]:
    frame = read_csv(path)
    return _localized(read_released(path) if "Refined Neurons" in frame else frame)


def _localized(frame: pd.DataFrame) -> dict[str, NeuronSet]:
    """A table that `localize` wrote, or the released code."""
    return _united(zip(frame["prompt"], map(_as_set, frame["refined"]), strict=True))


def _json(path: Path) -> dict[str, NeuronSet]:
    """layer -> indices, prompt -> (layer -> indices), or lines as `localize --json` prints them."""
    rows = read_json(path, as_text=False)
    if len(rows) != 1 or "refined" in rows[0]:
        return _united((row["prompt"], _object(row["refined"])) for row in rows)
    [content] = rows
    if all(isinstance(value, dict) for value in content.values()):
        return {prompt: _object(one) for prompt, one in content.items()}
    return {"": _object(content)}


def _united(pairs: Iterable[tuple[str, NeuronSet]]) -> dict[str, NeuronSet]:
    """Prompt -> set; a prompt of several rows has the neurons of all."""
    found: dict[str, NeuronSet] = {}
    for prompt, one in pairs:
        found[str(prompt)] = found.get(str(prompt), NeuronSet()) | one
    return found


def _object(content: Any) -> NeuronSet:
    return NeuronSet.from_json(content if isinstance(content, str) else json.dumps(content))


_READERS: dict[str, Callable[[Path], dict[str, NeuronSet]]] = {
    ".parquet": lambda path: _localized(pd.read_parquet(path)),
    ".csv": _csv,
    ".json": _json,
    ".jsonl": _json,
}
