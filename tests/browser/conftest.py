"""A real JupyterLab on a free port with a token, and Debian's Chromium to drive it.

Needs the package `playwright` and a Chromium on the PATH (or its path in CHROMIUM); without one
of them the tests here are skipped and say so. Screenshots stay in runs/browser.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHOTS = ROOT / "runs" / "browser"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
]  # fmt: skip
WIDTH, HEIGHT = 1024, 2700  # so high that a screenshot holds all of the explorer


def chromium() -> str | None:
    """Path of a Chromium, or None."""
    named = os.environ.get("CHROMIUM")
    return named or shutil.which("chromium") or shutil.which("chromium-browser")


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


def command(port: int, token: str) -> list[str]:
    return [
        sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", "--ip=127.0.0.1",
        f"--port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}",
        "--expose-app-in-browser",
    ]  # fmt: skip


def environment(home: Path) -> dict[str, str]:
    """No settings of the user's; the kernel sees this checkout and one thread."""
    places = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_RUNTIME_DIR": "runtime",
              "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
              "IPYTHONDIR": "ipython"}  # fmt: skip
    own = {name: str(home / folder) for name, folder in places.items()}
    return os.environ | own | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(address: str, server: subprocess.Popen, log: Path, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            with urlopen(address, timeout=5):
                return
        except (URLError, OSError):
            if server.poll() is not None:
                break
            time.sleep(0.3)
    raise RuntimeError(f"jupyter lab did not start:\n{log.read_text()[-2000:]}")


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
