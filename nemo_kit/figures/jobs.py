"""One notebook to run and what is known of it: job, place, outcome, and the manifest it left.

Scope: plain values that plan, process and report share. Nothing here starts anything.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_kit.figures.output import manifest_path
from nemo_kit.figures.registry import FIGURES, NOTEBOOKS, Figure, Parameters

_OF_RESULTS = {"package", "parameters", "model"}  # what stored results depend on


@dataclass(frozen=True)
class Job:
    """One notebook to run, or to leave because its figures are fresh (``reason`` empty)."""

    notebook: str
    preset: str
    source: Path
    parameters: Parameters
    out: Path
    work: Path  # executed notebook, log and what is not published yet
    key: dict[str, str]
    reason: str
    lacks: str = ""  # why it can't be drawn from these prompts at all; then it is left out
    also: tuple[str, ...] = ()  # further formats of each picture: pdf, svg
    retry_failed: bool = False  # prompts that failed before are tried again

    @property
    def runs(self) -> bool:
        """Whether there is something to do."""
        return bool(self.reason) and not self.lacks

    @property
    def figures(self) -> tuple[Figure, ...]:
        """Rows of the registry that this notebook draws."""
        return tuple(row for row in FIGURES if row.notebook == self.notebook)

    @property
    def executed(self) -> Path:
        """The executed copy, kept also when the notebook failed."""
        return self.work / f"{self.notebook}.ipynb"

    @property
    def known(self) -> dict[str, Any]:
        """The manifest of an earlier run under this preset; empty where there is none."""
        manifest = read_manifest(self.out, self.notebook)
        return manifest if manifest.get("preset") == self.preset else {}

    @property
    def failed(self) -> list[str]:
        """Prompts without which the figures were drawn that lie there, since they failed."""
        return list(read_manifest(self.out, self.notebook).get("failed", ()))

    @property
    def expected(self) -> float:
        """Seconds it should take: those of the earlier run, else the registry's.

        Where results must be computed again, the longest earlier run counts: the last one may have
        found them in the store.
        """
        known = self.known
        anew = any(known.get("key", {}).get(name) != self.key.get(name) for name in _OF_RESULTS)
        seconds = (known.get("slowest") if anew else None) or known.get("seconds")
        guess = NOTEBOOKS[self.notebook].expected
        return float(seconds or guess.get(self.preset) or 4 * guess["lab"])


@dataclass(frozen=True)
class Place:
    """Where a running notebook is: its cell, and its own work where it reports any."""

    cell: int = 0
    cells: int = 0
    label: str = ""  # of the work: detect, localize, …
    done: int = 0
    total: int | None = None
    left: float | None = None  # seconds until this work is done

    def __str__(self) -> str:
        if not self.cells:
            return "start-up"
        work = f", {self.label} {self.done} of {self.total}" if self.label else ""
        return f"cell {self.cell} of {self.cells}{work}"


@dataclass(frozen=True)
class Outcome:
    """How a job ended: seconds of wall clock, and the error (empty when it succeeded)."""

    seconds: float
    error: str = ""


def read_manifest(out: Path, notebook: str) -> dict[str, Any]:
    """The manifest of a notebook in an output folder; empty where there is none to read."""
    try:
        content = json.loads(manifest_path(out, notebook).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def written(manifest: dict[str, Any]) -> list[str]:
    """Names of all files that a manifest says were written."""
    return [name for names in manifest.get("files", {}).values() for name in names]


def counted(prompts: Sequence[str]) -> str:
    """How many prompts, in words."""
    return f"{len(prompts)} prompt{'s' * (len(prompts) != 1)}"


def shown(path: Path) -> str:
    """A path as a reader types it: relative to the current folder where it lies below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
