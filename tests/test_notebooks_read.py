"""What notebooks say of themselves: parameters, figures, presets, and where their paths lead."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import COMMON, DRAW, IMAGES, NAME, notebook

from nemo_kit import figures, notebooks
from nemo_kit.figures import runner

REAL = runner.root() / "notebooks"


# ------------------------------------------------------------------- parameters of a notebook


def test_types_come_from_literals_and_from_annotations(tmp_path: Path) -> None:
    cell = (
        'a = 1  # a comment = 2\nb = 0.5\nc = "x # y"\nd = True\ne = [1, 2.5]\nf = [-1.0]\n'
        "g: int | None = None\nh: list[str] = []\ni: float = 3\nj: list[int] | None = None\n"
    )
    book = figures.read_all(notebook(tmp_path, parameters=cell))[NAME]
    assert list(book.kinds.values()) == [
        "int", "float", "str", "bool", "list[float]", "list[float]",
        "int | None", "list[str]", "float", "list[int] | None",
    ]  # fmt: skip
    assert book.defaults["c"] == "x # y"
    assert book.values(g=3, e=[1], b=2)["g"] == 3
    assert book.title == "What?"


@pytest.mark.parametrize(
    "line",
    ["seeds = range(3)", "print(1)", "seeds = None", "names = []", "a: complex = 1", "a: int = 'x'",
     "a, b = 1, 2", "a: int", "a = [[1]]", "a = {'b': 1}", "a = b = 1\nb.c = 2"],
)  # fmt: skip
def test_a_parameters_cell_holds_literals_of_known_types(tmp_path: Path, line: str) -> None:
    with pytest.raises(
        ValueError, match=r"^00_tiny.ipynb: a line of the parameters cell must give"
    ):
        figures.read_all(notebook(tmp_path, parameters=line))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"image": 3}, r"a parameter of 00_tiny must be one of out, store, images, sscd; got "
                       r"'image'; did you mean images\?"),
        ({"images": "many"}, "images of 00_tiny must be int, got 'many'"),
        ({"images": True}, "images of 00_tiny must be int, got True"),
        ({"images": 2.0}, "images of 00_tiny must be int, got 2.0"),
        ({"images": None}, "images of 00_tiny must be int, got None"),
        ({"images": "None"}, "images of 00_tiny must be int, got 'None'"),
        ({"sscd": 3}, r"sscd of 00_tiny must be str \| None, got 3"),
        ({"sscd": ["a"]}, r"sscd of 00_tiny must be str \| None, got \['a'\]"),
    ],
)  # fmt: skip
def test_a_wrong_name_or_type_is_refused(tmp_path: Path, given: Any, message: str) -> None:
    book = figures.read_all(notebook(tmp_path))[NAME]
    with pytest.raises(ValueError, match=message):
        book.values(**given)


def test_a_preset_is_a_file_beside_the_notebooks(tmp_path: Path, plan: Callable[..., Any]) -> None:
    folder = notebook(tmp_path / "notebooks", parameters=IMAGES + "most: int | None = 3\n")
    (folder / "presets").mkdir()
    preset = folder / "presets" / "full.toml"
    preset.write_text(f'minutes = 5\n[{NAME}]\nimages = 9\nmost = "None"\n')
    assert notebooks.presets(folder)["full"]["minutes"] == 5
    book = figures.read_all(folder)[NAME]
    assert (book.values("full")["images"], book.values("full")["most"]) == (9, None)
    assert book.values("full", images=2)["images"] == 2
    assert plan(preset="full").values["images"] == 9
    with pytest.raises(ValueError, match="preset must be one of quick, full; got 'ful'; did you m"):
        book.values("ful")
    preset.write_text(f"[{NAME}]\nimagez = 9\n")
    with pytest.raises(
        ValueError, match=r"a parameter of 00_tiny must be .* got 'imagez'; did you"
    ):
        plan(preset="full")
    preset.write_text("[00_tyni]\nimages = 9\n")
    with pytest.raises(ValueError, match=r"presets/full.toml names 00_tyni, but there is no such"):
        plan(preset="full")


def test_settings_are_texts_read_by_the_types_of_their_parameters(
    tmp_path: Path, plan: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = IMAGES + 'word = "x"\ncounts = [1]\nguidance: float | None = 2.0\n'
    notebook(tmp_path / "notebooks", parameters=cell)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.pt").touch()
    (tmp_path / "lab").mkdir()
    given = {"images": "3", "word": "3", "counts": "[5, 6]", "guidance": "None", "sscd": "net.pt"}
    values = plan(settings=given).values
    assert [values[k] for k in given] == [3, "3", [5, 6], None, str(tmp_path / "net.pt")]
    assert plan(settings={"guidance": "null"}).values["guidance"] is None
    assert plan(settings={"word": "lab"}).values["word"] == "lab"  # no path: the name of a model
    with pytest.raises(ValueError, match=r"NAME of --set must be .*; got 'image'; did you mean im"):
        plan(settings={"image": "3"})
    with pytest.raises(ValueError, match=r"NAME of --set must be one of counts, .*; got 'out'"):
        plan(settings={"out": "elsewhere"})
    with pytest.raises(ValueError, match=r"counts of 00_tiny must be list\[int\], got '\[0.5\]'"):
        plan(settings={"counts": "[0.5]"})


def test_settings_go_to_the_notebooks_that_know_them(tmp_path: Path) -> None:
    folder = notebook(tmp_path / "notebooks")
    notebook(folder, DRAW.replace("tiny", "other"), name="other", parameters=COMMON + "images = 1")
    notebook(folder, "1", name="third", parameters=COMMON + "steps = 1")
    books = figures.read_all(folder)
    jobs = runner.plan(books, figures.select(books), "quick", tmp_path, settings={"images": "7"})
    assert [job.values["images"] for job in jobs] == [7, 7]
    with pytest.raises(ValueError, match="NAME of --set must be one of"):
        runner.plan(books, figures.select(books), "quick", tmp_path, settings={"steps": "7"})


def test_what_is_asked_of_every_notebook_must_be_known_to_it(
    tmp_path: Path, plan: Callable[..., Any]
) -> None:
    notebook(tmp_path / "notebooks")
    usual = {"revision": None, "device": "auto", "prompt_files": []}
    assert "device" not in plan(**usual).values
    with pytest.raises(ValueError, match=r"a parameter of 00_tiny must be .* got 'device'"):
        plan(device="cpu")
    with pytest.raises(ValueError, match=r"a parameter of 00_tiny must be .* got 'model'"):
        plan(model=str(tmp_path))


# --------------------------------------------------------------------- figures of a notebook


def test_figures_are_read_from_the_calls_that_save_them(tmp_path: Path) -> None:
    cells = (
        '%matplotlib inline\nfigures.save(None, a, "T2", folder, shows="costs")',
        'if x:\n    !ls\n    figures.save(\n        figure, b, name="F2a", out=folder,\n'
        '        shows="one "\n        "two",\n    )\nfigures.save(f, c, "own", o, shows="words")',
        "%%bash\nls | grep x",
        "other.save(1)",
    )
    rows = figures.read_all(notebook(tmp_path, *cells))[NAME].figures
    assert [(row.name, row.shows, row.paper) for row in rows] == [
        ("T2", "costs", "Table 2"), ("F2a", "one two", "Figure 2a"), ("own", "words", ""),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (
            'figures.save(f, d, f"F{x}", out, shows="y")',
            r"literal texts, got figures.save\(f, d, f",
        ),
        ('figures.save(f, d, "F1", out)', "needs name and shows= as literal texts"),
        ('figures.save(f, d, "F1", out, shows=text)', "needs name and shows= as literal texts"),
        ('figures.save(f, d, "F1", out', "a cell that saves a figure: .* was never closed"),
    ],
)
def test_a_figure_that_can_not_be_read_is_refused(tmp_path: Path, cell: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        figures.read_all(notebook(tmp_path, cell))


def test_one_name_belongs_to_one_figure(tmp_path: Path) -> None:
    notebook(tmp_path, name="other")
    with pytest.raises(ValueError, match=r"figures.save is called twice with the name 'tiny'"):
        figures.read_all(notebook(tmp_path))


def test_notebooks_without_parameters_and_figures_are_no_business_of_the_runner(
    tmp_path: Path,
) -> None:
    notebook(tmp_path, "1", name="explorer", parameters=None)
    with pytest.raises(FileNotFoundError, match=r"no notebook .* is in .*: run in a clone"):
        figures.read_all(tmp_path)
    assert list(figures.read_all(notebook(tmp_path))) == [NAME]
    notebook(tmp_path, DRAW, name="x", parameters=None)
    with pytest.raises(ValueError, match=r"x.ipynb needs one cell tagged 'parameters', it has 0"):
        figures.read_all(tmp_path)


def test_figures_are_selected_by_name_number_and_notebook() -> None:
    books = figures.read_all(REAL)
    assert [row.name for row in figures.select(books, ["f2A", "T2"])] == ["F2a", "T2"]
    assert {row.notebook for row in figures.select(books, ["01_Detection"])} == {"01_detection"}
    assert [row.name for row in figures.select(books, ["F8c"])] == ["F8"]
    with pytest.raises(ValueError, match=r"--only must name .*, got 'zzz'$"):
        figures.select(books, ["F2a", "zzz"])
    with pytest.raises(ValueError, match=r"got 'dose'; did you mean dose_response, 04_dose_resp"):
        figures.select(books, ["dose"])


# ------------------------------------------------------------------ the notebooks of the clone

PAPERS = (
    *("F1", "F2a", "F2b", "F3", "F4a", "F4b", "F5a", "F5b", "F6", "F7a", "F7b"),
    *("F8a", "F8b", "F8c", "F9", "F10", "F11", "F12", "F13"),
    *("F14a", "F14b", "F14c", "F14d", "F15a", "F15b", "F15c", "F15d"),
    *("F16", "F17", "F18", "F19", "F20", "T1", "T2", "T3", "T4"),
)


def test_every_figure_and_table_of_the_paper_has_a_command() -> None:
    books = figures.read_all(REAL)
    for number in PAPERS:
        assert figures.select(books, [number]), number
    numbered = {row.name for row in figures.select(books) if row.paper}
    assert numbered - {"F8"} <= set(PAPERS), "a number that the paper does not have"


def test_every_preset_is_valid_and_paper_has_the_papers_settings() -> None:
    books = figures.read_all(REAL)
    assert set(notebooks.presets(REAL)) == {"quick", "lab", "paper"}
    setting = {"seeds": 10, "images": 10, "steps": 50, "guidance": 7.0}
    fewer = {"05_mitigation": {"noise_candidates"}}  # None there: as many as the method has
    for name, book in books.items():
        for preset in notebooks.presets(REAL):
            assert json.dumps(book.values(preset))
        assert set(notebooks.presets(REAL)["lab"]) | {"minutes"} <= {*books, "minutes"}
        chosen = book.values("paper")
        assert all(chosen[key] == value for key, value in setting.items() if key in chosen), name
        every = {"memorized", "non_memorized", "holdout", "per_rate"} & set(chosen)
        assert {chosen[key] for key in every - fewer.get(name, set())} <= {None}, name
        assert set(book.about["seconds"]) == {"quick", "lab"}
        assert book.title.endswith("?")
        common = {
            "model",
            "revision",
            "lora",
            "config",
            "device",
            "dtype",
            "prompt_files",
            "training_images",
        }
        assert common | {"out", "store"} <= set(book.kinds)


def test_paths_are_from_the_notebooks_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, other = notebook(tmp_path / "own"), tmp_path / "other"
    other.mkdir()
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    monkeypatch.chdir(own)
    assert figures.place("../figs") == tmp_path / "figs"
    monkeypatch.chdir(other)
    assert figures.place("../figs") == REAL.parent / "figs"
    assert figures.place(tmp_path / "x") == tmp_path / "x"
    monkeypatch.setenv("JPY_SESSION_NAME", str(own / f"{NAME}.ipynb"))  # as Jupyter's server does
    assert figures.place("../figs") == tmp_path / "figs"
    monkeypatch.setenv("JPY_SESSION_NAME", "of a kernel elsewhere")
    assert figures.place("../figs") == REAL.parent / "figs"
