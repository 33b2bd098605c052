"""The explorer in a real JupyterLab: chosen, moved, localized, switched off, looked at.

JupyterLab runs on a free port with a token, Debian's Chromium is driven by `playwright`; without
one of them (Chromium on the PATH, or its path in CHROMIUM) the tests are skipped and say so.
Screenshots of the steps stay in runs/browser; figures/explorer.png is a copy of 4-generated.png.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image
from servers import (
    FLAGS,
    HEIGHT,
    ROOT,
    SHOTS,
    WIDTH,
    chromium,
    command,
    environment,
    free_port,
    wait_for,
)  # fmt: skip

pytestmark = pytest.mark.slow
LONG = 300_000  # ms; a computation on a busy machine
MANY = "Colon Tissue Stain Microscopy Slide #12"  # of all prompts the most neurons: a long search
GROUND = "e => getComputedStyle(e).backgroundColor"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium, for this file alone: while it is open, the thread has a running loop."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright")
    if chromium() is None:
        pytest.skip("no Chromium here: `apt-get install chromium`, or its path in CHROMIUM")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium(), args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def jupyter(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Address and token of a `jupyter lab` over a copy of the explorer's notebook."""
    home = tmp_path_factory.mktemp("jupyter")
    (home / "work" / "notebooks").mkdir(parents=True)
    shutil.copy(ROOT / "notebooks" / "explorer.ipynb", home / "work" / "notebooks")
    settings = home / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    quiet = '{"fetchNews": "false", "checkForUpdates": false}'
    (settings / "notification.jupyterlab-settings").write_text(quiet)
    figures = home / "work" / "figures" / "lab"
    figures.mkdir(parents=True)
    shutil.copy(ROOT / "figures" / "lab" / "F2a.csv", figures)
    port, token = free_port(), secrets.token_hex(16)
    with (home / "server.log").open("wb") as log:
        server = subprocess.Popen(
            command(port, token), cwd=home / "work", env=environment(home), stdout=log,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            wait_for(f"http://127.0.0.1:{port}/api?token={token}", server, home / "server.log")
            yield f"http://127.0.0.1:{port}", token
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)


@pytest.fixture
def page(browser: Any, jupyter: tuple[str, str]) -> Iterator[Any]:
    """A page with the explorer's notebook open; `page.problems` lists errors of the console."""
    address, token = jupyter
    context = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT})
    opened = context.new_page()
    opened.set_default_timeout(LONG)
    opened.problems = []
    opened.on("console", lambda m: opened.problems.append(m.text) if m.type == "error" else None)
    opened.on("pageerror", lambda error: opened.problems.append(str(error)))
    opened.goto(f"{address}/lab/workspaces/test/tree/notebooks/explorer.ipynb?reset&token={token}")
    yield opened
    SHOTS.mkdir(parents=True, exist_ok=True)
    opened.screenshot(path=SHOTS / "last.png")
    context.close()


class Explorer:
    """What a person does with the page."""

    def __init__(self, page: Any) -> None:
        self.page, self.root = page, page.locator(".nemo-explorer")

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

    def button(self, name: str) -> Any:
        return self.root.locator("button", has_text=re.compile(rf"^\s*{name}\s*$"))

    def field(self, label: str) -> Any:
        return self.root.get_by_label(label, exact=True)

    def says(self, words: str) -> Any:
        """Wait for words that match; the element that says them."""
        found = self.root.get_by_text(re.compile(words)).first
        found.wait_for(timeout=LONG)
        return found

    def slide(self, label: str, value: str) -> None:
        """Type into the number beside a slider (the arrow keys belong to JupyterLab)."""
        named = self.page.locator(f"label:text-is('{label}')")
        readout = self.root.locator(".widget-slider", has=named).locator(".widget-readout")
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
        shown = self.root.locator(f'img[alt^="{alternative}"]')
        shown.scroll_into_view_if_needed()
        return np.asarray(Image.open(BytesIO(shown.screenshot())).convert("RGB"), dtype=float)

    def shot(self, name: str) -> None:
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.root.screenshot(path=SHOTS / f"{name}.png")


@pytest.fixture
def explorer(page: Any) -> Iterator[Explorer]:
    """The explorer, run; afterwards the browser's console must hold no error."""
    opened = Explorer(page)
    opened.run()
    yield opened
    assert page.problems == []


def test_neurons_are_found_and_switched_off(explorer: Explorer) -> None:
    explorer.shot("1-opened")
    score, tau = explorer.number("all neurons on"), explorer.number("threshold")
    before = count_selected(explorer)
    assert score > tau
    # another prompt, and back
    explorer.after(explorer.field("Prompt").select_option, index=1)
    assert explorer.number("all neurons on") != score
    explorer.after(explorer.field("Prompt").select_option, index=0)
    assert explorer.number("all neurons on") == score
    # θ: fewer standard deviations, more neurons
    explorer.after(explorer.slide, "θ", "3")
    explorer.says("selected · θ = 3, k = 0")
    assert count_selected(explorer) > before
    explorer.shot("2-theta")
    # localize: the result becomes the selection, and the score falls below τ
    explorer.after(explorer.button("Localize").click)
    explorer.says("refined for")
    assert explorer.number("left of it") < tau < score
    assert explorer.says("below τ with the selection").is_visible()
    explorer.shot("3-localized")
    # the images with and without them
    explorer.type("Steps", "8")
    explorer.after(explorer.button("Generate").click)
    on = explorer.picture("Images all neurons on")
    off = explorer.picture(f"Images {count_selected(explorer)} neuron")
    assert on.shape == off.shape
    assert np.abs(on - off).mean() > 5  # of 255: other pictures, not noise
    explorer.shot("4-generated")


def test_steps_back_facts_code_and_errors(explorer: Explorer) -> None:
    before = count_selected(explorer)
    assert before > 1
    explorer.after(explorer.button("Clear").click)
    explorer.says("^0 neurons selected")
    explorer.after(explorer.button("Undo").press, "Enter")
    explorer.says(f"^{before} neurons selected · θ = 5")
    explorer.after(explorer.button("Redo").press, "Enter")
    explorer.says("^0 neurons selected")
    explorer.after(explorer.root.locator(".nemo-chip:not([disabled])").first.click)
    explorer.says("^1 neuron selected")
    explorer.says("^z for this prompt")
    assert explorer.root.get_by_text(re.compile("Planted")).count() == 0
    explorer.button("Reveal planted").click()
    explorer.says("^(Planted: layer|No neuron was planted)")
    explorer.button("Copy as code").click()
    explorer.page.wait_for_function(
        "() => document.querySelector('.nemo-explorer textarea').value.includes('generate(model')"
    )
    explorer.shot("5-neuron")
    # an error in the widget, not in a log; the next request takes it away
    explorer.type("Selected", "layer 99: 1")
    explorer.says("layer 99 does not exist here")
    assert count_selected(explorer) == 1
    explorer.shot("6-error")
    explorer.after(explorer.type, "Selected", "layer 3: 14, 15")
    explorer.says("^2 neurons selected · by hand")
    assert explorer.root.get_by_role("alert").count() == 0


def test_a_running_localization_is_cancelled(explorer: Explorer) -> None:
    explorer.after(explorer.field("Prompt").select_option, label=MANY)
    before = count_selected(explorer)
    explorer.field("Search").select_option(label="sequential")
    explorer.button("Localize").click()
    explorer.page.wait_for_function(CANCEL, timeout=LONG)
    explorer.says("^Localizing was cancelled")
    explorer.settled()
    assert count_selected(explorer) == before
    assert not explorer.root.get_by_text("4 Refinement").is_visible()
    explorer.shot("7-cancelled")


# Presses Cancel as soon as it can be pressed: however fast the machine, the search is not over yet.
CANCEL = """() => {
    const root = document.querySelector('.nemo-explorer');
    const cancel = root.querySelector('button[title="Stop what runs"]');
    const runs = root.querySelector('.nemo-status').innerText.startsWith('Localizing');
    if (!runs || cancel.disabled) return false;
    cancel.click();
    return true;
}"""


def test_a_prompt_with_html_is_text_and_the_page_is_dark_and_narrow(explorer: Explorer) -> None:
    page = explorer.page
    page.evaluate("() => { window.struck = 0; }")
    trap = '<img src=x onerror="window.struck=1"><b>cat</b>'
    explorer.after(explorer.type, "Or write one", trap)
    explorer.root.locator(".nemo-prompt", has_text=trap).first.wait_for()
    explorer.after(explorer.button("Look at it").click)
    explorer.says("^z for this prompt")
    assert page.evaluate("() => window.struck") == 0
    assert explorer.root.locator("img[src=x], .nemo-prompt b").count() == 0
    explorer.shot("8-html")
    light = explorer.root.evaluate(GROUND)
    theme = "{theme: 'JupyterLab Dark'}"
    page.evaluate(f"() => window.jupyterapp.commands.execute('apputils:change-theme', {theme})")
    # attached, not visible: all of JupyterLab floats, so that its body has no height
    page.locator("body[data-jp-theme-light=false]").wait_for(state="attached")
    page.wait_for_function(
        f"light => ({GROUND})(document.querySelector('.nemo-explorer')) !== light", arg=light
    )
    explorer.shot("9-dark")
    assert explorer.root.evaluate("e => e.scrollWidth - e.clientWidth") <= 1


def count_selected(explorer: Explorer) -> int:
    """How many neurons are selected, as the page says it."""
    line = explorer.root.get_by_text(re.compile(r"\d+ neurons? selected")).first.inner_text()
    return int(line.split()[0])
