"""The runner: draws what is missing or stale, one notebook after the other.

Scope: plan (what is fresh, and why the rest is not), run (a process of its own for each notebook),
publish (a notebook writes into a folder of its own; its figures move into the output folder only
when it succeeded, the manifest last). A run killed at any moment leaves the earlier figures or the
new ones; what it left half done counts as missing, and the next run takes what was computed from
the store.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from nemo_kit.figures.jobs import Job, Outcome, counted, read_manifest, shown, written
from nemo_kit.figures.keys import Once, content_key, notebook_parameters
from nemo_kit.figures.output import PLACES, manifest_path
from nemo_kit.figures.process import NotebookFailed, Tick, execute
from nemo_kit.figures.registry import NOTEBOOKS, Figure, parameters
from nemo_kit.files import write_atomically, write_json
from nemo_kit.keys import PACKAGE, value_digest

# seconds of wall clock for one notebook
LIMITS = {"quick": 1800.0, "lab": 7200.0, "paper": 7 * 24 * 3600.0}
FORMATS = ("pdf", "svg")  # beside PNG, on request


def root() -> Path:
    """The clone the package lies in, or the current folder where there is none."""
    return PACKAGE.parent if (PACKAGE.parent / "notebooks").is_dir() else Path.cwd()


def output_folder(preset: str, model: str = "lab") -> Path:
    """Where figures go by default: ``figures/lab``, ``figures/lab-quick``, by model and preset."""
    name = "".join(c if c.isalnum() or c in "._-" else "-" for c in Path(model).name) or "model"
    return root() / "figures" / (name if preset == "lab" else f"{name}-{preset}")


def work_folder(out: Path) -> Path:
    """Where executed notebooks of an output folder go: ``runs/figures/`` and its name.

    An output folder outside the clone gets a digest of its path too: names may repeat.
    """
    place = root() / "runs" / "figures"
    for base in (root() / "figures", root()):
        if out != base and out.is_relative_to(base):
            return place / "-".join(out.relative_to(base).parts)
    return place / f"{out.name}-{value_digest(str(out))[:8]}"


def plan(
    figures: Iterable[Figure],
    preset: str,
    out: Path,
    *,
    notebooks: Path | None = None,
    force: bool = False,
    retry_failed: bool = False,
    also: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    **common: Any,
) -> list[Job]:
    """Jobs for the notebooks that draw the figures, in order, each fresh or with a reason.

    Returns a list of ``Job``. ``common`` are parameters of every notebook (``model``, ``device``);
    ``retry_failed``, prompts that failed are tried again, and notebooks drawn without some of them
    run; ``also``, further formats of each picture: pdf, svg; ``settings``, parameters for those
    notebooks that know them.
    Raises FileNotFoundError where a notebook is missing, ValueError for a refused parameter.
    """
    if unknown := sorted(set(also) - set(FORMATS)):
        raise ValueError(f"also must be of {', '.join(FORMATS)}, got {unknown[0]!r}")
    folder = (notebooks or root() / "notebooks").resolve()
    wanted = {row.notebook for row in figures}
    roles = _roles(common.get("prompt_files", ()))
    chosen = [name for name in NOTEBOOKS if name in wanted]
    own = _own_settings(chosen, settings or {})
    once = Once()
    jobs = [_job(name, preset, out.resolve(), folder, common | own[name], once) for name in chosen]
    return [
        replace(
            job,
            reason="forced" if force else _reason(job, also, retry_failed),
            retry_failed=retry_failed,
            lacks=_lacks(job.notebook, roles),
            also=tuple(also),
        )
        for job in jobs
    ]


def check_model(jobs: Iterable[Job]) -> None:
    """Raise ValueError where an output folder holds another model's figures: they would be mixed.

    Folders of one name, such as a/model and b/model, share their output folder by default. A model
    that was moved is the same one.
    """
    for job in jobs:
        for manifest in (read_manifest(job.out, name) for name in NOTEBOOKS):
            before, model = manifest.get("parameters", {}).get("model"), job.parameters.model
            same = manifest.get("key", {}).get("model") == job.key["model"]
            if before not in (None, model) and not same:
                raise ValueError(
                    f"{shown(job.out)} holds figures of the model {before}, not of {model}: name "
                    "another folder with --out"
                )


def run(job: Job, limit: float, tick: Tick) -> Outcome:
    """Run one job's notebook and publish what it drew.

    Returns its outcome; a failure is an outcome, not an exception. ``limit`` is in seconds;
    ``tick(seconds, place)`` is called several times a second.
    """
    started = time.monotonic()
    staged = job.work / f"{job.notebook}-{os.getpid()}"
    try:
        failed = execute(job, staged, limit, tick)
        _publish(job, staged, time.monotonic() - started, failed)
        error = ""
    except (NotebookFailed, OSError) as failure:
        error = str(failure)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return Outcome(time.monotonic() - started, error)


@contextmanager
def alone(jobs: Sequence[Job]) -> Iterator[None]:
    """Hold the output folders' locks, and clear away what a killed run left in them.

    Raises ValueError where another run draws into one: it goes on, this one ends.
    """
    from filelock import FileLock, Timeout

    with ExitStack() as held:
        for work in sorted({job.work for job in jobs}):
            work.mkdir(parents=True, exist_ok=True)
            try:
                held.enter_context(FileLock(work / ".lock", timeout=0))
            except Timeout:
                raise ValueError(
                    f"another run is drawing these figures ({shown(work)}); wait until it has "
                    "ended, or name another folder with --out"
                ) from None
        for job in jobs:
            _clear(job)
        yield


def staleness(out: Path, notebook: str, key: dict[str, str], also: Sequence[str] = ()) -> str:
    """Why the figures of a notebook must be drawn; empty where they are fresh."""
    manifest = read_manifest(out, notebook)
    if not manifest:
        return "missing"
    if not (before := manifest.get("key")):
        return "drawn by hand"
    if changed := [name for name in key if before.get(name) != key[name]]:
        return f"{' and '.join(filter(None, [', '.join(changed[:-1]), changed[-1]]))} changed"
    needed = [name for name in written(manifest) if Path(name).suffix[1:] not in FORMATS]
    pictures = [Path(name).stem for name in needed if name.endswith(".png")]
    needed += [f"{name}.{kind}" for name in pictures for kind in also]
    lost = [name for name in needed if not (out / name).is_file()]
    return f"{lost[0]} missing" if lost else ""


def _reason(job: Job, also: Sequence[str], retry_failed: bool) -> str:
    stale = staleness(job.out, job.notebook, job.key, also)
    failed = job.failed if retry_failed and not stale else []
    return f"{counted(failed)} failed" if failed else stale


def _roles(prompt_files: Sequence[str]) -> set[str]:
    """Roles of the prompts given; empty for the lab's own, which has all, where none are."""
    if not prompt_files:
        return set()
    from nemo_kit.experiments import prompt_table

    return {"", *prompt_table(prompt_files)["role"]}


def _own_settings(notebooks: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """For each notebook, those of the settings that it knows; each must be known to one."""
    fields = {name: set(NOTEBOOKS[name].parameters.model_fields) for name in notebooks}
    if unknown := sorted(set(settings) - set().union(*fields.values())):
        raise ValueError(
            f"no notebook chosen has the parameter {unknown[0]!r}; they have "
            f"{', '.join(sorted(set().union(*fields.values()) - PLACES))}"
        )
    return {n: {k: v for k, v in settings.items() if k in fields[n]} for n in notebooks}


def _lacks(notebook: str, roles: set[str]) -> str:
    needed = NOTEBOOKS[notebook].role
    return f"needs prompts of the role {needed}" if roles and needed not in roles else ""


def _job(
    name: str, preset: str, out: Path, folder: Path, common: dict[str, Any], once: Once
) -> Job:
    source = folder / f"{name}.ipynb"
    if not source.is_file():
        raise FileNotFoundError(
            f"the notebook {name}.ipynb is not in {folder}; figures are drawn from the notebooks "
            "of a clone: run inside it, or name their folder with --notebooks"
        )
    places = {"out": str(out), "store": str(root() / "runs" / "store")}
    chosen = parameters(name, preset, **{**places, **common})
    if lost := sorted(set(type(chosen).model_fields) - set(notebook_parameters(source))):
        raise ValueError(f"the parameters cell of {shown(source)} does not name {', '.join(lost)}")
    key = content_key(source, chosen, once)
    return Job(name, preset, source, chosen, out, work_folder(out), key, reason="")


def _clear(job: Job) -> None:
    """Remove staged figures and half-written files of runs that were killed."""
    for path in job.work.glob(f"{job.notebook}-*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name in (job.notebook, *(row.name for row in job.figures)):
        for part in job.out.glob(f".{name}.*.tmp"):
            part.unlink()


def _publish(job: Job, staged: Path, seconds: float, failed: Sequence[str]) -> None:
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
    before, known = written(read_manifest(job.out, job.notebook)), job.known
    manifest_path(job.out, job.notebook).unlink(missing_ok=True)
    for path in sorted(staged.iterdir()):
        if path.name != manifest_path(staged, job.notebook).name:
            write_atomically(job.out / path.name, lambda part, path=path: shutil.copy(path, part))
    for name in set(before) - set(written(manifest)):
        (job.out / Path(name).name).unlink(missing_ok=True)
    took = round(seconds, 1)
    times = {"seconds": took, "slowest": max(took, known.get("slowest", 0))}
    without = {"failed_prompts": len(failed), "failed": list(failed)} if failed else {}
    full = {**manifest, "preset": job.preset, **times, "key": job.key, **without}
    write_json(manifest_path(job.out, job.notebook), full)
