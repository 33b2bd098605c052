"""What the runner says: bars or plain lines while it draws, lists before, a table at the end.

Scope: text on a terminal or in a log. One bar is for the whole run and counts expected seconds,
which come from earlier manifests; one is for the notebook's own work over prompts. Where nobody
looks (``--log``, or no terminal) the same numbers come as lines with the time of day.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from tqdm import tqdm

from nemo_kit.figures.jobs import Job, Outcome, Place, counted, read_manifest, shown
from nemo_kit.figures.registry import Figure
from nemo_kit.figures.runner import run

EVERY = 30.0  # seconds between two lines of a log


class Show(Protocol):
    """How a run is shown while it goes on."""

    def at(self, job: Job, place: Place, done: float, left: float) -> None:
        """A notebook is at this place; seconds of the run done and left."""

    def say(self, text: str) -> None:
        """Something that stays: a notebook that began, or ended."""

    def close(self) -> None:
        """The run has ended."""


class Bars:
    """Two bars on a terminal: the run, and below it the work of the notebook."""

    def __init__(self) -> None:
        form = "{desc} {percentage:3.0f}%|{bar}| {elapsed}{postfix}"
        self.run = tqdm(total=1, bar_format=form, dynamic_ncols=True, position=0)
        form = "  {desc} {n:.0f}/{total:.0f}|{bar}|{postfix}"
        self.work = tqdm(total=1, bar_format=form, dynamic_ncols=True, position=1, leave=False)

    def at(self, job: Job, place: Place, done: float, left: float) -> None:
        """Move both bars; the lower one counts cells where the notebook reports no work."""
        self.run.set_description_str(job.notebook, refresh=False)
        self.run.set_postfix_str(f"about {clock(left)} left", refresh=False)
        _move(self.run, done, max(done + left, 1e-9))
        own = bool(place.label)
        time_left = "" if place.left is None else f"about {clock(place.left)} left"
        self.work.set_description_str(place.label if own else "cell", refresh=False)
        self.work.set_postfix_str(time_left, refresh=False)
        _move(self.work, *((place.done, place.total) if own else (place.cell, place.cells)))

    def say(self, text: str) -> None:
        """Print above the bars."""
        self.run.write(text, file=sys.stderr)

    def close(self) -> None:
        """Leave the upper bar as it ended."""
        self.work.close()
        self.run.close()


class Lines:
    """Plain lines for the log of a batch system: at each beginning and end, and now and then."""

    def __init__(self, every: float = EVERY) -> None:
        self.every, self.last = every, -every

    def at(self, job: Job, place: Place, done: float, left: float) -> None:
        """A line, if the last one is long enough ago."""
        if time.monotonic() - self.last < self.every:
            return
        work = "" if place.left is None else f" about {clock(place.left)} left of this,"
        self.say(f"{job.notebook}: {place},{work} about {clock(left)} left in all")
        self.last = time.monotonic()

    def say(self, text: str) -> None:
        """A line with date and time of day."""
        stamp = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        print(f"{stamp}  {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing is left open."""


def draw(
    jobs: Sequence[Job], limit: float, *, keep_going: bool = False, log: bool | None = None
) -> dict[str, Outcome]:
    """Run the jobs that are not fresh, and show how far they are.

    Returns the outcome of each notebook that ran, by name. ``limit`` in seconds a notebook;
    ``keep_going`` after one that failed, else the rest is not begun; ``log``, lines instead of
    bars, by default where standard error is no terminal.
    """
    todo = [job for job in jobs if job.runs]
    outcomes: dict[str, Outcome] = {}
    show: Show = Lines() if (log is None and not sys.stderr.isatty()) or log else Bars()
    done = 0.0
    try:
        for number, job in enumerate(todo):
            rest = sum(later.expected for later in todo[number + 1 :])
            outcomes[job.notebook] = _run(job, limit, show, done, rest)
            done += outcomes[job.notebook].seconds
            show.say(_ending(job, outcomes[job.notebook]))
            if outcomes[job.notebook].error and not keep_going:
                break
    finally:
        show.close()
    return outcomes


def _run(job: Job, limit: float, show: Show, done: float, rest: float) -> Outcome:
    expected = job.expected
    show.say(f"{job.notebook} ({job.reason}): about {clock(expected)}")

    def tick(seconds: float, place: Place) -> None:
        left = max(expected - seconds, place.left or 0.0, 0.0)
        show.at(job, place, done + seconds, left + rest)

    return run(job, limit, tick)


def dry(jobs: Sequence[Job]) -> str:
    """What would run, why, and the seconds to expect; a ~ where no earlier run tells them."""
    todo = [job for job in jobs if job.runs]
    lines = [
        f"{job.notebook:<22} {'' if job.known else '~'}{clock(job.expected):>8}  {job.reason}"
        f"  ({_names(job.figures)})"
        for job in todo
    ]
    lines += [f"{job.notebook:<22} left out: it {job.lacks}" for job in jobs if job.lacks]
    total, fresh = sum(job.expected for job in todo), sum(not job.reason for job in jobs)
    count = f"{len(todo)} notebook{'s' * (len(todo) != 1)} would run"
    end = f"{count}, about {clock(total)}; {fresh} up to date"
    guessed = [job for job in todo if not job.known]
    note = "\n~ not run here before: a guess for the model lab on two cores" if guessed else ""
    return "\n".join([*lines, end + note])


def listing(figures: Sequence[Figure], jobs: Sequence[Job]) -> str:
    """All figures: name, number in the paper, notebook, state, and what it shows."""
    by_name = {job.notebook: job for job in jobs}
    rows = [("--only", "in the paper", "notebook", "state", "shows")]
    rows += [
        (row.name, row.paper or "-", row.notebook, _state(by_name[row.notebook]), row.shows)
        for row in figures
    ]
    return _columns(rows)


def announce(jobs: Sequence[Job]) -> str:
    """What will be drawn and why, and what is up to date: one line a notebook."""
    return "\n".join(f"{job.notebook:<18} {_names(job.figures)}: {_state(job)}" for job in jobs)


def table(figures: Sequence[Figure], jobs: Sequence[Job], outcomes: dict[str, Outcome]) -> str:
    """The final table as text: figure, notebook, seconds, file."""
    by_name = {job.notebook: job for job in jobs}
    rows = [("figure", "notebook", "seconds", "file")]
    rows += [_row(figure, by_name[figure.notebook], outcomes) for figure in figures]
    return _columns(rows, right=2)


def failures(jobs: Sequence[Job]) -> str:
    """How many prompts the figures that lie there were drawn without; empty where none failed."""
    failed = list(dict.fromkeys(prompt for job in jobs for prompt in job.failed))
    if not failed:
        return ""
    again = "tries it again" if len(failed) == 1 else "tries them again"
    return f"{counted(failed)} failed; nemo-kit figures --retry-failed {again}"


def clock(seconds: float) -> str:
    """Seconds as minutes and seconds, with hours where there are any."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _columns(rows: Sequence[tuple[str, ...]], right: int = -1) -> str:
    """Rows as aligned text; column ``right`` to the right, the last one as long as it is."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]) - 1)]
    return "\n".join(
        "  ".join(
            [f"{cell:{'>' if place == right else '<'}{width}}"
             for place, (cell, width) in enumerate(zip(row, widths, strict=False))] + [row[-1]]
        )
        for row in rows
    )  # fmt: skip


def _state(job: Job) -> str:
    return f"left out: {job.lacks}" if job.lacks else job.reason or "up to date"


def _ending(job: Job, outcome: Outcome) -> str:
    if outcome.error:
        return f"{job.notebook} failed after {outcome.seconds:.0f} s: {outcome.error}"
    return f"{job.notebook} drew {_names(job.figures)} in {outcome.seconds:.0f} s"


def _row(figure: Figure, job: Job, outcomes: dict[str, Outcome]) -> tuple[str, str, str, str]:
    outcome = outcomes.get(job.notebook)
    if outcome and outcome.error:
        return figure.name, job.notebook, f"{outcome.seconds:.0f}", "failed, see above"
    if not outcome and (job.runs or job.lacks):
        return figure.name, job.notebook, "-", "not drawn" + (f": {job.lacks}" if job.lacks else "")
    seconds = outcome.seconds if outcome else read_manifest(job.out, job.notebook).get("seconds", 0)
    state = "" if outcome else "  (up to date)"
    state += f"  ({counted(job.failed)} failed)" if job.failed else ""
    return figure.name, job.notebook, f"{seconds:.0f}", shown(job.out / figure.files[0]) + state


def _move(bar: tqdm, value: float, total: float | None) -> None:
    bar.total = max(total or 1, value)
    bar.n = value
    bar.refresh()


def _names(figures: Sequence[Figure]) -> str:
    return " ".join(figure.name for figure in figures)
