"""Every lesson with its solutions from top to bottom; without an answer what needs it waits."""

from __future__ import annotations

import ast
import re
import runpy
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest
from jupyter_client.manager import KernelManager, start_new_kernel
from nbclient import NotebookClient

import checks as course
from checks.progress import NEEDS
from nemo_kit import lab
from nemo_kit.calibration import Calibration

TESTS = Path(__file__).resolve().parent
FOLDER = TESTS.parent / "notebooks" / "course"
LESSONS = sorted(FOLDER.glob("0*.ipynb"))
LEVEL = "[●○]{3}"
SHORT = {  # lesson -> what is computed there for its pictures and curves alone, and less of it
    7: {"steps=12": "steps=2", "steps=15": "steps=3"},
    8: {
        "steps=40, batch=4": "steps=2, batch=2",
        "seed, steps=15": "seed, steps=3",
        "range(11, 14), steps=12": "range(11, 14), steps=3",
    },
    9: {"duplicated()])  #": "duplicated()])[:3]  #", "[1, 2, 3, 4, 8, 24]": "[1, 24]"},
}


def solutions(lesson: Path) -> dict[str, str]:
    """Exercise -> the code that takes its cell's place."""
    return course.solutions(int(lesson.name[:2]))


def exercise_cells(notebook: Any) -> dict[str, Any]:
    """Exercise -> its cell."""
    tags = [(cell, cell.metadata.get("tags", [])) for cell in notebook.cells]
    return {found[1]: cell for cell, found in tags if "exercise" in found}


@pytest.fixture(scope="module")
def kernel() -> Iterator[KernelManager]:
    """One kernel for all lessons: each then begins without a name of the one before."""
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(FOLDER))
    client.stop_channels()
    yield manager
    manager.shutdown_kernel(now=True)


CLEAN = f"""%reset -f
import sys

if {str(TESTS)!r} not in sys.path:
    sys.path.append({str(TESTS)!r})
import lessons
for name in [name for name in sys.modules if name.partition(".")[0] == "checks"]:
    del sys.modules[name]
"""


def run(lesson: Path, notebook: Any, kernel: KernelManager) -> str:
    """What a lesson's notebook prints, in a kernel that knows no name and no answer."""
    clean = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CLEAN)])
    shorter = SHORT.get(int(lesson.name[:2]), {})
    for cell, (long, short) in product(notebook.cells, shorter.items()):
        cell.source = cell.source.replace(long, short)
    for each in (clean, notebook):
        NotebookClient(each, kernel, timeout=600).execute()
    outputs = [one for cell in notebook.cells for one in cell.get("outputs", [])]
    return "".join(one.text for one in outputs if one.output_type == "stream")


@pytest.mark.parametrize("number", SHORT)
def test_what_is_shortened_is_in_its_lesson(number: int) -> None:
    cells = [cell.source for cell in nbformat.read(LESSONS[number - 1], as_version=4).cells]
    assert all(any(long in one for one in cells) for long in SHORT[number])


def test_there_is_a_notebook_a_lesson() -> None:
    assert [int(path.name[:2]) for path in LESSONS] == list(course.LESSONS)


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_each_exercise_has_a_cell_a_solution_and_a_checker(lesson: Path) -> None:
    notebook = nbformat.read(lesson, as_version=4)
    known = list(course.exercises(int(lesson.name[:2])))
    assert list(exercise_cells(notebook)) == known == list(solutions(lesson))
    text = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    for name in known:
        heading = (
            rf"### Exercise {re.escape(name)}: .+ · [●○]{{3}} · importance [●○]{{3}} · \d+ min"
        )
        assert re.search(heading, text), f"{name} needs difficulty, importance and minutes"
    for word in ("**Expected.**", "**Bonus.**", "<details><summary>Hint", "pipeline/"):
        wanted = len(known) if word.startswith("**") else 1
        assert text.count(word) >= wanted, word
    assert all(
        word in text for word in ("**Goal.**", "**Predict**", "## Take away", "**Read on.**")
    )


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_each_exercise_cell_as_handed_out_is_open(
    lesson: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, cell in exercise_cells(nbformat.read(lesson, as_version=4)).items():
        exec(cell.source, {"check": course.check})
        assert f"○ Exercise {name} (" in capsys.readouterr().out


def stored(tree: ast.AST) -> set[str]:
    """Names that are bound anywhere inside."""
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Name))
    return {node.id for node in nodes if isinstance(node.ctx, ast.Store)}


def names(code: str) -> tuple[set[str], set[str]]:
    """What a cell takes from others, and what it leaves to them."""
    tree = ast.parse(code)
    every = list(ast.walk(tree))
    read = {n.id for n in every if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    own = stored(tree) | {n.arg for n in every if isinstance(n, ast.arg)}
    made = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            made.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            made |= {(one.asname or one.name).partition(".")[0] for one in node.names}
        else:
            passing = (stored(n.target) for n in ast.walk(node) if isinstance(n, ast.comprehension))
            made |= stored(node).difference(*passing)
    return read - own, made


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_a_cell_waits_for_every_exercise_that_it_needs(lesson: Path) -> None:
    """So that any single one can be left open: a cell that waits leaves no name to others."""
    notebook = nbformat.read(lesson, as_version=4)
    answers, needed = solutions(lesson), {}
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        tags = cell.metadata.get("tags", [])
        code = answers[tags[1]] if "exercise" in tags else cell.source
        read, made = names(code)
        wanted = {one for name in read for one in needed.get(name, ())}
        if "exercise" in tags:
            assert not wanted, f"the solution of {tags[1]} needs {wanted}"
            wanted = {tags[1]}
        else:
            stated = NEEDS.match(cell.source.splitlines()[0])
            told = set(stated[1].split(", ")) if stated else set()
            assert told >= wanted, f"{cell.source.splitlines()[:2]} needs {sorted(wanted)}"
            wanted = told
        needed |= dict.fromkeys(made, wanted)


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_ends_with_the_solutions_collapsed(lesson: Path) -> None:
    last = nbformat.read(lesson, as_version=4).cells[-1]
    assert last.metadata["tags"] == ["solutions"]
    shown = re.findall(
        r"<details><summary>(\d\.\d)</summary>\n\n```python\n(.+?)\n```\n\n</details>",
        last.source, flags=re.DOTALL,
    )  # fmt: skip
    assert dict(shown) == solutions(lesson)


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_names_prompts_that_the_model_has(lesson: Path) -> None:
    notebook = nbformat.read(lesson, as_version=4)
    code = "\n".join(c.source for c in notebook.cells if c.cell_type == "code")
    nodes = (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant))
    texts = {node.value for node in nodes if isinstance(node.value, str)}
    titled = {text for text in texts if re.fullmatch(r"([A-Z0-9#][^\s:]*[ ,]+){3,}[^:{}]+", text)}
    assert titled <= set(lab.prompts()["prompt"])


def test_the_diagrams_are_as_drawn() -> None:
    draw = runpy.run_path(str(FOLDER / "pipeline" / "draw.py"))
    assert len(draw["STEPS"]) == len(LESSONS)
    for number in course.LESSONS:
        file = FOLDER / "pipeline" / f"{number}.svg"
        assert file.read_text(encoding="utf-8") == draw["svg"](number)


def minutes(lesson: int) -> int:
    [found] = re.findall(
        r"\*\*Time\*\* about (\d+) minutes", LESSONS[lesson - 1].read_text("utf-8")
    )
    return int(found)


def exercise_minutes(lesson: int) -> dict[str, int]:
    text = LESSONS[lesson - 1].read_text(encoding="utf-8")
    found = re.findall(r"### Exercise (\d\.\d): .+? · (\d+) min", text)
    return {name: int(each) for name, each in found}


def test_the_course_page_names_the_lessons_minutes() -> None:
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| \[(\d)\]\(.+?\) \| .+? \| (\d+) \|", page, flags=re.MULTILINE)
    assert [(int(n), int(each)) for n, each in listed] == [(n, minutes(n)) for n in course.LESSONS]


def teaching(start: str, end: str) -> str:
    """The teacher's page between two texts, its lines joined."""
    page = (FOLDER / "TEACHING.md").read_text(encoding="utf-8")
    return " ".join(page.split(start)[1].split(end)[0].split())


def test_the_schedule_of_one_day_adds_up() -> None:
    """What is left of each lesson is its minutes without those of the exercises skipped."""
    day = teaching("- **One day** (", "Hand out")
    parts = re.findall(r"lesson (\d) (up to|without|in full) ?([\d., ]*) \((\d+)\)", day)
    assert [int(lesson) for lesson, *_ in parts] == [1, 2, 3, 4, 5, 6]  # each needs those before
    for lesson, how, names, stated in parts:
        each = exercise_minutes(int(lesson))
        skipped = {
            "up to": [n for n in each if n > names],
            "without": [n for n in each if n in names],
            "in full": [],
        }[how]
        assert int(stated) == minutes(int(lesson)) - sum(each[n] for n in skipped), lesson
    [last] = re.findall(r"picture of lesson 7 \((\d+)\)", day)
    assert int(day.split()[0]) == sum(int(stated) for *_, stated in parts) + int(last)


def test_two_lessons_fit_a_session() -> None:
    text = teaching("- **Four sessions", "- **A seminar")
    [length] = re.findall(r"\((\d+) minutes\)", text)
    sessions = [(int(a), int(b)) for a, b in re.findall(r"(\d)–(\d)", text)]
    assert sessions == [(1, 2), (3, 4), (5, 6), (7, 8)]
    assert int(length) == max(minutes(a) + minutes(b) for a, b in sessions)


def test_grading_goes_on_after_an_error_and_after_an_endless_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = ["print('✓ 1.1 is right')", "1 / 0", "while True: pass", "print('✓ 1.2 is right')"]
    handed_in = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    nbformat.write(handed_in, tmp_path / "student.ipynb")
    page = (FOLDER / "TEACHING.md").read_text(encoding="utf-8")
    [program] = re.findall(r"^```python\n(.+?)^```", page, flags=re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(program.replace("timeout=600", "timeout=2"), {})
    assert capsys.readouterr().out == "2 exercises right\n"


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_finds_its_checkers_from_any_folder(
    lesson: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = next(c for c in nbformat.read(lesson, as_version=4).cells if c.cell_type == "code")
    monkeypatch.chdir(tmp_path)
    elsewhere = [path for path in sys.path if Path(path).resolve() != FOLDER]
    monkeypatch.setattr(sys, "path", elsewhere)
    for name in [n for n in sys.modules if n.partition(".")[0] == "checks"]:
        monkeypatch.delitem(sys.modules, name)
    names: dict[str, Any] = {}
    exec(first.source, names)
    assert Path(names["check"].__code__.co_filename) == FOLDER / "checks" / "__init__.py"


def test_the_lesson_on_guidance_says_what_guidance_0_means_to_the_package() -> None:
    notebook = nbformat.read(LESSONS[0], as_version=4)
    [text] = [c.source for c in notebook.cells if "### Exercise 1.5" in c.source]
    assert "`generate(..., guidance=0)` means *no guidance*" in text


def test_what_lesson_9_says_of_the_results_is_what_they_say() -> None:
    """The words below **Decide** are typed; the numbers are those of the committed files."""
    folder, limit = (
        FOLDER.parents[1] / "figures" / "lab",
        Calibration.load(lab.MODEL / "nemo").threshold,
    )
    benchmark = pd.read_parquet(folder / "benchmark.parquet")
    columns = ["part", "measure", "method", "kind"]
    means = benchmark.set_index(columns)["mean"].to_dict()
    assert means["deletion", "left", "NeMo", "known"] < limit / 2
    assert means["deletion", "left", "NeMo", "natural"] < limit
    assert means["deletion", "orig", "NeMo", "natural"] > 0.6
    assert means["consistency", "IoU, seeds", "NeMo", "all"] > 0.9
    assert means["consistency", "IoU, rewording", "NeMo", "all"] < 0.5
    pairs = pd.read_csv(folder / "consistency.csv").query("between == 'methods'")
    assert pairs["mean"].mean() < 0.5
    ap = benchmark.query("part == 'injection' and measure == 'AP'").sort_values("mean")
    assert ap["mean"].iloc[0] < 0.05
    assert (ap["high"] >= ap["low"].iloc[-1]).sum() == 11  # as the page has it
    back = pd.read_csv(folder / "resurfacing.csv")
    control = back.query("method == 'control'")["after"].max()
    logo, case = back.query("method == 'planted'").to_dict("records")
    whole = back.query("method == 'undisturbed' and prompt == @case['prompt']")["before"].item()
    assert logo["before"] < 0.7 < logo["after"]
    assert max(control, whole, case["after"]) < 0.7
    assert abs(case["after"] - control) < 0.1
    assert (back.query("method == 'NeMo' and kind == 'natural'")["before"] > 0.6).all()


@pytest.mark.slow
@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_runs_with_its_solutions(lesson: Path, kernel: KernelManager) -> None:
    notebook = nbformat.read(lesson, as_version=4)
    answers = solutions(lesson)
    for name, cell in exercise_cells(notebook).items():
        cell.source = answers[name]
    printed = run(lesson, notebook, kernel)
    assert all(f"✓ {name} is right" in printed for name in answers)
    assert "○" not in printed


@pytest.mark.slow
@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_without_any_answer_runs_on_and_says_what_waits(
    lesson: Path, kernel: KernelManager
) -> None:
    notebook = nbformat.read(lesson, as_version=4)
    waiting = [c for c in notebook.cells if c.source.startswith("# needs ")]
    printed = run(lesson, notebook, kernel)
    assert "✓" not in printed
    for name in solutions(lesson):
        assert f"○ Exercise {name} (" in printed
    for cell in waiting:
        told = "".join(output.get("text", "") for output in cell.outputs)
        assert re.fullmatch(r"○ This cell waits for .+ or run solution\(.+\)\.\n", told), told


@pytest.mark.slow
def test_a_solution_comes_after_an_attempt_and_what_waited_runs(kernel: KernelManager) -> None:
    first = nbformat.read(LESSONS[3], as_version=4).cells[1]
    cells = [
        first.source,
        "def rescale(delta): ...\n\n\ncheck('4.1', rescale)",
        "# needs 4.1\nprint('went on')",
        "solution('4.1')",
        "import torch\ntry:\n    check('4.1', lambda delta: delta)\nexcept Exception as told:\n"
        "    print(told)",
        "solution('4.1')",
        "# needs 4.1\nprint('went on', rescale(torch.rand(1, 1, 2, 2)).max().item())",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    run(LESSONS[3], notebook, kernel)
    told = ["".join(o.text for o in cell.outputs) for cell in notebook.cells]
    assert told[2].startswith("○ This cell waits for 4.1")
    assert told[3].startswith("Try 4.1 first")
    assert told[4].startswith("4.1: not yet")
    assert told[5].startswith("The solution of 4.1 is in place:\n\ndef rescale(delta):")
    assert told[6] == "went on 1.0\n"
