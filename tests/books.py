"""A notebook's code cells in the process of the tests, all of them or one alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt

from nemo_kit import effects, metrics, plots
from nemo_kit.neurons import NeuronSet, frequency

ROOT = Path(__file__).resolve().parents[1]


def cells(name: str) -> list[tuple[str, bool]]:
    """The code cells of a notebook, and whether they hold its parameters."""
    content = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
    code = [one for one in content["cells"] if one["cell_type"] == "code"]
    return [("".join(c["source"]), "parameters" in c["metadata"].get("tags", [])) for c in code]


def cell(name: str, text: str) -> str:
    """The one code cell that holds a text."""
    [found] = [source for source, _ in cells(name) if text in source]
    return found


def run(sources: Sequence[str], names: dict[str, Any]) -> dict[str, Any]:
    """The names after these cells, one after another."""
    for source in sources:
        exec(compile(source, "<cell>", "exec"), names)
    return names


def house(**names: Any) -> dict[str, Any]:
    """What every notebook has imported."""
    silent = SimpleNamespace(save=lambda *given, **more: None)
    given = {"np": np, "pd": pd, "sns": sns, "plt": plt, "NeuronSet": NeuronSet, "folder": None}
    return given | {"plots": plots, "metrics": metrics, "effects": effects, "figures": silent,
                    "frequency": frequency} | names  # fmt: skip
