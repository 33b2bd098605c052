"""The explorer's widget: connects controls to the controller, and shows what changed.

Scope: the one place where values meet ipywidgets. A request returns at once; results come from the
worker's thread and are shown on the kernel's. Both take the controller's `turn`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import ipywidgets as widgets
import pandas as pd

from nemo_kit.explorer import markup, present
from nemo_kit.explorer.controller import Controller
from nemo_kit.explorer.panels import CHIPS, EffectPanel, KeepPanel, NeuronPanel, PromptPanel
from nemo_kit.explorer.session import Session
from nemo_kit.explorer.state import write_neurons, write_seeds
from nemo_kit.explorer.worker import Deliver, Worker
from nemo_kit.localization.result import STAGES
from nemo_kit.neurons import NeuronSet

FALLBACK = (
    "The explorer needs Jupyter widgets, which this page does not show. Open the notebook in "
    "JupyterLab 4 or Notebook 7 with ipywidgets 8 (pip install ipywidgets), and run the cell again."
)


def on_this_loop() -> Deliver | None:
    """Calls functions on the event loop that runs here (a kernel's); None where none runs."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return None
    return lambda call: None if loop.is_closed() else _later(loop, call)


def _later(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    loop.call_soon_threadsafe(call)


class Explorer(widgets.VBox):
    """The widget that `nemo_kit.explore` returns.

    Parameters: `session`; `scores`, a row a prompt, drawn behind the score; `deliver`, see
    `Worker`, by default the running kernel's loop.
    Attribute: `controller`, its state and requests in plain Python.
    """

    def __init__(
        self, session: Session, scores: pd.DataFrame | None = None, deliver: Deliver | None = None
    ) -> None:
        self._scores, self._still = scores, False
        self._shown: dict[int, list[int]] = {}  # layer -> the neurons on its buttons
        self._keys: dict[str, object] = {}  # what each picture was drawn from
        self._watched: list[tuple[widgets.Widget, Callable[[Any], None]]] = []
        worker = Worker(deliver or on_this_loop())
        self.controller = Controller(session, worker, self._render)
        view = self.controller.view
        self._prompt = PromptPanel(session.prompts)
        self._neurons = NeuronPanel(session.widths)
        guidance = view.guidance
        self._effect = EffectPanel(view.factor, write_seeds(view.seeds), view.steps, guidance)
        self._keep = KeepPanel()
        self._status, self._error = widgets.HTML(), widgets.HTML()
        self._cancel = widgets.Button(
            description="Cancel", tooltip="Stop what runs", icon="stop", disabled=True,
            layout=widgets.Layout(width="auto"),
        )  # fmt: skip
        super().__init__(self._parts())
        self.add_class("nemo-explorer")
        self._connect()
        self._start()

    def _parts(self) -> list[widgets.Widget]:
        look = widgets.Layout(justify_content="space-between", align_items="center", width="auto")
        bar = widgets.Box([self._status, self._cancel], layout=look)
        panels = (self._prompt, self._neurons, self._effect, self._keep)
        self._neurons.reveal.layout.display = "" if self.controller.session.is_lab else "none"
        return [widgets.HTML(markup.STYLE), bar, self._error, *[panel.box for panel in panels]]

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """As any widget; where a page can't show widgets, a text that says so."""
        bundle = super()._repr_mimebundle_(**kwargs)
        if isinstance(bundle, dict):
            bundle["text/plain"] = FALLBACK
        return bundle

    def _start(self) -> None:
        self._render(frozenset({"busy", "error", "focus", "view", "selection"}))
        if len(self._prompt.prompts):
            self.controller.choose(self._prompt.prompt.value)

    def close(self) -> None:
        """End the thread, let go of all controls and remove the widget."""
        self.controller.listener = lambda changed: None
        self.controller.worker.close()
        for widget, handler in self._watched:
            widget.unobserve(handler, names="value")
        self._watched.clear()
        super().close()

    # from the controls to the controller

    def _connect(self) -> None:
        tell, neurons, effect = self.controller, self._neurons, self._effect
        self._watch(self._prompt.role, lambda value: self._fill())
        self._watch(self._prompt.prompt, lambda value: value and tell.choose(value))
        self._watch(self._prompt.text, lambda value: value and tell.choose(value))
        for slider in (neurons.theta, neurons.k):
            self._watch(slider, lambda value: tell.threshold(neurons.theta.value, neurons.k.value))
        self._watch(neurons.hand, tell.by_hand)
        self._watch(neurons.reveal, lambda value: self._render(frozenset({"focus"})))
        self._watch(effect.factor, lambda value: tell.settings(factor=value))
        self._watch(effect.seeds, tell.seeds)
        self._watch(effect.steps, lambda value: tell.settings(steps=value))
        self._watch(effect.guidance, lambda value: tell.settings(guidance=value))
        self._watch(self._keep.load, self._loaded)
        for layer, chips in neurons.chips.items():
            for place, chip in enumerate(chips):
                self._watch(chip, lambda value, at=(layer, place): self._pressed(*at))
        self._connect_buttons()

    def _connect_buttons(self) -> None:
        tell, neurons = self.controller, self._neurons
        actions = {
            neurons.undo: tell.undo,
            neurons.redo: tell.redo,
            neurons.clear: tell.clear,
            neurons.refined: tell.take_refined,
            neurons.localize: lambda: tell.localize(neurons.search.value),
            neurons.ask: lambda: tell.look_at(neurons.layer.value, neurons.neuron.value),
            self._effect.generate: tell.generate,
            self._keep.copy: self._show_code,
            self._cancel: tell.cancel,
        }
        for button, action in actions.items():
            button.on_click(lambda _, do=action: self._act(do))

    def _act(self, action: Callable[[], Any]) -> None:
        with self.controller.turn:
            action()

    def _watch(self, widget: widgets.Widget, act: Callable[[Any], Any]) -> None:
        """Call `act` with the new value, unless it was set from here."""

        def handler(change: dict[str, Any]) -> None:
            with self.controller.turn:
                if not self._still:
                    act(change["new"])

        widget.observe(handler, names="value")
        self._watched.append((widget, handler))

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        """Set values without asking for anything."""
        before, self._still = self._still, True
        try:
            yield
        finally:
            self._still = before

    def _fill(self) -> None:
        with self._quietly():
            self._prompt.fill()
        if self._prompt.prompt.value:
            self.controller.choose(self._prompt.prompt.value)

    def _pressed(self, layer: int, place: int) -> None:
        neuron = self._shown[layer][place]
        self.controller.toggle(layer, neuron)

    def _loaded(self, files: Any) -> None:
        for file in files:
            try:
                content = bytes(file["content"]).decode("utf-8")
            except UnicodeDecodeError as error:
                self.controller.fail(ValueError(f"the file is no text: {error}"))
            else:
                self.controller.load(content)
        with self._quietly():
            self._keep.load.value = ()

    def _show_code(self) -> None:
        self._keep.code.value = self.controller.code()
        self._keep.code.layout.display = ""

    # from the controller to the widgets

    def _render(self, changed: frozenset[str]) -> None:
        with self.controller.turn, self._quietly():
            for name, show in self._shows.items():
                if changed & set(name.split()):
                    show(self)

    def _show_progress(self) -> None:
        tell, bars = self.controller, self._neurons.bars
        self._status.value = markup.status(present.status_words(tell), tell.finished)
        self._cancel.disabled = tell.progress is None
        now = tell.progress
        if now is None or now.job != "Localizing":
            return
        self._neurons.progress.layout.display = "flex"
        at = STAGES.index(now.stage) if now.stage in STAGES else -1
        for place, bar in enumerate(bars.values()):
            full = now.total or 1
            done = full if place < at else now.done if place == at and now.total else 0
            bar.max, bar.value = (full, done) if place == at else (1, int(place < at))

    def _show_end(self) -> None:
        """After localization the bars are full, or gone where it was stopped."""
        if self.controller.localization is not None:
            for bar in self._neurons.bars.values():
                bar.max, bar.value = 1, 1
        elif self.controller.progress is None or self.controller.progress.job != "Localizing":
            self._neurons.progress.layout.display = "none"

    def _show_error(self) -> None:
        self._error.value = markup.error(self.controller.error)
        self._error.layout.display = "" if self.controller.error else "none"

    def _show_note(self) -> None:
        """What runs or went wrong, beside Generate too: the bar is far above it."""
        tell = self.controller
        words = present.status_words(tell) if tell.progress else ""
        self._effect.note.value = markup.error(tell.error) or markup.quiet(words)

    def _show_prompt(self) -> None:
        self._prompt.show(self.controller.view.prompt)

    def _show_verdict(self) -> None:
        tell, panel = self.controller, self._prompt
        if tell.look is not None and tell.left is None and tell.progress is not None:
            return  # the numbers stay until the new ones are there
        panel.verdict.value = present.verdict(tell)
        panel.tiles.value = present.score_tiles(tell)
        key = (tell.view.prompt, tell.look is None, tell.left)
        self._draw(panel.chart, key, lambda: present.score_chart(tell, self._scores))

    def _draw(self, where: widgets.HTML, key: object, make: Callable[[], str]) -> None:
        """Put a picture there, unless the one of the same key is there already."""
        if self._keys.get(where.model_id, "") != key:
            where.value = make()
            self._keys[where.model_id] = key

    def _show_look(self) -> None:
        self._prompt.training.value = present.training(self.controller)
        look = self.controller.look
        if look is not None:
            extremes = self.controller.session.extremes(look, CHIPS)
            word = "z" if look.z else "activation"
            self._shown = {layer: [n for n, _ in row] for layer, row in extremes.items()}
            for layer, row in extremes.items():
                for chip, (neuron, z) in zip(self._neurons.chips[layer], row, strict=False):
                    chip.description, chip.disabled = f"#{neuron}  {z:+.1f}", False
                    chip.tooltip = f"layer {layer}, neuron {neuron}, {word} = {z:.2f}"

    def _show_selection(self) -> None:
        tell, neurons = self.controller, self._neurons
        chosen = tell.view.selection.neurons
        key = (tell.view.prompt, tell.look is None, chosen, tell.focus)
        self._draw(neurons.map, key, lambda: present.z_chart(tell))
        neurons.line.value = present.selection_line(tell)
        neurons.hand.value = write_neurons(chosen)
        neurons.theta.value, neurons.k.value = tell.theta, tell.k
        neurons.undo.disabled = not tell.history.can_undo
        neurons.redo.disabled = not tell.history.can_redo
        for layer, row in self._shown.items():
            for chip, neuron in zip(neurons.chips[layer], row, strict=False):
                chip.value = (layer, neuron) in chosen
        self._keep.save.value = markup.download(
            tell.saved(), "selection.json", "Save the selection as JSON"
        )

    def _show_settings(self) -> None:
        view, effect = self.controller.view, self._effect
        effect.factor.value, effect.steps.value = view.factor, view.steps
        effect.seeds.value = write_seeds(view.seeds)
        if view.guidance is not None:
            effect.guidance.value = view.guidance

    def _show_focus(self) -> None:
        tell, neurons = self.controller, self._neurons
        planted = self._planted()
        if tell.focus is not None:
            neurons.layer.value, neurons.neuron.value = tell.focus
        neurons.facts.value = present.facts(tell, planted)
        neurons.revealed.value = present.revealed(planted, tell.view.selection.neurons)

    def _planted(self) -> NeuronSet | None:
        """The planted neurons, once they were asked for."""
        if not (self._neurons.reveal.value and self.controller.session.is_lab):
            return None
        from nemo_kit.lab.truth import known_neurons

        known = known_neurons("lab") or {}
        return known.get(self.controller.view.prompt, NeuronSet())  # a natural prompt has none

    def _show_pictures(self) -> None:
        tell, shown = self.controller, self.controller.pictures
        self._effect.tiles.value = present.picture_tiles(tell)
        if shown is None:
            for where in (self._effect.before, self._effect.after):
                self._draw(where, None, str)
            return
        how = present.scaled(len(shown.view.selection.neurons), shown.view.factor)
        for where, disturbed, words in (
            (self._effect.before, False, "all neurons on"),
            (self._effect.after, True, how),
        ):
            make = partial(present.strip, shown, disturbed, words, tell.stale)
            self._draw(where, (id(shown), tell.stale), make)

    _shows: ClassVar[dict[str, Callable[[Explorer], None]]] = {
        "busy progress": _show_progress,
        "busy localization": _show_end,
        "error": _show_error,
        "busy progress error": _show_note,
        "prompt": _show_prompt,
        "look": _show_look,
        "prompt look left selection busy": _show_verdict,
        "prompt look selection": _show_selection,
        "view": _show_settings,
        "prompt look focus selection": _show_focus,
        "pictures": _show_pictures,
    }
