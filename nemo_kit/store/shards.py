"""Shards: parquet files that each hold the rows of a batch of items, found by their keys.

Scope: `Folder`, the shards of one question; `Batch`, the one that a run fills. A shard is written
by temporary file, fsync and rename: it grows until it is full, a store never holds half a result,
and a row that was written is never lost. Its footer says which items its rows are of, one after
the other, and with which errors others failed.
"""

import json
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import Any, Self

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from nemo_kit.files import write_atomically
from nemo_kit.keys import value_digest

Rows = Mapping[str, Any] | Sequence[Mapping[str, Any]] | pd.DataFrame
Result = pa.Table | str  # of one item: its rows, or the error that it failed with
_NOTE = b"nemo_kit"
_FEW = 8  # small shards that are left as they are
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, pa.ArrowException)


def stored(rows: Rows) -> Result:
    """Rows as a table; rows that no shard can hold are a failure of the item."""
    try:
        if not isinstance(rows, pd.DataFrame):
            rows = pd.DataFrame([rows] if isinstance(rows, Mapping) else list(rows))
        table = pa.Table.from_pandas(rows, preserve_index=False)
        pq.write_table(table.schema.empty_table(), pa.BufferOutputStream())
    except Exception as error:  # pyarrow's, which have no one base class
        return f"{type(error).__name__}: its rows can't be stored: {error}"
    return table


@dataclass
class Shard:
    """Items in a file, in the order of their rows, with how many rows each has; and errors."""

    path: Path
    items: list[tuple[str, int]] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)
    table: pa.Table | None = None

    @classmethod
    def open(cls, path: Path, rows: bool = False) -> Self | None:
        """That of a file; None where it is gone, or damaged: then it is put aside with a warning.

        Parameters: `rows`, whether they are read too, with their checksums.
        """
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                note = json.loads(file.schema_arrow.metadata[_NOTE])
                items = [(str(item), int(count)) for item, count in note["items"]]
                if sum(count for _, count in items) != file.metadata.num_rows:
                    raise ValueError("its footer tells of other rows than it has")
                table = file.read() if rows else None
            return cls(path, items, note["errors"], table)
        except FileNotFoundError:  # joined with others meanwhile
            return None
        except _UNREADABLE as error:
            warnings.warn(f"{path} can't be read and is computed again: {error}", stacklevel=3)
            if getattr(error, "errno", None) is None:  # it is the file, not the disk or the network
                with suppress(OSError):
                    os.replace(path, path.with_suffix(".damaged"))
            return None

    def whole(self) -> Self:
        """With rows, and items beside them, as it may have grown; none where it is gone."""
        found = self if self.table is not None else Shard.open(self.path, rows=True)
        return found or Shard(self.path)

    def __len__(self) -> int:
        return len(self.items) + len(self.errors)


class Folder:
    """The shards of one question: a name, and a key of all that its results depend on."""

    def __init__(self, store: Path, name: str, key: Any, version: Any = None) -> None:
        """Raises ValueError for a name that is no folder name, TypeError as `value_digest`."""
        if not name.replace("_", "").isalnum():
            raise ValueError(f"name must consist of letters, digits and '_', got {name!r}")
        self.path = store / name / value_digest({"name": name, "key": key}, version)[:16]
        self._seen: dict[Path, tuple[tuple[int, ...], int]] = {}  # state and size of each shard

    def news(self) -> Iterator[Shard]:
        """Shards that have come or grown since they were last looked at."""
        for path in sorted(self.path.glob("*.parquet")):
            with suppress(FileNotFoundError):
                state = _state(path)
                if self._seen.get(path, (None,))[0] != state and (shard := Shard.open(path)):
                    self._seen[path] = state, len(shard)
                    yield shard

    def small(self, most: int) -> Iterator[Shard]:
        """Shards that together fill one of `most` items, where there are many small ones."""
        sizes = {p: size for p, (_, size) in self._seen.items() if size <= most // 2 and p.exists()}
        for path in sorted(sizes, key=lambda one: sizes[one]) if len(sizes) >= _FEW else []:
            most -= sizes[path]
            if most < 0:
                return
            if shard := Shard.open(path, rows=True):
                yield shard

    def write(self, shard: Shard) -> None:
        """Write a shard; raises OSError that names the store, and what to do where it can't be."""
        note = {"items": shard.items, "errors": shard.errors}
        known = {**(shard.table.schema.metadata or {}), _NOTE: json.dumps(note).encode()}
        table = shard.table.replace_schema_metadata(known)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomically(
                shard.path, lambda part: pq.write_table(table, part, write_page_checksum=True)
            )
            self._seen[shard.path] = _state(shard.path), len(shard)
        except OSError as error:
            raise OSError(
                error.errno,
                f"a result can't be written to {self.path}: {error.strerror or error}. All results "
                "before it are kept; once there is space the same call goes on from there",
            ) from error


def _state(path: Path) -> tuple[int, ...]:
    about = path.stat()
    return about.st_ino, about.st_size, about.st_mtime_ns


class Seldom:
    """Lets something be done now and then: as often as it takes a twentieth of the time."""

    def __init__(self) -> None:
        self._next = 0.0

    def due(self) -> bool:
        """Whether enough time has passed."""
        return time.monotonic() >= self._next

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Around what is done."""
        started = time.monotonic()
        yield
        self._next = time.monotonic() + 20 * (time.monotonic() - started)


class Batch:
    """The shard that a run fills; it is written anew as it grows, until it holds `size` items.

    `full` is given each shard that is. Small shards that `join` is given become part of the first.
    """

    def __init__(self, folder: Folder, size: int, full: Callable[[Shard], None]) -> None:
        self.folder, self.size, self.full, self.seldom = folder, size, full, Seldom()
        self._joined: list[Path] = []
        self._begin()

    def _begin(self) -> None:
        path = self.folder.path / f"{token_hex(10)}.parquet"
        self.shard, self._changed = Shard(path, table=pa.table({})), False

    def join(self, small: Iterable[Shard]) -> None:
        """Take what other shards hold; their files go once this one is written."""
        for shard in small:
            if self._take(shard.table):
                self.shard.items += shard.items
                self.shard.errors |= shard.errors
                self._joined.append(shard.path)

    def add(self, item: str, result: Result) -> None:
        """Take what an item gave, and write what there is where it is time to; raises OSError."""
        if isinstance(result, str):
            self.shard.errors[item] = result
        else:
            if not self._take(result):
                self.close()
                self._take(result)
            self.shard.items.append((item, result.num_rows))
        self._changed = True
        if len(self.shard) >= self.size:
            self.close()
        elif self.seldom.due():
            self._write()

    def close(self) -> None:
        """Write what isn't written yet, and begin another shard."""
        if self._changed:
            self._write()
        shard = self.shard
        self._begin()
        self.full(shard)

    def _take(self, table: pa.Table) -> bool:
        both = _together(self.shard.table, table)
        self.shard.table = self.shard.table if both is None else both
        return both is not None

    def _write(self) -> None:
        self.shard.table = self.shard.table.combine_chunks()
        self._changed = False  # one that can't be written is not tried again where the run ends
        with self.seldom.timed():
            self.folder.write(self.shard)
        for path in self._joined:
            path.unlink(missing_ok=True)
        self._joined = []


def _together(one: pa.Table, other: pa.Table) -> pa.Table | None:
    """Both in one, where no value changes its type by it; None where they need a shard each."""
    try:
        both = pa.concat_tables([one, other], promote_options="permissive")
    except pa.ArrowException:
        return None
    for own in (one.schema, other.schema):
        same = (_same(part.type, both.schema.field(part.name).type) for part in own)
        if own.names and (set(own.names) != set(both.column_names) or not all(same)):
            return None
    return both


def _same(own: pa.DataType, made: pa.DataType) -> bool:
    """Whether the type is this one, but for what only held nothing, as an empty list does."""
    if own == made or pa.types.is_null(own):
        return True
    inner = range(own.num_fields if own.id == made.id and own.num_fields == made.num_fields else 0)
    return bool(inner) and all(_same(own.field(i).type, made.field(i).type) for i in inner)
