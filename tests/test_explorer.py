"""The explorer without a browser: values, session, what is shown and kept, its widgets."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import ipywidgets as widgets
import numpy as np
import pandas as pd
import pytest
import torch
from comm.base_comm import BaseComm
from conftest import TOY_PROMPTS
from matplotlib import pyplot as plt
from traitlets import TraitError

from nemo_kit import explore, generate, lab
from nemo_kit.explorer import keep, present, values
from nemo_kit.explorer.probe import Pictures, Probe
from nemo_kit.explorer.session import FALLBACK, Progress, Session
from nemo_kit.explorer.widget import Explorer
from nemo_kit.models import DiffusionModel
from nemo_kit.neurons import NeuronSet

WIDTHS = {1: 8, 3: 64, 5: 16}
TRAP = '<img src=x onerror="alert(1)"><b>cat</b>'
ONE = NeuronSet({1: [2]})
LONG = 120.0


# values


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("layer 3: 14, 15", {3: [14, 15]}),
        ("Layer 3: #14 #15; 5: 2-4", {3: [14, 15], 5: [2, 3, 4]}),
        ("l1: 7\n3:0", {1: [7], 3: [0]}),
        ("3: 1; 3: 2", {3: [1, 2]}),
        (" ", {}),
    ],
)
def test_neurons_are_read_by_hand(text: str, layers: dict[int, list[int]]) -> None:
    neurons = values.read_neurons(text, WIDTHS)
    assert neurons == NeuronSet(layers)
    assert values.read_neurons(values.write_neurons(neurons), WIDTHS) == neurons


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("14, 15", r'neurons must read like "layer 3: 14, 15", got \'14, 15\''),
        ("3:", "neurons must read like"),
        ("layer 99: 1", "layer 99 does not exist here"),
        ("3: 64", "index 64 in layer 3 is out of range"),
        ("3: 0-999999999999", "index 64 in layer 3 is out of range"),
        ("3: 5-2", "runs backwards"),
        ("3: 1-2-3", 'ranges like "2-4"'),
        (TRAP, "neurons must read like"),
    ],
)
def test_bad_neurons_by_hand_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        values.read_neurons(text, WIDTHS)


def test_seeds_are_read_by_hand() -> None:
    assert values.read_seeds("101-104") == (101, 102, 103, 104)
    assert values.read_seeds(" 5, 1 ") == (5, 1)
    assert values.write_seeds((101, 102, 103)) == "101-103"
    assert values.write_seeds((5, 1)) == "5, 1"
    for bad in ("", "a", "1-999999", "3, 3", "4-2", "-1"):
        with pytest.raises(ValueError, match="seeds must"):
            values.read_seeds(bad)


def test_seeds_are_numbers_too() -> None:
    assert values.read_seeds(range(3)) == (0, 1, 2)
    for bad in ([], [1, 1], range(17), 1.5):
        with pytest.raises(ValueError, match="seeds must"):
            values.read_seeds(bad)


# session


SEEN = {f"image {n}": np.full((32, 32, 3), 80 * n, np.uint8) for n in range(4)}


def embed(images: np.ndarray) -> np.ndarray:
    """Mean colours, as angles."""
    means = images.reshape(len(images), -1).mean(axis=1) / 40
    return np.stack([np.cos(means), np.sin(means)], axis=1)


@pytest.fixture
def session(toy_model: DiffusionModel) -> Iterator[Session]:
    table = pd.DataFrame({"prompt": TOY_PROMPTS, "role": "toy"})
    probe = Probe(toy_model, table, range(1, 5), training=SEEN, embedder=embed)
    made = Session(probe)
    made.seeds, made.steps = (101, 102), 2
    yield made
    end(made)


def end(session: Session) -> None:
    """Close it, and wait for what still runs: it would be counted as the next test's samples."""
    session.close()
    with suppress(FloatingPointError, RuntimeError, ValueError):
        session.wait(LONG)


def endless(started: threading.Event, session: Session) -> None:
    """A computation that ends only by being cancelled."""
    while True:
        started.set()
        session.probe.tick("going", 1, None)


def submit(session: Session, work: Any, told: list[Any]) -> None:
    """Ask for a job; what it leads to is noted in `told`."""
    with session.turn:
        session._submit("Counting", work, told.append)


def chosen(session: Session, prompt: str = "cat 0") -> Session:
    session.prompt = prompt
    return session.wait(LONG)


def everything(session: Session) -> NeuronSet:
    return NeuronSet({layer: range(width) for layer, width in session.probe.widths.items()})


def memorized(session: Session) -> str:
    """The prompt with the largest score; the threshold just below it."""
    looks = [session.probe.look(prompt) for prompt in TOY_PROMPTS[:4]]
    best = max(looks, key=lambda look: look.score)
    own = session.probe.model.calibration
    session.probe.model.calibration = replace(own, threshold=best.score - 0.01)
    session.probe.threshold = best.score - 0.01
    session.probe.look.cache_clear()
    return best.prompt


@pytest.fixture(autouse=True)
def _same_calibration(_toy: DiffusionModel) -> Iterator[None]:
    before = _toy.calibration
    yield
    _toy.calibration = before


def test_jobs_run_in_another_thread_and_report_now_and_then(session: Session) -> None:
    chosen(session)
    told, threads, stages = [], [], []
    session.observe(lambda _: stages.append(session.progress), "revision")

    def work() -> int:
        threads.append(threading.current_thread())
        for done in range(100):
            session.probe.tick("counting", done + 1, 100)
        return 7

    submit(session, work, told)
    session.wait(LONG)
    assert (told, len(threads)) == ([7], 1)
    assert threads[0] is not threading.current_thread()
    assert stages[0] == Progress("Counting")
    assert stages[-2:] == [Progress("Counting", "counting", 100, 100), None]
    assert len(stages) < 60  # not every one of the hundred is told


def test_the_last_request_wins_and_what_an_older_one_computed_is_dropped(session: Session) -> None:
    told, started, hold = [], threading.Event(), threading.Event()
    submit(chosen(session), lambda: (started.set(), hold.wait(LONG)), told)
    assert started.wait(LONG)
    ended = session.finished
    submit(session, lambda: 2, told)
    submit(session, lambda: 3, told)
    hold.set()
    session.wait(LONG)
    assert (told, session.finished) == ([3], ended + 1)


def test_a_cancelled_job_ends_on_the_page_at_once_and_is_waited_for(session: Session) -> None:
    told, started, hold = [], threading.Event(), threading.Event()
    submit(chosen(session), lambda: (started.set(), hold.wait(LONG)), told)
    assert started.wait(LONG)
    session.cancel()
    assert (session.progress, session.note) == (None, "Counting was cancelled.")
    with pytest.raises(TimeoutError, match=r"not ready within 0\.01 s"):
        session.wait(0.01)
    hold.set()
    session.wait(LONG)
    session.cancel()  # there is nothing to cancel
    assert (told, session.error) == ([], "")
    submit(session, lambda: 3, told)
    session.wait(LONG)
    assert told == [3]


def test_two_explorers_of_a_model_take_turns_and_one_that_waits_can_be_cancelled(
    session: Session,
) -> None:
    """The model's hooks serve one computation at a time."""
    other, told, started = Session(session.probe), [], threading.Event()
    chosen(session)
    chosen(other)
    submit(session, lambda: endless(started, session), told)
    assert started.wait(LONG)
    submit(other, lambda: 2, told)
    other.cancel()
    assert other.note == "Counting was cancelled."
    submit(other, lambda: 3, told)
    with pytest.raises(TimeoutError):
        other.wait(0.3)
    session.cancel()
    other.wait(LONG)
    other.close()
    assert told == [3]


def test_requests_and_results_take_turns(session: Session) -> None:
    """A result that comes while its request is still being shown waits."""
    told, ended = [], threading.Event()
    here = threading.current_thread()

    def slow_view(_: Any) -> None:
        told.append(threading.current_thread())
        if told[-1] is not here:
            ended.set()
        elif session.progress:
            ended.wait(0.5)  # the result is computed long before
        told.append(threading.current_thread())

    chosen(session).observe(slow_view, "revision")
    session.selection = ONE
    session.wait(LONG)
    assert len(set(told)) == 2
    assert told[::2] == told[1::2]


def test_an_error_while_a_result_is_shown_is_told(session: Session) -> None:
    def broken(_: Any) -> None:
        if session.case is not None and not session.error:
            raise RuntimeError("no room to draw")

    session.observe(broken, "revision")
    with pytest.raises(RuntimeError, match="no room to draw"):
        chosen(session)
    assert session.error == "RuntimeError: no room to draw"
    session.unobserve(broken, "revision")
    assert chosen(session, "cat 1").case is not None


def test_choosing_a_prompt_scores_it_as_detect_does(session: Session) -> None:
    from nemo_kit import detect

    model = session.probe.model
    row = detect(model, "cat 0", range(1, 5)).iloc[0]
    look = chosen(session).case.look
    assert look.score == pytest.approx(row.score, abs=1e-6)
    assert look.flagged == row.flagged
    assert session.progress is None
    before = model.samples_evaluated
    chosen(session, "cat 1")
    assert model.samples_evaluated > before
    before = model.samples_evaluated
    chosen(session, "cat 0")
    assert model.samples_evaluated == before  # remembered


def test_a_selection_by_threshold_follows_the_prompt_one_by_hand_stays(session: Session) -> None:
    chosen(session).theta = 1.0
    session.k = 1
    session.wait(LONG)
    first = session.selection
    assert session.origin == "θ = 1, k = 1 for 'cat 0'"
    assert len(first) >= 7  # the largest of each layer at least
    assert chosen(session, "Öl 3").selection != first
    assert session.origin == "θ = 1, k = 1 for 'Öl 3'"
    session.selection = "1: 2"
    chosen(session, "cat 0")
    assert (session.selection, session.origin) == (ONE, "by hand")


def test_a_refused_selection_changes_nothing_and_undo_says_whose_it_was(session: Session) -> None:
    for prompt in ("cat 0", "cat 1", "Öl 3"):
        chosen(session, prompt)
    with pytest.raises(ValueError, match="neurons must read like"):
        session.selection = "layer x"  # the selection still follows θ and k
    assert chosen(session, "Öl 1").origin.endswith("for 'Öl 1'")
    session.step(-1)
    assert session.prompt == "Öl 1"
    assert session.origin.endswith("for 'Öl 3'")


def test_another_factor_or_prompt_takes_old_numbers_and_words_away(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen(session).selection = ONE
    assert session.wait(LONG).case.left is not None
    started = threading.Event()

    def slow(*_: Any) -> None:
        endless(started, session)

    monkeypatch.setattr(session.probe, "left", slow)
    session.factor = 0.5
    assert session.case.left is None
    assert started.wait(LONG)
    session.cancel()
    session.wait(LONG)
    assert session.note == "Scoring was cancelled."
    assert "0.5" not in present.score(session, None)
    session.prompt = "cat 1"
    assert session.note == ""
    assert "computing" in present.score(session, None)
    session.cancel()
    session.wait(LONG)
    assert "not computed yet" in present.score(session, None)


def test_what_is_left_of_the_score_is_that_of_localization(session: Session) -> None:
    chosen(session).selection = everything(session)
    assert session.wait(LONG).case.left.same_seed < 0.9
    session.factor = 1.0  # × 1 changes nothing
    left = session.wait(LONG).case.left
    assert left.same_seed == pytest.approx(1.0, abs=1e-5)
    assert left.pairs == pytest.approx(session.case.look.score, abs=1e-5)


def test_toggling_undoing_and_clearing(session: Session) -> None:
    chosen(session).clear()
    session.toggle(1, 2)
    session.toggle(3, 4)
    assert session.selection == NeuronSet({1: [2], 3: [4]})
    assert session.focus == (3, 4)
    session.toggle(1, 2)
    session.step(-1)
    session.step(-1)
    assert session.selection == ONE
    session.step(1)
    session.step(1)
    session.step(1)  # there is no later one
    assert session.selection == NeuronSet({3: [4]})
    session.step(-1)
    session.toggle_layer(3)
    assert (session.selection, session.origin) == (ONE, "by hand, without layer 3")
    session.step(1)  # what was undone before is lost
    assert session.selection == ONE
    session.toggle_layer(3)
    assert session.selection.counts() == {1: 1, 3: session.probe.widths[3]}
    session.clear()
    assert session.selection == NeuronSet()
    session.wait(LONG)


def test_facts_of_a_neuron(session: Session) -> None:
    session.probe.found["Öl 1"] = ONE
    chosen(session).look_at(1, 2)
    facts = session.wait(LONG).facts
    assert facts["sets"] == ["Öl 1"]
    strengths = [value for _, value in facts["strongest"]]
    assert strengths == sorted(strengths, reverse=True)
    assert len(strengths) == 5
    assert facts["z"] == pytest.approx(session.case.look.z[1][2].item())


def test_images_with_and_without(session: Session) -> None:
    chosen(session).selection = everything(session)
    session.generate()
    shown = session.wait(LONG).pictures
    assert shown.before.shape == shown.after.shape == (2, 32, 32, 3)
    assert (shown.before != shown.after).any()
    assert shown.noise_before.shape == (2, 4, 16, 16)
    assert not session.stale
    used = session.probe.model.samples_evaluated
    session.factor = 0.5
    session.generate()
    session.wait(LONG)
    assert session.probe.model.samples_evaluated - used <= 4 + 2 * 2 * 2 + 2  # disturbed only
    session.selection = ONE
    assert session.stale
    session.wait(LONG)


@pytest.mark.parametrize("prompt", ["a cat", 'say "hi"\n\\', TRAP, "Öl 🎈 '''"])
def test_the_code_of_a_view_repeats_it(
    session: Session, prompt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    session._set(prompt=prompt, factor=-0.5, seeds=(7, 9), steps=3, guidance=2.0)
    session._take(ONE, "by\nhand")
    names: dict[str, Any] = {}
    setup = session.code().split("whole = ")[0]
    exec(setup.replace("from nemo_kit import", "#").replace("load(", "str("),
         {"NeuronSet": NeuronSet}, names)  # fmt: skip
    assert (names["prompt"], names["neurons"], names["seeds"]) == (prompt, ONE, [7, 9])
    for name, value in {"name": "a/b", "revision": "c", "dtype": torch.bfloat16}.items():
        monkeypatch.setattr(session.probe.model, name, value)
    code = session.code()
    assert 'options = {"steps": 3, "guidance": 2.0}' in code
    assert "neurons=neurons, factor=-0.5, **options" in code
    assert "load('a/b', dtype='bfloat16', revision='c')" in code


def repeated(session: Session) -> dict[str, Any]:
    """What the session's code makes of the model that is there."""
    code = session.code().replace("import NeuronSet, detect, generate, load",
                                  "import NeuronSet, detect, generate")  # fmt: skip
    names: dict[str, Any] = {"load": lambda *_, **__: session.probe.model}
    exec(code, names)
    return names


def test_the_code_gives_the_images_that_are_shown(session: Session) -> None:
    chosen(session).selection = ONE
    session.generate()
    session.wait(LONG)
    names = repeated(session)
    assert names["whole"].threshold[0] == session.probe.threshold
    assert names["whole"].score[0] == pytest.approx(session.case.look.score, abs=1e-6)
    assert names["left"].score[0] == pytest.approx(session.case.left.pairs, abs=1e-6)
    assert np.array_equal(names["before"], session.pictures.before)
    assert np.array_equal(names["after"], session.pictures.after)


def test_the_result_of_localization_becomes_the_selection_with_its_thresholds(
    session: Session,
) -> None:
    chosen(session, memorized(session)).theta = 1.0
    session.wait(LONG)
    stages: list[str] = []
    session.observe(lambda _: stages.append(session.progress.stage if session.progress else ""),
                    "revision")  # fmt: skip
    session.localize("sequential")
    found = session.wait(LONG).localization
    assert session.selection == found.refined
    assert (session.theta, session.k) == (found.theta, found.k)
    assert session.probe.found[session.prompt] == found.refined
    assert {"detect", "activations", "select", "refine"} <= set(stages)
    assert session.case.left is not None
    session.clear()
    session.wait(LONG)
    used = session.probe.model.samples_evaluated
    session.localize("sequential")
    assert session.wait(LONG).selection == found.refined
    assert session.probe.model.samples_evaluated == used  # remembered


def test_a_running_localization_can_be_cancelled_or_stopped_by_a_newer_request(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen(session)
    old, started = session.selection, threading.Event()
    monkeypatch.setattr(session.probe, "localize",
                        lambda *_: endless(started, session))  # fmt: skip
    session.localize("sequential")
    assert started.wait(LONG)
    session.cancel()
    session.wait(LONG)
    assert session.note == "Localizing was cancelled."
    assert (session.selection, session.localization, session.progress) == (old, None, None)
    started.clear()
    session.localize("sequential")
    assert started.wait(LONG)
    session.selection = ONE
    session.wait(LONG)
    assert session.note == "Localizing was stopped by a newer request."
    assert session.selection == ONE
    assert session.case.left is not None


@pytest.mark.parametrize(
    ("request_", "kind", "message"),
    [
        (lambda s: setattr(s, "prompt", "  "), ValueError, "prompt must not be empty"),
        (lambda s: setattr(s, "selection", "x"), ValueError, "neurons must read like"),
        (lambda s: setattr(s, "selection", {99: [1]}), ValueError, "layer 99 does not exist"),
        (lambda s: setattr(s, "steps", 0), TraitError, "should not be less than 1"),
        (lambda s: setattr(s, "factor", float("nan")), ValueError, "factor must be"),
        (lambda s: setattr(s, "guidance", -1.0), TraitError, "should not be less than 0"),
        (lambda s: setattr(s, "seeds", "z"), ValueError, "seeds must be numbers or ranges"),
        (lambda s: setattr(s, "pictures", np.zeros((2, 8, 8, 3))), ValueError,
         r"pictures must be uint8 .*\[N, H, W, 3\]\), got float64"),
        (lambda s: setattr(s, "pictures", np.zeros((3, 8, 8, 3), np.uint8)), ValueError,
         "pictures must be 2, one a seed, got 3"),
        (lambda s: s.toggle(99, 1), ValueError, "layer 99 does not exist"),
        (lambda s: s.toggle_layer(99), ValueError, "layer 99 does not exist"),
        (lambda s: s.look_at(1, 999), ValueError, "out of range"),
        (lambda s: s.localize("x"), ValueError, "search must be one of"),
        (lambda s: s.save(), ValueError, "press Generate"),
    ],
)  # fmt: skip
def test_what_can_t_be_is_refused_and_changes_nothing(
    session: Session, request_: Any, kind: type, message: str
) -> None:
    chosen(session)
    view = session.view
    with pytest.raises(kind, match=message):
        request_(session)
    assert session.view == view


def test_an_error_inside_a_job_is_shown_and_raised_where_it_is_waited_for(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise FloatingPointError("latents became NaN")

    monkeypatch.setattr(chosen(session).probe, "pictures", broken)
    session.generate()
    with pytest.raises(FloatingPointError, match="latents became NaN"):
        session.wait(LONG)
    assert session.error == "FloatingPointError: latents became NaN"
    assert session.progress is None
    session.selection = ONE  # the next request takes the message away
    assert session.wait(LONG).error == ""


def test_the_code_of_a_model_without_calibration_runs_too(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session.probe, "threshold", None)
    chosen(session).selection = ONE
    session.wait(LONG)
    code = session.code()
    assert 'detection = {"seeds": [1, 2, 3, 4], "threshold": 1}' in code
    assert "print(whole.score[0], left.score[0])" in code
    names = repeated(session)
    assert names["whole"].score[0] == pytest.approx(session.case.look.score, abs=1e-6)


def test_a_setting_that_is_accepted_takes_an_error_away(session: Session) -> None:
    chosen(session)
    session.fail(ValueError("seeds must be numbers"))
    assert session.error == "seeds must be numbers"
    session.seeds = "5, 9"
    assert session.error == ""


def test_without_a_prompt_there_is_nothing_to_draw(session: Session) -> None:
    with pytest.raises(ValueError, match="choose a prompt first"):
        session.generate()


def test_a_model_without_calibration_is_explored_too(sd2_model: DiffusionModel) -> None:
    from conftest import TOY_SIMILARITY

    probe = Probe(sd2_model, pd.DataFrame({"prompt": [], "role": []}), (1, 2))
    probe.similarity = TOY_SIMILARITY
    bare = chosen(Session(probe), "cat")
    assert (bare.case.look.flagged, bare.case.look.z) == (None, None)
    assert "no threshold" in present.score(bare, None)
    assert "no statistics" in present.z_chart(bare)
    bare.look_at(1, 2)
    assert "not known" in present.html("facts", bare.wait(LONG).facts, None)
    bare.localize("sequential")
    with pytest.raises(ValueError, match="similarity: kernel 11 with 3 scales needs larger"):
        bare.wait(LONG)
    end(bare)


# two prompts, training images, pictures of one's own


def test_two_prompts_share_candidates(session: Session) -> None:
    chosen(session).theta = 1.0
    session.other = "Öl 3"
    session.wait(LONG)
    assert session.beside.look.prompt == "Öl 3"
    own = [session.probe.candidates(case.look, 1.0, 0) for case in session.cases]
    frame = session.shared()
    assert NeuronSet.of(zip(frame.layer, frame.neuron, strict=True)) == own[0] & own[1]
    assert frame.attrs["candidates"] == (len(own[0]), len(own[1]))
    for row in frame.itertuples():
        assert row.z == pytest.approx(session.case.look.z[row.layer][row.neuron].item())
        assert row.z_other == pytest.approx(session.beside.look.z[row.layer][row.neuron].item())
    assert list(frame.z.abs()) == sorted(frame.z.abs(), reverse=True)
    session.selection, session.steps = ONE, 1
    session.generate()
    session.wait(LONG)
    alone = generate(session.probe.model, "Öl 3", (101, 102), neurons=ONE, steps=1)
    assert np.array_equal(session.beside.pictures.after, alone)
    assert present.pictures(session).count("Seed 101, 1 neuron off") == 2
    assert f"{len(frame)} shared" in present.shared(session)
    session.other = ""
    session.wait(LONG)
    assert (session.beside, session.shared()) == (None, None)


def test_pictures_are_held_against_the_nearest_training_image(session: Session) -> None:
    near = np.stack([SEEN["image 1"], SEEN["image 3"]])
    frame = session.probe.measure((5, 6), near, near[::-1])
    assert list(frame["nearest_before"]) == ["image 1", "image 3"]
    assert list(frame["nearest_after"]) == ["image 3", "image 1"]
    assert np.allclose(frame[["copy_before", "copy_after"]], 1)
    assert np.allclose(frame["same_seed"], np.cos(4))
    assert session.probe.embedder.name == "embed"


def test_training_images_need_an_embedder(toy_model: DiffusionModel) -> None:
    with pytest.raises(ValueError, match=r"give explore\(…, embedder=…\)"):
        explore(toy_model, prompts=["cat"], training=SEEN)


def test_pictures_of_a_cell_are_shown_and_measured(session: Session) -> None:
    chosen(session)
    mine = np.stack([SEEN["image 1"], SEEN["image 2"]])
    session.pictures = mine
    shown = session.wait(LONG).pictures
    assert np.array_equal(shown.after, mine)
    assert list(shown.measured["nearest_after"]) == ["image 1", "image 2"]
    drawn = present.pictures(session)
    assert "set in a cell · seeds 101, 102" in drawn
    assert 'alt="Seed 102, set in a cell"' in drawn
    assert drawn.count("Nearest training image: image 1") >= 1
    assert drawn.count("<span>1.00</span>") == 2  # the cosines of what is a training image itself
    assert drawn.count("Noise difference of seed") == 2  # of the undisturbed ones alone
    assert not session.stale


def test_pictures_of_a_cell_are_not_told_to_be_of_the_selection(session: Session) -> None:
    chosen(session).selection = everything(session)
    session.pictures = np.stack([SEEN["image 1"], SEEN["image 2"]])
    case = replace(session.wait(LONG).cases[0], look=replace(session.case.look, flagged=True))
    low = replace(case, left=replace(case.left, same_seed=0.0))
    badges, _ = present.verdict(session, low)
    assert badges[-1] == ("off", "below τ with the selection")  # these copy, those may not
    frame = keep.frame(session.cases, None)
    assert list(frame["intervention"]) == ["none", "none", "set in a cell", "set in a cell"]
    assert set(frame["neurons"]) == {"{}"}
    assert frame["score_left"].isna().all()


def test_false_alarms_are_what_is_expected_above_tau(session: Session) -> None:
    model = session.probe.model
    own = replace(model.calibration, mean=0.5, std=0.1, threshold=0.6)
    model.calibration = replace(own, detection=replace(own.detection, threshold_from="maxima"))
    assert "16% false alarms expected" in present.score(chosen(session), None)
    model.calibration = replace(own, detection=replace(own.detection, threshold_from="pairs"))
    assert "false alarms" not in present.score(session, None)  # a score is the largest of many


# what is kept


def test_what_is_shown_is_saved_with_its_data(session: Session, tmp_path: Any) -> None:
    chosen(session).selection = ONE
    session.other = "Öl 3"
    session.generate()
    session.wait(LONG)
    plt.close("all")  # of other tests
    png, table = session.save("mine", tmp_path)
    assert (png.name, table.name) == ("mine.png", "mine.csv")
    frame = pd.read_csv(table)
    assert list(frame["prompt"]) == ["cat 0"] * 4 + ["Öl 3"] * 4
    assert list(frame["intervention"]) == ["none", "none", "1 neuron off", "1 neuron off"] * 2
    assert frame["same_seed"].isna().tolist() == [True, True, False, False] * 2
    assert list(frame["neurons"]) == ["{}", "{}", *[ONE.to_json()] * 2] * 2
    assert list(frame["factor"]) == [1, 1, 0, 0] * 2
    assert frame["score_left"].isna().tolist() == [True, True, False, False] * 2
    first = session.pictures.measured
    assert np.allclose(frame["copy"][:4], [*first["copy_before"], *first["copy_after"]])
    drawn = keep.figure(session.cases, None)
    words = [text.get_text() for axes in drawn.axes for text in axes.texts]
    assert any(re.match(r"score 0\.\d\d, left of it .*: cat 0", one) for one in words)
    assert words.count("1 neuron off") == 2
    assert not plt.get_fignums()  # written, not shown
    session.selection = ""
    session.wait(LONG)
    with pytest.raises(ValueError, match="press Generate"):
        session.save("again", tmp_path)


# what is shown


def test_prompts_are_shown_as_text_everywhere(session: Session) -> None:
    session.probe.found[TRAP] = ONE
    chosen(session, TRAP).look_at(1, 2)
    session.other = TRAP
    session.generate()
    session.wait(LONG)
    shown = [present.score(session, None), present.html("facts", session.facts, None),
             present.pictures(session), present.html("error", TRAP),
             present.html("status", None, TRAP, 1), present.html("heading", TRAP, TRAP),
             present.html("tile", 1, TRAP), present.html("image", "", TRAP)]  # fmt: skip
    assert all("<img src=x" not in html and "<b>cat" not in html for html in shown)
    assert all("&lt;img src=x onerror=&#34;" in html for html in shown)


def verdicts(session: Session, copies: tuple[float, float], **case: Any) -> tuple[list[str], Any]:
    """Badges and remarks of a case whose pictures have these cosines to training images."""
    measured = pd.DataFrame({"copy_before": [copies[0]] * 2, "copy_after": [copies[1]] * 2})
    blank = np.zeros((2, 4, 4, 3), np.uint8)
    shots = Pictures(session.view, blank, blank, blank, blank, measured, "off")
    session._set(pictures=shots)
    badges, remarks = present.verdict(session, replace(session.case, pictures=shots, **case))
    return [words for _, words in badges], remarks


def test_a_verdict_says_what_was_measured(session: Session) -> None:
    chosen(session).selection = ONE
    case = session.wait(LONG).case
    low, high = (replace(case.left, same_seed=session.probe.threshold + d) for d in (-0.1, 0.1))
    flagged = {"look": replace(case.look, flagged=True)}
    badge = "flagged: above τ"
    assert verdicts(session, (0.9, 0.1), left=low, **flagged) == (
        [badge, "below τ with the selection"], [])  # fmt: skip
    assert verdicts(session, (0.9, 0.9), left=low, **flagged) == (
        [badge, "below τ with the selection, but 2 of 2 pictures copy"], [])  # fmt: skip
    assert verdicts(session, (0.9, 0.9), left=high, **flagged) == ([badge], [])
    _, [remark] = verdicts(session, (0.42, 0.1), left=high, **flagged)
    assert remark == ("No picture copies a training image (nearest 0.42): it may be a false alarm.")
    badges, [remark] = verdicts(session, (0.9, 0.9), look=replace(case.look, flagged=False))
    assert badges == ["not flagged: below τ"]
    assert remark == "2 of 2 pictures copy a training image all the same."
    session.factor = 0.5  # the pictures are of another factor: nothing is said of them
    assert present.verdict(session, session.cases[0])[1] == []
    session.wait(LONG)


def test_status_words() -> None:
    assert ">Ready.</div>" in present.html("status", None, "", 1)
    bar = present.html("status", Progress("Localizing", "select", 3, 17), "", 1)
    assert ">Localizing: 3 initial selection 3 of 17 …" in bar
    assert '<progress max="17" value="3">' in bar
    assert ">Scoring …</div>" in present.html("status", Progress("Scoring"), "", 1)


def test_large_images_are_made_small() -> None:
    image = np.zeros((512, 256, 3), np.uint8)
    assert len(present.photo(image)) < 1000
    assert present.photo(image) == present.photo(np.zeros((128, 64, 3), np.uint8))


def test_planted_neurons_are_told_only_when_revealed(session: Session) -> None:
    chosen(session).look_at(1, 2)
    facts = session.wait(LONG).facts
    assert "Planted" not in present.html("facts", facts, None)
    assert re.search(r"Planted for this prompt</td><td>yes", present.html("facts", facts, ONE))
    told = present.html("revealed", ONE, ONE | NeuronSet({3: [1]}))
    assert "Planted: layer 1: #2." in told
    assert re.search(r"has 1 of 1,\s+and 1 others", told)
    assert "No neuron was planted" in present.html("revealed", NeuronSet(), ONE)


def test_what_is_revealed_was_planted_in_the_model_that_is_shown(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {"lab": {"cat 0": NeuronSet({3: [1]})}, "lab-flow": {"cat 0": ONE}}
    monkeypatch.setattr(lab, "planted", lambda model="lab": known[model])
    monkeypatch.setattr(session.probe, "is_lab", True)
    monkeypatch.setattr(session.probe.model, "name", "lab-flow")
    shown = Explorer(session, None)
    shown.at.reveal.value = True
    chosen(session).selection = ONE
    session.wait(LONG)
    assert re.search(r"1 of 1,\s+and 0 others", shown.told.revealed.value)


# charts


def test_the_map_names_and_counts_selected_neurons(session: Session) -> None:
    chosen(session).focus = (3, 4)
    width = session.probe.widths[1]
    session.selection = {1: [0, 1, width - 1]}
    drawn = present.z_chart(session.wait(LONG))
    assert drawn.count("<i style=") == 3
    assert drawn.count(f"<span>3 / {width}</span>") == 1
    assert "<b>#" in drawn
    assert drawn.count("<em ") == 1
    assert drawn.count("<span>0 / ") == len(session.probe.widths) - 1
    assert "selected by layer: layer 1: 3" in drawn


def test_the_furthest_selected_neurons_are_named_where_there_is_room() -> None:
    marks = present._marks(np.arange(100.0), [0, 30, 60, 90])
    assert [neuron for _, neuron, named in marks if named] == [30, 60, 90]
    marks = present._marks(np.array([5.0, 1.0, *[0.0] * 97, 3.0]), [0, 1, 99])
    assert marks == [(0.005, 0, True), (0.015, 1, False), (0.995, 99, True)]


def test_colours_of_the_map_end_at_eight_deviations() -> None:
    strips = [present._colours(np.array([z, 0.0])) for z in (8.0, 9.0, np.inf, 7.0, -9.0)]
    assert strips[0] == strips[1] == strips[2]
    assert len({strips[0], *strips[3:]}) == 3


def test_the_score_is_drawn_with_its_threshold_and_what_is_left(session: Session) -> None:
    chosen(session).selection = everything(session)
    case = session.wait(LONG).case
    drawn = present.score(session, None)
    assert f"τ = {session.probe.threshold:.2f}" in drawn
    assert f"with the selection scaled {case.left.same_seed:.2f}" in drawn
    assert drawn.count("<circle") == 2
    assert "hold-out prompts" in drawn
    known = pd.DataFrame({"prompt": list("abcd"), "group": ["VM"] * 2 + ["TM"] * 2,
                          "score": [0.8, 0.9, 0.5, 0.5]})  # fmt: skip
    drawn = present.score(session, known)
    assert drawn.count("<polygon") == 1  # two equal scores have no density
    assert "</tspan> VM</text>" in drawn
    assert "hold-out prompts" not in drawn


def test_a_score_below_zero_has_room(session: Session) -> None:
    case = replace(chosen(session).case, left=None)
    low = replace(case, look=replace(case.look, score=-0.2))
    x, _ = present._chart(low, None)
    assert x(-0.22) == 0
    assert 0 < x(-0.2) < x(0.0) < x(1.0) < 430


# the widget


class Recorder(BaseComm):
    """A comm that notes how large its messages are."""

    sizes: list[int]

    def publish_msg(self, msg_type: str, data: Any = None, metadata: Any = None,
                    buffers: Any = None, **keys: Any) -> None:  # fmt: skip
        sent = sum(len(bytes(part)) for part in buffers or ())
        self.sizes.append(len(json.dumps([data, keys], default=str)) + sent)


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of all comm messages, in bytes."""
    Recorder.sizes = []
    monkeypatch.setattr("comm.create_comm", lambda *args, **keys: Recorder(*args, **keys))
    return Recorder.sizes


def every(widget: widgets.Widget) -> Iterator[widgets.Widget]:
    yield widget
    for child in getattr(widget, "children", ()):
        yield from every(child)


@pytest.fixture
def shown(toy_model: DiffusionModel, sizes: list[int]) -> Iterator[Any]:
    """The widget of a session of the toy model."""
    session = explore(toy_model, prompts=TOY_PROMPTS, seeds=range(1, 5)).wait(LONG)
    yield session.widget
    end(session)


def test_the_widget_shows_what_was_asked_for(shown: Any, sizes: list[int]) -> None:
    session = shown.session
    assert session.prompt == TOY_PROMPTS[0]
    assert 'aria-label="Memorization score' in shown.told.score.value
    shown.at.theta.value = 1.5
    session.wait(LONG)
    assert session.origin == f"θ = 1.5, k = 0 for {TOY_PROMPTS[0]!r}"
    assert shown.at.hand.value == values.write_neurons(session.selection)
    chip = shown.chips[1][0]
    chip.value = not chip.value
    session.wait(LONG)
    assert session.origin == "by hand"
    assert "z for this prompt" in shown.told.facts.value
    shown.at.seeds.value, shown.at.steps.value = "101, 102", 1
    session.generate()
    session.wait(LONG)
    assert shown.told.pictures.value.count("data:image/png;base64") == 8  # no training images
    shown.at.text.value = TRAP
    session.wait(LONG)
    assert shown.at.prompt.index is None
    assert "&lt;img" in shown.told.score.value
    shown.at.hand.value = "layer 99: 1"
    assert "layer 99 does not exist here" in shown.told.error.value
    shown.layers[3].value = not shown.layers[3].value
    assert session.wait(LONG).error == ""
    assert shown.told.error.value == ""
    assert max(sizes) < 150_000  # bytes: pictures travel as PNG, never as arrays


def test_what_a_cell_sets_is_shown(shown: Any) -> None:
    session = shown.session
    session.selection, session.theta, session.factor = {1: [2]}, 30.0, 0.5
    session.k = 25  # beyond the sliders' ends
    assert (shown.at.theta.value, shown.at.k.value, shown.at.factor.value) == (30.0, 25, 0.5)
    session.selection = ONE
    assert shown.at.hand.value == "layer 1: 2"
    session.prompt, session.other = "a new one", TOY_PROMPTS[1]
    assert (shown.at.text.value, shown.at.other.value) == ("a new one", TOY_PROMPTS[1])
    session.wait(LONG)
    assert shown.told.score.value.count("score, all neurons on") == 2


def test_every_control_says_what_it_is(shown: Any) -> None:
    controls = [w for w in every(shown) if isinstance(w, widgets.ValueWidget)
                and not isinstance(w, widgets.HTML)] + [
                w for w in every(shown) if isinstance(w, widgets.Button)]  # fmt: skip
    assert len(controls) > 40
    for control in controls:
        assert control.description, control
        assert control.tooltip, control.description


def test_a_page_without_widgets_says_so(shown: Any) -> None:
    assert shown.session._repr_mimebundle_()["text/plain"] == FALLBACK


def test_closing_lets_go_of_everything(shown: Any) -> None:
    shown.session.close()
    shown.session.close()
    with pytest.raises(RuntimeError, match="closed"):
        shown.session.prompt = "Öl 1"
    assert "closed" in shown.session._repr_mimebundle_()["text/plain"]


def test_bad_arguments_are_refused(toy_model: DiffusionModel) -> None:
    with pytest.raises(
        TypeError, match=r'model must be a loaded one, as in explore\(load\("lab"\)'
    ):
        explore("lab")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="prompts lacks prompt; it has text"):
        explore(toy_model, prompts=pd.DataFrame({"text": ["a"]}))
    with pytest.raises(ValueError, match="prompts must not be empty"):
        explore(toy_model, prompts=["a", ""])
    with pytest.raises(ValueError, match="seeds must hold at least 2"):
        explore(toy_model, prompts=["a"], seeds=[1])
    scores = pd.DataFrame({"prompt": ["a"], "score": [1.0]})
    with pytest.raises(ValueError, match="scores lacks group; it has"):
        explore(toy_model, prompts=["a"], scores=scores)
    with pytest.raises(ValueError, match="group of scores must be one of VM, TM, "):
        explore(toy_model, prompts=["a"], scores=scores.assign(group="verbatim"))


# benchmark


def test_the_benchmark_reports_every_request(
    toy_model: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import explorer as bench

    monkeypatch.setattr(bench, "load", lambda name: toy_model)
    report = bench.run("toy", repeats=2, steps=1)
    assert set(report["seconds"]) == {"selection", "images", "images_first"}
    assert [len(report["all"][k]) for k in ("selection", "images", "images_first")] == [2, 1, 1]
    json.dumps(report)
    broken = explore(toy_model, prompts=TOY_PROMPTS[:1], seeds=range(1, 5))
    with pytest.raises(ValueError, match="press Generate"):
        bench.measure(broken, broken.save)
    end(broken)
    monkeypatch.setattr("sys.argv", ["bench", "--repeats", "0"])
    with pytest.raises(SystemExit):
        bench.main()
