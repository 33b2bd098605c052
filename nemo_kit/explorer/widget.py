"""The explorer's widget: makes the controls, hands what they say to the session, shows the rest.

Scope: the one place that meets ipywidgets. After each change of the session all is shown anew:
values that stay send nothing, pictures are drawn again only where what they show changed.
"""

from collections.abc import Callable, Hashable, Iterator
from functools import partial
from itertools import chain
from types import SimpleNamespace
from typing import Any

import ipywidgets as widgets
import pandas as pd

from nemo_kit import lab
from nemo_kit.explorer import present
from nemo_kit.explorer.session import Session
from nemo_kit.explorer.values import write_neurons, write_seeds
from nemo_kit.localization import SEARCHES
from nemo_kit.neurons import NeuronSet

ROLES = {"verbatim": "verbatim (VM)", "template": "template (TM)"}
CHIPS = 7  # buttons of a layer: its most extreme neurons
_ENTER = {"continuous_update": False}
_TWO = {"readout_format": ".2f"} | _ENTER
CONTROLS: dict[str, tuple[str, str, str, str, dict[str, Any]]] = {
    # name: kind, words, tooltip, how it shares its row (flex of CSS), options. Numbers beside
    # sliders can be typed: JupyterLab keeps the arrow keys for itself
    "role": ("Dropdown", "Prompts", "Which of the model's prompts to choose from", "0 0 200px", {}),
    "prompt": ("Dropdown", "Prompt", "The prompt to look at", "1 1 200px", {}),
    "text": ("Text", "Or write one", "Any text; press Enter to look at it", "1 1 50%",
             {"placeholder": "your own, then Enter"} | _ENTER),
    "other": ("Combobox", "Compare with", "A second prompt, Enter; empty for none", "1 1 50%",
              {"placeholder": "a second prompt"} | _ENTER),
    "theta": ("FloatSlider", "θ", "Neurons with |z| above θ are selected; the number can be typed",
              "1 1 55%", {"min": 0.5, "max": 12, "step": 0.25} | _TWO),
    "k": ("IntSlider", "k", "Also the k largest activations of each layer; can be typed",
          "1 1 45%", {"min": 0, "max": 20} | _ENTER),
    "localize": ("Button", "Localize", "Find the prompt's neurons", "",
                 {"icon": "search", "button_style": "primary"}),
    "search": ("Dropdown", "Search", "How refinement searches for the neurons", "1 1 150px",
               {"options": list(SEARCHES), "value": "speculative"}),
    "undo": ("Button", "Undo", "The selection before", "", {}),
    "redo": ("Button", "Redo", "The selection after", "", {}),
    "clear": ("Button", "Clear", "Select no neuron", "", {}),
    "hand": ("Text", "Selected", 'Neurons by hand, as "layer 3: 14, 15; layer 5: 2-4", Enter',
             "1 1 200px", {"placeholder": "layer 3: 14, 15"} | _ENTER),
    "generate": ("Button", "Generate", "Draw the images with and without the selection", "",
                 {"icon": "image", "button_style": "primary"}),
    "factor": ("FloatSlider", "Scale by", "0 switches the neurons off, 1 changes nothing",
               "1 1 180px", {"min": -1, "max": 1, "step": 0.25} | _TWO),
    "seeds": ("Text", "Seeds", 'Seeds of the images, as "101-104" or "1, 5", Enter', "1 1 110px",
              _ENTER),
    "steps": ("BoundedIntText", "Steps", "Denoising steps of an image", "0 1 104px",
              {"min": 1, "max": 1000}),
    "guidance": ("BoundedFloatText", "Guidance", "Strength of the prompt; 1 is none", "0 1 124px",
                 {"max": 100, "step": 0.5}),
    "layer": ("Dropdown", "Layer", "Value layer of the neuron to read about", "", {}),
    "neuron": ("BoundedIntText", "Neuron", "Number of the neuron in its layer, from 0", "", {}),
    "look": ("Button", "Look at it", "Read about this neuron", "", {}),
    "reveal": ("ToggleButton", "Reveal planted", "Show the neurons planted for the prompt", "",
               {"icon": "eye"}),
    "name": ("Text", "Name", "Name of the files, beside the notebook", "1 1 120px",
             {"value": "explorer"}),
    "save": ("Button", "Save figure and data", "Write what is shown as PNG and CSV", "", {}),
    "copy": ("Button", "Copy as code", "Python that repeats this view", "", {}),
    "code": ("Textarea", "Code", "Python that repeats this view: copy it into a cell", "", {}),
    "cancel": ("Button", "Cancel", "Stop what runs", "", {"icon": "stop"}),
}  # fmt: skip
ABOUT = (
    "The neurons furthest from their usual activation, with z: press to select, again to release. "
    "A layer's name leaves the layer alone, or takes all of it."
)


def _row(*children: widgets.Widget, name: str = "nemo-row", kind: type = widgets.Box) -> Any:
    box = kind(children)
    box.add_class(name)
    return box


def _control(kind: str, words: str, tooltip: str, flex: str, options: dict[str, Any]) -> Any:
    look = widgets.Layout(width="auto", min_width="0", flex=flex or "0 0 auto")
    style = {} if kind.endswith("Button") else {"description_width": "auto"}
    make = getattr(widgets, kind)
    return make(description=words, tooltip=tooltip, layout=look, style=style, **options)


def _chip(words: str) -> Any:
    chip = _control("ToggleButton", words, words, "1 1 0", {"disabled": True})
    chip.add_class("nemo-chip")
    chip.neuron = None  # (layer, index), once it stands for one
    return chip


def _heading(title: str, aside: str) -> widgets.HTML:
    return widgets.HTML(present.html("heading", title, aside))


class Explorer(widgets.VBox):
    """What a session shows as.

    Parameters: `session`; `scores`, a row a prompt, drawn behind the score.
    """

    def __init__(self, session: Session, scores: pd.DataFrame | None = None) -> None:
        self.session, self._scores = session, scores
        self._still = False  # values are set from here: nothing is asked for
        self._keys: dict[Any, Hashable] = {}  # what each picture was drawn from
        self.at = SimpleNamespace(**{name: _control(*row) for name, row in CONTROLS.items()})
        texts = ("status", "error", "line", "shared", "score", "pictures", "map", "facts",
                 "revealed", "written")  # fmt: skip
        self.told = SimpleNamespace(**{name: widgets.HTML() for name in texts})
        widths = session.probe.widths
        self.layers = {layer: _chip(f"layer {layer}") for layer in widths}
        self.chips = {layer: [_chip("–") for _ in range(CHIPS)] for layer in widths}
        self.at.layer.options, self.at.layer.index = list(widths), 0
        self.at.neuron.max = max(widths.values()) - 1
        self.at.reveal.layout.display = None if session.probe.is_lab else "none"
        self.at.code.layout.display, self.at.code.layout.height = "none", "290px"
        roles = session.probe.prompts["role"].unique()
        self.at.role.options = [(ROLES.get(role, str(role)), role) for role in roles]
        self.at.role.index = 0 if len(roles) else None
        self._fill()
        bar = _row(self.told.status, self.at.cancel, name="nemo-bar")
        grid = _row(*self._boxes(), name="nemo-grid")
        super().__init__([widgets.HTML(present.STYLE), bar, self.told.error, grid])
        self.add_class("nemo-explorer")
        self._connect()
        session.observe(self._show, "revision")
        self._show()

    def _boxes(self) -> Iterator[widgets.Box]:
        """What to choose; what it leads to; single neurons, and what is kept. By tab in this
        order."""
        at, told = self.at, self.told
        choice = [_row(at.role, at.prompt)] if at.role.options else []
        yield _row(
            _heading("1  Prompt", "is it flagged?"), *choice, _row(at.text, at.other), told.shared,
            _heading("2  Neurons", "which ones to scale"), _row(at.theta, at.k),
            _row(at.localize, at.search, at.undo, at.redo, at.clear), _row(at.hand),
            told.line, name="nemo-ask", kind=widgets.VBox,
        )  # fmt: skip
        yield _row(
            _heading("3  Effect", "the same seeds with and without"), told.score,
            _row(at.generate, at.factor), _row(at.seeds, at.steps, at.guidance), told.pictures,
            name="nemo-see", kind=widgets.VBox,
        )  # fmt: skip
        chips = [_row(self.layers[k], *row, name="nemo-chips") for k, row in self.chips.items()]
        yield _row(
            _heading("4  One by one", "value layers and neurons"), told.map,
            widgets.HTML(present.html("quiet", ABOUT)), *chips,
            _row(at.layer, at.neuron, at.look, at.reveal), told.revealed, told.facts,
            _heading("5  Keep", "or go on in a cell: session.selection, session.prompt, …"),
            _row(at.name, at.save, at.copy), told.written, at.code,
            name="nemo-each", kind=widgets.VBox,
        )  # fmt: skip

    # from the controls to the session

    def _connect(self) -> None:
        session, at = self.session, self.at
        pressed = {
            "localize": lambda: session.localize(at.search.value),
            "look": lambda: session.look_at(at.layer.value, at.neuron.value),
            "undo": partial(session.step, -1), "redo": partial(session.step, 1),
            "clear": session.clear, "generate": session.generate, "cancel": session.cancel,
            "save": self._save, "copy": self._code,
        }  # fmt: skip
        for name, act in pressed.items():
            getattr(at, name).on_click(lambda _, act=act: self._ask(act))
        for name in ("prompt", "other", "theta", "k", "factor", "seeds", "steps", "guidance"):
            self._watch(getattr(at, name), partial(setattr, session, name))
        self._watch(at.hand, partial(setattr, session, "selection"))
        self._watch(at.text, lambda value: value and setattr(session, "prompt", value))
        self._watch(at.role, self._choose_role)
        self._watch(at.reveal, self._show)
        for layer, name in self.layers.items():
            self._watch(name, lambda _, layer=layer: session.toggle_layer(layer))
        for chip in chain(*self.chips.values()):
            self._watch(chip, lambda _, chip=chip: session.toggle(*chip.neuron))

    def _watch(self, widget: widgets.Widget, act: Callable[[Any], Any]) -> None:
        """Call `act` with the new value, unless it was set from here."""
        widget.observe(lambda change: self._ask(act, change["new"]), names="value")

    def _ask(self, act: Callable[..., Any], *value: Any) -> None:
        """What a person asks for; an error is told on the page."""
        with self.session.turn:
            if self._still:
                return
            try:
                act(*value)
            except Exception as error:
                self.session.fail(error)

    def _choose_role(self, _: Any) -> None:
        self._still = True
        self._fill()
        self._still = False
        if self.at.prompt.value:
            self.session.prompt = self.at.prompt.value

    def _fill(self) -> None:
        """Offer the prompts of the chosen role."""
        prompts = self.session.probe.prompts
        chosen = prompts.loc[prompts["role"] == self.at.role.value, "prompt"]
        self.at.prompt.options = [(_short(text), text) for text in chosen]
        self.at.other.options = tuple(chosen)

    def _save(self) -> None:
        paths = self.session.save(self.at.name.value)
        words = f"Written to {paths[0].parent}: {', '.join(path.name for path in paths)}"
        self.told.written.value = present.html("quiet", words)

    def _code(self) -> None:
        self.at.code.value = self.session.code()
        self.at.code.layout.display = None

    # from the session to the page

    def _show(self, _: Any = None) -> None:
        """Show everything as it is now."""
        with self.session.turn:
            before, self._still = self._still, True
            try:
                self._show_settings()
                self._show_neurons()
                self._show_results()
                self._show_status()  # last: what it calls ready is there
            finally:
                self._still = before

    def _draw(self, where: widgets.HTML, key: Hashable, make: Callable[[], str]) -> None:
        """Put HTML there, unless that of the same key is there already."""
        if self._keys.get(where) != key:
            where.value = make()
            self._keys[where] = key

    def _show_status(self) -> None:
        session, told = self.session, self.told
        now = session.progress, session.note, session.finished
        told.status.value = present.html("status", *now)
        self.at.cancel.disabled = session.progress is None
        told.error.value = present.html("error", session.error) if session.error else ""
        told.error.layout.display = None if session.error else "none"

    def _show_settings(self) -> None:
        session, at = self.session, self.at
        offered = [value for _, value in at.prompt.options]
        known = session.prompt in offered
        at.prompt.index = offered.index(session.prompt) if known else None
        at.text.value = "" if known else session.prompt
        at.theta.max, at.k.max = max(12, session.theta), max(20, session.k)
        at.theta.min = min(0.5, session.theta)
        for name in ("other", "theta", "k", "factor", "steps", "guidance"):
            getattr(at, name).value = getattr(session, name)
        at.seeds.value = write_seeds(session.seeds)
        if session.focus is not None and session.focus != self._keys.get("focus"):
            at.layer.value, at.neuron.value = self._keys["focus"] = session.focus

    def _show_neurons(self) -> None:
        session, chosen = self.session, self.session.selection
        self.at.hand.value = write_neurons(chosen)
        self.told.line.value = present.html("selected", len(chosen), session.origin)
        self.at.undo.disabled = session.place == 0
        self.at.redo.disabled = session.place == len(session.past) - 1
        look = session.case and session.case.look
        self._draw(self.told.map, (look, chosen, session.focus), lambda: present.z_chart(session))
        for layer, row in session.probe.extremes(look, CHIPS).items() if look else ():
            for chip, (neuron, z) in zip(self.chips[layer], row, strict=False):
                chip.neuron, chip.disabled = (layer, neuron), False
                chip.description = f"#{neuron}  {z:+.1f}"
                word = "z" if look.z else "activation"
                chip.tooltip = f"layer {layer}, neuron {neuron}, {word} = {z:.2f}"
        for chip in chain(*self.chips.values()):
            chip.value = chip.neuron in chosen
        for layer, name in self.layers.items():
            count, width = len(chosen.only(layer)), session.probe.widths[layer]
            name.value, name.disabled = count > 0, False
            name.tooltip = (
                f"{count} of {width} neurons of layer {layer} are selected: press for "
                + ("none" if count else "all of them")
            )

    def _show_results(self) -> None:
        session, told, cases = self.session, self.told, self.session.cases
        waits = session.progress is not None and not (cases and cases[0].left)
        if not (cases and waits):  # the numbers stay until the new ones are there
            self._draw(told.score, (*cases, session.stale, session.prompt, waits),
                       lambda: present.score(session, self._scores))  # fmt: skip
        drawn = (*(case.pictures for case in cases), session.stale)
        self._draw(told.pictures, drawn, lambda: present.pictures(session))
        pair = (*(case.look for case in cases), session.theta, session.k)
        self._draw(told.shared, pair, lambda: present.shared(session))
        planted = self._planted()
        told.facts.value = present.html("facts", session.facts, planted)
        told.revealed.value = (
            "" if planted is None else present.html("revealed", planted, session.selection)
        )

    def _planted(self) -> NeuronSet | None:
        """The planted neurons, once they were asked for."""
        if not (self.at.reveal.value and self.session.probe.is_lab):
            return None
        known = lab.planted(self.session.probe.model.name)
        return known.get(self.session.prompt, NeuronSet())  # a natural prompt has none


def _short(text: str, most: int = 90) -> str:
    words = " ".join(text.split())
    return words if len(words) <= most else words[: most - 1] + "…"
