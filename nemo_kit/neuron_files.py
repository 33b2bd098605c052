"""Neuron sets in files: the released code's result CSV, and whatever else holds them.

Scope: `write_released` and `read_released`, a sweep of `localize` as that CSV and back, one row a
row of the prompt files; `read_neurons`, one function for the command line and notebooks.
Source: the result CSV is that of the authors' released code of "Finding NeMo" (arXiv 2406.02366).
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nemo_kit.files import write_table
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
    refined_score; `rows`, the prompt files' rows (`prompts.prompt_rows`) with their URLs, which
    come first; a prompt that is in none of them has one without URL. A prompt that is not flagged
    has SSIM 0, as there; one that failed has no row. A caption that a spreadsheet would run as a
    formula is guarded, see `files.spreadsheet_safe`.
    Raises ValueError for a missing column.
    """
    if lacking := {"prompt", *_SETS, *_SCORES} - set(found):
        raise ValueError(f"found needs the columns {sorted(lacking)}; it has {list(found)}")
    given = found[["prompt"]].assign(url="")
    if rows is not None:
        others = given[~given["prompt"].isin(rows["prompt"])]
        given = pd.concat([rows[["prompt", "url"]], others], ignore_index=True)
    table = given.merge(found.drop_duplicates("prompt").drop(columns="url", errors="ignore"))
    sets = {column: [_as_set(one) for one in table[column]] for column in _SETS}
    layers = max([7, *(max(one.layers, default=0) for one in sets["initial"])])
    for column in _SETS:
        table[column] = [one.to_text(layers) for one in sets[column]]
    for column in _SCORES:
        table[column] = table[column].astype(float).fillna(0.0)
    write_table(Path(path), table[[*_RELEASED.values()]].set_axis([*_RELEASED], axis=1), ";")


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
        read = NeuronSet.from_text if ours in _SETS else float if ours in _SCORES else str
        cells = list(given[theirs])
        for row, text in enumerate(cells):
            try:
                cells[row] = read(text)
            except ValueError as error:
                raise ValueError(f"{path}, row {row}, column {theirs!r}: {error}") from error
        frame[ours] = cells
    skipped = (frame["initial"].map(len) == 0) & (frame["initial_score"] == 0)
    for column in _SCORES:
        frame[column] = frame[column].mask(skipped, np.nan)
    counts = {f"n_{name}": frame[name].map(len).astype(int) for name in _SETS}
    return frame.assign(flagged=~skipped, **counts)


def _as_set(value: Any) -> NeuronSet:
    """A set, its JSON, or what its JSON holds."""
    if isinstance(value, NeuronSet):
        return value
    return NeuronSet.from_json(value if isinstance(value, str) else json.dumps(value))


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
    found: dict[str, NeuronSet] = {}
    for prompt, one in (pair for source in given for pair in _read(source)):
        found[prompt] = found.get(prompt, NeuronSet()) | one
    return found


def _read(source: str | Path) -> list[tuple[str, NeuronSet]]:
    """Prompts and sets of a file or text."""
    text = str(source).strip()
    if text.startswith(("{", "[")):
        read = NeuronSet.from_json if text[0] == "{" else NeuronSet.from_text
        return [("", read(text))]
    path = Path(source)
    if path.suffix not in (".parquet", ".csv", ".json", ".jsonl"):
        raise ValueError(f"{_ALLOWED}; got {text!r:.80}")
    if not path.is_file():
        raise FileNotFoundError(f"neurons: there is no file {path}")
    try:
        if found := [(str(prompt), _as_set(one)) for prompt, one in _pairs(path)]:
            return found
        raise ValueError("it is empty")
    except (KeyError, OSError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"neurons: {path} holds no neuron sets: {error}") from error


def _pairs(path: Path) -> Iterable[tuple[Any, Any]]:
    """Prompts and sets of a table of `localize` or the released code, of lines or an object."""
    if path.suffix in (".parquet", ".csv"):
        frame = pd.read_parquet(path) if path.suffix == ".parquet" else read_csv(path)
        if "Refined Neurons" in frame:
            frame = read_released(path)
        return zip(frame["prompt"], frame["refined"], strict=True)
    rows = read_json(path, as_text=False)
    if len(rows) != 1 or "refined" in rows[0]:  # as `localize --json` prints them
        return [(row["prompt"], row["refined"]) for row in rows]
    [content] = rows  # layer -> indices, or prompt -> (layer -> indices)
    of_prompts = all(isinstance(one, dict) for one in content.values())
    return content.items() if of_prompts else [("", content)]
