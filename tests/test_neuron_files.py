"""Neuron sets in files: the released code's CSV there and back, and every file that holds them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nemo_kit import NeuronSet
from nemo_kit.files import GUARDED, spreadsheet_safe
from nemo_kit.neuron_files import read_neurons, read_released, write_released
from nemo_kit.prompts import prompt_rows

ONE, OTHER = NeuronSet({1: [3], 4: [7, 9]}), NeuronSet({9: [1]})
SETS = [NeuronSet({1: [3, 5], 7: [0]}), NeuronSet()]
FOUND = pd.DataFrame(
    {"prompt": ["a; \"b\"", "=c"], "flagged": [True, False], "initial": SETS, "refined": SETS,
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


HEADER = "Caption;URL;Initial Neurons;Initial SSIM;Refined Neurons;Refined SSIM\n"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("", "r.csv: a result CSV needs the columns"),
        ("Caption;URL\na;b\n", "needs the columns"),
        (HEADER + "a;b;[[x]];0;[];0\n", "row 0, column 'Initial Neurons'"),
        (HEADER + "a;b;[];high;[];0\n", "row 0, column 'Initial SSIM'"),
        (HEADER + "a;b;c;d;e;f;g;h\n1;2", "r.csv"),
    ],
)
def test_malformed_results_csv(tmp_path: Path, content: str, text: str) -> None:
    path = tmp_path / "r.csv"
    path.write_text(content, "utf-8")
    with pytest.raises(ValueError, match=text):
        read_released(path)


def test_captions_of_the_authors_keep_their_apostrophes_and_are_no_numbers(tmp_path: Path) -> None:
    captions = ["'@home", "'=1+1", "007", "1e5", "NA", "a\u2028b"]
    rows = "".join(f"{caption};;[];0;[];0\n" for caption in captions)
    (tmp_path / "r.csv").write_text(HEADER + rows, "utf-8")
    assert list(read_released(tmp_path / "r.csv")["prompt"]) == captions


def test_neurons_from_every_file(tmp_path: Path) -> None:
    sets = {"=a b": ONE, "Öl": OTHER}
    rows = pd.DataFrame({"prompt": list(sets), "refined": [s.to_json() for s in sets.values()]})
    rows.to_parquet(tmp_path / "localized.parquet")
    spreadsheet_safe(rows).to_csv(tmp_path / "localized.csv", index=False)
    scored = rows.assign(initial=rows["refined"], initial_score=0.1, refined_score=0.1)
    write_released(tmp_path / "released.csv", scored)
    objects = {prompt: json.loads(one.to_json()) for prompt, one in sets.items()}
    (tmp_path / "sets.json").write_text(json.dumps(objects), "utf-8")
    lines = [json.dumps({"prompt": p, "refined": one}) for p, one in objects.items()]
    (tmp_path / "lines.jsonl").write_text("\n".join(lines), "utf-8")
    for file in sorted(tmp_path.iterdir()):
        assert read_neurons(file) == sets, file.name


def test_prompts_with_neurons_keep_their_own_apostrophe_and_odd_letters(tmp_path: Path) -> None:
    """Only what `spreadsheet_safe` put there is taken off; a U+2028 ends no line."""
    prompts = ["'@home", "a\u2028b\x0cc"]
    rows = pd.DataFrame({"prompt": prompts, "refined": ONE.to_json()})
    rows.to_parquet(tmp_path / "x.parquet")
    rows.to_csv(tmp_path / "x.csv", index=False)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows.to_dict("records")]
    (tmp_path / "x.jsonl").write_text("\n".join(lines), "utf-8")
    for file in sorted(tmp_path.iterdir()):
        assert read_neurons(file) == dict.fromkeys(prompts, ONE), file.name


def test_a_prompt_of_several_rows_has_the_neurons_of_all(tmp_path: Path) -> None:
    rows = pd.DataFrame({"prompt": ["a", "a"], "refined": [ONE.to_json(), OTHER.to_json()]})
    rows.to_csv(tmp_path / "x.csv", index=False)
    assert read_neurons(tmp_path / "x.csv") == {"a": ONE | OTHER}
    (tmp_path / "x.jsonl").write_text("[]")
    with pytest.raises(ValueError, match=r"x\.jsonl holds no neuron sets"):
        read_neurons(tmp_path / "x.jsonl")


def test_neurons_from_text_and_several_sources(tmp_path: Path) -> None:
    assert read_neurons('{"1": [3, 0]}') == {"": NeuronSet({1: [0, 3]})}
    assert read_neurons("[[3], [], [7]]") == {"": NeuronSet({1: [3], 3: [7]})}
    (tmp_path / "one.json").write_text('{"2": [1]}')
    (tmp_path / "row.json").write_text('{"prompt": "a", "refined": {"1": [5]}}')
    found = read_neurons([tmp_path / "one.json", "[[4]]", tmp_path / "row.json"])
    assert found == {"": NeuronSet({1: [4], 2: [1]}), "a": NeuronSet({1: [5]})}


@pytest.mark.parametrize(
    ("source", "error", "text"),
    [
        ([], ValueError, "got none"),
        ("", ValueError, r"neurons must be a file .* got ''"),
        ("12", ValueError, "neurons must be a file"),
        ("no.json", FileNotFoundError, "there is no file no.json"),
        ('{"1": "a"}', ValueError, "can't be read"),
        ("[1, 2]", ValueError, "must be a list of lists"),
    ],
)
def test_bad_neuron_sources(source: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        read_neurons(source)


@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.csv", "x.parquet"])
def test_files_that_hold_no_neurons(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("prompt,other\na,b\n")
    with pytest.raises(ValueError, match=f"{name} holds no neuron sets"):
        read_neurons(tmp_path / name)
