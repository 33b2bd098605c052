"""Every lesson with its solutions from top to bottom; without them it stops at an exercise."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from nemo_kit import course
from nemo_kit.figures.runner import root

FOLDER = root() / "notebooks" / "course"
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


def run(notebook: Any) -> None:
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(FOLDER)}}).execute()


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


@pytest.mark.slow
@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_runs_with_its_solutions(lesson: Path) -> None:
    notebook = nbformat.read(lesson, as_version=4)
    answers = solutions(lesson)
    for name, cell in exercise_cells(notebook).items():
        cell.source = answers[name]
    run(notebook)
    printed = "".join(
        output.text for cell in notebook.cells for output in cell.get("outputs", [])
        if output.output_type == "stream"
    )  # fmt: skip
    assert all(f"✓ {name} is right" in printed for name in answers)


@pytest.mark.slow
def test_a_lesson_without_answers_stops_at_its_first_exercise_with_a_friendly_word() -> None:
    notebook = nbformat.read(LESSONS[2], as_version=4)
    with pytest.raises(CellExecutionError) as caught:
        run(notebook)
    assert caught.value.ename == "Open"
    assert "put your answer where the … is" in caught.value.evalue
    [failed] = [o for c in notebook.cells for o in c.get("outputs", []) if o.output_type == "error"]
    assert failed.traceback == [caught.value.evalue]
