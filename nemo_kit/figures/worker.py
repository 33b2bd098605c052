"""One notebook through papermill, in a process of its own: ``python -m nemo_kit.figures.worker``.

Scope: reads a job file (JSON: source, executed, parameters, result, cell), runs it, and writes the
result file: ``ok`` only if papermill returned without an exception, since its output file says
"completed" even after a killed kernel. The runner keeps the time limit and reads both files; when
it is gone, this process ends with all it started.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from papermill import execute_notebook
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from nemo_kit.files import write_json

_ENGINE = "nemo_kit"
_cell = Path(os.devnull)


class ReportingEngine(NBClientEngine):
    """papermill's own engine, that also notes which cell is running."""

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **kwargs: Any) -> Any:
        """Run the cells; before each, its number and the number of cells go to a file."""
        start = nb_man.cell_start

        def noted(cell: Any, cell_index: int = 0, **rest: Any) -> None:
            place = {"cell": cell_index + 1, "cells": len(nb_man.nb.cells)}
            _cell.write_text(json.dumps(place), encoding="utf-8")
            start(cell, cell_index, **rest)

        nb_man.cell_start = noted
        return super().execute_managed_notebook(nb_man, kernel_name, **kwargs)


def end_with(parent: int) -> None:
    """End this process and all it started as soon as its parent is another than this one."""

    def watch() -> None:
        import psutil

        while os.getppid() == parent:
            time.sleep(0.5)
        for child in psutil.Process().children(recursive=True):
            child.kill()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def use_this_interpreter(folder: Path) -> None:
    """Make ``python3`` the kernel of the running interpreter, whatever is installed elsewhere."""
    from ipykernel.kernelspec import write_kernel_spec

    (folder / "kernels").mkdir()
    write_kernel_spec(folder / "kernels" / "python3")
    paths = [str(folder), os.environ.get("JUPYTER_PATH", "")]
    os.environ["JUPYTER_PATH"] = os.pathsep.join(path for path in paths if path)


def execute(job: dict[str, Any]) -> dict[str, Any]:
    """Run one job; returns ``{"ok": True}``, or what failed and the failing cell's source."""
    source, executed = _literal(job["source"]), _literal(job["executed"])
    try:
        execute_notebook(
            source,
            executed,
            parameters=job["parameters"],
            engine_name=_ENGINE,
            kernel_name="python3",
            language="python",
            progress_bar=False,
            cwd=str(Path(job["source"]).parent),
            config=Config(KernelManager={"transport_encryption": "auto"}),
        )
    except PapermillExecutionError as error:
        return {"ok": False, **_failing_cell(error)}
    except Exception as error:
        return {"ok": False, "error": f"{type(error).__name__}: {error}"}
    return {"ok": True}


def main(job_file: str) -> None:
    """Run the job described in a file and write its result file."""
    global _cell
    end_with(os.getppid())
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    _cell = Path(job["cell"])
    papermill_engines.register(_ENGINE, ReportingEngine)
    with tempfile.TemporaryDirectory(prefix="nemo-kit-kernel-") as folder:
        use_this_interpreter(Path(folder))
        write_json(Path(job["result"]), execute(job))


def _literal(path: str) -> str:
    """papermill formats paths with the parameters: braces in a folder's name stay braces."""
    return path.replace("{", "{{").replace("}", "}}")


def _failing_cell(error: PapermillExecutionError) -> dict[str, Any]:
    return {
        "error": f"{error.ename}: {error.evalue}",
        "cell": error.cell_index + 1,
        "source": error.source,
        "traceback": list(error.traceback),
    }


if __name__ == "__main__":
    main(sys.argv[1])
