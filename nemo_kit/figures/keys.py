"""When a figure is stale: fingerprints of what its content depends on.

Scope: the notebook's sources, the package's sources and the lab's data, the parameters, the model.
Where and on what a notebook runs (folders, device) is no part of them.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

from nemo_kit.figures.output import PLACES
from nemo_kit.figures.registry import Parameters
from nemo_kit.files import PACKAGE, file_digest, folder_digest, source_digest, value_digest

_SHOWN_ONLY = (  # what runs, shows or explores, and draws nothing that a figure holds
    "cli/",
    "course",
    "explorer/",
    "figures/gallery.py",
    "figures/report.py",
    "figures/runner.py",
    "figures/worker.py",
    "progress.py",
)
_LAB_USED = {"lab/__init__.py", "lab/autoencoder.py", "lab/copy_descriptor.py"}
_WEIGHTS = (".json", ".txt", ".safetensors", ".bin")


def content_key(source: Path, parameters: Parameters) -> dict[str, str]:
    """Fingerprints of one figure run: ``notebook``, ``package``, ``parameters``, ``model``.

    Returns a dictionary of hexadecimal digests; two runs with equal ones give the same figures up
    to the tolerance between machines. Raises FileNotFoundError where a file or folder is missing.
    """
    chosen = parameters.model_dump(mode="json", exclude=PLACES)
    chosen["prompt_files"] = [file_digest(Path(name)) for name in parameters.prompt_files]
    if parameters.training_images is not None:
        chosen["training_images"] = folder_digest(Path(parameters.training_images))
    return {
        "notebook": notebook_digest(source),
        "package": package_digest(),
        "parameters": value_digest(chosen),
        "model": model_digest(parameters.model, parameters.revision),
    }


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
    """Digest of the sources that figures depend on, and of the lab model's data.

    What trains the lab model is left out: it acts through the model and the data alone.
    """
    named = {path: path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")}
    sources = [
        path
        for path, name in named.items()
        if not name.startswith(_SHOWN_ONLY) and (name in _LAB_USED or not name.startswith("lab/"))
    ]
    return value_digest([source_digest(sources), folder_digest(PACKAGE / "lab" / "data")])


def model_digest(model: str, revision: str | None = None) -> str:
    """Digest of a model folder's files, or of a hub id with the revision on this machine."""
    folder = PACKAGE / "lab" / "model" if model == "lab" else Path(model)
    if folder.is_dir():
        return folder_digest(folder, _WEIGHTS)
    return value_digest([model, hub_revision(model, revision)])


def hub_revision(model: str, revision: str | None = None) -> str:
    """Commit that a revision of a hub model stands for on this machine; itself where unknown."""
    from huggingface_hub.constants import HF_HUB_CACHE

    wanted = revision or "main"
    reference = Path(HF_HUB_CACHE, f"models--{model.replace('/', '--')}", "refs", wanted)
    return reference.read_text(encoding="utf-8").strip() if reference.is_file() else wanted


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
