"""Tiny notebooks for the tests of what reads, runs and shows them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest

NAME = "00_tiny"
OWN = 'out = "../figs"\nstore = "../runs/store"\n'
COMMON = OWN + (
    'model = "lab"\nrevision: str | None = None\nlora: str | None = None\n'
    'config: str | None = None\ndevice = "auto"\ndtype = "auto"\n'
    "prompt_files: list[str] = []\ntraining_images: str | None = None\n"
)
IMAGES = OWN + "images = 4  # a comment\nsscd: str | None = None\n"
DRAW = "from nemo_kit import figures\nimport pandas as pd\n" + (
    "from matplotlib.figure import Figure\n"
    "fig = Figure((2, 1))\nfig.subplots().plot([1, images])\n"
    'figures.save(fig, pd.DataFrame({"n": [images]}), "tiny", out, shows="a number")\n'
)
TABLE = "from nemo_kit import figures\nimport pandas as pd\n" + (
    'figures.save(None, pd.DataFrame({"n": [images]}), "tiny", out, shows="a number")\n'
)


def end(name: str) -> str:
    return f"figures.write_manifest(out, {name!r}, globals())"


def notebook(
    folder: Path,
    *cells: str,
    name: str = NAME,
    parameters: str | None = IMAGES,
    **about: Any,
) -> Path:
    """A notebook with this parameters cell and these code cells, by default one that draws."""
    given = [] if parameters is None else [parameters]
    first = [nbformat.v4.new_code_cell(text, metadata={"tags": ["parameters"]}) for text in given]
    rest = [nbformat.v4.new_code_cell(cell) for cell in cells or (DRAW, end(name))]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# What?"), *first, *rest])
    book.metadata["nemo_kit"] = about
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, folder / f"{name}.ipynb")
    return folder


def wait_until_gone(pid: int) -> None:
    """Until the process has ended; fails after a minute."""
    for _ in range(600):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.1)
    pytest.fail(f"the kernel {pid} still runs")
