"""Files: what is written comes back as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nemo_kit.files import GUARDED, spreadsheet_safe, write_table
from nemo_kit.tables import read_csv

TEXTS = ["=1+1", "+a", "-a", "@a", "\tx", "\rx", "'=x", "'quoted'", "'", "", "a=b", "''@b"]


@pytest.mark.parametrize("separator", [",", ";"])
def test_the_guard_against_spreadsheets_comes_off_again(tmp_path: Path, separator: str) -> None:
    frame = pd.DataFrame({"prompt": TEXTS, "url": TEXTS[::-1], "n": range(len(TEXTS))})
    safe = spreadsheet_safe(frame)
    assert not safe["prompt"].str.startswith(("=", "+", "-", "@", "\t", "\r")).any()
    safe.to_csv(tmp_path / "x.csv", index=False, sep=separator)
    pd.testing.assert_frame_equal(read_csv(tmp_path / "x.csv"), frame.astype(str))


def test_a_table_that_needs_no_guard_is_as_it_was() -> None:
    frame = pd.DataFrame({"prompt": ["a", "'b'"], "score": [-1.5, float("nan")]})
    assert spreadsheet_safe(frame).equals(frame)


def test_rows_without_a_guard_keep_their_apostrophes(tmp_path: Path) -> None:
    """A table of this package, in a spreadsheet, to which somebody wrote another row."""
    (tmp_path / "x.csv").write_text(f"prompt,{GUARDED}\n'=a,yes\n'@b,\n")
    assert list(read_csv(tmp_path / "x.csv")["prompt"]) == ["=a", "'@b"]


@pytest.mark.parametrize("kind", [list, np.array])
def test_lists_in_a_table_are_whole_and_can_be_read(tmp_path: Path, kind: Any) -> None:
    seeds = list(range(1, 2001))  # numpy's own text of these is shortened
    write_table(tmp_path / "x.csv", pd.DataFrame({"kept_seeds": [kind(seeds), kind([])]}))
    assert list(map(json.loads, read_csv(tmp_path / "x.csv")["kept_seeds"])) == [seeds, []]
