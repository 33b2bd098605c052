"""The checkers of the course: right answers pass, typical wrong ones are told and explained."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from nemo_kit import course
from nemo_kit.course import Exercise, Open, Wrong

ALL = [(name, e) for lesson in course.LESSONS for name, e in course.exercises(lesson).items()]
NAMES = [name for name, _ in ALL]


@pytest.fixture(params=ALL, ids=NAMES)
def numbered(request: pytest.FixtureRequest) -> tuple[str, Exercise]:
    return request.param


def test_every_lesson_has_three_to_six_exercises_numbered_in_order() -> None:
    for lesson in course.LESSONS:
        names = list(course.exercises(lesson))
        assert 3 <= len(names) <= 6
        assert names == [f"{lesson}.{n}" for n in range(1, len(names) + 1)]


def test_the_solution_passes(
    numbered: tuple[str, Exercise], capsys: pytest.CaptureFixture[str]
) -> None:
    name, exercise = numbered
    course.check(name, exercise.solution)
    assert capsys.readouterr().out == f"✓ {name} is right: {exercise.title}\n"


def test_two_or_more_mistakes_are_refused_each_with_its_own_words(
    numbered: tuple[str, Exercise],
) -> None:
    name, exercise = numbered
    assert len(exercise.mistakes) >= 2
    for mistake in exercise.mistakes:
        with pytest.raises(Wrong, match=re.escape(mistake.explanation)):
            course.check(name, mistake.answer)


def test_an_open_exercise_says_so_and_shows_no_traceback(numbered: tuple[str, Exercise]) -> None:
    name, exercise = numbered
    with pytest.raises(Open, match=f"Exercise {name} .* is open") as caught:
        course.check(name, ...)
    assert caught.value._render_traceback_() == [str(caught.value)]
    if exercise.inputs is not None and exercise.harness is None:
        with pytest.raises(Open):
            course.check(name, lambda *arguments: ...)


def test_an_answer_that_stops_or_changes_its_arguments_is_told() -> None:
    with pytest.raises(Wrong, match="stops with ZeroDivisionError"):
        course.check("1.1", lambda latent, noise, kept: 1 / 0)

    def in_place(output: torch.Tensor, neurons: list[int]) -> torch.Tensor:
        output[..., neurons] = 0
        return output

    with pytest.raises(Wrong, match="changes its arguments"):
        course.check("3.3", in_place)


def test_the_form_of_an_answer_is_told() -> None:
    with pytest.raises(Wrong, match=r"must be a function, got int"):
        course.check("1.1", 3)
    with pytest.raises(Wrong, match=r"shape \[2, 4, 8, 8\] is expected, got \[\]"):
        course.check("1.1", lambda latent, noise, kept: 3.0)
    with pytest.raises(Wrong, match="numbers are expected, got str"):
        course.check("2.3", lambda similarities, threshold: "half")
    with pytest.raises(Wrong, match="a tuple is expected, got a float"):
        course.check("2.2", lambda vectors, gallery: 1.0)
    with pytest.raises(Wrong, match="the values differ"):
        course.check("2.3", lambda similarities, threshold: 0.123)


def test_arrays_tensors_and_numbers_are_compared_alike() -> None:
    course.check("2.1", lambda a, b: torch.from_numpy(course.exercises(2)["2.1"].solution(a, b)))
    course.check("6.4", np.int64(1))


@pytest.mark.parametrize("name", ["0.1", "9.1", "3.9", "3", "x", "", "3.2.1"])
def test_an_unknown_exercise_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="exercise must be one of"):
        course.check(name, 1)
    with pytest.raises(ValueError, match="lesson must be 1 to 8"):
        course.exercises(9)


def test_the_number_of_searched_neurons_is_the_lab_models() -> None:
    from nemo_kit.lab import planting

    assert course.exercises(3)["3.1"].solution == sum(planting.WIDTHS.values())
