"""`run`: a function over items into a store, resumable, anywhere.

Scope: finds what the store holds, has the rest worked on, gathers all rows. A run that was killed
goes on where it stopped; an item that fails is recorded with its error and does not stop the rest;
runs that share a store share the work.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout

from nemo_kit.keys import is_own
from nemo_kit.progress import Bar, followed, note_failed
from nemo_kit.store.executors import finished
from nemo_kit.store.store import Rows, Shard, read_shard, read_written, shard_paths
from nemo_kit.store.work import Unit, title

_TOGETHER = 1000  # frames that are joined into one


@dataclass(frozen=True)
class Sweep:
    """What a run over items gave.

    ``frame``: rows of all items that succeeded, in the order of the items; ``failed``: item and
    error of the others; ``computed`` and ``reused``: how many items were worked on in this run, and
    how many were found done, before or by another run on the same store meanwhile.
    """

    frame: pd.DataFrame
    failed: pd.DataFrame
    computed: int
    reused: int


def run(
    function: Callable[[Any], Rows],
    items: Iterable[Any],
    store: str | Path,
    key: Mapping[str, Any],
    *,
    name: str,
    executor: object = None,
    workers: int = 1,
    retry_failed: bool = False,
    progress: bool = True,
    version: Any = None,
) -> Sweep:
    """Call ``function(item)`` for each item that the store doesn't hold, and gather all rows.

    Returns a ``Sweep``; an item given twice is computed and listed once. ``function`` returns a
    row, a list of rows or a frame. ``key`` holds all that its results depend on besides the item
    (seeds, settings, model) and the function itself, which counts with its source, or by
    ``version`` where that can't be had; ``name`` is the folder in the store and part of the key. A
    recorded failure is tried again only with ``retry_failed``.
    ``executor``: any ``concurrent.futures.Executor``, a dask ``Client`` or the address of a dask
    scheduler; ``workers``: processes on this machine, 1 for this one. Away from this process,
    ``function`` must be importable and the store in a folder that all workers share.
    Raises RuntimeError when every item failed or workers can't work, OSError when a shard can't be
    written, TypeError for a function that can't be sent, or whose source can't be had; what was
    computed until then stays.
    """
    folder, retry_failed = Path(store), retry_failed or followed.retry_failed
    whole = {**key, "function": function} if is_own(function) else key
    paths = shard_paths(items, folder, name, whole, version)
    gathered = _Gathered(paths)
    todo = []
    for path in paths:
        shard = read_shard(path)
        if shard is None or (retry_failed and shard.error):
            todo.append(path)
        else:
            gathered.add(path, shard)
    units = [Unit(name, function, paths[path], path, retry_failed) for path in todo]
    computed = 0
    with (
        _turn(folder / name, units) as ordered,
        closing(finished(ordered, executor, workers)) as done,
    ):
        label = f"{name}, {len(paths) - len(todo)} found" if len(todo) < len(paths) else name
        hidden = not (progress and todo)
        bar = Bar(done, desc=label, unit="prompt", total=len(todo), disable=hidden)
        for unit, now in bar:
            gathered.add(unit.path, read_written(unit.path))
            computed += now
    return gathered.sweep(computed)


@contextmanager
def _turn(folder: Path, units: list[Unit]) -> Iterator[list[Unit]]:
    """The units, backwards where another run is at work on this folder: they meet half way."""
    if not units:
        yield units
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".first.lock")
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError, NotImplementedError):  # taken, or a file system without locks
        yield units[::-1]
        return
    try:
        yield units
    finally:
        lock.release()


class _Gathered:
    """Rows and errors of the items, as they come; frames are joined as they pile up.

    A frame of one row takes twenty times the memory of its row in a frame of many.
    """

    def __init__(self, paths: Mapping[Path, Any]) -> None:
        self._items = paths
        self._left = {path: place for place, path in enumerate(paths)}
        self._errors: dict[Path, str] = {}
        self._parts: list[tuple[np.ndarray, pd.DataFrame]] = []  # place of each row's item, rows
        self._loose: list[tuple[np.ndarray, pd.DataFrame]] = []

    def add(self, path: Path, shard: Shard) -> None:
        """Take what one item gave, once."""
        place = self._left.pop(path, None)
        if place is None:
            return
        if shard.error:
            self._errors[path] = shard.error
            return
        self._loose.append((np.full(len(shard.frame), place), shard.frame))
        if len(self._loose) == _TOGETHER:
            self._parts.append(_joined(self._loose))
            self._loose = []

    def sweep(self, computed: int) -> Sweep:
        """All rows in the order of the items; raises RuntimeError where every item failed."""
        errors = self._errors | dict.fromkeys(self._left, "missing")
        failed = [
            {"item": title(item), "error": errors[path]}
            for path, item in self._items.items()
            if path in errors
        ]
        note_failed(row["item"] for row in failed)
        parts = [*self._parts, *self._loose]
        if failed and not parts:
            told = f"all {len(failed)} prompts failed; the first with {failed[0]['error']}"
            raise RuntimeError(told)
        places, frame = _joined(parts) if parts else (np.array([]), pd.DataFrame())
        if (np.diff(places) < 0).any():  # workers end in any order
            frame = frame.iloc[np.argsort(places, kind="stable")].reset_index(drop=True)
        table = pd.DataFrame(failed, columns=["item", "error"])
        return Sweep(frame, table, computed, len(self._items) - computed)


def _joined(parts: list[tuple[np.ndarray, pd.DataFrame]]) -> tuple[np.ndarray, pd.DataFrame]:
    places, frames = zip(*parts, strict=True)
    return np.concatenate(places), pd.concat(frames, ignore_index=True)


def tidy(sweep: Sweep) -> pd.DataFrame:
    """The frame; items that failed are named in a warning and in `attrs["failed"]`."""
    if len(sweep.failed):
        sweep.frame.attrs["failed"] = dict(sweep.failed.itertuples(index=False))
        first = sweep.failed.iloc[0]
        warnings.warn(
            f"{len(sweep.failed)} prompts failed and have no row (try again with "
            f"retry_failed=True); the first, {first['item']!r}, with {first['error']}",
            stacklevel=3,
        )
    return sweep.frame
