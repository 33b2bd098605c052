"""What the runner shows: one progress bar over all notebooks, and the table at the end.

Scope: text on a terminal or in a log. The bar counts expected seconds, which come from the earlier
manifests, so that its time left is one of the whole run and not of a cell.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from tqdm import tqdm

from nemo_kit.figures.registry import Figure
from nemo_kit.figures.runner import Job, Outcome, read_manifest, run, shown


def draw(jobs: Sequence[Job], limit: float) -> dict[str, Outcome]:
    """Run the jobs that are not fresh under one progress bar.

    Returns the outcome of each notebook that ran, by name. ``limit`` in seconds a notebook.
    """
    todo = [job for job in jobs if job.reason]
    expected = {job.notebook: job.expected for job in todo}
    total = sum(expected.values())
    outcomes: dict[str, Outcome] = {}
    form = "{desc} {percentage:3.0f}%|{bar}| {elapsed}{postfix}"
    pace = 0.2 if sys.stderr.isatty() else 20.0
    with tqdm(total=total, bar_format=form, mininterval=pace, dynamic_ncols=True) as bar:
        done = 0.0
        for job in todo:
            bar.set_description_str(_names(job.figures), refresh=False)
            outcomes[job.notebook] = run(job, limit, _ticker(bar, done, expected[job.notebook]))
            done += expected[job.notebook]
            _set(bar, done, "")
            bar.write(_ending(job, outcomes[job.notebook]), file=sys.stderr)
    return outcomes


def announce(jobs: Sequence[Job]) -> str:
    """What will be drawn and why, and what is up to date: one line a notebook."""
    return "\n".join(
        f"{job.notebook:<18} {_names(job.figures)}: {job.reason or 'up to date'}" for job in jobs
    )


def table(figures: Sequence[Figure], jobs: Sequence[Job], outcomes: dict[str, Outcome]) -> str:
    """The final table as text: figure, notebook, seconds, file."""
    by_name = {job.notebook: job for job in jobs}
    rows = [("figure", "notebook", "seconds", "file")]
    rows += [_row(figure, by_name[figure.notebook], outcomes) for figure in figures]
    width = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        f"{a:<{width[0]}}  {b:<{width[1]}}  {c:>{width[2]}}  {d}" for a, b, c, d in rows
    )


def _ending(job: Job, outcome: Outcome) -> str:
    if outcome.error:
        return f"{job.notebook} failed after {outcome.seconds:.0f} s: {outcome.error}"
    return f"{job.notebook} drew {_names(job.figures)} in {outcome.seconds:.0f} s"


def _row(figure: Figure, job: Job, outcomes: dict[str, Outcome]) -> tuple[str, str, str, str]:
    outcome = outcomes.get(job.notebook)
    if outcome and outcome.error:
        return figure.name, job.notebook, f"{outcome.seconds:.0f}", "failed, see above"
    seconds = outcome.seconds if outcome else read_manifest(job.out, job.notebook).get("seconds", 0)
    state = "" if outcome else "  (up to date)"
    return figure.name, job.notebook, f"{seconds:.0f}", shown(job.out / figure.files[0]) + state


def _ticker(bar: tqdm, done: float, expected: float) -> Callable[[float, str], None]:
    def tick(seconds: float, cell: str) -> None:
        _set(bar, done + min(seconds, 0.99 * expected), cell)

    return tick


def _set(bar: tqdm, value: float, cell: str) -> None:
    left = max(bar.total - value, 0)
    bar.set_postfix_str(f"about {_clock(left)} left{cell and f', {cell}'}", refresh=False)
    bar.update(value - bar.n)


def _names(figures: Sequence[Figure]) -> str:
    return " ".join(figure.name for figure in figures)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
