"""The checkers of the course: right answers pass, typical wrong ones are told and explained."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

import checks as course
from checks import Exercise, Open, Wrong

ALL = [(name, e) for lesson in course.LESSONS for name, e in course.exercises(lesson).items()]
NAMES = [name for name, _ in ALL]


@pytest.fixture(params=ALL, ids=NAMES)
def numbered(request: pytest.FixtureRequest) -> tuple[str, Exercise]:
    return request.param


def handed_out(*arguments: Any) -> None: ...


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


def test_an_open_exercise_says_so_and_stops_nothing(
    numbered: tuple[str, Exercise], capsys: pytest.CaptureFixture[str]
) -> None:
    name, exercise = numbered
    answers = [..., *((lambda *arguments: ..., handed_out) if exercise.inputs else ())]
    for untouched in answers:
        course.check(name, untouched)
        assert f"○ Exercise {name} ({exercise.title}) is open" in capsys.readouterr().out
        with pytest.raises(Open) as caught:
            exercise.check(untouched, name)
        assert caught.value._render_traceback_() == [str(caught.value)]


def test_an_answer_that_stops_or_changes_its_arguments_is_told() -> None:
    with pytest.raises(Wrong, match="stops with ZeroDivisionError"):
        course.check("1.1", lambda latent, noise, kept: 1 / 0)

    def in_place(output: torch.Tensor, neurons: list[int]) -> torch.Tensor:
        output[..., neurons] = 0
        return output

    with pytest.raises(Wrong, match="changes its arguments"):
        course.check("3.2", in_place)


def test_a_function_without_its_return_is_told(numbered: tuple[str, Exercise]) -> None:
    name, exercise = numbered

    def forgetful(*arguments: Any) -> None:
        _result = exercise.solution(*arguments)

    if exercise.inputs is not None:
        with pytest.raises(Wrong, match=f"{name}: your function returns nothing"):
            course.check(name, forgetful)


def test_the_form_of_an_answer_is_told() -> None:
    with pytest.raises(Wrong, match=r"must be a function, got int"):
        course.check("1.1", 3)
    with pytest.raises(Wrong, match=r"shape \[2, 4, 8, 8\] is expected, got \[\]"):
        course.check("1.1", lambda latent, noise, kept: 3.0)
    with pytest.raises(Wrong, match="numbers are expected, got str"):
        course.check("2.5", lambda vectors: "half")
    with pytest.raises(Wrong, match="a tuple is expected, got a float"):
        course.check("2.2", lambda vectors, gallery: 1.0)
    with pytest.raises(Wrong, match="the values differ"):
        course.check("2.5", lambda vectors: 0.123)


def test_arrays_tensors_and_numbers_are_compared_alike() -> None:
    course.check("2.1", lambda a, b: torch.from_numpy(course.exercises(2)["2.1"].solution(a, b)))
    course.check("6.3", lambda *given: np.int64(course.exercises(6)["6.3"].solution(*given)))


def test_a_pair_or_a_list_may_be_an_array() -> None:
    course.check("2.2", lambda v, g: np.stack([(v @ g.T).argmax(axis=1), (v @ g.T).max(axis=1)]))
    course.check("2.4", lambda s: np.where(s.max(axis=1) > 0.7, "VM", "TM"))
    with pytest.raises(Wrong, match="hides a few exact copies"):
        course.check("2.4", lambda s: np.where(s.mean(axis=1) > 0.7, "VM", "TM"))


def test_lists_of_numpy_scalars_are_compared_like_pythons_own() -> None:
    course.check("2.4", lambda s: list(np.where(s.max(axis=1) > 0.7, "VM", "TM")))
    course.check("4.3", lambda pairs, threshold: list(np.nanmax(pairs, axis=1) > threshold))
    with pytest.raises(Wrong, match="hides a few exact copies"):
        course.check("2.4", lambda s: list(np.where(s.mean(axis=1) > 0.7, "VM", "TM")))
    with pytest.raises(Wrong, match=r"4\.3: every seed is kept"):
        course.check("4.3", lambda pairs, threshold: list(np.full(len(pairs), True)))


def hooked(zero: Callable) -> Callable:
    """An answer to 3.4 around an answer to 3.3; it keeps the `...` after the `yield`."""

    @contextmanager
    def zeroed(module: torch.nn.Module, neurons: list[int]) -> Iterator[Any]:
        handle = module.register_forward_hook(lambda _m, _i, output: zero(output, neurons))
        try:
            yield ...
        finally:
            handle.remove()

    return zeroed


def test_a_hook_is_tried_on_an_output_of_batch_tokens_and_width() -> None:
    def zero(output: torch.Tensor, neurons: list[int]) -> torch.Tensor:
        changed = output.clone()
        changed[:, :, neurons] = 0
        return changed

    course.check("3.2", zero)
    course.check("3.3", hooked(zero))
    with pytest.raises(Wrong, match="the values differ"):
        course.check("3.3", hooked(lambda output, neurons: 2 * output))


def test_the_context_manager_as_handed_out_is_open(capsys: pytest.CaptureFixture[str]) -> None:
    @contextmanager
    def zeroed(module: torch.nn.Module, neurons: list[int]) -> Iterator[Any]:
        yield ...

    course.check("3.3", zeroed)
    assert "Exercise 3.3 (a hook that cleans up after itself) is open" in capsys.readouterr().out


def test_a_solution_is_put_in_place_after_an_attempt(capsys: pytest.CaptureFixture[str]) -> None:
    names = {"solution": course.solution, "check": course.check}
    course.progress.tried.discard("1.2")
    exec("solution('1.2')", names)
    assert capsys.readouterr().out.startswith("Try 1.2 first")
    assert "clean" not in names
    with pytest.raises(Wrong):
        course.check("1.2", lambda noisy, noise, kept: noisy)
    exec("solution('1.2')", names)
    assert capsys.readouterr().out.startswith("The solution of 1.2 is in place:\n\ndef clean(")
    course.check("1.2", names["clean"])
    with pytest.raises(ValueError, match=r"exercise must be one .*1\.1, 1\.2.*; got '1\.9'"):
        course.solution("1.9")


def test_guidance_asks_the_denoiser_once(capsys: pytest.CaptureFixture[str]) -> None:
    def unequal(predict: Callable, latent: Any, with_text: Any, without: Any, scale: float) -> Any:
        return predict(latent, torch.cat([with_text, without]))

    with pytest.raises(Wrong, match="an embedding for each latent; it got 2 for 1"):
        course.check("1.5", unequal)


def test_candidates_that_are_unusual_and_loud_are_wanted_once() -> None:
    def twice(activation: torch.Tensor, z: torch.Tensor, theta: float, k: int) -> list[int]:
        unusual = (z.abs() > theta).nonzero().flatten().tolist()
        return sorted(unusual + activation.topk(k).indices.tolist())

    with pytest.raises(Wrong, match="in your list twice"):
        course.check("5.3", twice)


Widen = Callable[[Callable, Callable, float], tuple[float, int]]


def widening(goes_on: Callable[[float, float, float], bool]) -> Widen:
    """An answer to 5.4 whose loop goes on while `goes_on(score, threshold, theta)`."""

    def widen(score: Callable, propose: Callable, threshold: float) -> tuple[float, int]:
        theta, k = 5.0, 0
        while goes_on(score(propose(theta, k)), threshold, theta):
            theta, k = theta - 0.25, k + 1
        return theta, k

    return widen


def test_widening_ends_at_theta_1_even_if_the_copy_stays() -> None:
    exercise = course.exercises(5)["5.4"]
    assert [exercise.solution(*edge) for edge in exercise.edges] == [(1.0, 16), (5.0, 0)]
    course.check("5.4", widening(lambda score, threshold, theta: score > threshold and theta > 1))
    with pytest.raises(Wrong, match=r"5\.4: your loop doesn't end"):
        course.check("5.4", widening(lambda score, threshold, theta: score > threshold))
    with pytest.raises(Wrong, match=r"5\.4: yours goes below θ = 1"):
        course.check(
            "5.4", widening(lambda score, threshold, theta: score > threshold and theta >= 1)
        )
    with pytest.raises(Wrong, match=r"5\.4: your loop doesn't end"):
        course.check("5.4", lambda score, propose, threshold: forever(score, propose))


def forever(score: Callable, propose: Callable) -> None:
    while score(propose(5.0, 0)) > 0:
        pass


def test_widening_scores_before_its_first_round() -> None:
    def first_round_unseen(
        score: Callable, propose: Callable, threshold: float
    ) -> tuple[float, int]:
        theta, k = 4.75, 1
        while score(propose(theta, k)) > threshold and theta > 1:
            theta, k = theta - 0.25, k + 1
        return theta, k

    with pytest.raises(Wrong, match=r"5\.4: not yet"):
        course.check("5.4", first_round_unseen)


def test_a_chain_without_a_failure_is_tried() -> None:
    with pytest.raises(Wrong, match=r"6\.5: your function stops with ValueError"):
        course.check("6.5", lambda verdicts: verdicts.index(False) + 1)


def test_a_draw_that_ignores_its_generator_is_refused() -> None:
    def free(width: int, taken: list[int]) -> list[int]:
        return [n for n in range(width) if n not in taken]

    course.check("7.1", lambda w, taken, n, rng: list(rng.permutation(free(w, taken))[:n]))
    with pytest.raises(Wrong, match=r"7\.1: .*nothing is drawn"):
        course.check("7.1", lambda w, taken, n, rng: free(w, taken)[:n])
    own = np.random.default_rng()
    with pytest.raises(Wrong, match=r"7\.1: your draw can't be repeated"):
        course.check("7.1", lambda w, taken, n, rng: own.permutation(free(w, taken))[:n])


def test_a_ranking_may_be_sorted_by_numpy_but_not_turned_around() -> None:
    def sorted_by(scores: dict[int, torch.Tensor], kind: str) -> list[Any]:
        layers = sorted(scores)
        flat = np.concatenate([scores[layer].numpy() for layer in layers])
        every = [(layer, n) for layer in layers for n in range(len(scores[layer]))]
        places = np.argsort(-flat, kind="stable") if kind == "down" else np.argsort(flat)[::-1]
        return [(np.int64(every[n][0]), torch.tensor(every[n][1])) for n in places]

    course.check("9.1", lambda scores: sorted_by(scores, "down"))
    with pytest.raises(Wrong, match=r"9\.1: right but for equal scores"):
        course.check("9.1", lambda scores: sorted_by(scores, "turned"))


def test_slopes_come_from_one_call_of_the_model() -> None:
    def backward(memory: Callable, width: int) -> torch.Tensor:
        gates = torch.ones(width, requires_grad=True)
        memory(gates).backward()
        return gates.grad

    def nudged(memory: Callable, width: int) -> torch.Tensor:
        steps = 1e-3 * torch.eye(width)
        return torch.stack([memory(1 + one) - memory(1 - one) for one in steps]) / 2e-3

    course.check("9.2", backward)
    with pytest.raises(Wrong, match=r"9\.2: yours asks the model for one neuron after another"):
        course.check("9.2", nudged)
    with pytest.raises(Wrong, match=r"9\.2: your function stops with RuntimeError"):
        course.check(
            "9.2", lambda memory, width: torch.autograd.grad(memory(torch.ones(width)), ())
        )


def test_a_deletion_curve_may_hand_over_lists_and_agreement_may_return_them() -> None:
    course.check(
        "9.4",
        lambda score, order, sizes, draw: (
            [score(order[:k]) for k in sizes],
            np.array([score(draw(order[:k])) for k in sizes]),
        ),
    )
    course.check("9.5", lambda orders, k: course.exercises(9)["9.5"].solution(orders, k).tolist())


def test_a_neuron_may_be_neither_necessary_nor_sufficient() -> None:
    exercise = course.exercises(9)["9.6"]
    assert [tuple(map(len, exercise.solution(*edge))) for edge in exercise.edges] == [
        (1, 0), (0, 2), (2, 0),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["0.1", "10.1", "3.9", "3", "x", "", "3.2.1"])
def test_an_unknown_exercise_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="exercise must be one of"):
        course.check(name, 1)
    with pytest.raises(ValueError, match="lesson must be 1 to 9"):
        course.exercises(10)
