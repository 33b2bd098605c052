"""Results in the released code's CSV, and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nemo_kit import NeuronSet
from nemo_kit.files import GUARDED
from nemo_kit.store import prompt_rows, read_released, write_released

SETS = [NeuronSet({1: [3, 5], 7: [0]}), NeuronSet()]
FOUND = pd.DataFrame(
    {"prompt": ["a; \"b\"", "=c"], "memorized": [True, False], "initial": SETS, "refined": SETS,
     "initial_score": [0.25, np.nan], "refined_score": [0.375, np.nan]}
)  # fmt: skip
FILE = ''';Caption;URL;type
0;=c;https://1;TM
1;"a; ""b""";https://2;VM
2;=c;https://3;TM
3;failed;https://4;TM
'''


def test_a_result_has_a_row_for_each_row_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(FILE)
    rows = prompt_rows([tmp_path / "p.csv"])
    write_released(tmp_path / "r.csv", FOUND, rows)
    text = (tmp_path / "r.csv").read_text().splitlines()
    head = "Caption;URL;Initial Neurons;Initial SSIM;Refined Neurons;Refined SSIM"
    assert text[0] == f"{head};{GUARDED}"
    empty = "[[], [], [], [], [], [], []]"
    assert text[1] == f"'=c;https://1;{empty};0.0;{empty};0.0;yes"
    full = "[[3, 5], [], [], [], [], [], [0]]"
    assert text[2] == f'"a; ""b""";https://2;{full};0.25;{full};0.375;'
    assert len(text) == 4  # the one that failed has none


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    write_released(tmp_path / "r.csv", FOUND)
    back = read_released(tmp_path / "r.csv")
    pd.testing.assert_frame_equal(back[list(FOUND)], FOUND, check_dtype=False)
    assert list(back["n_refined"]) == [3, 0]
    assert list(back["url"]) == ["", ""]
    as_text = FOUND.assign(initial=[s.to_json() for s in SETS], refined=[s.to_json() for s in SETS])
    write_released(tmp_path / "t.csv", as_text)
    assert (tmp_path / "t.csv").read_text() == (tmp_path / "r.csv").read_text()


def test_neurons_beyond_layer_7_keep_their_layers(tmp_path: Path) -> None:
    deep = FOUND.assign(initial=[NeuronSet({9: [1]}), NeuronSet()])
    write_released(tmp_path / "r.csv", deep)
    assert list(read_released(tmp_path / "r.csv")["initial"]) == list(deep["initial"])


def test_missing_columns_and_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"found needs the columns \['initial_score', 'refined_"):
        write_released(tmp_path / "r.csv", FOUND.drop(columns=["initial_score", "refined_score"]))
    (tmp_path / "x.csv").write_text("a;b\n1;2\n")
    with pytest.raises(ValueError, match=r"x\.csv: a result CSV needs the columns"):
        read_released(tmp_path / "x.csv")
