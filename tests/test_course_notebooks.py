"""Every lesson with its solutions from top to bottom; without them it stops at an exercise."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.manager import KernelManager, start_new_kernel
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

import checks as course

FOLDER = Path(__file__).resolve().parents[1] / "notebooks" / "course"
LESSONS = sorted(FOLDER.glob("0*.ipynb"))


def solutions(lesson: Path) -> dict[str, str]:
    """Exercise -> the code that takes its cell's place."""
    text = (FOLDER / "solutions" / f"{lesson.stem}.py").read_text(encoding="utf-8")
    parts = re.split(r"^# %% (\S+)\n", text, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


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


def run(notebook: Any, kernel: KernelManager) -> None:
    clean = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("%reset -f")])
    for each in (clean, notebook):
        NotebookClient(each, kernel, timeout=300).execute()


def test_there_is_a_notebook_a_lesson() -> None:
    assert [int(path.name[:2]) for path in LESSONS] == list(course.LESSONS)


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_each_exercise_has_a_cell_a_solution_and_a_checker(lesson: Path) -> None:
    notebook = nbformat.read(lesson, as_version=4)
    known = list(course.exercises(int(lesson.name[:2])))
    assert list(exercise_cells(notebook)) == known == list(solutions(lesson))
    text = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    for name in known:
        heading = rf"### Exercise {re.escape(name)}: .+ · [●○]{{3}} · \d+ min"
        assert re.search(heading, text), f"{name} needs a heading with difficulty and minutes"
    assert all(
        word in text for word in ("**Goal.**", "**Predict**", "## Take away", "**Read on.**")
    )


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_each_exercise_cell_as_handed_out_is_open(lesson: Path) -> None:
    for name, cell in exercise_cells(nbformat.read(lesson, as_version=4)).items():
        with pytest.raises(course.Open, match=f"Exercise {name} .* is open"):
            exec(cell.source, {"check": course.check})


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
    exec(program.replace("timeout=600", "timeout=4"), {})
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


@pytest.mark.slow
@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_runs_with_its_solutions(lesson: Path, kernel: KernelManager) -> None:
    notebook = nbformat.read(lesson, as_version=4)
    answers = solutions(lesson)
    for name, cell in exercise_cells(notebook).items():
        cell.source = answers[name]
    run(notebook, kernel)
    printed = "".join(
        output.text for cell in notebook.cells for output in cell.get("outputs", [])
        if output.output_type == "stream"
    )  # fmt: skip
    assert all(f"✓ {name} is right" in printed for name in answers)


@pytest.mark.slow
def test_a_lesson_without_answers_stops_at_its_first_exercise_with_a_friendly_word(
    kernel: KernelManager,
) -> None:
    notebook = nbformat.read(LESSONS[2], as_version=4)
    with pytest.raises(CellExecutionError) as caught:
        run(notebook, kernel)
    assert caught.value.ename == "Open"
    assert "put your answer where the … is" in caught.value.evalue
    [failed] = [o for c in notebook.cells for o in c.get("outputs", []) if o.output_type == "error"]
    assert failed.traceback == [caught.value.evalue]
