"""What `nemo_kit.explore` returns: the explorer's state as traits, and what can be asked of it.

Scope: plain Python between the model and the widget. Setting a trait, from a cell or from a
control, asks for what it needs; one background thread computes it, and the last request wins.
Requests and results take turns. A request that can't be met raises where it was made; an error
inside a job is told in `error`.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from traitlets import Any as AnyValue
from traitlets import Float, HasTraits, Int, Unicode, observe, validate

from nemo_kit import figures
from nemo_kit.checks import check_choice, check_number
from nemo_kit.explorer import keep, values
from nemo_kit.explorer.probe import Case, Pictures, Probe
from nemo_kit.explorer.values import View
from nemo_kit.localization import SEARCHES, Localization
from nemo_kit.metrics._checks import check_images
from nemo_kit.neurons import NeuronSet

FALLBACK = (
    "The explorer needs Jupyter widgets, which this page does not show. Open the notebook in "
    "JupyterLab 4 or Notebook 7 with ipywidgets 8 (pip install ipywidgets), and run the cell again."
)
CLOSED = "the explorer is closed; call explore(model) again"
_EVERY = 0.1  # seconds between two reports of progress of one stage
# one thread for all: explorers may share a model, whose hooks serve one job at a time
_THREAD = ThreadPoolExecutor(1, thread_name_prefix="explorer")


@dataclass(frozen=True)
class Progress:
    """How far the running job is; `done` of `total` (None: not known) in `stage`."""

    job: str
    stage: str = ""
    done: int = 0
    total: int | None = None


Scores = tuple[NeuronSet, Case, Case | None, dict[str, Any] | None]
"""Neurons, the prompt's case, the other's, facts of the neuron looked at."""


class Session(HasTraits):
    """The explorer, in a cell and on the page: its last line in a cell shows it.

    Traits, which may be set: `prompt`; `other`, a prompt to compare with ("" for none);
    `selection`, a `NeuronSet`, also as {3: [14]} or "layer 3: 14"; `factor`, that scales it;
    `theta`, `k`, of Algorithm 2, which select; `seeds`, `steps`, `guidance` of the images;
    `pictures`, None or a `Pictures`: set to images of your own, uint8 [seeds, H, W, 3], they are
    shown and measured in place of generated ones. Setting returns at once: `wait()` waits for what
    it led to.
    Attributes: `case` and `beside` (what is known of the prompt and the other), `localization`,
    `facts` (of `focus`, a neuron: see `Probe.facts`), `progress`, `error`, `note`, `origin` (of
    the selection, in words), `widget`; trait `revision`, counts changes of any of them.
    Raises, where a value is refused, ValueError, TypeError or TraitError that say why.
    """

    prompt, other = Unicode(), Unicode()
    selection = AnyValue(NeuronSet())
    factor = Float(0.0)
    theta, k = Float(5.0, min=0), Int(0, min=0)  # where Algorithm 3 starts
    seeds, steps, guidance = AnyValue((101, 102, 103, 104)), Int(20, min=1), Float(1.0, min=0)
    pictures = AnyValue(None)
    revision = Int(0, read_only=True)

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self.turn = threading.Condition()  # told when a job has ended
        self.pending = 0  # jobs that run or wait
        self.past = [(NeuronSet(), "none")]  # selections, each with its origin in words
        self.place = 0  # in `past`: where undo and redo have led
        self.follows = True  # the selection is that of θ and k, also for the next prompt
        self.focus: tuple[int, int] | None = None
        self.case: Case | None = None
        self.beside: Case | None = None
        self.facts: dict[str, Any] | None = None
        self.localization: Localization | None = None
        self.progress: Progress | None = None
        self.last_error: Exception | None = None  # until something new is asked for
        self.note = ""
        self.finished = 0  # jobs that ended, well or not
        self.closed = False
        self.widget: Any = None
        self._stop = threading.Event()  # the last job is not wanted any more
        self._quiet = False  # traits are set from here: nothing is asked for
        super().__init__(guidance=probe.model.guidance)

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """As any widget; where a page can't show widgets, a text that says so."""
        if self.closed:
            return {"text/plain": CLOSED}
        bundle = self.widget._repr_mimebundle_(**kwargs)
        return bundle | {"text/plain": FALLBACK} if isinstance(bundle, dict) else bundle

    @property
    def view(self) -> View:
        """All that the pictures depend on, as it is now."""
        return View(self.prompt, self.selection, self.factor, self.seeds, self.steps, self.guidance)

    @property
    def origin(self) -> str:
        """Where the selection comes from, in words."""
        return self.past[self.place][1]

    @property
    def cases(self) -> list[Case]:
        """What is known of the prompt, and of the one beside it."""
        own = self.case and replace(self.case, pictures=self.pictures)
        return [case for case in (own, self.beside) if case]

    @property
    def stale(self) -> bool:
        """Whether the pictures shown belong to another selection or other settings."""
        return self.pictures is not None and self.pictures.view != self.view

    @property
    def error(self) -> str:
        """What went wrong, in words."""
        error = self.last_error
        plain = isinstance(error, (ValueError, TypeError)) and str(error)
        return "" if error is None else plain or f"{type(error).__name__}: {error}"

    def shared(self) -> pd.DataFrame | None:
        """Candidates that the prompt and the other share, the furthest first; None without one.

        Returns `layer`, `neuron`, `z`, `z_other` (NaN without statistics); `attrs` has the numbers
        of each prompt's own `candidates`.
        """
        if self.case is None or self.beside is None:
            return None
        looks = self.case.look, self.beside.look
        own = [self.probe.candidates(look, self.theta, self.k) for look in looks]
        rows = [(*at, *(look.z_of(*at) for look in looks)) for at in own[0] & own[1]]
        frame = pd.DataFrame(rows, columns=["layer", "neuron", "z", "z_other"])
        frame = frame.sort_values("z", key=abs, ascending=False, ignore_index=True)
        frame.attrs["candidates"] = tuple(map(len, own))
        return frame

    # what setting a trait leads to

    @validate("prompt", "selection", "factor", "theta", "seeds", "guidance", "pictures")
    def _check(self, proposal: Any) -> Any:
        """What a trait is given, as it keeps it."""
        name, given = proposal["trait"].name, proposal["value"]
        if name == "prompt" and not given.strip():
            raise ValueError("prompt must not be empty: choose one from the list or write one")
        if name in ("factor", "theta", "guidance"):
            check_number(name, given)
        if name == "selection":
            given = values.read_neurons(given, self.probe.widths)
        if name == "seeds":
            given = values.read_seeds(given)
        if name == "pictures" and not (given is None or isinstance(given, Pictures)):
            images, count = check_images("pictures", given), len(self.seeds)
            if len(images) != count:
                raise ValueError(f"pictures must be {count}, one a seed, got {len(images)}")
            self._compute("Generating", draw=True, given=images)
            return self.pictures  # the old ones stay until these are measured
        return given

    @observe("prompt", "other", "selection", "factor", "theta", "k", "seeds", "steps", "guidance",
             "pictures")  # fmt: skip
    def _on_change(self, change: Any) -> None:
        """Let go of what no longer holds, and ask for what is needed now."""
        with self.turn:
            if self._quiet:
                return
            self.last_error = None
            if change.name == "prompt":
                self.case = self.facts = self.localization = None
                self.note = ""
                self._set(pictures=None)
            if change.name in ("prompt", "other"):
                self.beside = None
            if change.name == "selection":
                self._take(change.new, "by hand")
                self.follows = False
            if change.name in ("theta", "k"):
                self.follows = True
            if change.name in ("seeds", "steps", "guidance", "pictures"):
                self._changed()
            else:
                self._refresh()

    # requests

    def toggle(self, layer: int, neuron: int) -> None:
        """Take one neuron in, or out, and look at it."""
        one = NeuronSet({layer: [neuron]}).check(self.probe.widths)
        with self.turn:
            self.focus, old = (layer, neuron), self.selection
            self._select(old - one if (layer, neuron) in old else old | one, "by hand")

    def toggle_layer(self, layer: int) -> None:
        """Leave a layer alone; where none of its neurons is selected, take all of it in."""
        whole = NeuronSet({layer: range(self.probe.widths.get(layer, 1))}).check(self.probe.widths)
        with self.turn:
            rest = self.selection - self.selection.only(layer)
            if rest != self.selection:
                self._select(rest, f"{self.origin}, without layer {layer}")
            else:
                self._select(rest | whole, f"{self.origin}, with all of layer {layer}")

    def look_at(self, layer: int, neuron: int) -> None:
        """Tell about one neuron."""
        NeuronSet({layer: [neuron]}).check(self.probe.widths)
        with self.turn:
            self.focus = (layer, neuron)
            self._refresh()

    def clear(self) -> None:
        """Select nothing."""
        self._select(NeuronSet(), "none")

    def step(self, by: int) -> None:
        """The selection so many steps later among those there were; earlier, if negative."""
        with self.turn:
            self.place = min(max(self.place + by, 0), len(self.past) - 1)
            self._select(*self.past[self.place])

    def generate(self) -> None:
        """Draw the images with and without the selection."""
        self._compute("Generating", draw=True)

    def localize(self, search: str = "speculative") -> None:
        """Find the prompt's neurons; they become the selection, with the θ and k that led there."""
        check_choice("search", search, SEARCHES)
        with self.turn:
            prompt, self.localization = self.prompt, None
            self._submit("Localizing", lambda: self.probe.localize(prompt, search),
                         self._localized)  # fmt: skip

    def cancel(self) -> None:
        """Stop what runs, at its next report of progress; the page goes on at once."""
        with self.turn:
            self._stop.set()
            if self.progress is not None:
                self.note, self.progress = f"{self.progress.job} was cancelled.", None
                self.finished += 1
                self._changed()

    def wait(self, seconds: float | None = None) -> Self:
        """Wait until all that was asked for is computed; returns the session.

        Raises TimeoutError where that takes longer, and what went wrong where something did.
        """
        with self.turn:
            if not self.turn.wait_for(lambda: not self.pending, seconds):
                raise TimeoutError(f"not ready within {seconds:g} s: {self.progress}")
            if self.last_error is not None:
                raise self.last_error
        return self

    def close(self) -> None:
        """Stop what runs, ask for nothing more and remove the widget; safe to call twice."""
        self.closed = True
        self.cancel()
        if self.widget is not None:
            self.widget.close()

    # what is kept

    def code(self) -> str:
        """A cell's worth of Python that repeats the view."""
        return keep.code(self.view, self.origin, self.probe)

    def save(self, name: str = "explorer", out: str | Path = ".") -> list[Path]:
        """Write what is shown as `out/name.png`, and the data behind it as `out/name.csv`.

        Returns the paths written; `out` counts from the notebook's folder.
        Raises ValueError where no pictures are shown, and as `nemo_kit.figures.save`.
        """
        with self.turn:
            drawn = [case for case in self.cases if case.pictures is not None]
            if not drawn or self.stale:
                raise ValueError(
                    "there are no pictures of this selection to save yet: press Generate"
                )
            shown = drawn, self.probe.threshold
            fig, frame = keep.figure(*shown), keep.frame(*shown)
        return figures.save(fig, frame, name, out)

    def fail(self, error: Exception) -> None:
        """Show an error where the user looks; it is kept in `last_error`."""
        with self.turn:
            self.last_error = error
            self._changed()

    # jobs

    def _set(self, **given: Any) -> None:
        """Set traits without asking for anything."""
        self._quiet = True
        try:
            for name, value in given.items():
                setattr(self, name, value)
        finally:
            self._quiet = False

    def _take(self, neurons: NeuronSet, origin: str) -> None:
        """Make this the selection; the same again, of the same origin, is no step."""
        if (neurons, origin) != self.past[self.place]:
            self.place += 1
            self.past[self.place :] = [(neurons, origin)]  # what was undone before is lost
        self._set(selection=neurons)

    def _select(self, neurons: NeuronSet, origin: str) -> None:
        with self.turn:
            self.follows = False
            self._take(neurons, origin)
            self._refresh()

    def _refresh(self) -> None:
        """Compute what the view lacks: looks, what is left of the scores, facts of the neuron."""
        if not self.prompt:
            self._changed()
            return
        if self.progress and self.progress.job != "Scoring":
            self.note = f"{self.progress.job} was stopped by a newer request."
        self.case = self.case and replace(self.case, left=None)
        self.beside = self.beside and replace(self.beside, left=None)
        self._compute("Scoring")

    def _compute(self, job: str, draw: bool = False, given: np.ndarray | None = None) -> None:
        """Ask for the scores of the view as it is now; with `draw` also for its images, or for
        those given in place of the disturbed ones."""
        with self.turn:
            view, other, focus, follows = self.view, self.other, self.focus, self.follows
            theta, k, probe = self.theta, self.k, self.probe

            def work() -> Scores:
                look = probe.look(view.prompt)
                neurons = probe.candidates(look, theta, k) if follows else view.neurons
                now = replace(view, neurons=neurons)
                own, beside = probe.case(now, draw, given), None
                if other.strip():
                    beside = probe.case(replace(now, prompt=other), draw and given is None)
                return neurons, own, beside, probe.facts(view.prompt, *focus) if focus else None

            self._submit(job, work, self._scored)

    def _scored(self, scores: Scores) -> None:
        neurons, own, beside, self.facts = scores
        if self.follows:
            self._take(neurons, f"θ = {self.theta:g}, k = {self.k} for {self.prompt!r}")
        if own.pictures:
            self.note = ""
            self._set(pictures=own.pictures)
        elif beside and self.beside:
            beside = replace(beside, pictures=self.beside.pictures)
        self.case, self.beside = own, beside

    def _localized(self, result: Localization) -> None:
        self.localization = result
        if not result.flagged:
            self.note = "Not flagged: the score is not above τ, there is nothing to localize."
            self._refresh()
            return
        count = len(result.refined)
        self.note = f"{count} neuron{'s' * (count != 1)} found in {result.seconds:.1f} s."
        self._set(theta=result.theta, k=result.k)
        self._select(result.refined, f"refined for {self.prompt!r}")

    def _submit(self, job: str, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """Run this as soon as the running job, which is told to stop, has ended."""
        if not self.prompt:
            raise ValueError("choose a prompt first")
        if self.closed:
            raise RuntimeError(CLOSED)
        self._stop.set()
        self._stop = threading.Event()
        self.last_error, self.progress = None, Progress(job)
        self.pending += 1
        _THREAD.submit(self._run, job, work, done, self._stop)
        self._changed()

    def _run(self, job: str, work: Callable[[], Any], done: Callable[[Any], None],
             stop: threading.Event) -> None:  # fmt: skip
        """Work and take over what it gave, unless that is not wanted any more."""
        last = ("", time.monotonic())

        def tick(stage: str, done: int, total: int | None) -> None:
            """Report now and then, the first and last of a stage always."""
            nonlocal last
            with self.turn:
                if stop.is_set():
                    raise CancelledError
                now = time.monotonic()
                if stage != last[0] or done == total or now - last[1] >= _EVERY:
                    last = (stage, now)
                    self.progress = Progress(job, stage, done, total)
                    self._changed()

        self.probe.tick = tick
        try:
            tick("", 0, None)
            take = partial(done, work())
        except Exception as error:  # told where the user looks, whatever it is
            take = partial(self.fail, error)
        with self.turn:
            if not stop.is_set():
                self.progress = None
                self.finished += 1
                try:
                    take()
                except Exception as error:
                    self.fail(error)
                self._changed()
            self.pending -= 1
            self.turn.notify_all()

    def _changed(self) -> None:
        try:
            self.set_trait("revision", self.revision + 1)
        except Exception as error:  # of what shows it, or of an observer of the user's
            if self.last_error is None:
                self.fail(error)
