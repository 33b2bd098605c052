"""What is answered, what waits for it, and the solutions.

Scope: `solution("4.1")` puts a solution in the place of an answer; a cell whose first line is
`# needs 4.1` says in one line that it waits for that answer, and the cells after it run on.
"""

from __future__ import annotations

import re
import sys
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "solutions"
NEEDS = re.compile(r"# needs (\d\.\d(?:, \d\.\d)*)\s*$")

answered: set[str] = set()  # rightly, or by the solution
tried: set[str] = set()


@cache
def solutions(lesson: int) -> dict[str, str]:
    """Exercise -> the code that takes its cell's place; none where the folder is not there."""
    parts = [
        re.split(r"^# %% (\S+)\n", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
        for path in FOLDER.glob(f"{lesson:02}_*.py")
    ]
    pairs = [pair for one in parts for pair in zip(one[::2], one[1::2], strict=True)]
    return {name: code.strip() for name, code in pairs}


def solution(exercise: str) -> None:
    """Put the solution in the place of an answer, after an attempt, and show it.

    Where `check` has seen no attempt yet it asks for one; asked again, it gives in.
    """
    lesson = exercise.partition(".")[0]
    known = solutions(int(lesson)) if lesson.isdecimal() else {}
    if exercise not in known:
        listed = ", ".join(known) or "none: the folder solutions is not beside the lessons"
        raise ValueError(f"exercise must be one that has a solution ({listed}); got {exercise!r}")
    if exercise not in tried:
        tried.add(exercise)
        print(f"Try {exercise} first: check explains what is wrong. To go on without, run this "
              "once more.")  # fmt: skip
        return
    code = known[exercise].rpartition("\n\ncheck(")[0].rstrip()
    exec(compile(code, f"<solution {exercise}>", "exec"), sys._getframe(1).f_globals)
    answered.add(exercise)
    print(f"The solution of {exercise} is in place:\n\n{code}")


def waiting(lines: list[str]) -> list[str]:
    """The lines of a cell, or one that says what it waits for."""
    found = NEEDS.match(lines[0]) if lines else None
    missing = [name for name in found[1].split(", ") if name not in answered] if found else []
    if not missing:
        return lines
    told = (
        f"○ This cell waits for {' and '.join(missing)}: answer above, "
        f'or run solution("{missing[0]}").'
    )
    return [f"print({told!r})\n"]


def listen() -> None:
    """Let cells wait from here on, where a notebook's kernel runs."""
    running = sys.modules.get("IPython")  # there is none to listen to without it
    if running and (shell := running.get_ipython()) is not None:
        hooks = shell.input_transformers_post
        hooks[:] = [one for one in hooks if one.__module__ != __name__] + [waiting]
