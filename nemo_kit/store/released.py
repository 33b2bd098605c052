"""Sweeps of `localize` as the released code's result CSV, and back.

Scope: one row a row of the prompt files, in their order, with their URLs; reading gives the columns
that the two forms share. The files themselves are read and written in `neurons`.
Source: the result CSV of the authors' released code.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from nemo_kit.neurons import RESULT_COLUMNS, NeuronSet, read_results_csv, write_results_csv


def write_released(path: str | Path, found: pd.DataFrame, rows: pd.DataFrame | None = None) -> None:
    """Write what `localize_all` gave as a released result CSV.

    Parameters: `found`, with prompt, initial, refined (NeuronSet or its JSON), initial_score,
    refined_score; `rows`, the prompt files' rows (`prompts.prompt_rows`) for order and URLs, by
    default one a prompt without URL. A prompt that is not memorized has SSIM 0, as there; one that
    failed has no row.
    Raises ValueError for a missing column.
    """
    if lacking := {"prompt", *_SETS, *_SCORES} - set(found):
        raise ValueError(f"found needs the columns {sorted(lacking)}; it has {list(found)}")
    given = found.assign(url="")[["prompt", "url"]] if rows is None else rows[["prompt", "url"]]
    table = given.merge(found.drop_duplicates("prompt").drop(columns="url", errors="ignore"))
    for column in _SETS:
        table[column] = [_as_set(one) for one in table[column]]
    for column in _SCORES:
        table[column] = table[column].astype(float).fillna(0.0)
    table = table[["prompt", "url", "initial", "initial_score", "refined", "refined_score"]]
    layers = max([7, *(max(one.layers, default=0) for one in table["initial"])])
    write_results_csv(path, table.set_axis(RESULT_COLUMNS, axis=1), layers)


def read_released(path: str | Path) -> pd.DataFrame:
    """A released result CSV in the form of `localize_all`.

    Returns one row a row: prompt, url, memorized (a skipped prompt, with SSIM 0 and no neurons, was
    not), initial, refined (NeuronSet), n_initial, n_refined, initial_score, refined_score (NaN
    where skipped). What the file doesn't hold (score, threshold, settings) has no column.
    Raises ValueError that names the file and the row where it is no such CSV.
    """
    frame = read_results_csv(path).set_axis(
        ["prompt", "url", "initial", "initial_score", "refined", "refined_score"], axis=1
    )
    skipped = (frame["initial"].map(len) == 0) & (frame["initial_score"] == 0)
    for column in _SCORES:
        frame[column] = frame[column].mask(skipped, np.nan)
    counts = {f"n_{name}": frame[name].map(len).astype(int) for name in _SETS}
    return frame.assign(memorized=~skipped, **counts)


_SETS = ("initial", "refined")
_SCORES = ("initial_score", "refined_score")


def _as_set(value: NeuronSet | str) -> NeuronSet:
    return value if isinstance(value, NeuronSet) else NeuronSet.from_json(value)
