"""Runs a notebook's cells in the process of the tests: no kernel, and the tests' small models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import nbformat

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"


def run_cells(name: str, **parameters: Any) -> dict[str, Any]:
    """The names that a notebook's code cells leave behind, with these parameters.

    Raises what a cell raises, KeyError for a parameter that the notebook does not have.
    """
    names: dict[str, Any] = {}
    with mpl.rc_context({"backend": "agg"}):
        for cell in nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4).cells:
            if cell.cell_type == "code":
                exec(cell.source, names)
            if "parameters" in cell.metadata.get("tags", ()):
                if unknown := set(parameters) - set(names):
                    raise KeyError(unknown)
                names |= parameters
    return names
