"""The released prompt files as they are, and malformed ones."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from nemo_kit.files import spreadsheet_safe
from nemo_kit.prompts import prompt_rows, prompt_table, read_prompts

CONTENT = ''';Caption;URL;type;max_sscd
0;"""Quoted"", <i>tag</i>; 🎉";https://a;VM;0.9
1;NA;https://b;TM;0.1
'''


def test_captions_stay_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text(CONTENT, "utf-8")
    frame = read_prompts(path)
    assert list(frame["Caption"]) == ['"Quoted", <i>tag</i>; 🎉', "NA"]
    assert list(frame["type"]) == ["VM", "TM"]
    assert list(frame["max_sscd"]) == [0.9, 0.1]


def test_a_file_without_types(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text(";Caption\n0;a\n", "utf-8")
    assert list(read_prompts(path)["type"]) == [""]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("", "is not a prompt CSV"),
        (";Title\n0;a\n", r"needs a column 'Caption', got \['Title'\]"),
        (";Caption\n0;a\n1;\n", "the caption of row 1 is empty"),
        (";Caption\n0;a\n1;b;c;d\n", "is not a prompt CSV"),
    ],
)
def test_malformed_files(tmp_path: Path, content: str, text: str) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text(content, "utf-8")
    with pytest.raises(ValueError, match=text):
        read_prompts(path)


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("x.csv", b"", "x.csv is not a prompt CSV: No columns to parse"),
        ("x.csv", b"prompt\n", "x.csv holds no prompt"),
        ("x.csv", b'prompt,type\na,"b\n', "x.csv is not a prompt CSV: Error tokenizing"),
        ("x.csv", b"prompt,type\na,VM\n  ,TM\n", "x.csv: the prompt of row 1 is empty"),
        ("x.csv", b"\xe9\x00\x01\xff", "x.csv is not text in UTF-8: "),
        ("x.csv", "prompt\na\n".encode("utf-16"), "x.csv is not text in UTF-8: "),
        ("x.CSV", b"a,b\n1,2\n", r"x.CSV needs a column 'prompt' \(or 'Caption'\), got"),
        ("x.txt", b"", "x.txt holds no prompt"),
        ("x.txt", b"\n  \n", "x.txt holds no prompt"),
        ("x.txt", b"\xb0\xff", "x.txt is not text in UTF-8: "),
    ],
)
def test_any_file_that_cannot_be_read_is_named(
    tmp_path: Path, name: str, content: bytes, text: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=text):
        prompt_table([tmp_path / name])


@pytest.mark.parametrize("content", ["\ufeffprompt\na cat\n", "\ufeff;Caption\n0;a cat\n"])
def test_a_mark_of_byte_order_is_no_part_of_a_prompt(tmp_path: Path, content: str) -> None:
    for name in ("x.csv", "x.txt"):
        (tmp_path / name).write_text(content, "utf-8")
    assert list(prompt_table([tmp_path / "x.csv"])["prompt"]) == ["a cat"]
    assert prompt_table([tmp_path / "x.txt"])["prompt"][0] == content.splitlines()[0][1:]


@pytest.mark.parametrize(
    "content",
    [
        'Caption,URL,type\n"a cat, grey",https://a,VM\nNone,https://b,\n',
        '"Caption",type,URL\n"a cat, grey",VM,https://a\nNone,,https://b\n',
        ",Caption,URL,type\n0,'a cat, grey',https://a,VM\n1,None,https://b,\n".replace("'", '"'),
        ";Caption;URL;type\n0;a cat, grey;https://a;VM\n1;None;https://b;\n",
    ],
)
def test_captions_may_be_separated_by_commas_too(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.csv").write_text(content, "utf-8")
    found = prompt_rows([tmp_path / "x.csv"])
    assert list(found["prompt"]) == ["a cat, grey", "None"]
    assert list(found["url"]) == ["https://a", "https://b"]
    assert list(found["type"]) == ["VM", ""]


def test_a_table_that_this_package_wrote_gives_its_prompts_back(tmp_path: Path) -> None:
    prompts = ["=1+1", "'=1+1", "'tis a cat", "-a dog"]
    spreadsheet_safe(pd.DataFrame({"prompt": prompts})).to_csv(tmp_path / "x.csv", index=False)
    assert list(prompt_table([tmp_path / "x.csv"])["prompt"]) == prompts


def test_a_parquet_file_is_read_by_its_column(tmp_path: Path) -> None:
    prompts = ["=1+1", "a cat"]
    pd.DataFrame({"prompt": prompts, "score": [0.1, 0.2]}).to_parquet(tmp_path / "x.parquet")
    assert list(prompt_table([tmp_path / "x.parquet"])["prompt"]) == prompts
    pd.DataFrame({"text": prompts}).to_parquet(tmp_path / "y.parquet")
    with pytest.raises(ValueError, match=r"y\.parquet needs a column 'prompt' \(or 'Caption'\)"):
        prompt_table([tmp_path / "y.parquet"])
    (tmp_path / "z.parquet").write_text("a cat\n")
    with pytest.raises(ValueError, match=r"z\.parquet is not a parquet file"):
        prompt_table([tmp_path / "z.parquet"])


def test_captions_of_others_keep_their_apostrophes(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("Caption\n'-ism in art\n", "utf-8")
    assert list(prompt_table([tmp_path / "x.csv"])["prompt"]) == ["'-ism in art"]


def test_a_file_of_captions_alone(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("Caption\na cat\na dog\n", "utf-8")
    assert list(prompt_table([tmp_path / "x.csv"])["prompt"]) == ["a cat", "a dog"]


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_prompts(tmp_path / "none.csv")


def test_the_released_files(shared_data: Path) -> None:
    memorized = read_prompts(shared_data / "memorized_laion_prompts.csv")
    assert memorized["type"].value_counts().to_dict() == {"TM": 388, "VM": 112}
    assert memorized["Caption"][0] == "The No Limits Business Woman Podcast"
    assert memorized["Caption"][3].startswith("\"Watch: Passion Pit's New Video")
    unmemorized = read_prompts(shared_data / "unmemorized_laion_prompts.csv")
    assert len(unmemorized) == 500
    assert set(memorized["Caption"]).isdisjoint(unmemorized["Caption"])


def test_a_comma_without_quotes_is_refused_and_not_misread(tmp_path: Path) -> None:
    file = tmp_path / "prompts.csv"
    file.write_text("prompt\nA cat, a dog\nB\n", "utf-8")
    with pytest.raises(ValueError, match=r"more cells than its header \['prompt'\]: a prompt with"):
        prompt_table([file])
    file.write_text('prompt\n"A cat, a dog"\nB\n', "utf-8")
    assert prompt_table([file])["prompt"].tolist() == ["A cat, a dog", "B"]
