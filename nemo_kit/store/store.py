"""The store: one parquet file (a shard) an item, named by the content of its key.

Scope: paths, writing, reading. A shard is written by temporary file, fsync and rename, so a store
never holds half a result; one that can't be read counts as missing. A shard holds the item's rows,
or the error that the item failed with, and a note on what it holds.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from nemo_kit import __version__
from nemo_kit.files import write_atomically
from nemo_kit.keys import value_digest

Rows = Mapping[str, Any] | Sequence[Mapping[str, Any]] | pd.DataFrame
_NOTE = b"nemo_kit"
_SHARED_WAIT = 60  # seconds until a network file system must show what another machine wrote


@dataclass(frozen=True)
class Shard:
    """What is kept of one item: its rows, or the error it failed with ("" for none)."""

    frame: pd.DataFrame
    error: str = ""


def shard_paths(
    items: Iterable[Any], store: Path, name: str, key: Mapping[str, Any], version: Any = None
) -> dict[Path, Any]:
    """Path of each item's shard -> item, in order; an item given twice has one path.

    Raises ValueError for a name that is no folder name, TypeError for a key or item that has no
    plain form.
    """
    if not name.replace("_", "").isalnum():
        raise ValueError(f"name must consist of letters, digits and '_', got {name!r}")
    paths: dict[Path, Any] = {}
    known = value_digest(key, version)
    for item in items:
        digest = value_digest({"name": name, "key": known, "item": item}, version)
        paths.setdefault(store / name / digest[:2] / f"{digest}.parquet", item)
    return paths


def to_frame(rows: Rows) -> pd.DataFrame:
    """A row, rows or a frame as a frame."""
    if isinstance(rows, pd.DataFrame):
        return rows.reset_index(drop=True)
    return pd.DataFrame([rows] if isinstance(rows, Mapping) else list(rows))


def write_shard(path: Path, shard: Shard, about: Mapping[str, Any]) -> None:
    """Write a shard with a note on what it holds.

    Raises OSError that names the store and what to do where it can't be written; a shard that was
    there stays as it was.
    """
    table = pa.Table.from_pandas(shard.frame, preserve_index=False)
    note = json.dumps({"version": __version__, "error": shard.error, **about}).encode()
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), _NOTE: note})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda part: pq.write_table(table, part, write_page_checksum=True))
    except OSError as error:
        raise OSError(
            error.errno,
            f"a result can't be written to {path.parent}: {error.strerror or error}. All results "
            "before it are kept; once there is space the same call goes on from there",
        ) from error


def read_shard(path: Path, warn: bool = True) -> Shard | None:
    """The shard, or None where there is none or it can't be read (said in a warning)."""
    if not path.is_file():
        return None
    try:
        table = pq.read_table(path, page_checksum_verification=True, partitioning=None)
        note = json.loads(table.schema.metadata[_NOTE])
        return Shard(table.to_pandas(), note["error"])
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        if warn:
            warnings.warn(f"{path} can't be read and is computed again: {error}", stacklevel=2)
        return None


def read_written(path: Path) -> Shard:
    """A shard that a worker, maybe on another machine, has just written.

    Raises RuntimeError where it does not show up: the workers do not share this store.
    """
    until = time.monotonic() + _SHARED_WAIT
    while (shard := read_shard(path)) is None:
        if time.monotonic() > until:
            raise RuntimeError(
                f"a worker wrote {path}, but it is not there on this machine: the store must lie "
                "in a folder that all workers share"
            )
        time.sleep(0.5)
        if path.parent.is_dir():
            list(path.parent.iterdir())  # makes NFS look again
    return shard
