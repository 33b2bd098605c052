"""One background thread for what calls the model: one job at a time, the last request wins.

Scope: running, cancelling and waiting. What a job leads to is told on its thread.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

Tick = Callable[[str, int, int | None], None]
_EVERY = 0.1  # seconds between two reports of progress of one stage, and two looks at the turn
_TURN = threading.Lock()  # explorers may share a model, whose hooks serve one job at a time


class Cancelled(Exception):
    """Raised inside a job at its next report of progress, once it is not wanted any more."""


class Worker:
    """Runs jobs in a thread of its own, and in turn with other workers.

    A new job takes the place of one that waits, and the running one is told to stop.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="explorer")
        self._stop = threading.Event()
        self._last: Future[None] | None = None

    def submit(
        self,
        work: Callable[[Tick], Any],
        ended: Callable[[Any, Exception | None], None],
        progress: Tick = lambda stage, done, total: None,
    ) -> None:
        """Run this job as soon as the running one has stopped.

        Parameters: `work`, gets a function (stage, done, total or None) to report to, which raises
        `Cancelled` where the job is not wanted any more; `ended`, called once with the result or
        the error; `progress`, called now and then.
        Raises RuntimeError once closed.
        """
        self.cancel()
        self._stop = stop = threading.Event()
        try:
            self._last = self._pool.submit(_run, work, ended, progress, stop)
        except RuntimeError as error:
            raise RuntimeError("the explorer is closed; call explore(model) again") from error

    def cancel(self) -> None:
        """Drop the waiting job, and stop the running one at its next report of progress."""
        self._stop.set()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until nothing runs or waits; whether that came about in time."""
        end = None if seconds is None else time.monotonic() + seconds
        while (last := self._last) is not None and not last.done():
            try:
                last.result(None if end is None else max(0.0, end - time.monotonic()))
            except TimeoutError:
                return False
        return True

    def close(self) -> None:
        """Stop for good; safe to call twice."""
        self.cancel()
        self._pool.shutdown(wait=False)


def _run(
    work: Callable[[Tick], Any],
    ended: Callable[[Any, Exception | None], None],
    progress: Tick,
    stop: threading.Event,
) -> None:
    try:
        while not _TURN.acquire(timeout=_EVERY):
            if stop.is_set():
                raise Cancelled
        try:
            result = work(_ticker(progress, stop))
        finally:
            _TURN.release()
        if stop.is_set():
            raise Cancelled  # computed, but a newer request came
    except Exception as error:  # told where the user looks, whatever it is
        ended(None, error)
    else:
        ended(result, None)


def _ticker(progress: Tick, stop: threading.Event) -> Tick:
    """Reports progress now and then, the first and last of a stage always."""
    last = ("", 0.0)

    def tick(stage: str, done: int, total: int | None) -> None:
        nonlocal last
        if stop.is_set():
            raise Cancelled
        now = time.monotonic()
        if stage != last[0] or done == total or now - last[1] >= _EVERY:
            last = (stage, now)
            progress(stage, done, total)

    return tick
