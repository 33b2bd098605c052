"""The checkers of the course: ``check("3.2", answer)``.

Scope: each lesson's exercises are a module here, one entry each; answers are compared by running
them. The solutions a learner is meant to read are in the folder ``solutions`` beside this one.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

from checks.exercise import Exercise, Feedback, Open, Wrong
from checks.pictures import pictures
from checks.progress import answered, listen, solution, solutions, tried

LESSONS = range(1, 10)

__all__ = [
    "LESSONS", "Exercise", "Feedback", "Open", "Wrong", "check", "exercises", "pictures",
    "solution", "solutions",
]  # fmt: skip

listen()


@cache
def exercises(lesson: int) -> dict[str, Exercise]:
    """The exercises of a lesson by number, as ``"3.2"``; ValueError for a lesson there is not."""
    if lesson not in LESSONS:
        raise ValueError(f"lesson must be {LESSONS[0]} to {LESSONS[-1]}, got {lesson!r}")
    return import_module(f"checks.lesson{lesson}").EXERCISES


def check(exercise: str, answer: Any) -> None:
    """Run the answer to an exercise against what is right, and say so, or that it is open yet.

    Parameters: `exercise`, its number in the notebook as text; `answer`, the function or value.
    Raises `Wrong` with an explanation where the answer is not right; ValueError for an exercise
    there is not.
    """
    lesson = str(exercise).partition(".")[0]
    known = exercises(int(lesson)) if lesson in map(str, LESSONS) else {}
    if exercise not in known:
        listed = ", ".join(known) or f"a number such as 1.1, lessons {LESSONS[0]}–{LESSONS[-1]}"
        raise ValueError(f"exercise must be one of {listed}; got {exercise!r}")
    answered.discard(exercise)
    try:
        known[exercise].check(answer, exercise)
    except Open as told:
        print(f"○ {told}")
        return
    except Wrong:
        tried.add(exercise)
        raise
    tried.add(exercise)
    answered.add(exercise)
    print(f"✓ {exercise} is right: {known[exercise].title}")
