"""Where items are worked on: in this process, in worker processes, on any executor, on a cluster.

Scope: `finished` yields what each item gave once it is done, wherever that was. Only a few items a
worker are handed out at a time, so that ten million prompts take no more memory than ten. A worker
process that dies is replaced, and what it had in hand is done again; an item that kills its process
twice is recorded as failed. dask is imported only where it is used.
"""

import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext, suppress
from itertools import chain, islice
from typing import Any

import psutil

from nemo_kit.checks import MachineError, check_whole
from nemo_kit.store.shards import Result, Rows, stored

Work = Callable[[Any], Rows]
Task = tuple[str, Any]  # digest of an item, item
Done = Generator[tuple[str, Result], None, None]
_DEATHS = 2  # of a process that has one item in hand, until the item counts as failed
_LENT = 256  # items handed out to an executor, which doesn't tell how many workers it has
_CONNECT = "30s"
_IMPORT = "it must be importable from a module, and so must all that it holds"


def finished(function: Work, todo: Iterable[Task], executor: object, workers: int) -> Done:
    """Work on all items; yields what each gave, in any order unless in this process.

    Parameters: `executor`, a `concurrent.futures.Executor`, a dask `Client`, the address of a dask
    scheduler ("tcp://…"), or None; `workers`, processes on this machine, 1 for this one.
    Raises ValueError or TypeError for another executor or both, RuntimeError where workers can't
    work at all, MachineError where one can't do any item.
    """
    check_whole("workers", workers, 1)
    if executor is not None and workers > 1:
        raise ValueError(f"workers must be 1 beside an executor, got {workers}")
    dask = type(executor).__module__.split(".")[0] == "distributed"  # without importing it
    client = dask and hasattr(executor, "get_executor")
    if not (executor is None or client or isinstance(executor, (Executor, str))):
        raise TypeError(
            "executor must be a concurrent.futures.Executor, a dask Client or the address of a "
            f"dask scheduler, got {executor!r:.60}"
        )
    if executor is not None:
        return _elsewhere(function, iter(todo), executor)
    if workers > 1:
        return _in_crew(function, iter(todo), workers)
    return ((digest, attempt(function, item)) for digest, item in todo)


def attempt(function: Work, item: Any) -> Result:
    """What an item gives; an error of the function is a result like any other."""
    try:
        rows = function(item)
    except MachineError:
        raise
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return stored(rows)


def _elsewhere(function: Work, todo: Iterator[Task], executor: object) -> Done:
    if (first := next(todo, None)) is None:
        return
    todo, hand = chain([first], todo), dict[Future[Result], str]()
    with _as_executor(executor) as (pool, size):
        try:
            while True:
                for digest, item in islice(todo, max(0, size() - len(hand))):
                    hand[_submit(pool, function, item)] = digest
                if not hand:
                    return
                for future in _ended(hand):
                    yield hand.pop(future), _result(future)
        except CancelledError as error:
            raise RuntimeError(
                "the cluster gave the work up (is its scheduler gone?); results until then are kept"
            ) from error
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a worker process of the executor died, which ends the executor; results until "
                "then are kept. With workers=N processes are replaced when they die"
            ) from error
        finally:
            for future in hand:
                future.cancel()


def _ended(hand: Iterable[Future[Result]]) -> list[Future[Result]]:
    """Those that have ended, as soon as one has; results before errors, which may end the run."""
    done = wait(hand, return_when=FIRST_COMPLETED).done
    return sorted(done, key=lambda future: future.cancelled() or future.exception() is not None)


@contextmanager
def _as_executor(given: object) -> Iterator[tuple[Executor, Callable[[], int]]]:
    """An executor and how many items to hand out; what was given is never shut down."""
    if isinstance(given, Executor):
        yield given, lambda: _LENT
        return
    with _connect(given) if isinstance(given, str) else nullcontext(given) as client:
        # not pure: equal calls are no reason to share a result; two more tries where one raises
        pool = client.get_executor(pure=False, retries=2)
        yield pool, lambda: 2 * (sum(client.nthreads().values()) or 1)  # one in hand, one waiting


def _connect(address: str) -> Any:
    """A client of the scheduler at this address, or of the one whose scheduler file this is."""
    try:
        from distributed import Client
    except ModuleNotFoundError as error:
        raise ValueError(
            "executor: a scheduler needs dask; install it with pip install 'nemo_kit[cluster]'"
        ) from error
    named = "scheduler_file" if address.endswith(".json") else "address"
    return Client(**{named: address}, timeout=_CONNECT)


def _submit(pool: Executor, function: Work, item: Any) -> Future[Result]:
    with _sendable():
        return pool.submit(attempt, function, item)


def _result(future: Future[Result]) -> Result:
    """What an item gave; one that a cluster gave up on has failed."""
    try:
        with _sendable():
            return future.result()
    except Exception as error:
        if type(error).__name__ != "KilledWorker":
            raise
        return f"WorkerDied: {' '.join(str(error).split())[:300]}"


@contextmanager
def _sendable() -> Iterator[None]:
    try:
        yield
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TypeError(f"function can't be sent to another process: {error}; {_IMPORT}") from error


def _in_crew(function: Work, todo: Iterator[Task], workers: int) -> Done:
    """In processes of this machine, each with one item in hand and replaced when it dies."""
    module = getattr(function, "__module__", None) or type(function).__module__
    if module == "__main__" and not hasattr(sys.modules["__main__"], "__file__"):
        raise TypeError(f"function {function!r:.60} is of this session alone; {_IMPORT}")
    free: list[_Process] = []
    hand: dict[Future[Result], tuple[_Process, Task]] = {}
    again: list[Task] = []
    deaths: Counter[str] = Counter()
    try:
        while True:
            while len(hand) < workers and (task := again.pop() if again else next(todo, None)):
                process = free.pop() if free else _Process(function, workers)
                hand[process.submit(task[1])] = process, task
            if not hand:
                return
            for future in _ended(hand):
                process, (digest, item) = hand.pop(future)
                free.append(process)
                try:
                    result = _result(future)
                except BrokenProcessPool:
                    process.replace()
                    deaths[digest] += 1
                    if deaths[digest] < _DEATHS:
                        again.append((digest, item))
                        continue
                    result = f"WorkerDied: its process was killed {_DEATHS} times (out of memory?)"
                yield digest, result
    finally:
        for process in [*free, *(process for process, _ in hand.values())]:
            process.end()


class _Process:
    """A fresh process (nothing of CUDA may be inherited), whose death tells by which item."""

    def __init__(self, function: Work, workers: int) -> None:
        self._function, self._threads = function, max(1, (os.cpu_count() or 1) // workers)
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, context, initializer=_begin, initargs=(self._threads,))
        self._pid = self._pool.submit(os.getpid)

    def submit(self, item: Any) -> Future[Result]:
        """Hand it an item."""
        try:
            return _submit(self._pool, self._function, item)
        except BrokenProcessPool:  # it died without one
            self.replace()
            return _submit(self._pool, self._function, item)

    def replace(self) -> None:
        """Start another, as it died; raises RuntimeError where it could not even start."""
        if isinstance(self._pid.exception(), BrokenProcessPool):
            raise RuntimeError(
                "worker processes can't start; does the script that starts them have its main part "
                'under `if __name__ == "__main__":`?'
            )
        self._pool.shutdown()
        self._start()

    def end(self) -> None:
        """End it in the middle of its item, if it has one: what is written it doesn't touch."""
        with suppress(BrokenProcessPool, psutil.NoSuchProcess):
            psutil.Process(self._pid.result()).kill()
        self._pool.shutdown(cancel_futures=True)


def _begin(threads: int) -> None:
    """In a new worker: leave Ctrl-C to the runner, end with it, share the cores."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Without it a worker whose runner was killed would hold its GPU for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
