"""The explorer in a real JupyterLab: chosen, compared, localized, switched off, kept, looked at.

One JupyterLab, one kernel and one page serve all tests here, over a folder that holds a copy of
`notebooks/` alone. It runs on a free port with a token, Debian's Chromium is driven by
`playwright`; without one of them (Chromium on the PATH, or its path in CHROMIUM) the tests are
skipped and say so. Screenshots of the steps stay in runs/browser; figures/explorer.png is a copy of
3-generated.png.
"""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Iterator
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from servers import FLAGS, NARROW, ROOT, SHOTS, WIDE, chromium, execute, jupyter_lab

from nemo_kit import lab

pytestmark = pytest.mark.slow
LONG = 120_000  # ms; a computation on a busy machine
VERBATIM, TEMPLATES = (list(lab.prompts(role)["prompt"]) for role in ("verbatim", "template"))
PLANTED = next(prompt for prompt in VERBATIM if prompt in lab.planted())
NATURAL = next(prompt for prompt in VERBATIM if prompt not in lab.planted())
TEMPLATE = TEMPLATES[0]
COMMON = lab.prompts("non_memorized")["prompt"][0]
PIXELS = "e => getComputedStyle(e).backgroundColor"


class Explorer:
    """What a person does with the page."""

    def __init__(self, page: Any, work: Path) -> None:
        self.page, self.work, self.root = page, work, page.locator(".nemo-explorer")

    def run(self) -> None:
        """Close the side bar and run all cells."""
        page = self.page
        page.locator(".jp-NotebookPanel .jp-Cell").first.wait_for(timeout=LONG)
        page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=LONG)
        page.keyboard.press("Control+b")
        page.locator(".lm-MenuBar").first.get_by_text("Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).click()
        self.root.wait_for(timeout=LONG)
        self.settled()

    def finished(self) -> int:
        """How many computations have ended."""
        status = self.root.locator(".nemo-status")
        return int(status.get_attribute("data-finished")) if status.count() else 0

    def settled(self, since: int = 0) -> None:
        """Wait until nothing is computed, and more computations have ended than `since`."""
        self.page.wait_for_function(
            """since => {
                const root = document.querySelector('.nemo-explorer');
                const cancel = root && root.querySelector('button[title="Stop what runs"]');
                const status = root && root.querySelector('.nemo-status');
                return cancel && cancel.disabled && status
                    && Number(status.dataset.finished) > since;
            }""",
            arg=since,
            timeout=LONG,
        )

    def after(self, act: Any, *given: Any, **named: Any) -> None:
        """Do something, and wait until what it led to is computed and shown."""
        since = self.finished()
        act(*given, **named)
        self.settled(since)

    def choose(self, prompt: str) -> None:
        """Look at a prompt, unless it is the one shown already."""
        if prompt not in self.root.locator(".nemo-verdict .nemo-prompt").first.inner_text():
            self.after(self.type, "Or write one", prompt)

    def button(self, name: str) -> Any:
        return self.root.locator("button", has_text=re.compile(rf"^\s*{name}\s*$"))

    def field(self, label: str) -> Any:
        return self.root.get_by_label(label, exact=True)

    def says(self, words: str) -> Any:
        """Wait for words that match; the element that says them."""
        found = self.root.get_by_text(re.compile(words)).first
        found.wait_for(timeout=LONG)
        return found

    def readout(self, label: str) -> Any:
        """The number beside a slider."""
        named = self.page.locator(f"label:text-is('{label}')")
        return self.root.locator(".widget-slider", has=named).locator(".widget-readout")

    def slide(self, label: str, value: str) -> None:
        """Type into the number beside a slider (the arrow keys belong to JupyterLab)."""
        readout = self.readout(label)
        readout.click()
        readout.press("Control+a")
        readout.press_sequentially(value)
        readout.press("Enter")

    def number(self, meaning: str) -> float:
        tile = self.root.locator(".nemo-tile", has_text=re.compile(meaning))
        return float(tile.first.locator("b").inner_text())

    def type(self, label: str, words: str) -> None:
        self.field(label).fill(words)
        self.field(label).press("Enter")

    def picture(self, alternative: str) -> np.ndarray:
        """Pixels of the picture as the browser shows them."""
        shown = self.root.locator(f'img[alt="{alternative}"]').first
        shown.scroll_into_view_if_needed()
        return np.asarray(Image.open(BytesIO(shown.screenshot())).convert("RGB"), dtype=float)

    def selected(self) -> int:
        """How many neurons are selected, as the page says it."""
        return int(self.says(r"^\d+ neurons? selected").inner_text().split()[0])

    def size(self, size: dict[str, int]) -> None:
        """Make the window so large, the explorer at its top."""
        self.page.set_viewport_size(size)
        self.root.evaluate("e => e.scrollIntoView({block: 'start'})")
        self.page.wait_for_timeout(300)  # ms, until JupyterLab has laid itself out

    def screen(self, name: str) -> None:
        """What is on the screen."""
        self.root.evaluate("e => e.scrollIntoView({block: 'start'})")
        self.page.screenshot(path=SHOTS / f"{name}.png")

    def cell(self, code: str) -> str:
        """Run code as a cell does; its output as text."""
        return execute(self.page, code)


@pytest.fixture(scope="module")
def explorer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Explorer]:
    """The explorer, run; afterwards the browser's console must hold no error.

    For this file alone: while the browser is open, the thread has a running loop.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright")
    if chromium() is None:
        pytest.skip("no Chromium here: `apt-get install chromium`, or its path in CHROMIUM")
    SHOTS.mkdir(parents=True, exist_ok=True)
    home, token = tmp_path_factory.mktemp("jupyter"), secrets.token_hex(16)
    (home / "work" / "notebooks").mkdir(parents=True)
    shutil.copy(ROOT / "notebooks" / "explorer.ipynb", home / "work" / "notebooks")
    with jupyter_lab(home, token) as address, playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium(), args=FLAGS)
        page = opened.new_page(viewport=WIDE)
        page.set_default_timeout(LONG)
        problems: list[str] = []
        page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(f"{address}/lab/workspaces/test/tree/notebooks/explorer.ipynb?token={token}")
        found = Explorer(page, home / "work" / "notebooks")
        found.run()
        yield found
        page.screenshot(path=SHOTS / "last.png")
        opened.close()
    assert problems == []


def test_a_prompt_is_flagged_with_the_share_of_false_alarms(explorer: Explorer) -> None:
    explorer.size(WIDE)
    said = explorer.page.wait_for_function(LAST, timeout=LONG).json_value()  # the notebook's end
    assert re.match(r"\('.*',\s+NeuronSet\(", said)
    explorer.choose(PLANTED)
    score, tau = explorer.number("score, all neurons on"), explorer.number("^.*τ;")
    assert score > tau
    explorer.says("^flagged: above τ")
    explorer.says(r"τ; \d+% false alarms expected")
    badges = explorer.root.locator(".nemo-badge").all_inner_texts()
    assert not any("memorized" in words for words in badges)
    explorer.screen("1-opened")
    explorer.after(explorer.field("Prompt").select_option, index=3)
    assert explorer.number("score, all neurons on") != score
    explorer.choose(PLANTED)
    assert explorer.number("score, all neurons on") == score
    # θ: fewer standard deviations, more neurons
    before = explorer.selected()
    explorer.after(explorer.slide, "θ", "3")
    explorer.says("selected · θ = 3, k = 0")
    assert explorer.selected() > before


def test_sliders_follow_localize_and_the_page_shows_score_and_pictures_at_once(
    explorer: Explorer,
) -> None:
    explorer.choose(PLANTED)
    explorer.after(explorer.slide, "θ", "2")
    explorer.after(explorer.button("Localize").click)
    explorer.says("refined for")
    theta, k = float(explorer.readout("θ").inner_text()), int(explorer.readout("k").inner_text())
    said = explorer.cell("print(session.localization.theta, session.localization.k)")
    assert said.split() == [str(theta), str(k)]
    assert theta != 2
    assert explorer.number("left of it: same seed") < explorer.number("^.*τ;")
    explorer.screen("2-localized")
    # the images with and without them, on one screen with the score
    explorer.type("Steps", "8")
    explorer.after(explorer.button("Generate").click)
    on = explorer.picture("Seed 101, all neurons on")
    off = explorer.picture(f"Seed 101, {explorer.selected()} neuron"
                           f"{'s' * (explorer.selected() != 1)} off")  # fmt: skip
    assert on.shape == off.shape
    assert np.abs(on - off).mean() > 5  # of 255: other pictures, not noise
    explorer.size(WIDE)
    inside = explorer.page.locator(".jp-WindowedPanel-outer").bounding_box()
    for seen in (explorer.root.locator(".nemo-tiles").first, explorer.button("Generate"),
                 *explorer.root.locator(".nemo-strip:visible").all()):  # fmt: skip
        box = seen.bounding_box()
        assert box["y"] >= inside["y"] - 1
        assert box["y"] + box["height"] <= inside["y"] + inside["height"] + 1
    explorer.screen("3-generated")


def test_a_picture_stands_above_the_training_image_nearest_to_it(explorer: Explorer) -> None:
    explorer.choose(PLANTED)
    nearest = explorer.root.locator("figcaption").first
    assert nearest.get_attribute("title") == PLANTED
    assert float(nearest.inner_text()) > 0.7
    assert nearest.locator("img").count() == 1
    explorer.says("the training image nearest to it|nearest training image")


def test_two_prompts_stand_side_by_side(explorer: Explorer) -> None:
    explorer.choose(PLANTED)
    explorer.after(explorer.type, "Compare with", TEMPLATE)
    scores = explorer.root.locator(".nemo-tile", has_text="score, all neurons on")
    assert scores.count() == 2
    left, right = (scores.nth(place).bounding_box() for place in (0, 1))
    assert (left["y"], left["x"] < right["x"]) == (right["y"], True)
    explorer.says(r"^\d+ shared")
    explorer.after(explorer.button("Generate").click)
    assert explorer.root.locator('img[alt="Seed 101, all neurons on"]').count() == 2
    explorer.size(WIDE)
    explorer.screen("4-compared")
    explorer.after(explorer.type, "Compare with", "")
    assert scores.count() == 1


def test_a_selection_below_tau_whose_pictures_copy_says_so(explorer: Explorer) -> None:
    """Seen where a selection that lowers the score leaves the pictures as they are."""
    explorer.choose(NATURAL)
    explorer.after(explorer.button("Localize").click)
    explorer.after(explorer.button("Generate").click)
    said = explorer.cell("from nemo_kit.explorer.present import copies\n"
                         "print(*copies(session.pictures), session.case.left.same_seed, "
                         "session.probe.threshold)")  # fmt: skip
    _, after, left, tau = map(float, said.split())
    badges = explorer.root.locator(".nemo-badge").all_inner_texts()
    assert ("below τ" in badges[-1]) == (left <= tau)
    assert ("pictures copy" in badges[-1]) == (left <= tau and after > 0)
    explorer.screen("5-natural")


def test_layers_and_neurons_go_in_and_out(explorer: Explorer) -> None:
    explorer.choose(PLANTED)
    explorer.after(explorer.slide, "θ", "5")
    before = explorer.selected()
    assert before > 1
    explorer.after(explorer.button("Clear").click)
    explorer.says("^0 neurons selected")
    explorer.after(explorer.button("layer 1").click)
    explorer.says("with all of layer 1")
    assert explorer.selected() > 7
    explorer.after(explorer.button("layer 1").click)
    explorer.says("^0 neurons selected.*without layer 1")
    for _ in range(3):
        explorer.after(explorer.button("Undo").press, "Enter")
    explorer.says(f"^{before} neurons selected · θ = 5")
    explorer.after(explorer.button("Redo").press, "Enter")
    explorer.says("^0 neurons selected")
    explorer.after(explorer.root.locator(".nemo-chips button:not([disabled])").nth(1).click)
    explorer.says("^1 neuron selected")
    explorer.says("^z for this prompt")
    assert explorer.root.get_by_text(re.compile("Planted")).count() == 0
    explorer.button("Reveal planted").click()
    explorer.says("^(Planted: layer|No neuron was planted)")
    explorer.root.locator(".nemo-facts").last.scroll_into_view_if_needed()
    explorer.page.screenshot(path=SHOTS / "6-neuron.png")
    # an error in the widget, not in a log; the next request takes it away
    explorer.type("Selected", "layer 99: 1")
    explorer.says("layer 99 does not exist here")
    assert explorer.selected() == 1
    explorer.screen("7-error")
    explorer.after(explorer.type, "Selected", "layer 3: 14, 15")
    explorer.says("^2 neurons selected · by hand")
    assert explorer.root.get_by_role("alert").count() == 0


def test_cells_read_and_set_what_is_shown(explorer: Explorer) -> None:
    explorer.choose(PLANTED)
    explorer.after(explorer.type, "Selected", "layer 3: 14, 16")
    assert explorer.cell("print(session.selection)") == "NeuronSet({3: [14, 16]})"
    explorer.after(explorer.cell, f"session.prompt = {COMMON!r}")
    explorer.root.locator(".nemo-verdict .nemo-prompt", has_text=COMMON).wait_for()
    explorer.after(explorer.cell, "session.selection = {2: [1, 3]}")
    assert explorer.field("Selected").input_value() == "layer 2: 1, 3"
    said = explorer.cell("session.generate()\nprint(session.wait().pictures.before.shape)")
    assert said == "(4, 64, 64, 3)"
    explorer.after(explorer.cell, "session.pictures = 255 - session.pictures.before")
    explorer.says("^set in a cell · seeds")
    assert "neurons: layer 99" in explorer.cell('session.selection = "99: 1"')


def test_what_is_shown_is_kept(explorer: Explorer) -> None:
    explorer.choose(PLANTED)
    explorer.after(explorer.type, "Selected", "layer 3: 15, 17")
    explorer.after(explorer.button("Generate").click)
    explorer.type("Name", "kept")
    explorer.button("Save figure and data").click()
    explorer.says("^Written to .*kept.png, kept.csv")
    frame = pd.read_csv(explorer.work / "kept.csv")
    assert list(frame["seed"]) == [101, 102, 103, 104] * 2
    assert set(frame["intervention"]) == {"none", "2 neurons off"}
    shutil.copy(explorer.work / "kept.png", SHOTS / "8-kept.png")
    explorer.button("Copy as code").click()
    explorer.page.wait_for_function(
        "() => document.querySelector('.nemo-explorer textarea').value.includes('generate(model')"
    )
    code = explorer.root.locator("textarea").input_value()
    assert "Error" not in (said := explorer.cell(code))
    assert float(said.split()[0]) == pytest.approx(frame["score"][0], abs=1e-5)


def test_a_running_localization_is_cancelled(explorer: Explorer) -> None:
    explorer.choose(TEMPLATE)
    before = explorer.selected()
    explorer.field("Search").select_option(label="sequential")
    explorer.button("Localize").click()
    explorer.page.wait_for_function(CANCEL, timeout=LONG)
    explorer.says("^Localizing was cancelled")
    explorer.settled()
    assert explorer.selected() == before


LAST = """() => {
    const cells = window.jupyterapp.shell.currentWidget.content.model.cells;
    const [output] = cells.get(cells.length - 1).outputs.toJSON();
    return output && output.data && output.data['text/plain'];
}"""
# Presses Cancel as soon as it can be pressed: however fast the machine, the search is not over yet.
CANCEL = """() => {
    const root = document.querySelector('.nemo-explorer');
    const cancel = root.querySelector('button[title="Stop what runs"]');
    const runs = root.querySelector('.nemo-status').innerText.startsWith('Localizing');
    if (!runs || cancel.disabled) return false;
    cancel.click();
    return true;
}"""


def test_generate_comes_before_the_neuron_buttons_by_tab(explorer: Explorer) -> None:
    explorer.size(WIDE)
    explorer.field("Prompts").focus()
    reached = []
    for _ in range(60):
        explorer.page.keyboard.press("Tab")
        reached.append(explorer.page.evaluate("() => document.activeElement.innerText.trim()"))
        if reached[-1].startswith("layer"):
            break
    assert "Localize" in reached
    assert "Generate" in reached
    assert reached[-1].startswith("layer")


def test_a_prompt_with_html_is_text(explorer: Explorer) -> None:
    page = explorer.page
    page.evaluate("() => { window.struck = 0; }")
    trap = '<img src=x onerror="window.struck=1"><b>cat</b>'
    explorer.after(explorer.type, "Or write one", trap)
    explorer.root.locator(".nemo-prompt", has_text=trap).first.wait_for()
    explorer.after(explorer.button("Look at it").click)
    explorer.says("^z for this prompt")
    assert page.evaluate("() => window.struck") == 0
    assert explorer.root.locator("img[src=x], .nemo-prompt b").count() == 0


def test_nothing_wraps_in_a_narrow_window_and_dark_strips_have_no_bright_gutters(
    explorer: Explorer,
) -> None:
    page = explorer.page
    explorer.choose(PLANTED)
    explorer.after(explorer.button("Generate").click)
    explorer.size(NARROW)
    lines = explorer.root.locator(".nemo-row, .nemo-chips, .nemo-bar").evaluate_all(LINES)
    assert len(lines) > 10
    assert set(lines) == {1}
    assert explorer.root.evaluate("e => e.scrollWidth - e.clientWidth") <= 1
    explorer.size(NARROW | {"height": 2100})  # so high that a screenshot holds all of it
    explorer.screen("9-narrow")
    light = explorer.root.evaluate(PIXELS)
    theme = "{theme: 'JupyterLab Dark'}"
    page.evaluate(f"() => window.jupyterapp.commands.execute('apputils:change-theme', {theme})")
    # attached, not visible: all of JupyterLab floats, so that its body has no height
    page.locator("body[data-jp-theme-light=false]").wait_for(state="attached")
    page.wait_for_function(
        f"light => ({PIXELS})(document.querySelector('.nemo-explorer')) !== light", arg=light
    )
    explorer.size(WIDE)
    explorer.screen("10-dark")
    strip = explorer.root.locator(".nemo-strip").first
    boxes = [one.bounding_box() for one in strip.locator("figure > img").all()]
    seen = np.asarray(Image.open(BytesIO(strip.screenshot())).convert("L"), dtype=float)
    for one, following in pairwise(boxes):
        start = round(one["x"] + one["width"] - boxes[0]["x"])
        gutter = seen[4:40, start + 1 : round(following["x"] - boxes[0]["x"]) - 1]
        assert gutter.size
        assert gutter.max() < 60  # of 255


# In how many lines the children of each row stand: their middles differ by less than half a line.
LINES = """rows => rows.filter(row => row.offsetParent).map(row => {
    const middles = [...row.children].filter(child => child.offsetHeight).map(child => {
        const box = child.getBoundingClientRect();
        return box.top + box.height / 2;
    });
    const words = [...row.querySelectorAll('label, button')].some(e => e.offsetHeight > 34);
    return Math.max(...middles) - Math.min(...middles) < 14 && !words ? 1 : 2;
})"""
