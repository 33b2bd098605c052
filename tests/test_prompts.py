"""Prompt files: the lists of the field and what people write, as they are or refused by the row."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from nemo_kit import lab
from nemo_kit.files import spreadsheet_safe
from nemo_kit.groups import choose
from nemo_kit.prompts import prompt_rows, prompt_table

AS_WRITTEN = [
    "007", "1984", "1e5", "1.50", "NA", "None", "nan", "null", "true", "2024-01-02", "0x1F",
    "1_000", "inf", "-", "'@home", "'=1+1", "=SUM(A1)", '"Quoted", <i>tag</i>; 🎉',
    "  led by blanks ",
    "a\tb", "a\u2028b", "a\x0cb", "a\x85b", "c'est l'été", "&amp; <b>", "\u202eright",
]  # fmt: skip


def written(path: Path, prompts: list[str]) -> Path:
    """A file of that ending that holds these prompts."""
    frame = pd.DataFrame({"prompt": prompts, "n": range(len(prompts))})
    kind = path.suffix
    if kind in (".csv", ".tsv"):
        frame.to_csv(path, index=False, sep="\t" if kind == ".tsv" else ",")
    elif kind == ".parquet":
        frame.to_parquet(path)
    elif kind == ".txt":
        path.write_bytes("\n".join(prompts).encode())
    else:
        rows = [json.dumps(row, ensure_ascii=False) for row in frame.to_dict("records")]
        text = f"[{','.join(rows)}]" if kind == ".json" else "\n".join(rows)
        path.write_bytes(text.encode())
    return path


def one(tmp_path: Path, name: str, content: str | bytes) -> pd.DataFrame:
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / name).write_bytes(data)
    return prompt_table([tmp_path / name])


# ------------------------------------------------------------------------------ text as it is


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".json", ".jsonl", ".parquet", ".txt", ".CSV"])
def test_every_kind_of_file_gives_the_text_as_written(tmp_path: Path, ending: str) -> None:
    found = prompt_table([written(tmp_path / f"x{ending.lower()}", AS_WRITTEN).rename(
        tmp_path / f"x{ending}")])  # fmt: skip
    blank = " \t" if ending == ".txt" else ""
    assert list(found["prompt"]) == [text.strip(blank) if blank else text for text in AS_WRITTEN]
    assert set(found["type"]) == {""}
    assert set(found["role"]) == {"non_memorized"}


def test_the_released_form_keeps_numbers_as_text_too(tmp_path: Path) -> None:
    rows = "".join(
        f'{row};"{text}";u;VM;0.9;{row:05}\n' for row, text in enumerate(["007", "1984"])
    )
    found = one(tmp_path, "x.csv", ";Caption;URL;type;max_sscd;Index\n" + rows)
    assert list(found["prompt"]) == ["007", "1984"]
    assert list(found["image"]) == ["00000", "00001"]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.txt", "x.jsonl"])
def test_line_ends_and_byte_order_marks_are_no_part_of_a_prompt(
    tmp_path: Path, name: str, end: str, mark: str
) -> None:
    rows = {
        "x.jsonl": ['{"text": "a cat"}', '{"text": "a dog"}'],
        "x.txt": ["a cat", "", " a dog\t"],
    }
    content = mark + end.join(rows.get(name, ["Prompt", "a cat", "a dog"])) + end
    assert list(one(tmp_path, name, content)["prompt"]) == ["a cat", "a dog"]


def test_line_breaks_in_quotes_belong_to_the_prompt(tmp_path: Path) -> None:
    found = one(tmp_path, "x.csv", 'prompt,type\n"a\nb",VM\n"c\r\nd",\n')
    assert list(found["prompt"]) == ["a\nb", "c\r\nd"]


def test_only_the_guard_of_this_package_comes_off(tmp_path: Path) -> None:
    prompts = ["=1+1", "'=1+1", "'tis a cat", "-a dog", "'@home"]
    spreadsheet_safe(pd.DataFrame({"prompt": prompts})).to_csv(tmp_path / "x.csv", index=False)
    assert list(prompt_table([tmp_path / "x.csv"])["prompt"]) == prompts
    assert list(one(tmp_path, "y.csv", "prompt\n'@home\n")["prompt"]) == ["'@home"]
    assert list(one(tmp_path, "z.csv", "Caption\n'-ism in art\n")["prompt"]) == ["'-ism in art"]


# ------------------------------------------------------------------------------ the field's lists


def test_json_lines_of_the_noise_magnitude_detector(tmp_path: Path) -> None:
    rows = [{"caption": 'A "cat" <i>x</i>', "index": 1030727993, "url": "https://a"},
            {"caption": "é\u2028🎉", "index": 7, "url": "https://b"}]  # fmt: skip
    for escaped in (True, False):
        text = "\n".join(json.dumps(row, ensure_ascii=escaped) for row in rows)
        (tmp_path / "x.jsonl").write_text(text, "utf-8")
        found = prompt_rows([tmp_path / "x.jsonl"])
        assert list(found["prompt"]) == ['A "cat" <i>x</i>', "é\u2028🎉"]
        assert list(found["image"]) == ["1030727993", "7"]
        assert list(found["url"]) == ["https://a", "https://b"]


def test_websters_parquet(tmp_path: Path) -> None:
    """MV and RV count as verbatim, TV as template, N as not memorized; pictures are not read."""
    frame = pd.DataFrame({
        "caption": list("abcd"), "url": ["u"] * 4, "overfit_type": ["MV", "RV", "TV", "N"],
        "retrieved_urls": [["x", "y"]] * 4, "image": [{"bytes": b"\xff", "path": None}] * 4,
    })  # fmt: skip
    frame.to_parquet(tmp_path / "x.parquet")
    found = prompt_table([tmp_path / "x.parquet"])
    assert list(found["type"]) == ["VM", "VM", "TM", ""]
    assert list(found["role"]) == ["verbatim", "verbatim", "template", "non_memorized"]
    assert set(found["image"]) == {""}


def test_numbers_of_images_stay_whole(tmp_path: Path) -> None:
    frame = pd.DataFrame({"TEXT": ["a", "b"], "Index": [1030727993.0, None]})
    frame.to_parquet(tmp_path / "x.parquet")
    assert list(prompt_table([tmp_path / "x.parquet"])["image"]) == ["1030727993", ""]


@pytest.mark.parametrize(
    "content",
    [
        'Caption,URL,type\n"a cat, grey",https://a,VM\nNone,https://b,\n',
        '"Caption",type,URL\n"a cat, grey",VM,https://a\nNone,,https://b\n',
        ",Caption,URL,type\n0,'a cat, grey',https://a,VM\n1,None,https://b,\n".replace("'", '"'),
        ";Caption;URL;type\n0;a cat, grey;https://a;VM\n1;None;https://b;\n",
        "Caption;URL;type\na cat, grey;https://a;VM\nNone;https://b;\n",  # without an index
        "Overfit_Type;URL; CAPTION \nMV;https://a;a cat, grey\nN;https://b;None\n",
        "text\turl\ttype\na cat, grey\thttps://a\tVM\nNone\thttps://b\t\n",
    ],
)
def test_separators_order_and_case_of_columns_are_free(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.csv").write_text(content, "utf-8")
    found = prompt_rows([tmp_path / "x.csv"])
    assert list(found["prompt"]) == ["a cat, grey", "None"]
    assert list(found["url"]) == ["https://a", "https://b"]
    assert list(found["type"]) == ["VM", ""]


def test_json_may_be_a_list_of_texts_or_of_objects_with_gaps(tmp_path: Path) -> None:
    assert list(one(tmp_path, "x.json", '["a", "b"]')["prompt"]) == ["a", "b"]
    found = one(tmp_path, "y.json", '[{"prompt": "a"}, {"prompt": 1984, "type": "VM"}]')
    assert list(found["prompt"]) == ["a", "1984"]
    assert list(found["type"]) == ["", "VM"]


def test_prompt_comes_before_caption(tmp_path: Path) -> None:
    found = one(tmp_path, "x.csv", "caption,prompt\nof the image,a cat\n")
    assert list(found["prompt"]) == ["a cat"]


def test_the_released_files(shared_data: Path) -> None:
    memorized = prompt_rows([shared_data / "memorized_laion_prompts.csv"])
    assert memorized["type"].value_counts().to_dict() == {"TM": 388, "VM": 112}
    assert memorized["prompt"][0] == "The No Limits Business Woman Podcast"
    assert memorized["prompt"][3].startswith("\"Watch: Passion Pit's New Video")
    assert memorized["image"][0] == "1030727993"
    unmemorized = prompt_rows([shared_data / "unmemorized_laion_prompts.csv"])
    assert len(unmemorized) == 500
    assert "'Waiting  #81' - Brett Amory" in set(unmemorized["prompt"])
    assert set(memorized["prompt"]).isdisjoint(unmemorized["prompt"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(prompt_table([shared_data / f"{n}_laion_prompts.csv" for n in
                                 ("memorized", "unmemorized")])) == 1000  # fmt: skip


def test_the_lab_s_own_table_comes_back(tmp_path: Path) -> None:
    lab.prompts().to_csv(tmp_path / "x.csv", index=False)
    pd.testing.assert_frame_equal(prompt_table([tmp_path / "x.csv"]), lab.prompts())


# ------------------------------------------------------------------------------ labels


@pytest.mark.parametrize(
    ("label", "kind"),
    [(label, "VM") for label in ("VM", "vm", " MV ", "RV", "Verbatim", "matching verbatim",
                                 "Retrieved-Verbatim", "verbatim_memorized")]
    + [(label, "TM") for label in ("TM", "tm", "TV", "Template", "template verbatim")]
    + [(label, "") for label in ("", "N", "non-memorized", "Not memorized", "unmemorized")],
)  # fmt: skip
def test_known_labels_are_mapped(tmp_path: Path, label: str, kind: str) -> None:
    role = {"VM": "verbatim", "TM": "template", "": "non_memorized"}[kind]
    found = one(tmp_path, "x.csv", f"prompt,type\na,{label}\n")
    assert (found["type"][0], found["role"][0]) == (kind, role)
    found = one(tmp_path, "x.csv", f"prompt,role\na,{label}\n")
    assert (found["type"][0], found["role"][0]) == (kind, role)


def test_roles_without_a_type_and_the_other_way_round(tmp_path: Path) -> None:
    rows = "a,,Hold-out\nb,VM,\nc,,template\nd,VM,ladder\ne,,\n"
    found = one(tmp_path, "x.csv", "prompt,type,role\n" + rows)
    assert list(found["role"]) == ["holdout", "verbatim", "template", "ladder", "non_memorized"]
    assert list(found["type"]) == ["", "VM", "TM", "VM", ""]
    assert len(choose(found, None, None, None)) == 4  # none is lost for an empty cell


def test_repetitions_are_numbers(tmp_path: Path) -> None:
    rows = "a,VM,ladder,4\nb,VM,ladder,10\nc,VM,ladder,\nd,VM,ladder,2.0\n"
    found = one(tmp_path, "x.csv", "prompt,type,role,repetitions\n" + rows)
    assert found["repetitions"].tolist() == [4, 10, 0, 2]


# ------------------------------------------------------------------------------ duplicates


def test_a_prompt_is_kept_once_and_that_is_told(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="2 of 5 rows repeat a prompt, 3 are kept$"):
        found = one(tmp_path, "x.txt", "b\na\nb\nc\na\n")
    assert list(found["prompt"]) == ["b", "a", "c"]
    assert len(prompt_rows([tmp_path / "x.txt"])) == 5


def test_of_rows_with_one_prompt_the_first_with_a_type_counts(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("a\nb\n")
    (tmp_path / "x.csv").write_text("prompt,type\nb,TM\nc,\nb,VM\na,VM\n")
    with pytest.warns(UserWarning, match="3 of 6 rows .* 1 prompts have two types, the first"):
        found = prompt_table([tmp_path / "x.txt", tmp_path / "x.csv"])
    assert list(found["prompt"]) == ["a", "b", "c"]
    assert list(found["type"]) == ["VM", "TM", ""]
    assert list(found["role"]) == ["verbatim", "template", "non_memorized"]


# ------------------------------------------------------------------------------ refused


REFUSED: list[tuple[str, str | bytes, str]] = [
    ("x.csv", "", "x.csv holds no prompt"),
    ("x.csv", "prompt\n", "x.csv holds no prompt"),
    ("x.csv", 'prompt,type\na,"b\n', "x.csv is no CSV: line 2"),
    ("x.csv", "prompt,type\na,VM\n  ,TM\n", "x.csv: the prompt of row 1 is empty"),
    ("x.csv", "prompt,type\na,VM\n\N{NO-BREAK SPACE},TM\n", "the prompt of row 1 is empty"),
    ("x.csv", ";Caption\n0;a\n1;\n", "the prompt of row 1 is empty"),
    ("x.csv", ";Caption\n0;a\n1;b;c;d\n", "row 1 has 4 cells, its header 2"),
    ("x.csv", "prompt\nA cat, a dog\nB\n", r"row 0 has 2 cells, its header 1: \['prompt'\]"),
    ("x.csv", "prompt,type\na line\nbroken,VM\n", "row 0 has 1 cells, its header 2"),
    ("x.csv", "a cat\ra dog\r", "x.csv holds no prompt"),
    ("x.csv", b"\xe9\x00\x01\xff", "x.csv is not text in UTF-8: byte 0"),
    ("x.csv", "prompt\ncafé\n".encode("latin-1"), "not text in UTF-8: byte 10, in line 2"),
    ("x.csv", "prompt\na\n".encode("utf-16"), "x.csv is not text in UTF-8"),
    ("x.csv", "prompt\na\n".encode("utf-16-le"), "x.csv is not text in UTF-8"),
    ("x.CSV", "a,b\n1,2\n", r"x.CSV needs a column 'prompt' \(or 'caption', 'text'\), got"),
    ("x.csv", "prompt,Prompt\na,b\n", "has the column 'prompt' more than once"),
    ("x.csv", "prompt,prompt\na,b\n", "has the column 'prompt' more than once"),
    ("x.csv", "prompt,type\na,VM\nb,tempalte\n", "the type of row 1 must be VM, .* got 'tempalte'"),
    ("x.csv", "prompt,type\na,1\n", "the type of row 0 must be VM"),
    ("x.csv", "prompt,role\na,verbatim\nb,tempalte\n", "the role of row 1 must be verbatim, "),
    ("x.csv", "prompt,type,role\na,VM,holdout\n", "the role of row 0 is holdout, its type VM"),
    ("x.csv", "prompt,repetitions\na,three\n", "the repetitions of row 0 must be a whole number"),
    ("x.csv", "prompt,repetitions\na,-3\n", "the repetitions of row 0 must be a whole number"),
    ("x.csv", "prompt,repetitions\na,2.5\n", "the repetitions of row 0 must be a whole number"),
    ("x.txt", "", "x.txt holds no prompt"),
    ("x.txt", "\n  \n", "x.txt holds no prompt"),
    ("x.txt", b"\xb0\xff", "x.txt is not text in UTF-8: byte 0, in line 1"),
    ("x.jsonl", "a cat\na dog\n", "x.jsonl is no JSON"),
    ("x.jsonl", '{"prompt": "a"}\n{"prompt": "b"\n', "x.jsonl is no JSON: line 2"),
    ("x.jsonl", '{"prompt": "a"}\n{"prompt": null}\n', "the prompt of row 1 is empty"),
    ("x.jsonl", '{"prompt": "a"}\n{"type": "VM"}\n', "the prompt of row 1 is empty"),
    ("x.jsonl", '{"prompt": NaN}\n', "the prompt of row 0 is empty"),
    ("x.jsonl", '{"prompt": ["a"]}\n', r"the prompt of row 0 must be text, got \['a'\] \(list\)"),
    ("x.jsonl", '{"prompt": true}\n', "the prompt of row 0 must be text, got True"),
    ("x.jsonl", '{"prompt": "\\ud83d"}\n', "the prompt of row 0 is no text"),
    ("x.jsonl", '{"url": "a"}\n', "x.jsonl needs a column 'prompt'"),
    ("x.json", '{"a cat": {"type": "VM"}}', "x.json needs a column 'prompt'"),
    ("x.json", "[]", "x.json holds no prompt"),
    ("x.json", "[[1, 2]]", "the prompt of row 0 must be text"),
    ("x.xlsx", b"PK\x03\x04", "must end in .csv, .tsv, .json, .jsonl, .parquet, .txt; got"),
    ("x.csv.gz", b"\x1f\x8b", "a prompt file must end in"),
    ("x.md", "a cat\n", "a prompt file must end in"),
    ("prompts", "a cat\n", "a prompt file must end in"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "told"), REFUSED)
def test_what_would_be_misread_is_refused(
    tmp_path: Path, name: str, content: str | bytes, told: str
) -> None:
    with pytest.raises(ValueError, match=told) as refused:
        one(tmp_path, name, content)
    assert name in str(refused.value)


@pytest.mark.parametrize(
    ("prompts", "told"),
    [
        (["a", None], "the prompt of row 1 is empty"),
        (["a", ""], "the prompt of row 1 is empty"),
        ([7, 1984], r"the prompt of row 0 must be text, got 7 \(int\)"),
        ([0.5, None], r"the prompt of row 0 must be text, got 0.5 \(float\)"),
        ([b"a"], "holds no prompt"),
        ([], "holds no prompt"),
    ],
)
def test_parquet_prompts_must_be_text(tmp_path: Path, prompts: list[Any], told: str) -> None:
    pd.DataFrame({"caption": prompts}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=told):
        prompt_table([tmp_path / "x.parquet"])


def test_a_parquet_file_without_prompts_or_no_parquet_at_all(tmp_path: Path) -> None:
    pd.DataFrame({"prompts": ["a"]}).to_parquet(tmp_path / "y.parquet")
    with pytest.raises(ValueError, match=r"y\.parquet needs a column 'prompt'.*\['prompts'\]"):
        prompt_table([tmp_path / "y.parquet"])
    (tmp_path / "z.parquet").write_text("a cat\n")
    with pytest.raises(ValueError, match=r"z\.parquet is not a parquet file"):
        prompt_table([tmp_path / "z.parquet"])


def test_a_missing_file(tmp_path: Path) -> None:
    for name in ("none.csv", "none.txt", "none.jsonl", "none.parquet"):
        with pytest.raises(FileNotFoundError):
            prompt_table([tmp_path / name])
