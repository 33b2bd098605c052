"""A notebook's process: started, watched, and ended with its kernel whatever happens.

Scope: the worker (papermill, in a session of its own so that Ctrl-C reaches the runner alone), the
limit of wall-clock time, which papermill does not keep, and what went wrong in words. The worker
ends itself when the runner is gone, and a kernel when its worker is.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nemo_kit.figures.jobs import Job, Place, shown
from nemo_kit.figures.output import ALSO
from nemo_kit.files import write_json
from nemo_kit.progress import FILE

Tick = Callable[[float, Place], None]


class NotebookFailed(RuntimeError):
    """A notebook did not come to its end; the message says where and why."""


def execute(job: Job, staged: Path, limit: float, tick: Tick) -> list[str]:
    """Run a job's notebook, which writes into the folder ``staged``.

    Returns the prompts that failed and so are in no figure, each once. ``limit`` is in seconds of
    wall clock; ``tick(seconds, place)`` is called several times a second. Raises NotebookFailed
    unless the notebook came to its end.
    """
    from nemo_kit.experiments.sweep import FAILED, RETRY

    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    names = ("job", "result", "cell", "work", "failed")
    files = {name: staged.with_name(f"{staged.name}.{name}.json") for name in names}
    values = job.parameters.model_dump(mode="json") | {"out": str(staged)}
    task = {"source": str(job.source), "executed": str(job.executed), "parameters": values}
    write_json(files["job"], task | {name: str(files[name]) for name in ("result", "cell")})
    environment = os.environ | {
        FILE: str(files["work"]),
        ALSO: ",".join(job.also),
        FAILED: str(files["failed"]),
        RETRY: "1" if job.retry_failed else "",
    }
    try:
        with job.executed.with_suffix(".log").open("wb") as log:
            _watch(files, environment, log, limit, tick)
        _judge(job, files["result"])
        return _failed(files["failed"])
    finally:
        for path in files.values():
            path.unlink(missing_ok=True)


def _watch(
    files: dict[str, Path], environment: dict[str, str], log: Any, limit: float, tick: Tick
) -> None:
    """Start the worker, report its progress, and end it with its kernel at the limit."""
    command = [sys.executable, "-m", "nemo_kit.figures.worker", str(files["job"])]
    started = time.monotonic()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
        start_new_session=True,
    )  # fmt: skip
    try:
        while process.poll() is None:
            seconds, place = time.monotonic() - started, _place(files)
            if seconds > limit:
                raise NotebookFailed(f"ran past its limit of {limit / 60:g} minutes, in {place}")
            tick(seconds, place)
            time.sleep(0.2)
    finally:
        end_tree(process)


def end_tree(process: subprocess.Popen[bytes]) -> None:
    """End a process and all it started: a kernel has a session of its own and would live on."""
    import psutil

    if process.poll() is not None:
        return
    worker = psutil.Process(process.pid)
    tree = [*worker.children(recursive=True), worker]
    for one in tree:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()


def _place(files: dict[str, Path]) -> Place:
    """What worker and notebook last noted; nothing where they did not, or are about to."""
    found: dict[str, Any] = {}
    for name in ("cell", "work"):
        try:
            found |= json.loads(files[name].read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
    return Place(**found)


def _failed(path: Path) -> list[str]:
    """The prompts that sweeps noted, each once: several sweeps of a notebook may name one."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return list(dict.fromkeys(json.loads(line) for line in lines))


def _judge(job: Job, result_file: Path) -> None:
    """Raise NotebookFailed with what a reader needs: error, failing cell, where to look."""
    look = f"executed copy: {shown(job.executed)}"
    if not result_file.is_file():
        log = job.executed.with_suffix(".log").read_text(errors="replace").strip().splitlines()
        raise NotebookFailed(f"the process ended without a result: {' | '.join(log[-3:])}; {look}")
    result = json.loads(result_file.read_text(encoding="utf-8"))
    if result["ok"]:
        return
    if "cell" not in result:
        raise NotebookFailed(f"{result['error']}; {look}")
    cell = "\n".join(f"    {line}" for line in result["source"].splitlines())
    raise NotebookFailed(f"{result['error']} in cell {result['cell']}:\n{cell}\n  {look}")
