"""The runner: draws what is missing or stale, one notebook after the other.

Scope: plan (what is fresh, and why the rest is not) and draw (each notebook in a process of its
own). Figures move into the output folder only when their notebook succeeded, the manifest last: a
run killed at any moment leaves the earlier ones or the new, and the next goes on from the store.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from nemo_kit.checks import check_choice
from nemo_kit.files import by_content, write_atomically, write_json
from nemo_kit.keys import value_digest, versions
from nemo_kit.models import hub
from nemo_kit.notebooks import PLACES, Figure, Notebook
from nemo_kit.progress import FAILED, WORK, Seconds, spoken
from nemo_kit.provenance import root

OPENED = {"model", "revision", "lora", "config"}  # they count as the model's digest
FORMATS = ("pdf", "svg")  # of a picture, on request beside PNG


@dataclass(frozen=True)
class Job:
    """One notebook to run, or to leave because its figures are fresh (``reason`` empty)."""

    name: str
    book: Notebook
    preset: str
    values: dict[str, Any]
    out: Path
    key: dict[str, str]
    reason: str
    lacks: str  # why it can't be drawn from these prompts at all; then it is left out
    told: dict[str, Any]  # to the kernel: further formats, whether failed prompts are tried again
    known: dict[str, Any]  # the manifest of an earlier run under this preset, or nothing

    @property
    def runs(self) -> bool:
        """Whether there is something to do."""
        return bool(self.reason) and not self.lacks

    @property
    def expected(self) -> float:
        """Seconds it should take: as before, else as the notebook says for two cores."""
        # the longest run where results must be computed again: the last may have found them
        known = self.known.get("seconds" if self.reason == "notebook changed" else "slowest")
        guess = self.book.about.get("seconds") or {"quick": 60}
        return known or guess.get(self.preset, 4 * max(guess.values()))


def read_manifest(out: Path, notebook: str) -> dict[str, Any]:
    """The manifest of a notebook in an output folder; empty where there is none to read."""
    with suppress(OSError, ValueError):
        return json.loads((out / f"{notebook}.manifest.json").read_text(encoding="utf-8"))
    return {}


def output_folder(preset: str, model: str = "lab", lora: str | None = None) -> Path:
    """Where figures go by default: ``figures/lab``, ``figures/lab-quick``, by model and preset."""
    names = [Path(model).name or "model", Path(lora or "").name.partition(".safetensors")[0]]
    text = "-".join(filter(None, [*names, preset if preset != "lab" else ""]))
    return root() / "figures" / "".join(c if c.isalnum() or c in "._-" else "-" for c in text)


# fmt: off
def plan(
    books: dict[str, Notebook], figures: Iterable[Figure], preset: str, out: Path, *,
    also: Sequence[str] = (), retry_failed: bool = False, settings: dict[str, str] | None = None,
    **common: Any,
) -> list[Job]:
    # fmt: on
    """Jobs for the notebooks that draw the figures, in order, each fresh or with a reason.

    ``common`` are parameters of every notebook (``model``, ``device``), ``settings``, as text,
    parameters of those that know them; ``retry_failed``, prompts that failed are tried again, and
    notebooks drawn without some of them run; ``also``, further formats of each picture: pdf, svg.
    Raises ValueError for a refused parameter, or where the folder holds another model's figures.
    """
    settings, out, jobs = settings or {}, out.resolve(), []
    chosen = {row.notebook: books[row.notebook] for row in figures}
    places = {"out": str(out), "store": str(root() / "runs" / "store")}
    known = {name for book in chosen.values() for name in book.kinds} - set(common) - set(places)
    for name in settings:
        check_choice("NAME of --set", name, sorted(known))
    model, lora = common.get("model", "lab"), common.get("lora")
    of_model = _model_digest(model, common.get("revision"), lora, common.get("config"))
    for old in (manifests := {name: read_manifest(out, name) for name in books}).values():
        drawn = old.get("parameters", {})
        before = (drawn.get("model", model), drawn.get("lora"))
        if drawn and before != (model, lora) and old.get("key", {}).get("model") != of_model:
            told = [" with ".join(filter(None, one)) for one in (before, (model, lora))]
            raise ValueError(f"{out} holds figures of the model {told[0]}, not of {told[1]}: name "
                             "another folder with --out")  # fmt: skip
    there = roles(common.get("prompt_files"))
    for name, book in chosen.items():
        given = {k: v for k, v in common.items() if k in book.kinds or v not in (None, [], "auto")}
        own = {k: v for k, v in settings.items() if k in book.kinds}
        values = book.values(preset, own, **given, **places)
        inputs = {k: v for k, v in values.items() if k not in PLACES | OPENED}
        inputs = {k: by_content(v, book.path.parent) for k, v in inputs.items()}
        key = {"notebook": book.digest, "parameters": value_digest(inputs), "model": of_model}
        key["versions"] = value_digest(versions())
        reason = staleness(out, manifests[name], key, also, retry_failed)
        role = book.about.get("role")
        lacks = f"needs prompts of the role {role}" if role and there and role not in there else ""
        told = {"also": list(also), "retry_failed": retry_failed}
        before = manifests[name] if manifests[name].get("preset") == preset else {}
        jobs.append(Job(name, book, preset, values, out, key, reason, lacks, told, before))
    return jobs


def staleness(
    out: Path, manifest: dict[str, Any], key: dict[str, str], also: Sequence[str], retry: bool
) -> str:
    """Why a notebook's figures must be drawn; empty where those of the manifest are fresh."""
    if not manifest.get("key"):
        return "drawn by hand" if manifest else "missing"
    if changed := [name for name in key if manifest["key"].get(name) != key[name]]:
        return f"{' and '.join(filter(None, [', '.join(changed[:-1]), changed[-1]]))} changed"
    needed = [name for name in _files(manifest) if Path(name).suffix[1:] not in FORMATS]
    needed += [f"{name[:-4]}.{kind}" for name in needed if name.endswith(".png") for kind in also]
    if lost := [name for name in needed if not (out / name).is_file()]:
        return f"{lost[0]} missing"
    return failures([manifest]) if retry else ""


def failures(manifests: Iterable[dict[str, Any]]) -> str:
    """How many prompts figures were drawn without, as "2 prompts failed"; empty where none."""
    count = len({prompt for manifest in manifests for prompt in manifest.get("failed", ())})
    return f"{count} prompt{'s' * (count > 1)} failed" if count else ""


def draw(jobs: Sequence[Job], limit: float, keep_going: bool, log: bool) -> dict[str, str]:
    """Run the jobs that are not fresh, and show how far they are.

    Returns what went wrong (or nothing) by notebook that ran. ``limit`` in seconds a notebook;
    ``keep_going`` after one that failed, else the rest is not begun; ``log``, lines, not a bar.
    Raises ValueError where another run draws into the folder: that one goes on, this one ends.
    """
    todo, outcomes, done = [job for job in jobs if job.runs], {}, 0.0
    shown = Seconds(log)

    def tick(job: Job, seconds: float, left: float, place: str) -> None:
        later = sum(other.expected for other in todo[len(outcomes) + 1 :])
        shown.at(job.name, done + seconds, left + later, place)

    (work := (out := jobs[0].out) / "executed").mkdir(parents=True, exist_ok=True)
    try:
        alone = FileLock(work / ".lock").acquire(timeout=0)
    except Timeout:
        raise ValueError(f"another run is drawing these figures ({out}); wait until it has ended, "
                         "or name another folder with --out") from None  # fmt: skip
    with shown.bar, alone:
        for part in out.glob(".*.tmp"):  # left by a killed run
            part.unlink()
        for job in todo:
            started = time.monotonic()
            shown.say(f"{job.name} ({job.reason}): about {spoken(job.expected)}")
            error = outcomes[job.name] = _run(job, limit, tick)
            done += (took := time.monotonic() - started)
            drawn = f"drew {' '.join(figure.name for figure in job.book.figures)} in {took:.0f} s"
            shown.say(f"{job.name} {f'failed after {took:.0f} s: {error}' if error else drawn}")
            if error and not keep_going:
                break
    return outcomes


def listing(
    figures: Iterable[Figure], jobs: Sequence[Job], outcomes: dict[str, str] | None = None
) -> str:
    """All figures with their states: after a run its outcomes, before it the time to expect."""
    rows, by_name = [("--only", "in the paper", "notebook", "state", "shows")], {}
    for job in jobs:
        state = f"left out: {job.lacks}" if job.lacks else job.reason or "up to date"
        if job.runs and outcomes is None:
            state += f", about {spoken(job.expected)}{'' if job.known else ' on two cores'}"
        elif job.runs:
            error = outcomes.get(job.name, "not begun")
            state = {"": "drawn", "not begun": error}.get(error, "failed, see above")
        by_name[job.name] = state
    for row in figures:
        rows.append((row.name, row.paper or "-", row.notebook, by_name[row.notebook], row.shows))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def announced(figures: Iterable[Figure], jobs: Sequence[Job]) -> list[str]:
    """What would run, in lines: figures that were not asked for, how many notebooks, how long."""
    asked, todo = {row.name for row in figures}, [job for job in jobs if job.runs]
    others = {job.name: [f.name for f in job.book.figures if f.name not in asked] for job in todo}
    lines = [f"{name} also writes {', '.join(more)}" for name, more in others.items() if more]
    seconds = sum(job.expected for job in todo)
    return [*lines, f"{len(todo)} of {len(jobs)} notebooks to run, about {spoken(seconds)}"]


def _run(job: Job, limit: float, tick: Callable[..., None]) -> str:
    """Run one job's notebook and publish what it drew; returns what went wrong, or nothing."""
    now, started = job.out / "executed" / "now", time.monotonic()
    executed = now.with_name(job.book.path.name)
    task = {"source": str(job.book.path), "executed": str(executed), "told": job.told,
            "parameters": job.values | {"out": str(now / "figures")}}  # fmt: skip
    shutil.rmtree(now, ignore_errors=True)
    try:
        (now / "figures").mkdir(parents=True)
        write_json(now / "job.json", task)
        error = _execute(job, now, executed.with_suffix(".log"), limit, tick)
        error = error or _publish(job, now, started)
        return error and f"{error} executed copy: {executed}"
    except OSError as error:
        return str(error)
    finally:
        shutil.rmtree(now, ignore_errors=True)


def _execute(job: Job, now: Path, log: Path, limit: float, tick: Callable[..., None]) -> str:
    """Run the notebook, which writes into ``now/figures``; what went wrong, or nothing."""
    command = [sys.executable, "-m", "nemo_kit.figures.worker", str(now)]
    pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.STDOUT, "start_new_session": True}
    started = time.monotonic()
    with log.open("wb") as told, subprocess.Popen(command, stdout=told, **pipes) as process:
        while process.poll() is None:  # leaving closes its input, which ends it with its kernel
            seconds, place, work = time.monotonic() - started, "start-up", {}
            with suppress(OSError, ValueError):
                place = f"cell {(now / 'cell').read_text()}"
                work = json.loads((now / WORK).read_text(encoding="utf-8"))
                place += f", {work['label']} {work['done']} of {work['total']}"
            if seconds > limit:
                return f"ran past its limit of {limit / 60:g} minutes, in {place};"
            tick(job, seconds, max(job.expected - seconds, work.get("left") or 0, 0), place)
            time.sleep(0.2)
    if (now / "result.txt").is_file():
        return (now / "result.txt").read_text(encoding="utf-8")
    last = " | ".join(log.read_text(errors="replace").splitlines()[-3:])
    return f"the process ended without a result: {last};"


def _publish(job: Job, now: Path, started: float) -> str:
    """Move the figures into the output folder; the manifest goes first and comes back last."""
    staged, path = now / "figures", job.out / f"{job.name}.manifest.json"
    manifest, old = read_manifest(staged, job.name), read_manifest(job.out, job.name)
    saved = manifest.get("files", {})
    if lost := [row.name for row in job.book.figures if row.name not in saved]:
        return f"came to its end but did not save {', '.join(lost)}, or wrote no manifest;"
    failed = (now / FAILED).read_text("utf-8").splitlines() if (now / FAILED).is_file() else []
    seconds = round(time.monotonic() - started, 1)
    told = {"seconds": seconds, "slowest": max(seconds, job.known.get("slowest", 0)),
            "parameters": {k: v for k, v in job.values.items() if k not in PLACES},
            "preset": job.preset, "key": job.key,
            "failed": sorted(set(map(json.loads, failed)))}  # fmt: skip
    job.out.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    for file in _files(manifest):
        write_atomically(job.out / file, lambda part, file=file: shutil.copy(staged / file, part))
    for file in set(_files(old)) - set(_files(manifest)):
        (job.out / Path(file).name).unlink(missing_ok=True)
    write_json(path, manifest | told)
    return ""


def _files(manifest: dict[str, Any]) -> list[str]:
    return [name for names in manifest.get("files", {}).values() for name in names]


def _model_digest(model: str, revision: str | None, lora: str | None, config: str | None) -> str:
    """What tells models apart: the files, a LoRA's bytes and scale, a checkpoint's settings."""
    digest = hub.digest(model, revision)
    if not (lora or config):
        return digest
    from nemo_kit.models.lora import Lora

    one = lora and Lora.of(lora)
    return value_digest([digest, one and [one.sha256, one.scale], config and hub.digest(config)])


def roles(prompt_files: Sequence[str] | None) -> set[str]:
    """Roles of the prompts given; empty for the lab's own, which has all, where none are."""
    from nemo_kit.prompts import prompt_table

    return {"", *prompt_table(prompt_files)["role"]} if prompt_files else set()
