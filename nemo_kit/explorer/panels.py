"""The explorer's controls in groups: prompt, neurons, effect, keeping. No logic.

Scope: makes ipywidgets, each with a description and a tooltip; `nemo_kit.explorer.view` connects
them.
"""

from __future__ import annotations

from typing import Any

import ipywidgets as widgets
import pandas as pd

from nemo_kit.explorer import markup
from nemo_kit.explorer.controller import THETA, K
from nemo_kit.localization import SEARCHES
from nemo_kit.localization.result import STAGES

ROLES = {
    "verbatim": "memorized verbatim (VM)",
    "template": "memorized as a template (TM)",
    "ladder": "repetition ladder",
    "non_memorized": "not memorized",
    "holdout": "hold-out",
}
ALGORITHMS = dict(
    zip(
        STAGES,
        ("1 Noise differences", "2 Activations", "3 Initial selection", "4 Refinement"),
        strict=True,
    )
)
CHIPS = 7  # buttons of a layer: its most extreme neurons
_OWN = {"description_width": "initial"}
_TYPED = "the number can be typed"  # JupyterLab keeps the arrow keys for itself


def _row(*children: widgets.Widget, **layout: str) -> widgets.Box:
    look = {"display": "flex", "flex_flow": "row wrap", "align_items": "center"}
    look |= {"grid_gap": "2px 10px"} | layout
    return widgets.Box(children, layout=widgets.Layout(width="auto", overflow="visible", **look))


def _html(value: str = "", **layout: str) -> widgets.HTML:
    return widgets.HTML(value, layout=widgets.Layout(**layout))


def _button(words: str, tooltip: str, icon: str = "", style: str = "") -> widgets.Button:
    look = widgets.Layout(width="auto", min_width="64px")
    return widgets.Button(
        description=words, tooltip=tooltip, icon=icon, button_style=style, layout=look
    )


def _control(kind: Any, words: str, tooltip: str, width: str, **options: Any) -> Any:
    look = widgets.Layout(width=width, max_width="auto")
    return kind(description=words, tooltip=tooltip, style=_OWN, layout=look, **options)


class PromptPanel:
    """Which prompt, and what the model does with it."""

    def __init__(self, prompts: pd.DataFrame) -> None:
        self.prompts = prompts
        names = [(ROLES.get(role, str(role)), role) for role in prompts["role"].unique()]
        self.role = _control(
            widgets.Dropdown, "Prompts", "Which of the model's prompts to choose from", "290px",
            options=names,
        )  # fmt: skip
        self.prompt = _control(
            widgets.Dropdown, "Prompt", "The prompt to look at", "auto", options=[]
        )
        self.prompt.layout.flex = "1 1 300px"
        self.text = _control(
            widgets.Text, "Or write one", "Any text; press Enter to look at it", "auto",
            placeholder="a prompt of your own, then Enter", continuous_update=False,
        )  # fmt: skip
        self.text.layout.flex = "1 1 300px"
        self.verdict = _html(flex="1 1 220px", min_width="0")
        self.chart = _html(flex="2 1 340px", min_width="0")
        self.training = _html(width="116px")
        self.tiles = _html(width="auto")
        self.fill()
        choices = [_row(self.role, self.prompt)] if len(prompts) else []
        self.box = widgets.VBox(
            [
                _html(markup.heading("1  Prompt", "is it memorized?")),
                *choices,
                _row(self.text),
                _row(self.verdict, self.chart, self.training, align_items="flex-start"),
                self.tiles,
            ]
        )
        self.box.add_class("nemo-first")

    def fill(self) -> None:
        """Offer the prompts of the chosen role."""
        chosen = self.prompts.loc[self.prompts["role"] == self.role.value, "prompt"]
        self.prompt.options = [(_short(text), text) for text in chosen]
        self.prompt.index = 0 if len(chosen) else None

    def show(self, prompt: str) -> None:
        """Show where the prompt came from: chosen from the list, or written."""
        offered = [value for _, value in self.prompt.options]
        self.prompt.index = offered.index(prompt) if prompt in offered else None
        self.text.value = "" if prompt in offered else prompt


def _short(text: str, most: int = 90) -> str:
    words = " ".join(text.split())
    return words if len(words) <= most else words[: most - 1] + "…"


class NeuronPanel:
    """Which neurons, by threshold, search, button or hand."""

    def __init__(self, widths: dict[int, int]) -> None:
        self.map = _html(width="auto")
        self.theta = _control(
            widgets.FloatSlider, "θ", f"Neurons with |z| above θ are selected; {_TYPED}", "300px",
            min=0.5, max=12, step=0.25, value=THETA, continuous_update=False, readout_format=".2f",
        )  # fmt: skip
        self.k = _control(
            widgets.IntSlider, "k", f"Also the k largest activations of each layer; {_TYPED}",
            "240px", min=0, max=20, value=K, continuous_update=False,
        )  # fmt: skip
        self.undo = _button("Undo", "The selection before", "undo")
        self.redo = _button("Redo", "The selection after", "repeat")
        self.clear = _button("Clear", "Select no neuron", "times")
        self.hand = _control(
            widgets.Text, "Selected", 'Neurons by hand, as "layer 3: 14, 15; layer 5: 2-4", Enter',
            "auto", placeholder="layer 3: 14, 15", continuous_update=False,
        )  # fmt: skip
        self.hand.layout.flex = "1 1 300px"
        self.line = _html()
        self.chips = {layer: [_chip() for _ in range(CHIPS)] for layer in widths}
        self.search, self.bars = _search(), _bars()
        self.localize = _button("Localize", "Find the prompt's neurons", "search", "primary")
        self.refined = _button("Refined set", "Select what localization found for this prompt")
        self.layer = _control(
            widgets.Dropdown, "Layer", "Value layer of the neuron to read about", "110px",
            options=list(widths),
        )  # fmt: skip
        self.neuron = _control(
            widgets.BoundedIntText, "Neuron", "Number of the neuron in its layer, from 0", "150px",
            min=0, max=max(widths.values()) - 1, value=0,
        )  # fmt: skip
        self.ask = _button("Look at it", "Read about this neuron", "info")
        self.reveal = widgets.ToggleButton(
            description="Reveal planted", tooltip="Show which neurons were planted for the prompt",
            icon="eye", layout=widgets.Layout(width="auto"),
        )  # fmt: skip
        self.facts, self.revealed = _html(width="auto"), _html()
        self.progress = _row(*self.bars.values(), display="none")
        self.box = widgets.VBox(self._children())

    def _children(self) -> list[widgets.Widget]:
        about = (
            "The furthest from their usual activation, with z: press to select, again to release."
        )
        return [
            _html(markup.heading("2  Neurons", "which ones to scale")),
            self.map,
            _row(self.theta, self.k, self.undo, self.redo, self.clear),
            _row(self.hand, self.line),
            _row(self.localize, self.search, self.refined),
            self.progress,
            _html(markup.quiet(about)),
            *[
                _row(_layer_name(layer), *chips, grid_gap="2px 3px", padding="0 2px 0 0")
                for layer, chips in self.chips.items()
            ],
            _html(markup.heading("One neuron")),
            _row(self.layer, self.neuron, self.ask, self.reveal),
            self.revealed,
            self.facts,
        ]


def _layer_name(layer: int) -> widgets.HTML:
    return _html(f'<span class="nemo-layer">layer {layer}</span>', width="54px")


def _chip() -> widgets.ToggleButton:
    chip = widgets.ToggleButton(description="–", tooltip="a neuron", disabled=True)
    chip.add_class("nemo-chip")
    chip.layout.width, chip.layout.flex = "auto", "1 1 84px"
    return chip


def _search() -> widgets.Dropdown:
    names = list(SEARCHES)
    return _control(
        widgets.Dropdown, "Search", "How refinement searches for the neurons", "190px",
        options=names, value="speculative" if "speculative" in names else names[0],
    )  # fmt: skip


def _bars() -> dict[str, widgets.IntProgress]:
    bars = {}
    for stage, words in ALGORITHMS.items():
        bars[stage] = _control(
            widgets.IntProgress, words, f"How far algorithm {words[0]} is", "auto", max=1
        )
        bars[stage].layout.flex = "1 1 170px"
    return bars


class EffectPanel:
    """What is generated with the selection scaled."""

    def __init__(self, factor: float, seeds: str, steps: int, guidance: float | None) -> None:
        self.factor = _control(
            widgets.FloatSlider, "Scale by",
            f"0 switches the neurons off, 1 changes nothing; {_TYPED}", "236px",
            min=-1, max=1, step=0.25, value=factor, continuous_update=False,
            readout_format=".2f",
        )  # fmt: skip
        self.seeds = _control(
            widgets.Text, "Seeds", 'Seeds of the images, as "101-104" or "1, 5", then Enter',
            "150px", value=seeds, continuous_update=False,
        )  # fmt: skip
        self.steps = _control(
            widgets.BoundedIntText, "Steps", "Denoising steps of an image", "108px",
            min=1, max=100, value=steps,
        )  # fmt: skip
        self.guidance = _control(
            widgets.BoundedFloatText, "Guidance", "Strength of the prompt; 1 is none", "128px",
            min=1, max=30, step=0.5, value=guidance,
        )  # fmt: skip
        self.generate = _button(
            "Generate", "Draw the images with and without the selection", "image", "primary"
        )
        self.note = _html()
        self.tiles = _html(width="auto")
        self.before = _html(flex="1 1 300px", min_width="0")
        self.after = _html(flex="1 1 300px", min_width="0")
        self.box = widgets.VBox(
            [
                _html(markup.heading("3  Effect", "the same seeds with and without")),
                _row(self.factor, self.seeds, self.steps, self.guidance, self.generate),
                self.note,
                _row(self.before, self.after, align_items="flex-start", grid_gap="14px"),
                self.tiles,
            ]
        )


class KeepPanel:
    """Save, load, copy as code."""

    def __init__(self) -> None:
        self.save = _html()
        self.load = widgets.FileUpload(
            accept=".json", multiple=False, description="Load a selection",
            tooltip="Take over a selection saved as JSON", layout=widgets.Layout(width="auto"),
        )  # fmt: skip
        self.copy = _button("Copy as code", "Python that repeats this view", "code")
        self.code = widgets.Textarea(
            description="Code", tooltip="Python that repeats this view: copy it into a cell",
            layout=widgets.Layout(width="auto", height="220px", display="none"), style=_OWN,
        )  # fmt: skip
        self.box = widgets.VBox(
            [
                _html(markup.heading("4  Keep")),
                _row(self.save, self.load, self.copy, grid_gap="10px"),
                self.code,
            ]
        )
