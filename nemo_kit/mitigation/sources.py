"""Reads neuron sets from whatever holds them: files of this package, the released CSV, text.

Scope: one function for the command line and notebooks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from nemo_kit.neurons import NeuronSet, load_sets, read_results_csv
from nemo_kit.tables import read_csv, read_json

_ALLOWED = (
    'neurons must be a file (.parquet, .csv, .json or .jsonl) or text such as {"1": [12, 40]} or '
    "[[12, 40], []]"
)


def read_neurons(sources: str | Path | Iterable[str | Path]) -> dict[str, NeuronSet]:
    """Neuron sets of files and texts, those of one prompt united.

    Returns prompt -> set; a set that names no prompt has the prompt "".
    Parameters: `sources`, one or several: a file that `save_sets`, `localize --out` or
    `localize --json` wrote, a result CSV of the released code, a JSON file, or a text of the form
    {"1": [12]} (layer -> indices) or [[12], []] (a list for each layer, the released form).
    Raises ValueError that names the source, FileNotFoundError for a missing file.
    """
    given = [sources] if isinstance(sources, (str, Path)) else list(sources)
    if not given:
        raise ValueError(f"{_ALLOWED}; got none")
    return _united(pair for source in given for pair in _read(source).items())


def _read(source: str | Path) -> dict[str, NeuronSet]:
    text = str(source).strip()
    if text.startswith(("{", "[")):
        return {"": _from_text(text)}
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
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"neurons: {path} holds no neuron sets: {error}") from error


def _from_text(text: str) -> NeuronSet:
    return NeuronSet.from_json(text) if text.startswith("{") else NeuronSet.from_text(text)


def _parquet(path: Path) -> dict[str, NeuronSet]:
    frame = pd.read_parquet(path)
    return _localized(frame) if "refined" in frame else load_sets(path)


def _csv(path: Path) -> dict[str, NeuronSet]:
    frame = read_csv(path)
    if "Refined Neurons" in frame:
        frame = read_results_csv(path)
        return _united(zip(frame["Caption"], frame["Refined Neurons"], strict=True))
    return _localized(frame)


def _localized(frame: pd.DataFrame) -> dict[str, NeuronSet]:
    """A table that `localize` wrote."""
    return _united(zip(frame["prompt"], map(NeuronSet.from_json, frame["refined"]), strict=True))


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
    ".parquet": _parquet,
    ".csv": _csv,
    ".json": _json,
    ".jsonl": _json,
}
