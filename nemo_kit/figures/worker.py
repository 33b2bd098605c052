"""One notebook through papermill, in a process of its own: ``python -m nemo_kit.figures.worker``.

Scope: reads ``job.json`` in the folder it is given, notes the running cell in ``cell``, and writes
``result.txt``: empty if papermill returned without an exception (its output file says "completed"
even after a killed kernel). It ends with all it started when its standard input is closed, by the
runner at the time limit or because the runner is gone.
"""

import json
import logging
import os
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
from ipykernel.kernelspec import write_kernel_spec
from papermill import PapermillExecutionError, execute_notebook
from traitlets.config import Config

from nemo_kit.files import write_atomically

# it calls parameters unknown whose type is such as "str | None"; they were checked before
logging.getLogger("papermill").setLevel(logging.ERROR)


def end_at_once() -> None:
    """When standard input is closed: a kernel has a session of its own and would live on."""
    sys.stdin.read()
    for child in psutil.Process().children(recursive=True):
        child.kill()
    os._exit(1)


def make_kernel(folder: Path, told: dict[str, Any]) -> None:
    """Make ``python3`` this interpreter, whatever is installed elsewhere; it begins as told."""
    first = f"from nemo_kit import progress; progress.follow({str(folder)!r}, **{told})"
    (folder / "kernels").mkdir()
    begin = [f"--IPKernelApp.exec_lines={first}"]
    write_kernel_spec(folder / "kernels" / "python3", extra_arguments=begin)
    os.environ["JUPYTER_PATH"] = f"{folder}{os.pathsep}{os.environ.get('JUPYTER_PATH', '')}"


def execute(folder: Path, source: str, executed: str, parameters: dict[str, Any]) -> None:
    """Run one notebook, noting the running cell in the folder.

    Raises papermill's PapermillExecutionError where a cell fails, others where the kernel does.
    """
    paths = [path.replace("{", "{{").replace("}", "}}") for path in (source, executed)]
    execute_notebook(
        *paths, parameters, kernel_name="python3", language="python", progress_bar=False,
        cwd=str(Path(source).parent),
        on_cell_start=lambda cell_index, **_: (folder / "cell").write_text(f"{cell_index + 1}"),
        config=Config(KernelManager={"transport_encryption": "auto"}),
    )  # fmt: skip


def outcome(folder: Path, job: dict[str, Any]) -> str:
    """Run one notebook; returns nothing, or what failed and the failing cell's source."""
    try:
        execute(folder, **job)
    except PapermillExecutionError as error:
        cell = "\n".join(f"    {line}" for line in error.source.splitlines())
        return f"{error.ename}: {error.evalue} in cell {error.cell_index + 1}:\n{cell}\n "
    except Exception as error:
        return f"{type(error).__name__}: {error};"
    return ""


if __name__ == "__main__":
    threading.Thread(target=end_at_once, daemon=True).start()
    here = Path(sys.argv[1])
    job = json.loads((here / "job.json").read_text(encoding="utf-8"))
    make_kernel(here, job.pop("told"))
    ended = outcome(here, job)
    write_atomically(here / "result.txt", lambda part: part.write_text(ended, encoding="utf-8"))
