"""When a figure is stale: fingerprints of what its content depends on.

Scope: the notebook's code cells, the versions of what the package computes, the lab's data, the
parameters, the model.
Where and on what a notebook runs (folders, device) is no part of them.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nemo_kit.figures.output import PLACES
from nemo_kit.figures.registry import Parameters
from nemo_kit.files import file_digest, folder_digest
from nemo_kit.keys import PACKAGE, value_digest, versions
from nemo_kit.models import hub

_PATHS = {"sscd", "clip", "inception", "real_images"}  # parameters that may be files or folders
_WEIGHTS = (".json", ".txt", ".safetensors", ".bin")


class Once:
    """Each digest computed once: those of one plan are of one moment, and a model is large."""

    def __init__(self) -> None:
        self._known: dict[Any, str] = {}

    def __call__(self, digest: Callable[..., str], *given: Any) -> str:
        """What the function returns for these arguments."""
        if (digest, given) not in self._known:
            self._known[digest, given] = digest(*given)
        return self._known[digest, given]


def content_key(source: Path, parameters: Parameters, once: Once | None = None) -> dict[str, str]:
    """Fingerprints of one figure run: ``notebook``, ``package``, ``parameters``, ``model``.

    Returns a dictionary of hexadecimal digests; two runs with equal ones give the same figures up
    to the tolerance between machines. ``once``: shared by the runs of a plan.
    Raises FileNotFoundError where a file or folder is missing.
    """
    once = once or Once()
    chosen = parameters.model_dump(mode="json", exclude=PLACES)
    chosen["prompt_files"] = [once(file_digest, Path(name)) for name in parameters.prompt_files]
    if parameters.training_images is not None:
        chosen["training_images"] = once(folder_digest, Path(parameters.training_images))
    for name in _PATHS & set(chosen):
        if (place := _place(source.parent, chosen[name])) is not None:
            chosen[name] = once(folder_digest if place.is_dir() else file_digest, place)
    if _place_of(parameters.model) is None:
        chosen["revision"] = hub_revision(parameters.model, parameters.revision)
    return {
        "notebook": notebook_digest(source),
        "package": once(package_digest),
        "parameters": value_digest(chosen),
        "model": once(model_digest, parameters.model, parameters.revision),
    }


def _place(folder: Path, given: Any) -> Path | None:
    """The file or folder that a notebook in this folder finds under a path; None for a name."""
    if not isinstance(given, str) or given == "lab" or not (folder / given).exists():
        return None
    return folder / given


def notebook_digest(path: Path) -> str:
    """Digest of a notebook's code cells, with their tags: words and outputs don't count."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return value_digest([_cell(cell) for cell in cells if cell["cell_type"] == "code"])


def notebook_parameters(path: Path) -> dict[str, Any]:
    """Names and values of a notebook's parameters cell: papermill only warns where one is missing.

    Raises ValueError where there is not one cell tagged ``parameters`` made of literals alone.
    """
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    tagged = [text for kind, tags, text in map(_cell, cells) if "parameters" in tags]
    if len(tagged) != 1:
        raise ValueError(f"{path.name} needs one cell tagged 'parameters', it has {len(tagged)}")
    try:
        return dict(_literal(statement) for statement in ast.parse(tagged[0]).body)
    except (ValueError, SyntaxError) as error:
        raise ValueError(f"{path.name}: its parameters cell must hold literals: {error}") from error


def package_digest() -> str:
    """Digest of the versions of all that the package computes, and of the lab model's data."""
    return value_digest([versions(), folder_digest(PACKAGE / "lab" / "data")])


def model_digest(model: str, revision: str | None = None) -> str:
    """Digest of a model's folder or file, or of a hub id with the revision on this machine.

    A hub model's calibration counts by its content: it may be written there later.
    """
    if (place := _place_of(model)) is not None:
        return folder_digest(place, _WEIGHTS) if place.is_dir() else file_digest(place)
    there = hub.local(model, revision)
    own = [folder_digest(there / "nemo")] if there and (there / "nemo").is_dir() else []
    return value_digest([model, hub_revision(model, revision), *own])


def hub_revision(model: str, revision: str | None = None) -> str:
    """Commit that a revision of a hub model stands for on this machine; itself where unknown."""
    folder = hub.local(model, revision)
    return folder.name if folder else revision or "main"


def _place_of(model: str) -> Path | None:
    """A model's folder or file; None for a hub id."""
    place = PACKAGE / "lab" / "model" if model == "lab" else Path(model)
    return place if place.exists() else None


def _literal(statement: ast.stmt) -> tuple[str, Any]:
    match statement:
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            return name, ast.literal_eval(value)
        case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
            return name, ast.literal_eval(value)
    raise ValueError(f"line {statement.lineno} gives no name a value")


def _cell(cell: dict[str, Any]) -> list[Any]:
    source = cell["source"]
    text = source if isinstance(source, str) else "".join(source)
    return [cell["cell_type"], cell.get("metadata", {}).get("tags", []), text]
