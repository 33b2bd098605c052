"""`run`: a function over items into a store, resumable, anywhere.

Scope: finds what the store holds, has the rest worked on, gathers all rows. A run that was killed
goes on where it stopped; an item that fails is recorded with its error and does not stop the rest;
runs that share a store share the work.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from filelock import FileLock, Timeout

from nemo_kit.checks import UnsupportedError, check_whole
from nemo_kit.keys import is_own, value_digest
from nemo_kit.progress import Bar, followed, note_failed
from nemo_kit.store.executors import finished
from nemo_kit.store.shards import Batch, Folder, Rows, Seldom, Shard

UNDEFINED = f"{UnsupportedError.__name__}: "  # how the error of what a model's kind refuses begins


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
    batch: int = 100,
) -> Sweep:
    """Call ``function(item)`` for each item that the store doesn't hold, and gather all rows.

    Returns a ``Sweep``; an item given twice is computed and listed once. ``function`` returns a
    row, a list of rows or a frame. ``key`` holds all that its results depend on besides the item
    (seeds, settings, model) and the function itself, which counts with its source, or by
    ``version`` where that can't be had; ``name`` is the folder in the store and part of the key. A
    recorded failure is tried again only with ``retry_failed``. ``batch``: items in a file.
    ``executor``: any ``concurrent.futures.Executor``, a dask ``Client`` or the address of a dask
    scheduler; ``workers``: processes on this machine, 1 for this one. Away from this process,
    ``function`` must be importable.
    Raises RuntimeError when every item failed or workers can't work, OSError when a shard can't be
    written, TypeError for a function that can't be sent, or whose source can't be had; what was
    computed until then stays.
    """
    check_whole("batch", batch, 1)
    again = retry_failed or followed.retry_failed
    whole = {**key, "function": function} if is_own(function) else key
    wanted: dict[str, Any] = {}
    for item in items:
        wanted.setdefault(value_digest(item, version)[:24], item)
    gathered = _Gathered(wanted, Folder(Path(store), name, whole, version))
    gathered.look()
    todo = [one for one in wanted if gathered.lacks(one, again)]
    if not todo:
        return gathered.sweep(0)
    label = f"{name}, {len(wanted) - len(todo)} found" if len(todo) < len(wanted) else name
    computed = 0
    with (
        _first(gathered.folder.path) as first,
        closing(Batch(gathered.folder, batch, gathered.take)) as shard,
        closing(finished(function, gathered.left(todo, again, first), executor, workers)) as done,
        Bar(desc=label, unit="prompt", total=len(todo), disable=not progress) as bar,
    ):
        shard.join(gathered.folder.small(batch) if first else ())
        for digest, result in done:
            shard.add(digest, result)
            computed += 1
            bar.update()
    gathered.look()
    return gathered.sweep(computed)


@contextmanager
def _first(folder: Path) -> Iterator[bool]:
    """Whether this run is the first at work on a folder: it joins shards, others go backwards."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".first.lock")
    with suppress(Timeout, OSError, NotImplementedError):  # taken, or a file system without locks
        lock.acquire(timeout=0)
    try:
        yield lock.is_locked
    finally:
        lock.release()


class _Gathered:
    """Rows and errors of the items, as shards are found or filled."""

    def __init__(self, wanted: Mapping[str, Any], folder: Folder) -> None:
        self.folder, self._wanted, self._seldom = folder, wanted, Seldom()
        self._left = {digest: place for place, digest in enumerate(wanted)}
        self._errors: dict[str, str] = {}
        self._parts: list[tuple[np.ndarray, pa.Table]] = []  # place of each row's item, rows

    def look(self) -> None:
        """Take what has come into the folder since the last look."""
        with self._seldom.timed():
            found = True
            while found:  # as small ones may be joined meanwhile
                found = False
                for shard in self.folder.news():
                    self.take(shard)
                    found = True

    def take(self, shard: Shard) -> None:
        """Take the rows of items that are still wanted."""
        self._errors |= {one: told for one, told in shard.errors.items() if one in self._left}
        if not any(item in self._left for item, _ in shard.items):
            return
        whole = shard.whole()
        places = np.array([self._left.pop(item, -1) for item, _ in whole.items], int)
        each = np.repeat(places, [count for _, count in whole.items])
        if whole.table is not None:
            self._parts.append((each[each >= 0], whole.table.filter(each >= 0)))

    def lacks(self, digest: str, again: bool) -> bool:
        """Whether an item is to be worked on; `again`, also where it failed before."""
        return digest in self._left and (again or digest not in self._errors)

    def left(self, todo: list[str], again: bool, first: bool) -> Iterator[tuple[str, Any]]:
        """Digests and items to work on, without those that another run has done meanwhile.

        Parameters: `first`, else they come backwards, so that two runs meet half way.
        """
        for digest in todo if first else reversed(todo):
            if self._seldom.due():
                self.look()
            if self.lacks(digest, again):
                yield digest, self._wanted[digest]

    def sweep(self, computed: int) -> Sweep:
        """All rows in the order of the items; raises RuntimeError where every item failed."""
        failed = [
            {"item": title(self._wanted[one]), "error": self._errors.get(one, "its file is gone")}
            for one in self._left
        ]
        note_failed(row["item"] for row in failed if not row["error"].startswith(UNDEFINED))
        if failed and len(failed) == len(self._wanted):
            told = f"all {len(failed)} prompts failed; the first with {failed[0]['error']}"
            raise RuntimeError(told)
        frame = _joined([table for _, table in self._parts])
        places = np.concatenate([np.array([], int), *(place for place, _ in self._parts)])
        if (np.diff(places) < 0).any():  # workers end in any order
            frame = frame.iloc[np.argsort(places, kind="stable")].reset_index(drop=True)
        table = pd.DataFrame(failed, columns=["item", "error"])
        return Sweep(frame, table, computed, len(self._wanted) - computed)


def _joined(tables: list[pa.Table]) -> pd.DataFrame:
    """One frame; where columns differ in type from shard to shard, by way of frames."""
    if not tables:
        return pd.DataFrame()
    try:
        return pa.concat_tables(tables, promote_options="permissive").to_pandas()
    except pa.ArrowException:
        return pd.concat([table.to_pandas() for table in tables], ignore_index=True)


def title(item: Any) -> str:
    """What an item is called in messages: its prompt, where it has one."""
    return str(item["prompt"]) if isinstance(item, Mapping) and "prompt" in item else str(item)


def tidy(sweep: Sweep, depth: int = 3) -> pd.DataFrame:
    """The frame; items that failed are named in a warning and in `attrs["failed"]`.

    What isn't defined for this kind of model has not failed: a warning says so.
    Parameters: `depth`, from here to the line that the warning names.
    """
    undefined = sweep.failed["error"].str.startswith(UNDEFINED)
    if undefined.any():
        told = sweep.failed.loc[undefined, "error"].iloc[0].removeprefix(UNDEFINED)
        warnings.warn(f"{undefined.sum()} results have no row: {told}", stacklevel=depth)
    failed = sweep.failed[~undefined]
    if len(failed):
        sweep.frame.attrs["failed"] = dict(failed.itertuples(index=False))
        first = failed.iloc[0]
        warnings.warn(
            f"{len(failed)} prompts failed and have no row (try again with "
            f"retry_failed=True); the first, {first['item']!r}, with {first['error']}",
            stacklevel=depth,
        )
    return sweep.frame
