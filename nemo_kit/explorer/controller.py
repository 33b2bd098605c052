"""What happens when something is asked of the explorer: requests in, jobs run, changes told.

Scope: plain Python between the session and the widgets. Requests may come from several threads
(JupyterLab sends those of widgets to a subshell of the kernel, results are shown on its main
thread): they and the results take turns. Only the work inside a job runs beside them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any

from nemo_kit.explorer import state
from nemo_kit.explorer.session import Facts, Left, Look, Pictures, Session
from nemo_kit.explorer.state import History, Selection, View
from nemo_kit.explorer.worker import Job, Tick, Worker
from nemo_kit.localization import SEARCHES, Localization
from nemo_kit.models import DTYPES, default_dtype
from nemo_kit.neurons import NeuronSet

Listener = Callable[[frozenset[str]], None]
Neuron = tuple[int, int]
THETA, K = 5.0, 0  # where the method's selection starts (Algorithm 3)


@dataclass(frozen=True)
class Progress:
    """How far the running job is; `done` of `total` (None: not known) in `stage`."""

    job: str
    stage: str = ""
    done: int = 0
    total: int | None = None


@dataclass(frozen=True)
class Scores:
    """What scoring a view gives; `selection` is the one scored."""

    look: Look
    selection: Selection
    left: Left | None
    facts: Facts | None


def _told(method: Callable[..., None]) -> Callable[..., None]:
    """One at a time; an exception becomes the explorer's error message."""

    @wraps(method)
    def guarded(self: Controller, *args: Any, **kwargs: Any) -> None:
        with self.turn:
            try:
                method(self, *args, **kwargs)
            except Exception as error:
                self.fail(error)

    return guarded


class Controller:
    """The explorer without its widgets.

    Parameters: `session`; `worker`; `listener`, called with the names of what changed: prompt,
    look, selection, view, left, pictures, focus, busy, error, localization.
    Attributes: `view`, `look`, `left`, `pictures`, `facts`, `localization` (of the prompt shown,
    each None until computed), `progress` (None when idle), `error` (a text, empty when all is
    well), `note` (what happened last), `theta`, `k`, `focus`, `turn` (held while a request or a
    result is dealt with).
    """

    def __init__(
        self, session: Session, worker: Worker, listener: Listener = lambda changed: None
    ) -> None:
        self.session, self.worker, self.listener = session, worker, listener
        self.turn = threading.RLock()
        self.history = History()
        self.view = View(guidance=session.model.guidance)
        self.theta, self.k = THETA, K
        self.follows = True  # the selection is that of θ and k, also for the next prompt
        self.focus: Neuron | None = None
        self.look: Look | None = None
        self.left: Left | None = None
        self.pictures: Pictures | None = None
        self.facts: Facts | None = None
        self.localization: Localization | None = None
        self.progress: Progress | None = None
        self.error, self.note = "", ""
        self.finished = 0  # jobs that ended, well or not

    # requests

    @_told
    def choose(self, prompt: str) -> None:
        """Show another prompt."""
        if not prompt.strip():
            raise ValueError("prompt must not be empty: choose one from the list or write one")
        self.view = replace(self.view, prompt=prompt)
        self.look = self.left = self.pictures = self.facts = self.localization = None
        self.note = ""
        self._tell("prompt", "look", "left", "pictures", "focus", "localization")
        self._refresh()

    @_told
    def threshold(self, theta: float, k: int) -> None:
        """Select the candidates of θ and k."""
        self.theta, self.k, self.follows = theta, k, True
        if self.look is None:
            self._refresh()
        else:
            self._select(self.session.candidates(self.look, theta, k))

    @_told
    def by_hand(self, text: str) -> None:
        """Select what is written: "layer 3: 14, 15"."""
        neurons = state.read_neurons(text, self.session.widths)
        self.follows = False
        self._select(Selection(neurons, "by hand"))

    @_told
    def toggle(self, layer: int, neuron: int) -> None:
        """Take one neuron in, or out, and look at it."""
        one = NeuronSet({layer: [neuron]}).check(self.session.widths)
        old = self.view.selection.neurons
        self.follows, self.focus = False, (layer, neuron)
        self._select(Selection(old - one if (layer, neuron) in old else old | one, "by hand"))

    @_told
    def look_at(self, layer: int, neuron: int) -> None:
        """Tell about one neuron."""
        NeuronSet({layer: [neuron]}).check(self.session.widths)
        self.focus = (layer, neuron)
        self._refresh()

    @_told
    def clear(self) -> None:
        """Select nothing."""
        self.follows = False
        self._select(Selection())

    @_told
    def take_refined(self) -> None:
        """Select what localization found for this prompt."""
        found = self.session.found.get(self.view.prompt)
        if found is None:
            raise ValueError("no neurons are known for this prompt yet: press Localize first")
        self.follows = False
        self._select(Selection(found, f"refined for {self.view.prompt!r}"))

    @_told
    def undo(self) -> None:
        """The selection before."""
        self.follows = False
        self._show(self.history.undo())

    @_told
    def redo(self) -> None:
        """The selection after."""
        self.follows = False
        self._show(self.history.redo())

    @_told
    def load(self, text: str) -> None:
        """Take over a selection saved as JSON, with its prompt and settings."""
        view = state.from_json(text, self.view, self.session.widths)
        self.follows = False
        self.history.push(view.selection)
        other = view.prompt != self.view.prompt
        self.view, self.left = view, None
        self._tell("view", "selection")
        if other:
            self.choose(view.prompt)
        else:
            self._refresh()

    @_told
    def settings(self, **changes: Any) -> None:
        """Change factor, seeds, steps or guidance."""
        view = replace(self.view, **changes)
        if view == self.view:
            return
        self.view = view
        self._tell("view", "pictures")
        if "factor" in changes:
            self.left = None
            self._refresh()

    @_told
    def seeds(self, text: str) -> None:
        """Change the seeds of the images: "101-104"."""
        self.settings(seeds=state.read_seeds(text))

    @_told
    def generate(self) -> None:
        """Draw the images with and without the selection."""
        view, score = self._ready(), self._scoring()

        def work(tick: Tick) -> tuple[Scores, Pictures]:
            scores = score(tick)
            return scores, self.session.pictures(replace(view, selection=scores.selection), tick)

        self._submit("Generating", work, self._drawn)

    @_told
    def localize(self, search: str) -> None:
        """Find the prompt's neurons; they become the selection."""
        view = self._ready()
        if search not in SEARCHES:
            raise ValueError(f"search must be one of {', '.join(SEARCHES)}, got {search!r}")
        self.localization = None
        self._submit(
            "Localizing", lambda tick: self.session.localize(view.prompt, search, tick), self._found
        )

    @_told
    def cancel(self) -> None:
        """Stop what runs."""
        self.worker.cancel()

    def code(self) -> str:
        """A cell's worth of Python that repeats the view."""
        model = self.session.model
        dtype = str(model.dtype).removeprefix("torch.")
        if model.dtype == default_dtype() or dtype not in DTYPES:
            dtype = None
        return state.as_code(self.view, model.name, model.revision, self.session.seeds, dtype)

    def saved(self) -> str:
        """The selection as JSON."""
        return state.to_json(self.view, self.session.model.name)

    @property
    def stale(self) -> bool:
        """Whether the images shown belong to another selection or other settings."""
        return self.pictures is not None and (
            self.pictures.view.picture_key() != self.view.picture_key()
        )

    # jobs

    def _ready(self) -> View:
        if not self.view.prompt:
            raise ValueError("choose a prompt first")
        return self.view

    def _select(self, selection: Selection) -> None:
        self.history.push(selection)
        self._show(selection)

    def _show(self, selection: Selection) -> None:
        self.view = replace(self.view, selection=selection)
        self.left = None
        self._tell("selection", "pictures")
        self._refresh()

    def _refresh(self) -> None:
        """Compute what the view lacks: the look, what is left of the score, facts of the neuron."""
        if not self.view.prompt:
            return
        if self.worker.busy and self.progress and self.progress.job != "Scoring":
            self.note = f"{self.progress.job} was stopped by a newer request."
        self._submit("Scoring", self._scoring(), self._scored)

    def _scoring(self) -> Callable[[Tick], Scores]:
        """The work of scoring the view as it is now."""
        view, focus, follows, theta, k = self.view, self.focus, self.follows, self.theta, self.k

        def work(tick: Tick) -> Scores:
            tick("noise differences", 0, None)
            look = self.session.look(view.prompt)
            chosen = self.session.candidates(look, theta, k) if follows else view.selection
            tick("scaled neurons", 0, None)
            some = len(chosen.neurons) > 0
            left = self.session.left(view.prompt, chosen.neurons, view.factor) if some else None
            tick("facts of the neuron", 0, None)
            facts = self.session.facts(view.prompt, *focus) if focus else None
            return Scores(look, chosen, left, facts)

        return work

    def _submit(self, name: str, work: Callable[[Tick], Any], done: Callable[[Any], None]) -> None:
        self.error = ""
        self.progress = Progress(name)
        job = Job(
            name,
            work,
            done=lambda result: self._finished(lambda: done(result), job),
            failed=lambda error: self._finished(lambda: self.fail(error), job),
            dropped=lambda: self._finished(lambda: self._tell_dropped(name), job),
            progress=lambda *now: self._advance(Progress(name, *now), job),
        )
        self._job = job
        self.worker.submit(job)
        self._tell("busy", "error")

    @_told
    def _finished(self, then: Callable[[], None], job: Job) -> None:
        """End a job; one that a newer one replaced ends without a word."""
        if job is not self._job:
            return
        self.progress = None
        self.finished += 1
        try:
            then()
        finally:
            self._tell("busy")

    @_told
    def _advance(self, progress: Progress, job: Job) -> None:
        if job is self._job:
            self.progress = progress
            self._tell("progress")

    def _tell_dropped(self, name: str) -> None:
        self.note = f"{name} was cancelled."

    def _scored(self, scores: Scores) -> None:
        self.look, self.left, self.facts = scores.look, scores.left, scores.facts
        if scores.selection != self.view.selection:
            self.history.push(scores.selection)
            self.view = replace(self.view, selection=scores.selection)
        self._tell("look", "selection", "left", "focus", "pictures")

    def _drawn(self, result: tuple[Scores, Pictures]) -> None:
        self.pictures, self.note = result[1], ""
        self._scored(result[0])

    def _found(self, result: Localization) -> None:
        self.localization = result
        self._tell("localization")
        if not result.memorized:
            self.note = "Not memorized: there is nothing to localize."
            self._refresh()
            return
        count = len(result.refined)
        self.note = f"{count} neuron{'s' * (count != 1)} found in {result.seconds:.1f} s."
        self.take_refined()

    def fail(self, error: Exception) -> None:
        """Show an error where the user looks; its traceback is kept in `last_error`."""
        self.last_error = error
        kind = "" if isinstance(error, (ValueError, TypeError)) else f"{type(error).__name__}: "
        self.error = kind + (str(error) or type(error).__name__)
        self._tell("error")

    last_error: Exception | None = None
    _job: Job | None = None

    def _tell(self, *changed: str) -> None:
        self.listener(frozenset(changed))
