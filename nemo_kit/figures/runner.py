"""The runner: draws what is missing or stale, one notebook after the other.

Scope: plan (what is fresh, and why the rest is not), run (papermill in a process of its own, under
a limit of wall-clock time), publish (a notebook writes into a folder of its own; its figures move
into the output folder only when it succeeded, the manifest last). A run killed at any moment leaves
the earlier figures or the new ones, and what it left half done counts as missing.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_kit.figures.keys import content_key, notebook_parameters
from nemo_kit.figures.output import manifest_path
from nemo_kit.figures.registry import FIGURES, NOTEBOOKS, Figure, Parameters, parameters
from nemo_kit.files import PACKAGE, write_atomically, write_json

LIMITS = {"quick": 1800.0, "lab": 7200.0}  # seconds of wall clock for one notebook


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

    @property
    def figures(self) -> tuple[Figure, ...]:
        """Rows of the registry that this notebook draws."""
        return tuple(row for row in FIGURES if row.notebook == self.notebook)

    @property
    def executed(self) -> Path:
        """The executed copy, kept also when the notebook failed."""
        return self.work / f"{self.notebook}.ipynb"

    @property
    def expected(self) -> float:
        """Seconds it should take: those of the last manifest, else the registry's."""
        seconds = read_manifest(self.out, self.notebook).get("seconds")
        return float(seconds or NOTEBOOKS[self.notebook].expected[self.preset])


@dataclass(frozen=True)
class Outcome:
    """How a job ended: seconds of wall clock, and the error (empty when it succeeded)."""

    seconds: float
    error: str = ""


class NotebookFailed(RuntimeError):
    """A notebook did not come to its end; the message says where and why."""


def root() -> Path:
    """The clone the package lies in, or the current folder where there is none."""
    return PACKAGE.parent if (PACKAGE.parent / "notebooks").is_dir() else Path.cwd()


def output_folder(preset: str, model: str = "lab") -> Path:
    """Where figures go by default: ``figures/lab`` or ``figures/lab-quick``, by model name."""
    name = "".join(c if c.isalnum() or c in "._-" else "-" for c in Path(model).name) or "model"
    return root() / "figures" / (f"{name}-quick" if preset == "quick" else name)


def plan(
    figures: Iterable[Figure],
    preset: str,
    out: Path,
    *,
    notebooks: Path | None = None,
    force: bool = False,
    **common: Any,
) -> list[Job]:
    """Jobs for the notebooks that draw the figures, in order, each fresh or with a reason.

    Returns a list of ``Job``. ``common`` are parameters of every notebook (``model``, ``device``).
    Raises FileNotFoundError where a notebook is missing, ValueError for a refused parameter.
    """
    folder = notebooks or root() / "notebooks"
    wanted = {row.notebook for row in figures}
    return [
        _job(name, preset, out.resolve(), folder.resolve(), force, common)
        for name in NOTEBOOKS
        if name in wanted
    ]


def run(job: Job, limit: float, tick: Callable[[float, str], None]) -> Outcome:
    """Run one job's notebook and publish what it drew.

    Returns its outcome; a failure is an outcome, not an exception. ``limit`` is in seconds;
    ``tick(seconds, cell)`` is called several times a second.
    """
    started = time.monotonic()
    staged = job.work / f"{job.notebook}-{os.getpid()}"
    try:
        _execute(job, staged, limit, tick)
        _publish(job, staged, time.monotonic() - started)
        error = ""
    except (NotebookFailed, OSError) as failure:
        error = str(failure)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return Outcome(time.monotonic() - started, error)


@contextmanager
def alone(jobs: Sequence[Job]) -> Iterator[None]:
    """Hold the output folders' locks; raises ValueError where another run draws into one."""
    from filelock import FileLock, Timeout

    with ExitStack() as held:
        for work in sorted({job.work for job in jobs}):
            work.mkdir(parents=True, exist_ok=True)
            try:
                held.enter_context(FileLock(work / ".lock", timeout=0))
            except Timeout:
                raise ValueError(f"another run is drawing these figures ({shown(work)})") from None
        yield


def read_manifest(out: Path, notebook: str) -> dict[str, Any]:
    """The manifest of a notebook in an output folder; empty where there is none to read."""
    try:
        content = json.loads(manifest_path(out, notebook).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def staleness(out: Path, notebook: str, key: dict[str, str]) -> str:
    """Why the figures of a notebook must be drawn; empty where they are fresh."""
    manifest = read_manifest(out, notebook)
    if not manifest:
        return "missing"
    if not (before := manifest.get("key")):
        return "drawn by hand"
    if changed := [name for name in key if before.get(name) != key[name]]:
        return f"{' and '.join(changed)} changed"
    lost = [name for name in _files(manifest) if not (out / name).is_file()]
    return f"{lost[0]} missing" if lost else ""


def _job(
    name: str, preset: str, out: Path, folder: Path, force: bool, common: dict[str, Any]
) -> Job:
    source = folder / f"{name}.ipynb"
    if not source.is_file():
        raise FileNotFoundError(
            f"the notebook {name}.ipynb is not in {folder}; figures are drawn from the notebooks "
            "of a clone: run inside it, or name their folder with --notebooks"
        )
    work = root() / "runs" / "figures" / out.name
    places = {"out": str(out), "store": str(root() / "runs" / "store")}
    chosen = parameters(name, preset, **{**places, **common})
    if lost := sorted(set(type(chosen).model_fields) - set(notebook_parameters(source))):
        raise ValueError(f"the parameters cell of {shown(source)} does not name {', '.join(lost)}")
    key = content_key(source, chosen)
    reason = "forced" if force else staleness(out, name, key)
    return Job(name, preset, source, chosen, out, work, key, reason)


def _execute(job: Job, staged: Path, limit: float, tick: Callable[[float, str], None]) -> None:
    """Papermill in a process of its own; raises NotebookFailed unless it came to its end."""
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    files = {name: staged.with_suffix(f".{name}.json") for name in ("job", "result", "progress")}
    values = job.parameters.model_dump(mode="json") | {"out": str(staged)}
    task = {"source": job.source, "executed": job.executed, "parameters": values}
    write_json(
        files["job"],
        {
            **{k: str(v) if isinstance(v, Path) else v for k, v in task.items()},
            **{name: str(files[name]) for name in ("result", "progress")},
        },
    )
    try:
        with job.executed.with_suffix(".log").open("wb") as log:
            _watch(files, log, limit, tick)
        _judge(job, files["result"])
    finally:
        for path in files.values():
            path.unlink(missing_ok=True)


def _watch(
    files: dict[str, Path], log: Any, limit: float, tick: Callable[[float, str], None]
) -> None:
    """Start the worker, report its progress, and end it with its kernel at the limit."""
    command = [sys.executable, "-m", "nemo_kit.figures.worker", str(files["job"])]
    started = time.monotonic()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        while process.poll() is None:
            seconds, cell = time.monotonic() - started, _progress(files["progress"])
            if seconds > limit:
                raise NotebookFailed(f"ran past its limit of {limit / 60:g} minutes, in {cell}")
            tick(seconds, cell)
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


def _progress(path: Path) -> str:
    try:
        cell, cells = path.read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return "start-up"
    return f"cell {cell} of {cells}"


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


def _publish(job: Job, staged: Path, seconds: float) -> None:
    """Move the figures into the output folder; the manifest goes first and comes back last."""
    manifest = read_manifest(staged, job.notebook)
    if not manifest:
        raise NotebookFailed(
            "came to its end but wrote no manifest: its last cell must call figures.write_manifest"
        )
    needed = [name for row in job.figures for name in row.files]
    if lost := [name for name in needed if not (staged / name).is_file()]:
        raise NotebookFailed(f"came to its end but did not write {', '.join(lost)}")
    job.out.mkdir(parents=True, exist_ok=True)
    before = _files(read_manifest(job.out, job.notebook))
    manifest_path(job.out, job.notebook).unlink(missing_ok=True)
    for path in sorted(staged.iterdir()):
        if path.name != manifest_path(staged, job.notebook).name:
            write_atomically(job.out / path.name, lambda part, path=path: shutil.copy(path, part))
    for name in set(before) - set(_files(manifest)):
        (job.out / Path(name).name).unlink(missing_ok=True)
    full = {**manifest, "preset": job.preset, "seconds": round(seconds, 1), "key": job.key}
    write_json(manifest_path(job.out, job.notebook), full)


def _files(manifest: dict[str, Any]) -> list[str]:
    return [name for names in manifest.get("files", {}).values() for name in names]


def shown(path: Path) -> str:
    """A path as a reader types it: relative to the current folder where it lies below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
