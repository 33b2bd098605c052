"""A report that is a notebook: run with parameters in a process of its own, shown as one page.

Scope: `run`, for a command, in the process that draws figures too, which ends with the command
whatever ends that. The page needs nothing but itself: pictures are in it.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nemo_kit.files import write_atomically, write_json
from nemo_kit.keys import PACKAGE

_PLACES = (Path(__file__).parent, PACKAGE.parent / "notebooks")  # in a wheel, in a clone
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem;
  color: #222; background: #fff }
.output { overflow-x: auto }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
th, td { border-bottom: 1px solid #ddd; padding: .3rem .6rem; text-align: left;
  vertical-align: top; overflow-wrap: anywhere; min-width: 4rem }
pre { white-space: pre-wrap }
img { max-width: 100% }
</style>
</head>
<body>
{{ body | safe }}
</body>
</html>
"""


def notebook(name: str) -> Path:
    """The notebook of a report; FileNotFoundError where neither package nor clone has it."""
    for place in _PLACES:
        if (path := place / f"{name}.ipynb").is_file():
            return path
    raise FileNotFoundError(f"the report needs the notebook {name}.ipynb of a clone of nemo_kit")


def run(name: str, title: str, page: Path, parameters: Mapping[str, Any]) -> None:
    """Run a report's notebook and write what it shows, without its code, as a page.

    Raises ValueError or RuntimeError with the notebook's own message where it fails.
    """
    with TemporaryDirectory(prefix="nemo-kit-report-") as folder:
        here, executed = Path(folder), Path(folder) / "executed.ipynb"
        job = {"source": str(notebook(name)), "executed": str(executed), "parameters": parameters}
        write_json(here / "job.json", job | {"told": {"also": [], "retry_failed": False}})
        command = [sys.executable, "-m", "nemo_kit.figures.worker", folder]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
            process.wait()  # leaving closes its input, which ends it with its kernel
        ended = here / "result.txt"
        failed = ended.read_text(encoding="utf-8") if ended.is_file() else "its process ended"
        if failed:
            kind, _, told = re.split(r" in cell \d+:\n", failed)[0].partition(": ")
            bad = kind in ("ValueError", "TypeError", "FileNotFoundError")
            raise (ValueError if bad else RuntimeError)(f"the report failed: {told or kind}")
        text = html(executed, title)
    write_atomically(page, lambda part: part.write_text(text, encoding="utf-8"))


def html(executed: Path, title: str) -> str:
    """An executed notebook as one page: its words, and what its cells show but for progress."""
    import nbformat
    from jinja2 import Environment
    from nbconvert import HTMLExporter

    content = nbformat.read(executed, as_version=4)
    content.metadata.pop("widgets", None)
    for cell in content.cells:
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if _stays(one)]
    exporter = HTMLExporter(template_name="basic", exclude_input=True, exclude_anchor_links=True)
    body, _ = exporter.from_notebook_node(content)
    return Environment(autoescape=True).from_string(_PAGE).render(title=title, body=body)


def _stays(output: Any) -> bool:
    """Whether an output says something on a page: no bar, as text or as a widget, no script."""
    if "data" not in output:
        return output.get("name") != "stderr"
    return not any(kind.startswith("application/") for kind in output["data"])
