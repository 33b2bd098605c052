"""One exercise of the course: what an answer is called with, what is right, what goes wrong often.

Scope: comparing an answer with the solution by running both; an answer that equals a common mistake
gets that mistake's explanation, never the solution.
"""

from __future__ import annotations

import dis
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

Inputs = Callable[[np.random.Generator], tuple[Any, ...]]
TRIALS = 3  # random inputs an answer is run on
NOTHING = {"RESUME", "NOP", "LOAD_CONST", "RETURN_CONST", "RETURN_VALUE"}  # all that `...` does
TOLERANCE = 1e-4  # relative and absolute: float32 in another order of operations


class Feedback(Exception):
    """What the checker has to say; a notebook shows the message without a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


class Open(Feedback):
    """The exercise has no answer yet."""


class Wrong(Feedback):
    """The answer is not right; the message says what is wrong with it."""


@dataclass(frozen=True)
class Mistake:
    """A typical wrong answer and what to tell whoever gave it."""

    answer: Any
    explanation: str


def wrong(*pairs: Any) -> tuple[Mistake, ...]:
    """Mistakes from a typical wrong answer, its explanation, the next answer, and so on."""
    return tuple(Mistake(*pair) for pair in zip(pairs[::2], pairs[1::2], strict=True))


@dataclass(frozen=True)
class Exercise:
    """An exercise whose answer is a value or, with `inputs`, a function of them.

    Parameters: `title`; `solution`; `mistakes`, at least two, by `wrong`; `inputs`, draws the
    arguments of the answer from a random generator, None where the answer is a plain value;
    `returns`, what the answer gives, for the message where it gives something else; `harness`,
    makes a function of the inputs from the answer where it is not one itself; `edges`, arguments
    that an answer is run on besides those drawn: the cases at the edge.
    """

    title: str
    solution: Any
    mistakes: Sequence[Mistake] = field(default=())
    inputs: Inputs | None = None
    returns: str = "a value"
    harness: Callable[[Any], Callable] | None = None
    edges: Sequence[tuple[Any, ...]] = ()

    def check(self, answer: Any, name: str) -> None:
        """Raise `Open` or `Wrong` unless the answer is right."""
        if answer is ... or answer is None:
            raise self._open(name)
        if self.inputs is None:
            self._check_value(answer, name)
            return
        if not callable(answer):
            raise Wrong(f"{name}: the answer must be a function, got {type(answer).__name__}.")
        drawn = [self.inputs(np.random.default_rng([7, n])) for n in range(TRIALS)]
        cases = [*drawn, *self.edges]
        results = [self._run(answer, case, name) for case in cases]
        if not all(map(same, results, self._outcomes(self.solution, cases))):
            raise Wrong(f"{name}: {self._explain(results, cases)}")

    def _open(self, name: str) -> Open:
        return Open(
            f"Exercise {name} ({self.title}) is open: put your answer where the … is. After an "
            f'attempt solution("{name}") puts ours in its place.'
        )

    def _check_value(self, answer: Any, name: str) -> None:
        if not same(answer, self.solution):
            raise Wrong(f"{name}: {self._explain([answer], None)}")

    def _run(self, answer: Callable, case: tuple, name: str) -> Any:
        """The answer on a copy of the arguments, its errors told in a sentence."""
        given = deepcopy(case)
        try:
            result = self._function(answer)(*given)
        except Wrong as told:  # by the harness
            raise Wrong(f"{name}: {told}") from told
        except Exception as error:
            kind = type(error).__name__
            raise Wrong(f"{name}: your function stops with {kind}: {error}") from error
        if result is ... or (result is None and _untouched(answer)):
            raise self._open(name)
        if result is None:
            raise Wrong(f"{name}: your function returns nothing; is a `return` missing?")
        if not same(given, case):
            raise Wrong(f"{name}: your function changes its arguments; work on copies.")
        return result

    def _function(self, answer: Any) -> Callable:
        return answer if self.harness is None else self.harness(answer)

    def _outcomes(self, answer: Any, cases: list[tuple] | None) -> list[Any]:
        """What an answer gives for each case; a plain value is its own outcome."""
        if cases is None:
            return [answer]
        return [_call(self._function(answer), case) for case in cases]

    def _explain(self, results: list[Any], cases: list[tuple] | None) -> str:
        for mistake in self.mistakes:
            if all(map(same, results, self._outcomes(mistake.answer, cases))):
                return mistake.explanation
        [right, *_] = self._outcomes(self.solution, cases)
        return shape_feedback(results[0], right) or (
            f"not yet. {self.returns[:1].upper()}{self.returns[1:]} is expected, and the values "
            "differ; try your answer on a case small enough to do by hand."
        )


def _untouched(answer: Callable) -> bool:
    """Whether a function's body does nothing, as that of `def answer(values): ...`."""
    code = getattr(answer, "__code__", None)
    return code is not None and {step.opname for step in dis.get_instructions(code)} <= NOTHING


def _call(function: Callable, case: tuple) -> Any:
    """The result, or the error's type, so that mistakes may also be functions that stop."""
    try:
        return function(*deepcopy(case))
    except Exception as error:
        return type(error)


def same(got: Any, wanted: Any) -> bool:
    """Equal up to rounding; tensors, arrays and numbers alike, containers part by part."""
    got, wanted = _parts(_plain(got), wanted), _plain(wanted)
    if isinstance(wanted, Mapping):
        return (
            isinstance(got, Mapping)
            and set(got) == set(wanted)
            and all(same(got[key], wanted[key]) for key in wanted)
        )
    if isinstance(wanted, (tuple, list)) and not _numbers(wanted):
        return (
            isinstance(got, (tuple, list))
            and len(got) == len(wanted)
            and all(map(same, got, wanted))
        )
    first, second = _array(got), _array(wanted)
    if first is None or second is None:
        return type(got) is type(wanted) and bool(got == wanted)
    return first.shape == second.shape and np.allclose(
        first, second, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True
    )


def shape_feedback(got: Any, wanted: Any) -> str:
    """What is wrong with the form of an answer; empty where only its values may be."""
    got, wanted = _parts(_plain(got), wanted), _plain(wanted)
    first, second = _array(got), _array(wanted)
    if second is None:
        expected, came = type(wanted).__name__, type(got).__name__
        return "" if expected == came else f"a {expected} is expected, got a {came}."
    if first is None:
        return f"numbers are expected, got {type(got).__name__}."
    if first.shape != second.shape:
        return f"the shape {list(second.shape)} is expected, got {list(first.shape)}."
    return ""


def _plain(value: Any) -> Any:
    """A NumPy scalar as Python's own number, truth value or text; anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def _parts(got: Any, wanted: Any) -> Any:
    """An array or tensor as the list of its rows, where several parts are wanted."""
    several = isinstance(wanted, (tuple, list)) and not _numbers(wanted)
    if several and isinstance(got, (np.ndarray, torch.Tensor)) and got.ndim:
        return type(wanted)(got)
    return got


def _numbers(values: Sequence[Any]) -> bool:
    plain = map(_plain, values)
    return len(values) > 0 and all(isinstance(v, (int, float, bool, np.number)) for v in plain)


def _array(value: Any) -> np.ndarray | None:
    """Numbers as a float64 array, None for anything else."""
    value = _plain(value)
    if isinstance(value, torch.Tensor):
        return value.detach().to(torch.float64).cpu().numpy()
    if isinstance(value, (bool, int, float, np.number, np.ndarray)) or (
        isinstance(value, (tuple, list)) and _numbers(value)
    ):
        array = np.asarray(value)
        return array.astype(np.float64) if array.dtype.kind in "biuf" else None
    return None
