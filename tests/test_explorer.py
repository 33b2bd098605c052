"""The explorer without a browser: state, thread, requests, what is shown, and its widgets."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from typing import Any

import ipywidgets as widgets
import numpy as np
import pandas as pd
import pytest
from comm.base_comm import BaseComm
from conftest import TOY_PROMPTS
from matplotlib.figure import Figure

from nemo_kit import explore, plots
from nemo_kit.explorer import markup, present, state
from nemo_kit.explorer.controller import Controller
from nemo_kit.explorer.session import Session
from nemo_kit.explorer.state import History, Selection, View
from nemo_kit.explorer.view import FALLBACK
from nemo_kit.explorer.worker import Job, Tick, Worker
from nemo_kit.models import DiffusionModel
from nemo_kit.neurons import NeuronSet

WIDTHS = {1: 8, 3: 64, 5: 16}
TRAP = '<img src=x onerror="alert(1)"><b>cat</b>'
ONE = NeuronSet({1: [2]})
LONG = 120.0


# state


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
    neurons = state.read_neurons(text, WIDTHS)
    assert neurons == NeuronSet(layers)
    assert state.read_neurons(state.write_neurons(neurons), WIDTHS) == neurons


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
        state.read_neurons(text, WIDTHS)


def test_seeds_are_read_by_hand() -> None:
    assert state.read_seeds("101-104") == (101, 102, 103, 104)
    assert state.read_seeds(" 5, 1 ") == (5, 1)
    assert state.write_seeds((101, 102, 103)) == "101-103"
    assert state.write_seeds((5, 1)) == "5, 1"
    for bad in ("", "a", "1-999999", "3, 3", "4-2", "-1"):
        with pytest.raises(ValueError, match="seeds must"):
            state.read_seeds(bad)


def test_undo_and_redo_walk_through_the_selections() -> None:
    history = History()
    first, second = Selection(ONE, "a"), Selection(NeuronSet({3: [1]}), "b")
    assert not history.can_undo
    assert history.undo() == Selection()
    history.push(first)
    history.push(first)  # the same again is no step
    history.push(second)
    assert [history.undo(), history.undo(), history.redo()] == [first, Selection(), first]
    history.push(Selection(ONE, "c"))
    assert not history.can_redo
    assert history.redo() == Selection(ONE, "c")


def test_history_forgets_what_is_long_ago() -> None:
    history = History(most=3)
    for number in range(9):
        history.push(Selection(NeuronSet({1: [number]}), ""))
    for _ in range(5):
        history.undo()
    assert history.now.neurons == NeuronSet({1: [6]})


@pytest.mark.parametrize("prompt", ["a cat", 'say "hi"\n\\', TRAP, "Öl 🎈 '''"])
def test_a_view_survives_json_and_its_code_repeats_it(prompt: str) -> None:
    view = View(prompt, Selection(ONE, "by\nhand"), -0.5, (7, 9), 3, 2.0)
    assert state.from_json(state.to_json(view, "lab"), View(), WIDTHS) == view
    names: dict[str, Any] = {}
    setup = state.as_code(view, "lab").split("whole = ")[0]
    setup = setup.replace("from nemo_kit import", "#").replace("load(", "str(")
    exec(setup, {"NeuronSet": NeuronSet}, names)
    assert (names["prompt"], names["neurons"], names["seeds"]) == (prompt, ONE, [7, 9])
    assert "factor=-0.5, steps=3, guidance=2.0" in state.as_code(view, "lab")
    assert "load('a/b', revision='c')" in state.as_code(view, "a/b", "c")
    code = state.as_code(view, "a/b", "c", dtype="float32")
    assert "load('a/b', dtype='float32', revision='c')" in code


def test_a_plain_neuron_set_can_be_loaded_too() -> None:
    view = state.from_json(ONE.to_json(), View("cat"), WIDTHS)
    assert (view.prompt, view.selection.neurons) == ("cat", ONE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "the file is no JSON"),
        ("[1]", "must hold a JSON object, got list"),
        ('{"9": [1]}', "layer 9 does not exist here"),
        ('{"format": "nemo_kit selection"}', "no selection of the explorer"),
        ('{"a": [1]}', "can't be read"),
    ],
)
def test_bad_files_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        state.from_json(text, View(), WIDTHS)


@pytest.mark.parametrize("options", [{"factor": "a"}, {"steps": 0}, {"guidance": -1},
                                     {"seeds": (1, 1)}])  # fmt: skip
def test_bad_settings_of_a_view_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        View(**options)


# worker


class Events(list):
    """What a job told, in order."""

    def job(self, name: str, work: Any) -> Job:
        return Job(
            name, work,
            done=lambda result: self.append(f"{name} done {result}"),
            failed=lambda error: self.append(f"{name} failed {error}"),
            dropped=lambda: self.append(f"{name} dropped"),
            progress=lambda stage, done, total: self.append(f"{name} {stage} {done}/{total}"),
        )  # fmt: skip


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker()
    yield made
    made.close()


def endless(started: threading.Event) -> Any:
    def work(tick: Tick) -> None:
        while True:
            started.set()
            tick("going", 1, None)

    return work


def test_jobs_run_in_another_thread_and_report(worker: Worker) -> None:
    events, threads = Events(), []

    def work(tick: Tick) -> int:
        threads.append(threading.current_thread())
        for done in range(100):
            tick("counting", done + 1, 100)
        return 7

    worker.submit(events.job("a", work))
    assert worker.wait(LONG)
    assert threads[0] is not threading.current_thread()
    assert events[0] == "a counting 1/100"
    assert events[-2:] == ["a counting 100/100", "a done 7"]
    assert len(events) < 60  # not every one of the hundred is told


def test_the_last_request_wins(worker: Worker) -> None:
    events, started = Events(), threading.Event()
    worker.submit(events.job("a", endless(started)))
    assert started.wait(LONG)
    hold = threading.Event()
    worker.submit(events.job("b", lambda tick: hold.wait(LONG)))
    worker.submit(events.job("c", lambda tick: 3))
    hold.set()
    assert worker.wait(LONG)
    told = [e for e in events if "going" not in e]
    assert sorted(told) == ["a dropped", "b dropped", "c done 3"]
    assert told[-1] == "c done 3"


def test_a_cancelled_job_stops_and_an_error_does_not_end_the_thread(worker: Worker) -> None:
    events, started = Events(), threading.Event()
    worker.submit(events.job("a", endless(started)))
    assert started.wait(LONG)
    worker.cancel()
    assert worker.wait(LONG)
    assert events[-1] == "a dropped"
    worker.submit(events.job("b", lambda tick: 1 / 0))
    assert worker.wait(LONG)
    worker.submit(events.job("c", lambda tick: 3))
    assert worker.wait(LONG)
    assert events[-2:] == ["b failed division by zero", "c done 3"]


def test_a_result_that_comes_after_a_newer_request_is_dropped() -> None:
    """Computed, but not yet handed over when the next one was asked for."""
    handed: list[Any] = []
    worker, events, finished = Worker(handed.append), Events(), threading.Event()
    worker.submit(events.job("a", lambda tick: finished.set()))
    assert finished.wait(LONG)
    job = events.job("b", lambda tick: 2)
    late = Job("late", lambda tick: 1, job.done, job.failed, lambda: events.append("late dropped"))
    worker.wait(LONG)
    worker.submit(late)
    worker.wait(LONG)
    late.unwanted.set()  # as a newer request does
    worker.close()
    for call in handed:
        call()
    assert events == ["a done None", "late dropped"]


def test_two_workers_take_turns_and_one_that_waits_can_be_cancelled(worker: Worker) -> None:
    """Two explorers may share a model, whose hooks serve one computation at a time."""
    other, events, started = Worker(), Events(), threading.Event()
    worker.submit(events.job("a", endless(started)))
    assert started.wait(LONG)
    other.submit(events.job("b", lambda tick: 2))
    other.cancel()
    assert other.wait(LONG)
    other.submit(events.job("c", lambda tick: 3))
    assert not other.wait(0.3)
    worker.cancel()
    assert other.wait(LONG)
    other.close()
    assert [e for e in events if "going" not in e] == ["b dropped", "a dropped", "c done 3"]


def test_a_closed_worker_takes_no_job(worker: Worker) -> None:
    worker.close()
    worker.close()
    with pytest.raises(RuntimeError, match="the explorer is closed"):
        worker.submit(Events().job("a", lambda tick: 1))


# session and controller


@pytest.fixture
def controller(toy_model: DiffusionModel) -> Iterator[Controller]:
    table = pd.DataFrame({"prompt": TOY_PROMPTS, "role": "toy"})
    made = Controller(Session(toy_model, table, range(1, 5)), Worker())
    made.settings(seeds=(101, 102), steps=2)
    yield made
    made.worker.close()


def chosen(controller: Controller, prompt: str = "cat 0") -> Controller:
    controller.choose(prompt)
    assert controller.worker.wait(LONG)
    assert controller.error == ""
    return controller


def test_requests_and_results_take_turns(controller: Controller) -> None:
    """A result that comes while its request is still being drawn waits."""
    told, ended = [], threading.Event()
    here = threading.current_thread()

    def slow_view(changed: frozenset[str]) -> None:
        told.append(threading.current_thread())
        if told[-1] is not here:
            ended.set()
        elif "busy" in changed:
            ended.wait(0.5)  # the result is computed long before
        told.append(threading.current_thread())

    chosen(controller).listener = slow_view
    controller.by_hand("")
    assert controller.worker.wait(LONG)
    assert len(set(told)) == 2
    assert told[::2] == told[1::2]


def test_an_error_while_a_result_is_shown_is_told(controller: Controller) -> None:
    def broken(changed: frozenset[str]) -> None:
        if "look" in changed and controller.look is not None:
            raise RuntimeError("no room to draw")

    controller.listener = broken
    controller.choose("cat 0")
    assert controller.worker.wait(LONG)
    assert controller.error == "RuntimeError: no room to draw"
    controller.listener = lambda changed: None
    assert chosen(controller, "cat 1").look is not None


def test_choosing_a_prompt_scores_it_as_detect_does(controller: Controller) -> None:
    from nemo_kit import detect

    model = controller.session.model
    row = detect(model, "cat 0", range(1, 5)).iloc[0]
    look = chosen(controller).look
    assert look is not None
    assert look.score == pytest.approx(row.score, abs=1e-6)
    assert look.memorized == row.memorized
    assert controller.progress is None
    before = model.samples_evaluated
    chosen(controller, "cat 0")
    assert model.samples_evaluated == before  # remembered


def test_a_selection_by_threshold_follows_the_prompt_one_by_hand_stays(
    controller: Controller,
) -> None:
    chosen(controller).threshold(1.0, 1)
    assert controller.worker.wait(LONG)
    first = controller.view.selection
    assert first.origin == "θ = 1, k = 1 for 'cat 0'"
    assert len(first.neurons) >= 7  # the largest of each layer at least
    assert chosen(controller, "Öl 3").view.selection != first
    controller.by_hand("1: 2")
    assert chosen(controller, "cat 0").view.selection == Selection(ONE, "by hand")


def test_a_selection_that_stays_says_for_which_prompt_it_was_made(controller: Controller) -> None:
    for prompt in ("cat 0", "cat 1", "Öl 3"):
        chosen(controller, prompt)
    controller.by_hand("layer x")  # refused: the selection still follows θ and k
    assert "neurons must read like" in controller.error
    assert chosen(controller, "Öl 1").view.selection.origin.endswith("for 'Öl 1'")
    controller.undo()
    assert controller.view.prompt == "Öl 1"
    assert controller.view.selection.origin.endswith("for 'Öl 3'")
    assert controller.worker.wait(LONG)


def test_another_factor_or_prompt_takes_old_numbers_and_words_away(
    controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen(controller).by_hand("1: 2")
    assert controller.worker.wait(LONG)
    assert controller.left is not None
    started = threading.Event()
    work = endless(started)
    monkeypatch.setattr(controller, "_scoring", lambda: work)
    controller.settings(factor=0.5)
    assert controller.left is None
    assert started.wait(LONG)
    controller.cancel()
    assert controller.worker.wait(LONG)
    assert controller.note == "Scoring was cancelled."
    assert "0.5" not in present.score_tiles(controller)
    controller.choose("cat 1")
    assert controller.note == ""
    assert "computing" in present.verdict(controller)
    controller.cancel()
    assert controller.worker.wait(LONG)
    assert "not computed yet" in present.verdict(controller)


def test_what_is_left_of_the_score_is_that_of_localization(controller: Controller) -> None:
    everything = "; ".join(f"{k}: 0-{w - 1}" for k, w in controller.session.widths.items())
    chosen(controller).by_hand(everything)
    assert controller.worker.wait(LONG)
    assert controller.left is not None
    assert controller.left.same_seed < 0.9
    controller.settings(factor=1.0)  # × 1 changes nothing
    assert controller.worker.wait(LONG)
    assert controller.left.same_seed == pytest.approx(1.0, abs=1e-5)
    assert controller.left.pairs == pytest.approx(controller.look.score, abs=1e-5)


def test_toggling_undoing_and_clearing(controller: Controller) -> None:
    chosen(controller).toggle(1, 2)
    controller.toggle(3, 4)
    assert controller.view.selection.neurons == NeuronSet({1: [2], 3: [4]})
    assert controller.focus == (3, 4)
    controller.toggle(1, 2)
    controller.undo()
    controller.undo()
    assert controller.view.selection.neurons == ONE
    controller.redo()
    controller.clear()
    assert controller.view.selection.neurons == NeuronSet()
    assert controller.worker.wait(LONG)


def test_facts_of_a_neuron(controller: Controller) -> None:
    controller.session.found["Öl 1"] = ONE
    chosen(controller).look_at(1, 2)
    assert controller.worker.wait(LONG)
    facts = controller.facts
    assert facts is not None
    assert facts.sets == ["Öl 1"]
    values = [value for _, value in facts.strongest]
    assert values == sorted(values, reverse=True)
    assert len(values) == 5
    assert facts.z == pytest.approx(controller.look.z[1][2].item())


def test_images_with_and_without(controller: Controller) -> None:
    everything = "; ".join(f"{k}: 0-{w - 1}" for k, w in controller.session.widths.items())
    chosen(controller).by_hand(everything)
    controller.generate()
    assert controller.worker.wait(LONG)
    shown = controller.pictures
    assert shown is not None, controller.error
    assert shown.before.shape == shown.after.shape == (2, 32, 32, 3)
    assert (shown.before != shown.after).any()
    assert shown.noise_before.shape == (2, 4, 16, 16)
    assert not controller.stale
    used = controller.session.model.samples_evaluated
    controller.settings(factor=0.5)
    controller.generate()
    assert controller.worker.wait(LONG)
    assert controller.session.model.samples_evaluated - used <= 4 + 2 * 2 * 2 + 2  # disturbed only
    controller.by_hand("1: 2")
    assert controller.stale
    assert controller.worker.wait(LONG)


def test_the_code_gives_the_numbers_and_images_shown(controller: Controller) -> None:
    everything = "; ".join(f"{k}: 0-{w - 1}" for k, w in controller.session.widths.items())
    chosen(controller).by_hand(everything)
    controller.generate()
    assert controller.worker.wait(LONG)
    source = re.sub(r"load\(.*\)", "given", controller.code())
    names: dict[str, Any] = {"given": controller.session.model}
    exec(source, names)
    assert names["whole"].score[0] == pytest.approx(controller.look.score, abs=1e-5)
    assert names["left"].score[0] == pytest.approx(controller.left.pairs, abs=1e-5)
    assert np.array_equal(names["before"], controller.pictures.before)
    assert np.array_equal(names["after"], controller.pictures.after)


def test_the_result_of_localization_becomes_the_selection(controller: Controller) -> None:
    prompt = memorized(controller)
    stages: list[str] = []
    controller.listener = lambda changed: stages.append(
        controller.progress.stage if controller.progress else ""
    )
    chosen(controller, prompt).localize("sequential")
    assert controller.worker.wait(LONG)
    found = controller.localization
    assert found is not None, controller.error
    assert controller.view.selection.neurons == found.refined
    assert controller.session.found[prompt] == found.refined
    assert {"detect", "activations", "select", "refine"} <= set(stages)
    assert controller.left is not None
    controller.clear()
    controller.take_refined()
    assert controller.view.selection.neurons == found.refined
    assert controller.worker.wait(LONG)


def memorized(controller: Controller) -> str:
    """The prompt with the largest score; the threshold just below it."""
    looks = [controller.session.look(prompt) for prompt in TOY_PROMPTS[:4]]
    best = max(looks, key=lambda look: look.score)
    controller.session.model.calibration = replace_threshold(controller, best.score - 0.01)
    controller.session.threshold = best.score - 0.01
    controller.session._kept.clear()
    return best.prompt


def replace_threshold(controller: Controller, threshold: float) -> Any:
    from dataclasses import replace

    return replace(controller.session.model.calibration, threshold=threshold)


@pytest.fixture(autouse=True)
def _same_calibration(_toy: DiffusionModel) -> Iterator[None]:
    before = _toy.calibration
    yield
    _toy.calibration = before


def test_a_running_localization_can_be_cancelled(
    controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen(controller)
    old, started = controller.view.selection, threading.Event()

    def slow(prompt: str, search: str, tick: Tick) -> None:
        endless(started)(tick)

    monkeypatch.setattr(controller.session, "localize", slow)
    controller.localize("sequential")
    assert started.wait(LONG)
    controller.cancel()
    assert controller.worker.wait(LONG)
    assert controller.note == "Localizing was cancelled."
    assert (controller.view.selection, controller.localization) == (old, None)
    assert controller.progress is None


def test_a_newer_request_stops_a_running_one(
    controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen(controller)
    started = threading.Event()
    monkeypatch.setattr(
        controller.session, "localize", lambda prompt, search, tick: endless(started)(tick)
    )
    controller.localize("sequential")
    assert started.wait(LONG)
    controller.by_hand("1: 2")
    assert controller.worker.wait(LONG)
    assert controller.note == "Localizing was stopped by a newer request."
    assert controller.view.selection.neurons == ONE
    assert controller.left is not None


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (lambda c: c.choose("  "), "prompt must not be empty"),
        (lambda c: c.by_hand("x"), "neurons must read like"),
        (lambda c: c.toggle(99, 1), "layer 99 does not exist"),
        (lambda c: c.look_at(1, 999), "out of range"),
        (lambda c: c.settings(steps=0), "steps must be an integer of at least 1"),
        (lambda c: c.seeds("z"), "seeds must read like"),
        (lambda c: c.load("{"), "the file is no JSON"),
        (lambda c: c.localize("x"), "search must be one of"),
        (lambda c: c.take_refined(), "press Localize first"),
    ],
)
def test_errors_are_shown_and_change_nothing(
    controller: Controller, request_: Any, message: str
) -> None:
    chosen(controller)
    view = controller.view
    request_(controller)
    assert re.search(message, controller.error)
    assert controller.view == view
    controller.by_hand("1: 2")  # the next request takes the message away
    assert controller.error == ""
    assert controller.worker.wait(LONG)


def test_an_error_inside_a_job_is_shown(
    controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen(controller)

    def broken(*_: Any) -> None:
        raise FloatingPointError("latents became NaN")

    monkeypatch.setattr(controller.session, "pictures", broken)
    controller.generate()
    assert controller.worker.wait(LONG)
    assert controller.error == "FloatingPointError: latents became NaN"
    assert controller.progress is None


def test_without_a_prompt_there_is_nothing_to_draw(controller: Controller) -> None:
    controller.generate()
    assert controller.error == "choose a prompt first"


def test_a_model_without_calibration_is_explored_too(sd2_model: DiffusionModel) -> None:
    from conftest import TOY_SIMILARITY

    session = Session(sd2_model, pd.DataFrame({"prompt": [], "role": []}), (1, 2))
    session.similarity = TOY_SIMILARITY
    bare = Controller(session, Worker())
    chosen(bare, "cat")
    assert (bare.look.memorized, bare.look.z) == (None, None)
    assert "no threshold" in present.verdict(bare)
    assert "no statistics" in present.z_chart(bare)
    bare.look_at(1, 2)
    assert bare.worker.wait(LONG)
    assert "not known" in present.facts(bare, None)
    bare.localize("sequential")
    assert bare.worker.wait(LONG)
    assert "similarity: kernel 11 with 3 scales needs larger latents" in bare.error
    bare.worker.close()


# what is shown


def test_prompts_are_shown_as_text_everywhere(controller: Controller) -> None:
    controller.session.found[TRAP] = ONE
    chosen(controller, TRAP).look_at(1, 2)
    assert controller.worker.wait(LONG)
    controller.fail(ValueError(TRAP))
    shown = [present.verdict(controller), present.facts(controller, None),
             markup.error(controller.error), markup.status(TRAP), markup.heading(TRAP, TRAP),
             markup.tiles([(TRAP, TRAP)]), markup.image(b"", TRAP)]  # fmt: skip
    assert all("<img src" not in html and "<b>cat" not in html for html in shown)
    assert sum("&lt;img src=x onerror=&quot;" in html for html in shown) == 7


def test_status_words(controller: Controller) -> None:
    assert present.status_words(controller) == "Ready."
    from nemo_kit.explorer.controller import Progress

    controller.progress = Progress("Localizing", "select", 3, 17)
    assert present.status_words(controller) == "Localizing: 3 initial selection 3 of 17 …"
    assert (present.neurons(1), present.neurons(2)) == ("1 neuron", "2 neurons")


def test_large_images_are_made_small() -> None:
    images = np.zeros((2, 512, 256, 3), np.uint8)
    assert present.small(images).shape == (2, 128, 64, 3)


def test_planted_neurons_are_told_only_when_revealed(controller: Controller) -> None:
    chosen(controller).look_at(1, 2)
    assert controller.worker.wait(LONG)
    assert "Planted" not in present.facts(controller, None) + present.revealed(None, ONE)
    assert re.search(r"Planted for this prompt</td><td>yes", present.facts(controller, ONE))
    assert "1 of 1, and 1 others" in present.revealed(ONE, ONE | NeuronSet({3: [1]}))
    assert "No neuron was planted" in present.revealed(NeuronSet(), ONE)


# plots


def neuron_frame() -> pd.DataFrame:
    rows = [(layer, n, z, n == 1) for layer in (1, 2) for n, z in enumerate((0.0, 9.0, -np.inf))]
    return pd.DataFrame(rows, columns=["layer", "neuron", "z", "selected"])


def labels(figure: Figure) -> str:
    return " ".join(text.get_text() for axes in figure.axes for text in axes.texts)


def test_the_map_names_and_counts_selected_neurons() -> None:
    drawn = labels(plots.z_map(neuron_frame(), focus=(2, 0)))
    assert drawn.count("#1") == 2
    assert drawn.count("1 / 3") == 2
    with pytest.raises(ValueError, match="frame lacks selected"):
        plots.z_map(neuron_frame().drop(columns="selected"))


def test_the_score_is_drawn_with_its_threshold() -> None:
    frame = pd.DataFrame({"prompt": list("abcd"), "group": ["VM"] * 2 + ["TM"] * 2,
                          "score": [0.8, 0.9, 0.5, 0.5]})  # fmt: skip
    figure = plots.score_in_distribution(0.8, 0.6, 0.5, 0.05, frame, left=0.3, measure="SSIM")
    assert "0.60" in labels(figure)
    assert figure.axes[0].get_xlabel() == "memorization score (SSIM)"
    assert "σ" in labels(plots.score_in_distribution(0.8, None, 0.5, 0.05))
    assert labels(plots.score_in_distribution(-0.2)) == ""
    with pytest.raises(ValueError, match="frame lacks group"):
        plots.score_in_distribution(0.8, frame=frame.drop(columns="group"))


def test_noise_differences_become_pictures() -> None:
    noise = np.zeros((2, 4, 5, 6))
    noise[:, 1] = 1
    pictures = plots.noise_pictures(noise)
    assert pictures.shape == (2, 5, 6, 3)
    assert pictures[0, 0, 0].tolist() == [0, 255, 0]
    for bad in (noise[0], noise[:, :2], noise - 1, noise * np.nan):
        with pytest.raises(ValueError, match="differences must"):
            plots.noise_pictures(bad)
    assert plots.png(pictures[0]).startswith(b"\x89PNG")


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
def explorer(toy_model: DiffusionModel, sizes: list[int]) -> Iterator[Any]:
    made = explore(toy_model, prompts=TOY_PROMPTS, seeds=range(1, 5))
    assert made.controller.worker.wait(LONG)
    yield made
    made.close()


def test_the_widget_shows_what_was_asked_for(explorer: Any, sizes: list[int]) -> None:
    controller, panel = explorer.controller, explorer._neurons
    assert controller.view.prompt == TOY_PROMPTS[0]
    assert controller.error == ""
    assert 'alt="Memorization score' in explorer._prompt.chart.value
    panel.theta.value = 1.5
    assert controller.worker.wait(LONG)
    assert controller.view.selection.origin == f"θ = 1.5, k = 0 for {TOY_PROMPTS[0]!r}"
    assert panel.hand.value == state.write_neurons(controller.view.selection.neurons)
    chip = panel.chips[1][0]
    chip.value = not chip.value
    assert controller.worker.wait(LONG)
    assert controller.view.selection.origin == "by hand"
    assert "z for this prompt" in panel.facts.value
    explorer._effect.seeds.value, explorer._effect.steps.value = "101, 102", 1
    explorer._effect.generate.click()
    assert controller.worker.wait(LONG)
    assert explorer._effect.before.value.count("data:image/png;base64") == 2
    explorer._prompt.text.value = TRAP
    assert controller.worker.wait(LONG)
    assert explorer._prompt.prompt.index is None
    assert "&lt;img" in explorer._prompt.verdict.value
    panel.hand.value = "layer 99: 1"
    assert "layer 99 does not exist here" in explorer._error.value
    explorer._keep.copy.click()
    assert f"prompt = {TRAP!r}" in explorer._keep.code.value
    assert max(sizes) < 150_000  # bytes: pictures travel as PNG, never as arrays


def test_a_file_is_loaded(explorer: Any) -> None:
    saved = state.to_json(View("Öl 1", Selection(ONE, "kept"), steps=1), "toy")
    for content in (saved.encode(), b"\xff"):
        entry = {"name": "a.json", "type": "", "size": len(content), "content": memoryview(content),
                 "last_modified": pd.Timestamp(0).to_pydatetime()}  # fmt: skip
        explorer._keep.load.value = (entry,)
        assert explorer.controller.worker.wait(LONG)
        assert explorer.controller.view.selection == Selection(ONE, "kept")
        assert explorer.controller.view.prompt == "Öl 1"
    assert "the file is no text" in explorer._error.value
    assert explorer._effect.steps.value == 1


def test_every_control_says_what_it_is(explorer: Any) -> None:
    controls = [w for w in every(explorer) if isinstance(w, widgets.ValueWidget)
                and not isinstance(w, widgets.HTML)] + [
                w for w in every(explorer) if isinstance(w, widgets.Button)]  # fmt: skip
    assert len(controls) > 40
    for control in controls:
        assert control.description, control
        assert control.tooltip, control.description


def test_a_page_without_widgets_says_so(explorer: Any) -> None:
    assert explorer._repr_mimebundle_()["text/plain"] == FALLBACK


def test_closing_lets_go_of_everything(explorer: Any) -> None:
    slider = explorer._neurons.theta
    explorer.close()
    slider.value = 2.0
    with pytest.raises(RuntimeError, match="closed"):
        explorer.controller.worker.submit(Events().job("a", lambda tick: 1))


def test_bad_arguments_are_refused(toy_model: DiffusionModel) -> None:
    with pytest.raises(
        TypeError, match=r'model must be a loaded one, as in explore\(load\("lab"\)'
    ):
        explore("lab")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="prompts needs a column 'prompt'"):
        explore(toy_model, prompts=pd.DataFrame({"text": ["a"]}))
    with pytest.raises(ValueError, match="prompts must not be empty"):
        explore(toy_model, prompts=["a", ""])
    with pytest.raises(ValueError, match="seeds must hold at least 2"):
        explore(toy_model, prompts=["a"], seeds=[1])
    with pytest.raises(ValueError, match="layer 99 does not exist"):
        explore(toy_model, prompts=["a"], found={"a": NeuronSet({99: [1]})})
    with pytest.raises(ValueError, match=r"scores lacks the columns \['group'\]"):
        explore(toy_model, prompts=["a"], scores=pd.DataFrame({"prompt": ["a"], "score": [1.0]}))


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
    with pytest.raises(RuntimeError, match="must read like"):
        bench.measure(broken, lambda: broken.controller.by_hand("x"))
    broken.close()
    monkeypatch.setattr("sys.argv", ["bench", "--repeats", "0"])
    with pytest.raises(SystemExit):
        bench.main()
