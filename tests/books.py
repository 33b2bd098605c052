"""A notebook's code cells in the process of the tests: no kernel, and the tests' small models."""

from __future__ import annotations

import json
import linecache
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt

from nemo_kit import detectors, metrics, plots, store, study
from nemo_kit.neurons import NeuronSet, frequency

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"


def cells(name: str | Path) -> list[tuple[str, bool]]:
    """The code cells of a notebook, by its name or file, and whether they hold its parameters."""
    path = name if isinstance(name, Path) else NOTEBOOKS / f"{name}.ipynb"
    content = json.loads(path.read_text(encoding="utf-8"))
    code = [one for one in content["cells"] if one["cell_type"] == "code"]
    return [("".join(c["source"]), "parameters" in c["metadata"].get("tags", [])) for c in code]


def cell(name: str, text: str) -> str:
    """The one code cell that holds a text."""
    [found] = [source for source, _ in cells(name) if text in source]
    return found


def run(sources: Sequence[str], names: dict[str, Any]) -> dict[str, Any]:
    """The names after these cells, one after another; their sources can be had, as a kernel's."""
    for source in sources:
        name = f"<cell {sha256(source.encode()).hexdigest()[:12]}>"
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        exec(compile(source, name, "exec"), names)
    return names


def run_cells(name: str | Path, *, until: str = "", **parameters: Any) -> dict[str, Any]:
    """The names after a notebook, or after its cell that holds a text, with these parameters.

    Raises what a cell raises, KeyError for a parameter that the notebook does not have.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    with mpl.rc_context({"backend": "agg"}):
        for source, given in cells(name):
            run([source], names)
            if given:
                if unknown := set(parameters) - set(names):
                    raise KeyError(unknown)
                names |= parameters
            if until and until in source:
                break
    return names


def house(**names: Any) -> dict[str, Any]:
    """What every notebook has imported."""
    silent = SimpleNamespace(save=lambda *given, **more: None)
    given = {"np": np, "pd": pd, "sns": sns, "plt": plt, "NeuronSet": NeuronSet, "folder": None}
    room = {"study": study.study, "pictures": study.pictures, "before_after": study.before_after}
    given |= {"plots": plots, "metrics": metrics, "figures": silent, "frequency": frequency}
    return given | room | names


def imported(name: str, text: str, **parameters: Any) -> dict[str, Any]:
    """The names after a notebook's cell of imports, which holds a text, and none of its style."""
    with mpl.rc_context():
        return run([cell(name, text)], house(out="out", store="store", images=1, **parameters))


def cutting() -> dict[str, Any]:
    """The names after notebook 10's cell that switches parts of a denoiser off: `Cut`, `places`."""
    return run([cell("10_layers", "class Cut")], imported("10_layers", "import numpy as np"))


def detector_table(model: Any, prompts: pd.DataFrame, results: Path, seeds: int = 2) -> Any:
    """Notebook 01's scores of every detector, of so many images; three of NeMo's."""
    names = house(net=model, prompts=prompts, compared=None, choose=lambda rows, *_: rows)
    names |= {"detectors": detectors, "results": results, "detection_seeds": range(1, 4)}
    names |= {"detector_seeds": seeds, "detector_steps": 5}
    names |= {"run": store.run, "tidy": store.tidy, "model_key": store.model_key}
    return run([cell("01_detection", "def score_of")], names)["scores"]
