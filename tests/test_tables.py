"""Tables that people bring: cells as they were written, and errors that name file and place."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from nemo_kit.prompts import prompt_rows
from nemo_kit.tables import read_csv, read_json, read_parquet, read_text

ODD = ["a\u2028b", "a\x85b", "a\x0cb", "a\x0bb", "a\x1cb", "a\rb", "\N{NO-BREAK SPACE}x"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_lines_end_with_line_feeds_alone(tmp_path: Path, end: str, mark: str) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes((mark + end.join(["one", *ODD])).encode())
    assert list(prompt_rows([path])["prompt"]) == ["one", *ODD]
    path.write_bytes((mark + end.join(["n,cell", *(f"1,{text}" for text in ODD), ""])).encode())
    assert list(read_csv(path)["cell"]) == ODD
    quoted = [json.dumps({"cell": text}, ensure_ascii=False) for text in ODD]
    path.write_bytes((mark + end.join(quoted)).encode())
    assert [row["cell"] for row in read_json(path)] == ODD


def test_a_cell_in_quotes_is_as_it_was(tmp_path: Path) -> None:
    cells = ["a\nb", "a\r\nb", 'say "hi"', "a, b; c\td", "", "  x "]
    pd.DataFrame({"cell": cells, "n": 1}).to_csv(tmp_path / "x.csv", index=False)
    assert list(read_csv(tmp_path / "x.csv")["cell"]) == cells


@pytest.mark.parametrize("sign", [",", ";", "\t"])
def test_the_separator_is_the_header_s(tmp_path: Path, sign: str) -> None:
    (tmp_path / "x.csv").write_text(f'{sign}a{sign}b\n0{sign}"1,2;3\t4"{sign}x\n\n')
    frame = read_csv(tmp_path / "x.csv")
    assert frame.to_dict("records") == [{"": "0", "a": "1,2;3\t4", "b": "x"}]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("a,b\n1,2\n1\n", r"row 1 has 1 cells, its header 2: \['a', 'b'\]"),
        ("a,b\n1,2,3\n", "row 0 has 3 cells, its header 2"),
        ("a\nx, y\n", "'x, y'|row 0 has 2 cells"),
        ('a,b\n1,"2\n', "is no CSV: line 2: unexpected end"),
        ('a,b\n1,"2"3\n', "is no CSV: line 2"),
        ("a,b,a\n", "has the column 'a' more than once"),
        ("a\n" + "x" * 200_000, "is no CSV: line 2: field larger"),
    ],
)
def test_a_csv_that_would_be_misread_is_refused(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "x.csv").write_text(content)
    with pytest.raises(ValueError, match=told) as refused:
        read_csv(tmp_path / "x.csv")
    assert "x.csv" in str(refused.value)


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ("a\ncafé".encode("latin-1"), "byte 5, in line 2, is 0xe9"),
        ("a cat".encode("utf-16"), "byte 0, in line 1, is 0xff"),
        ("a cat".encode("utf-16-le"), "byte 1, in line 1, is 0x00"),
        ("a cat".encode("utf-32"), "byte 0, in line 1, is 0xff"),
        (b"PK\x03\x04\x00\x00", "byte 4, in line 1, is 0x00"),
    ],
)
def test_other_encodings_are_refused_by_byte_and_line(
    tmp_path: Path, content: bytes, place: str
) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ValueError, match=f"x is not text in UTF-8: {place}"):
        read_text(tmp_path / "x")


def test_json_keeps_numbers_as_written(tmp_path: Path) -> None:
    (tmp_path / "x").write_text(
        '[{"a": 1984, "b": 1e5, "c": 1.50, "d": NaN, "e": null, "f": true}]'
    )
    assert read_json(tmp_path / "x") == [
        {"a": "1984", "b": "1e5", "c": "1.50", "d": None, "e": None, "f": True}
    ]
    assert read_json(tmp_path / "x", as_text=False)[0]["b"] == 100_000.0


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"a": 1}\n{"a": \n', "x is no JSON: line 2: "),
        ("plain words\n", "x is no JSON: Expecting value: line 1"),
        ('[\n{"a": 1},\n]', "x is no JSON: .*line 3"),
        ("[" * 100_000, "x is no JSON"),
    ],
)
def test_what_is_no_json(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "x").write_text(content)
    with pytest.raises(ValueError, match=told):
        read_json(tmp_path / "x")


def test_parquet_keeps_nulls_and_whole_numbers(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"A": ["x", None], "n": pd.array([1030727993, None], "Int64"), "z": [[0.5], []]}
    )
    frame.to_parquet(tmp_path / "x")
    assert read_parquet(tmp_path / "x") == {"A": ["x", None], "n": [1030727993, None]}
    (tmp_path / "y").write_text("a cat\n")
    with pytest.raises(ValueError, match="y is not a parquet file"):
        read_parquet(tmp_path / "y")
    with pytest.raises(FileNotFoundError):
        read_parquet(tmp_path / "none")
