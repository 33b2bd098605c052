"""What `nemo_kit.explore` returns: the explorer's state as traits, and what can be asked of it.

Scope: plain Python between the model and the widget. Setting a trait, from a cell or from a
control, asks for what it needs; results arrive on the worker's thread. Both take turns. A request
that can't be met raises where it was made; an error inside a job is told in `error`.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from traitlets import Any as AnyValue
from traitlets import Float, HasTraits, Int, Unicode, observe, validate

from nemo_kit import figures
from nemo_kit.checks import check_choice, check_number
from nemo_kit.explorer import keep, values
from nemo_kit.explorer.probe import Case, Facts, Pictures, Probe
from nemo_kit.explorer.values import History, View
from nemo_kit.explorer.worker import Cancelled, Tick, Worker
from nemo_kit.localization import SEARCHES, Localization
from nemo_kit.models import DTYPES, default_dtype
from nemo_kit.neurons import NeuronSet

THETA, K = 5.0, 0  # where the method's selection starts (Algorithm 3)


@dataclass(frozen=True)
class Progress:
    """How far the running job is; `done` of `total` (None: not known) in `stage`."""

    job: str
    stage: str = ""
    done: int = 0
    total: int | None = None


Scores = tuple[NeuronSet, Case, Case | None, Facts | None]  # neurons, prompt, other, focus


class Session(HasTraits):
    """The explorer, in a cell and on the page: its last line in a cell shows it.

    Traits, which may be set: `prompt`; `other`, a prompt to compare with ("" for none);
    `selection`, a `NeuronSet`, also as {3: [14]} or "layer 3: 14"; `factor`, that scales it;
    `theta`, `k`, of Algorithm 2, which select; `seeds`, `steps`, `guidance` of the images;
    `pictures`, None or a `Pictures`: set to images of your own, uint8 [seeds, H, W, 3], they are
    shown and measured in place of generated ones. Setting returns at once: `wait()` waits for what
    it led to.
    Attributes: `case` and `beside` (what is known of the prompt and the other), `localization`,
    `facts` (of `focus`, a neuron), `progress`, `error`, `note`, `origin` (of the selection, in
    words), `widget`; trait `revision`, counts changes of any of them.
    Raises, where a value is refused, ValueError, TypeError or TraitError that say why.
    """

    prompt, other = Unicode(), Unicode()
    selection = AnyValue(NeuronSet())
    factor = Float(View.factor)
    theta, k = Float(THETA, min=0), Int(K, min=0)
    seeds, steps, guidance = AnyValue(View.seeds), Int(View.steps, min=1), Float(1.0, min=0)
    pictures = AnyValue(None)
    revision = Int(0, read_only=True)

    def __init__(self, probe: Probe) -> None:
        self.probe, self.worker, self.history = probe, Worker(), History()
        self.turn = threading.RLock()
        self.follows = True  # the selection is that of θ and k, also for the next prompt
        self.focus: tuple[int, int] | None = None
        self.case: Case | None = None
        self.beside: Case | None = None
        self.facts: Facts | None = None
        self.localization: Localization | None = None
        self.progress: Progress | None = None
        self.error, self.note = "", ""
        self.last_error: Exception | None = None
        self.finished = 0  # jobs that ended, well or not
        self.widget: Any = None
        self._job: object = None
        self._quiet = False  # traits are set by a result: nothing is asked for
        self._held = False  # a result is taken over: it is shown when all of it is there
        self._origin = ""  # of the selection that is being set
        super().__init__()
        self.guidance = probe.model.guidance

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        return self.widget._repr_mimebundle_(**kwargs)

    @property
    def view(self) -> View:
        """All that the pictures depend on, as it is now."""
        return View(self.prompt, self.selection, self.factor, self.seeds, self.steps, self.guidance)

    @property
    def origin(self) -> str:
        """Where the selection comes from, in words."""
        return self.history.now[1]

    @property
    def cases(self) -> list[Case]:
        """What is known of the prompt, and of the one beside it."""
        own = self.case and replace(self.case, pictures=self.pictures)
        return [case for case in (own, self.beside) if case]

    @property
    def stale(self) -> bool:
        """Whether the pictures shown belong to another selection or other settings."""
        return self.pictures is not None and self.pictures.view != self.view

    def shared(self) -> pd.DataFrame | None:
        """Candidates that the prompt and the other share (see `Probe.shared`); None without one."""
        if self.case is None or self.beside is None:
            return None
        return self.probe.shared(self.case.look, self.beside.look, self.theta, self.k)

    # what setting a trait leads to

    @validate("prompt", "selection", "factor", "seeds", "guidance", "pictures")
    def _check(self, proposal: Any) -> Any:
        """What a trait is given, as it keeps it."""
        name, given = proposal["trait"].name, proposal["value"]
        if name == "prompt" and not given.strip():
            raise ValueError("prompt must not be empty: choose one from the list or write one")
        if name in ("factor", "guidance"):
            check_number(name, given)
        if name == "selection":
            given = values.read_neurons(given, self.probe.widths)
        if name == "seeds":
            given = values.read_seeds(given)
        if name == "pictures" and not (given is None or isinstance(given, Pictures)):
            return self._of_the_user(np.asarray(given))
        return given

    def _of_the_user(self, images: np.ndarray) -> Pictures | None:
        """Ask for these images to be measured; the old ones stay until then."""
        count = len(self.seeds)
        if images.dtype != np.uint8 or images.ndim != 4 or len(images) != count:
            raise ValueError(f"pictures must be uint8 [{count} seeds, H, W, 3], "
                             f"got {images.dtype} {list(images.shape)}")  # fmt: skip
        self._draw(images)
        return self.pictures

    @observe("prompt", "other")
    def _on_prompt(self, change: Any) -> None:
        with self.turn:
            if change.name == "prompt":
                self.case = self.facts = self.localization = self.pictures = None
                self.note = ""
            self.beside = None
            self._refresh()

    @observe("selection", "factor")
    def _on_scaling(self, change: Any) -> None:
        with self.turn:
            if change is None or change.name == "selection":
                self.follows = self.follows and self._quiet
                self.history.push(self.selection, self._origin or "by hand")
            self.case = self.case and replace(self.case, left=None)
            self.beside = self.beside and replace(self.beside, left=None)
            self._refresh()

    @observe("theta", "k")
    def _on_threshold(self, _: Any) -> None:
        with self.turn:
            if not self._quiet:
                self.follows = True
                self._refresh()

    @observe("seeds", "steps", "guidance", "pictures")
    def _on_settings(self, _: Any) -> None:
        with self.turn:
            self._changed()

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
            rest = self.selection.without(layer)
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

    def take_refined(self) -> None:
        """Select what localization found for this prompt."""
        found = self.probe.found.get(self.prompt)
        if found is None:
            raise ValueError("no neurons are known for this prompt yet: press Localize first")
        self._select(found, f"refined for {self.prompt!r}")

    def step(self, by: int) -> None:
        """The selection so many steps later in the history; earlier, if negative."""
        self._select(*self.history.step(by))

    def generate(self) -> None:
        """Draw the images with and without the selection."""
        self._draw(None)

    def localize(self, search: str = "speculative") -> None:
        """Find the prompt's neurons; they become the selection, with the θ and k that led there."""
        check_choice("search", search, SEARCHES)
        with self.turn:
            prompt, self.localization = self.prompt, None
            self._submit("Localizing", lambda: self.probe.localize(prompt, search),
                         self._localized)  # fmt: skip

    def cancel(self) -> None:
        """Stop what runs."""
        self.worker.cancel()

    def wait(self, seconds: float | None = None) -> Self:
        """Wait until all that was asked for is computed; returns the session.

        Raises TimeoutError where that takes longer, and what went wrong where something did.
        """
        if not self.worker.wait(seconds):
            raise TimeoutError(f"not ready within {seconds:g} s: {self.progress}")
        if self.error and self.last_error:
            raise self.last_error
        return self

    def close(self) -> None:
        """End the thread and remove the widget."""
        self.worker.close()
        widget, self.widget = self.widget, None
        if widget is not None:
            widget.close()

    # what is kept

    def code(self) -> str:
        """A cell's worth of Python that repeats the view."""
        model = self.probe.model
        dtype = str(model.dtype).removeprefix("torch.")
        if model.dtype == default_dtype() or dtype not in DTYPES:
            dtype = None
        about = (model.name, model.revision, self.probe.seeds, dtype)
        return values.as_code(self.view, self.origin, *about)

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
            kind = "" if isinstance(error, (ValueError, TypeError)) else f"{type(error).__name__}: "
            self.error = kind + (str(error) or type(error).__name__)
            self._changed()

    # jobs

    def _named(self, prompt: str) -> str:
        return f"θ = {self.theta:g}, k = {self.k} for {prompt!r}"

    def _select(self, neurons: NeuronSet, origin: str) -> None:
        with self.turn:
            self.follows, self._origin = False, origin
            self.history.push(neurons, origin)  # the same neurons may have another origin
            self.selection = neurons
            self._origin = ""
            self._changed()

    def _refresh(self) -> None:
        """Compute what the view lacks: looks, what is left of the scores, facts of the neuron."""
        if not self.prompt or self._quiet:
            self._changed()
        else:
            if self.progress and self.progress.job != "Scoring":
                self.note = f"{self.progress.job} was stopped by a newer request."
            self._submit("Scoring", self._scoring(), self._scored)

    def _scoring(self) -> Callable[[], Scores]:
        """The work of scoring the view as it is now."""
        view, other, focus, follows = self.view, self.other, self.focus, self.follows
        theta, k, probe = self.theta, self.k, self.probe

        def case(prompt: str, neurons: NeuronSet) -> Case:
            some = len(neurons) > 0
            left = probe.left(prompt, neurons, view.factor) if some else None
            return Case(probe.look(prompt), left)

        def work() -> Scores:
            look = probe.look(view.prompt)
            neurons = probe.candidates(look, theta, k) if follows else view.neurons
            beside = case(other, neurons) if other.strip() else None
            facts = probe.facts(view.prompt, *focus) if focus else None
            return neurons, case(view.prompt, neurons), beside, facts

        return work

    def _draw(self, given: np.ndarray | None) -> None:
        """Draw the images, or show those given in place of the disturbed ones."""
        with self.turn:
            view, score, probe = self.view, self._scoring(), self.probe

            def work() -> tuple[Scores, Pictures, Pictures | None]:
                scores = score()
                now, other = replace(view, neurons=scores[0]), scores[2]
                if given is not None:
                    return scores, probe.given(now, given), None
                own = probe.pictures(now)
                beside = other and probe.pictures(replace(now, prompt=other.look.prompt))
                return scores, own, beside

            self._submit("Generating", work, self._drawn)

    def _submit(self, name: str, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        if not self.prompt:
            raise ValueError("choose a prompt first")
        self.error, self.progress = "", Progress(name)
        self._job = job = object()

        def run(tick: Tick) -> Any:
            self.probe.tick = tick
            return work()

        def ended(result: Any, error: Exception | None) -> None:
            with self.turn:
                if job is self._job:  # one that a newer one replaced ends without a word
                    self._end(name, done, result, error)

        def advance(stage: str, finished: int, total: int | None) -> None:
            with self.turn:
                if job is self._job:
                    self.progress = Progress(name, stage, finished, total)
                    self._changed()

        self.worker.submit(run, ended, advance)
        self._changed()

    def _end(self, name: str, done: Callable[[Any], None], result: Any, error: Any) -> None:
        self.progress, self._held = None, True
        try:
            if isinstance(error, Cancelled):
                self.note = f"{name} was cancelled."
            elif error is not None:
                self.fail(error)
            else:
                done(result)
        except Exception as caught:
            self.fail(caught)
        self._held = False
        self.finished += 1
        self._changed()

    def _settle(self, **found: Any) -> None:
        """Set traits that results bring, without asking for anything."""
        before, self._quiet = self._quiet, True
        try:
            for name, value in found.items():
                setattr(self, name, value)
        finally:
            self._quiet = before

    def _scored(self, scores: Scores) -> None:
        neurons, case, beside, self.facts = scores
        if self.follows:
            self._origin = self._named(case.look.prompt)
            self._settle(selection=neurons)
            self.history.push(neurons, self._origin)  # the same as before, for another prompt
            self._origin = ""
        kept = self.beside.pictures if self.beside else None
        self.case, self.beside = case, beside and replace(beside, pictures=kept)

    def _drawn(self, result: tuple[Scores, Pictures, Pictures | None]) -> None:
        scores, pictures, beside = result
        self.note = ""
        self._scored(scores)
        self._settle(pictures=pictures)
        self.beside = self.beside and replace(self.beside, pictures=beside)

    def _localized(self, result: Localization) -> None:
        self.localization = result
        if not result.flagged:
            self.note = "Not flagged: the score is not above τ, there is nothing to localize."
            self._refresh()
            return
        count = len(result.refined)
        self.note = f"{count} neuron{'s' * (count != 1)} found in {result.seconds:.1f} s."
        self._settle(theta=result.theta, k=result.k)
        self.take_refined()

    def _changed(self) -> None:
        try:
            if not self._held:
                self.set_trait("revision", self.revision + 1)
        except Exception as error:  # of what shows it, or of an observer of the user's
            if not self.error:
                self.fail(error)
