"""The explorer in a real JupyterLab: chosen, moved, localized, switched off, looked at.

JupyterLab runs on a free port with a token, Debian's Chromium is driven by `playwright`; without
one of them (Chromium on the PATH, or its path in CHROMIUM) the tests are skipped and say so.
Screenshots of the steps stay in runs/browser.
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
LONG = 150_000  # ms; a computation on a busy machine


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright")
    if chromium() is None:
        pytest.skip("no Chromium here: `apt-get install chromium`, or its path in CHROMIUM")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium(), args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="session")
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
    opened.set_default_timeout(120_000)
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

    def settled(self) -> None:
        """Wait until nothing is computed and a prompt's score is shown."""
        self.page.wait_for_function(
            """() => {
                const root = document.querySelector('.nemo-explorer');
                const cancel = root && root.querySelector('button[title="Stop what runs"]');
                return cancel && cancel.disabled && document.querySelector('.nemo-tile b');
            }""",
            timeout=LONG,
        )

    def button(self, name: str) -> Any:
        return self.root.locator("button", has_text=re.compile(rf"^\s*{name}\s*$"))

    def field(self, label: str) -> Any:
        return self.root.get_by_label(label, exact=True)

    def slider(self, label: str) -> Any:
        """The handle of a slider; it takes the arrow keys."""
        row = self.root.locator(
            ".widget-slider", has=self.page.locator(f"label:text-is('{label}')")
        )
        return row.locator(".noUi-handle").first

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


def test_the_explorer_in_jupyterlab(page: Any) -> None:
    explorer = Explorer(page)
    explorer.run()
    explorer.shot("1-opened")
    # choose a prompt, move θ
    score = explorer.number("all neurons on")
    tau = explorer.number("threshold")
    assert score > tau
    before = explorer.root.get_by_text(re.compile(r"\d+ neurons? selected")).inner_text()
    explorer.slider("θ").focus()
    for _ in range(8):
        page.keyboard.press("ArrowLeft")
    explorer.settled()
    page.wait_for_function(
        "old => !document.querySelector('.nemo-explorer').innerText.includes(old)", arg=before
    )
    explorer.shot("2-theta")
    # localize: the result becomes the selection, and the score falls below τ
    explorer.button("Localize").click()
    page.get_by_text(re.compile("refined for")).wait_for(timeout=LONG)
    explorer.settled()
    assert explorer.number("left of it") < tau < score
    assert explorer.root.get_by_text("below τ with the selection").is_visible()
    explorer.shot("3-localized")
    # switch off, and compare the pixels
    explorer.type("Seeds", "101, 102")
    explorer.type("Steps", "8")
    explorer.button("Generate").click()
    page.locator('img[alt^="Images all neurons on"]').wait_for(timeout=LONG)
    explorer.settled()
    on = explorer.picture("Images all neurons on")
    off = explorer.picture(f"Images {len_selected(explorer)} off")
    assert on.shape == off.shape
    assert np.abs(on - off).mean() > 5  # of 255: other pictures, not noise
    explorer.shot("4-generated")
    # undo and redo, by keyboard
    chosen = explorer.field("Selected").input_value()
    explorer.button("Undo").press("Enter")
    explorer.settled()
    assert explorer.field("Selected").input_value() != chosen
    explorer.button("Redo").press("Enter")
    explorer.settled()
    assert explorer.field("Selected").input_value() == chosen
    # one neuron; the planted ones only after the button
    explorer.root.locator(".nemo-chip:not([disabled])").first.click()
    explorer.root.get_by_text("z for this prompt").wait_for()
    assert explorer.root.get_by_text("Planted").count() == 0
    explorer.button("Reveal planted").click()
    explorer.root.get_by_text(re.compile("Planted: layer|No neuron was planted")).wait_for()
    explorer.settled()
    explorer.shot("5-neuron")
    explorer.button("Copy as code").click()
    page.wait_for_function(
        "() => document.querySelector('.nemo-explorer textarea').value.includes('generate(model')"
    )
    # an error in the widget, not in a log
    explorer.type("Selected", "layer 99: 1")
    explorer.root.get_by_text("layer 99 does not exist here").wait_for()
    explorer.shot("6-error")
    # cancel
    explorer.button("Clear").click()
    explorer.settled()
    explorer.button("Localize").click()
    page.get_by_text(re.compile("Localizing: [1-4]")).wait_for()
    explorer.button("Cancel").click()
    page.get_by_text("Localizing was cancelled.").wait_for()
    assert explorer.root.get_by_text("0 neurons selected").is_visible()
    explorer.shot("7-cancelled")
    # a prompt with HTML in it is text
    page.evaluate("() => { window.struck = 0; }")
    trap = '<img src=x onerror="window.struck=1"><b>cat</b>'
    explorer.type("Or write one", trap)
    explorer.root.get_by_text(trap).first.wait_for()
    explorer.settled()
    assert page.evaluate("() => window.struck") == 0
    assert explorer.root.locator("img[src=x], .nemo-prompt b").count() == 0
    explorer.shot("8-html")
    # dark theme
    page.evaluate("() => window.jupyterapp.commands.execute('apputils:change-theme',"
                  " {theme: 'JupyterLab Dark'})")  # fmt: skip
    page.locator("body[data-jp-theme-light=false]").wait_for()
    page.wait_for_timeout(1500)
    explorer.shot("9-dark")
    overflow = explorer.root.evaluate("e => e.scrollWidth - e.clientWidth")
    assert overflow <= 1, "the explorer is wider than its cell"
    assert page.problems == []


def len_selected(explorer: Explorer) -> str:
    """ "1 neuron" or "3 neurons", as the page says it."""
    line = explorer.root.get_by_text(re.compile(r"\d+ neurons? selected")).inner_text()
    return re.match(r"\d+ neurons?", line)[0]
