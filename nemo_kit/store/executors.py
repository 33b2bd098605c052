"""Where units of work run: in this process, in worker processes, on any executor, on a cluster.

Scope: `finished` yields each unit once it is done, wherever that was. Only a few units a worker are
handed out at a time, so that ten million prompts take no more memory than ten. A worker process
that dies is replaced, and what it had in hand is done again; an item that kills its process twice
when it runs alone is recorded as failed. dask is imported only where it is used.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections import Counter, deque
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
from contextlib import contextmanager
from typing import Any

from nemo_kit.checks import check_whole
from nemo_kit.store.work import Unit

Finished = tuple[Unit, bool]  # the unit, and whether it was computed now or found done
_DEATHS = 2  # of a process that runs one item alone, until the item counts as failed
_AHEAD = 2  # units handed out for each worker: one in hand, one waiting
_CONNECT = "30s"
_IMPORT = "it must be importable from a module, and so must all that it holds"


def finished(
    units: Iterable[Unit], executor: object, workers: int
) -> Generator[Finished, None, None]:
    """Work on all units; yields each as it is done, in any order unless in this process.

    Parameters: `executor`, a `concurrent.futures.Executor`, a dask `Client`, the address of a dask
    scheduler ("tcp://…"), or None; `workers`, processes on this machine, 1 for this one.
    Raises ValueError or TypeError for another executor or both, OSError where a result can't be
    stored, RuntimeError where workers can't work at all.
    """
    check_whole("workers", workers, 1)
    if executor is not None and workers > 1:
        raise ValueError(f"workers must be 1 beside an executor, got {workers}")
    _check(executor)
    todo = deque(units)
    if not todo:
        return _here(todo)
    if executor is None:
        return _here(todo) if workers == 1 else _Crew(todo, workers).work()
    return _elsewhere(todo, executor)


def _check(executor: object) -> None:
    if executor is None or isinstance(executor, (Executor, str)) or _is_client(executor):
        return
    raise TypeError(
        "executor must be a concurrent.futures.Executor, a dask Client or the address of a dask "
        f"scheduler, got {executor!r:.60}"
    )


def _is_client(executor: object) -> bool:
    """Without importing dask where the caller hasn't."""
    module = type(executor).__module__.split(".")[0]
    return module == "distributed" and hasattr(executor, "get_executor")


def _here(units: Iterable[Unit]) -> Generator[Finished, None, None]:
    for unit in units:
        yield unit, unit()


def _elsewhere(todo: deque[Unit], executor: object) -> Generator[Finished, None, None]:
    with _as_executor(executor) as (pool, size):
        hand: dict[Future[bool], Unit] = {}
        try:
            yield from _stream(pool, todo, lambda: _AHEAD * size(), hand)
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


@contextmanager
def _as_executor(given: object) -> Iterator[tuple[Executor, Callable[[], int]]]:
    """An executor and how many workers it has now; what was given is never shut down."""
    if isinstance(given, Executor):
        count = getattr(given, "_max_workers", None) or os.cpu_count() or 1
        yield given, lambda: count
    elif isinstance(given, str):
        with _connect(given) as client:
            yield _of_client(client)
    else:
        yield _of_client(given)


def _of_client(client: Any) -> tuple[Executor, Callable[[], int]]:
    """Not pure: equal calls are no reason to share a result; two more tries where one raises."""
    pool = client.get_executor(pure=False, retries=2)
    return pool, lambda: sum(client.nthreads().values()) or 1


def _connect(address: str) -> Any:
    """A client of the scheduler at this address, or of the one whose scheduler file this is."""
    try:
        from distributed import Client
    except ModuleNotFoundError as error:
        raise ValueError(
            "executor: a scheduler needs dask; install it with pip install 'nemo_kit[cluster]'"
        ) from error
    if address.endswith(".json"):
        return Client(scheduler_file=address, timeout=_CONNECT)
    return Client(address, timeout=_CONNECT)


def _stream(
    pool: Executor, todo: deque[Unit], most: Callable[[], int], hand: dict[Future[bool], Unit]
) -> Iterator[Finished]:
    """Keep `most()` units handed out; `hand` holds them, also when this raises."""
    while todo or hand:
        for _ in range(min(most() - len(hand), len(todo))):
            hand[_submit(pool, todo[0])] = todo[0]
            todo.popleft()
        done, _ = wait(hand, return_when=FIRST_COMPLETED)
        for future in done:
            computed = _result(future, hand[future])
            yield hand.pop(future), computed


def _work(unit: Unit) -> bool:
    return unit()


def _submit(pool: Executor, unit: Unit) -> Future[bool]:
    with _sendable():
        return pool.submit(_work, unit)


def _result(future: Future[bool], unit: Unit) -> bool:
    """Whether the unit was computed; what a cluster gave up on is recorded as failed."""
    try:
        with _sendable():
            return future.result()
    except Exception as error:
        if type(error).__name__ != "KilledWorker":
            raise
        unit.fail(f"WorkerDied: {' '.join(str(error).split())[:300]}")
        return True


@contextmanager
def _sendable() -> Iterator[None]:
    try:
        yield
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TypeError(f"function can't be sent to another process: {error}; {_IMPORT}") from error


def _check_importable(function: Any) -> None:
    """A worker process can't import what was typed into a notebook or a prompt."""
    module = getattr(function, "__module__", None) or type(function).__module__
    if module == "__main__" and not hasattr(sys.modules["__main__"], "__file__"):
        raise TypeError(f"function {function!r:.60} is of this session alone; {_IMPORT}")


class _Crew:
    """Worker processes on this machine, replaced when one dies."""

    def __init__(self, todo: deque[Unit], workers: int) -> None:
        _check_importable(todo[0].function)
        self.todo, self.workers = todo, workers
        self.suspects: deque[Unit] = deque()  # were in hand when a process died
        self.deaths: Counter[Any] = Counter()
        self.hand: dict[Future[bool], Unit] = {}

    def work(self) -> Generator[Finished, None, None]:
        """Each unit once it is done."""
        while self.todo or self.suspects or self.hand:
            try:
                with _processes(self.workers) as pool:
                    # one by one, so that it shows which of them kills its process
                    yield from _stream(pool, self.suspects, lambda: 1, self.hand)
                    yield from _stream(pool, self.todo, lambda: _AHEAD * self.workers, self.hand)
            except BrokenProcessPool:
                yield from self._suspect()

    def _suspect(self) -> Iterator[Finished]:
        """Sort out what was in hand when a process died."""
        units, self.hand = list(self.hand.values()), {}
        if len(units) > 1:
            self.suspects.extend(units)
            return
        for unit in units:
            self.deaths[unit.path] += 1
            if self.deaths[unit.path] < _DEATHS:
                self.suspects.append(unit)
                continue
            unit.fail(f"WorkerDied: its process was killed {_DEATHS} times (out of memory?)")
            yield unit, True


@contextmanager
def _processes(workers: int) -> Iterator[Executor]:
    """A pool of fresh processes (nothing of CUDA may be inherited), checked to be at work."""
    threads = max(1, (os.cpu_count() or 1) // workers)
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(threads,)
    )
    try:
        _check_started(pool)
        yield pool
    except BrokenProcessPool:  # which ends the others itself
        raise
    except BaseException:
        _kill(pool)
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _check_started(pool: Executor) -> None:
    try:
        pool.submit(os.getpid).result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            "worker processes can't start; does the script that starts them have its main part "
            'under `if __name__ == "__main__":`?'
        ) from error


def _kill(pool: ProcessPoolExecutor) -> None:
    """End its processes in the middle of their items: no shard is ever half written.

    They ignore Ctrl-C, and each would else finish what it has in hand and what it was handed next.
    """
    for process in list((pool._processes or {}).values()):
        process.kill()


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
