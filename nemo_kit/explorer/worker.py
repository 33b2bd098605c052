"""One background thread for what calls the model: one job at a time, the last request wins.

Scope: jobs, cancelling, and handing results over to the thread that owns the widgets.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Deliver = Callable[[Callable[[], None]], None]
Tick = Callable[[str, int, int | None], None]
_EVERY = 0.1  # seconds between two reports of progress of one stage, and two looks at the turn
_TURN = threading.Lock()  # explorers may share a model, whose hooks serve one job at a time


class Cancelled(Exception):
    """Raised inside a job at its next report of progress, once it is not wanted any more."""


@dataclass
class Job:
    """Work to do, and whom to tell: exactly one of `done`, `failed`, `dropped` is called.

    `work` gets a function (stage, done, total or None) to report progress to, which raises
    `Cancelled` where the job is not wanted any more.
    """

    name: str
    work: Callable[[Tick], Any]
    done: Callable[[Any], None]
    failed: Callable[[Exception], None]
    dropped: Callable[[], None] = lambda: None
    progress: Callable[[str, int, int | None], None] = lambda stage, done, total: None
    unwanted: threading.Event = field(default_factory=threading.Event)


class Worker:
    """Runs jobs in a thread of its own, and in turn with other workers.

    Parameters: `deliver`, calls a function on the thread that owns the widgets; by default it is
    called at once, on the worker's thread.
    A new job takes the place of one that waits, and the running one is told to stop.
    """

    def __init__(self, deliver: Deliver | None = None) -> None:
        self._deliver = deliver or (lambda call: call())
        self._change = threading.Condition()
        self._next: Job | None = None
        self._running: Job | None = None
        self._closed = False
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether a job runs or waits."""
        with self._change:
            return self._running is not None or self._next is not None

    def submit(self, job: Job) -> None:
        """Run this job as soon as the running one has stopped.

        Raises RuntimeError once closed.
        """
        with self._change:
            if self._closed:
                raise RuntimeError("the explorer is closed; call explore(model) again")
            waiting = self._replace(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name="explorer", daemon=True)
                self._thread.start()
        if waiting:
            self._deliver(waiting.dropped)

    def cancel(self) -> None:
        """Drop the waiting job, and stop the running one at its next report of progress."""
        with self._change:
            waiting = self._replace(None)
        if waiting:
            self._deliver(waiting.dropped)

    def _replace(self, job: Job | None) -> Job | None:
        """Put the job into the waiting place; returns the one that waited there."""
        waiting, self._next = self._next, job
        for old in (waiting, self._running):
            if old is not None:
                old.unwanted.set()
        self._change.notify_all()
        return waiting

    def wait(self, seconds: float) -> bool:
        """Wait until nothing runs or waits; whether that came about in time."""
        with self._change:
            return self._change.wait_for(
                lambda: self._running is None and self._next is None, timeout=seconds
            )

    def close(self) -> None:
        """Stop for good; safe to call twice."""
        self.cancel()
        with self._change:
            self._closed = True
            self._change.notify_all()

    def _loop(self) -> None:
        while (job := self._take()) is not None:
            self._run(job)
            with self._change:
                self._running = None
                self._change.notify_all()

    def _take(self) -> Job | None:
        with self._change:
            self._change.wait_for(lambda: self._closed or self._next is not None)
            self._running, self._next = self._next, None
            return self._running

    def _run(self, job: Job) -> None:
        try:
            while not _TURN.acquire(timeout=_EVERY):
                if job.unwanted.is_set():
                    raise Cancelled(job.name)
            try:
                result = job.work(self._ticker(job))
            finally:
                _TURN.release()
        except Cancelled:
            self._deliver(job.dropped)
        except Exception as error:  # told where the user looks, whatever it is
            caught = error
            self._deliver(lambda: _unless(job, lambda: job.failed(caught)))
        else:
            self._deliver(lambda: _unless(job, lambda: job.done(result)))

    def _ticker(self, job: Job) -> Tick:
        """Reports progress now and then, the first and last of a stage always."""
        last = ("", 0.0)

        def tick(stage: str, done: int, total: int | None) -> None:
            nonlocal last
            if job.unwanted.is_set():
                raise Cancelled(job.name)
            now = time.monotonic()
            if stage == last[0] and done != total and now - last[1] < _EVERY:
                return
            last = (stage, now)
            self._deliver(
                lambda: _unless(job, lambda: job.progress(stage, done, total), quiet=True)
            )

        return tick


def _unless(job: Job, call: Callable[[], None], quiet: bool = False) -> None:
    """Call, unless the job became unwanted in between: then it counts as dropped."""
    if not job.unwanted.is_set():
        call()
    elif not quiet:
        job.dropped()
