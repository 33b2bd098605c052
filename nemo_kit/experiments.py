"""Runs over prompts that survive: one shard a prompt, found again by the content of its key.

Scope: ``run`` calls a function for each item and keeps what it returns in a store; a run that was
killed goes on where it stopped, a prompt that fails is recorded with its error and does not stop
the rest. ``detect_all``, ``localize_all`` and ``generate_all`` are thin over it. A shard is a
parquet file, written by temporary file, fsync and rename, so a store never holds half a result; one
that can't be read is computed again. One process, one prompt after the other.
"""

from __future__ import annotations

import io
import json
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from nemo_kit import __version__
from nemo_kit.files import PACKAGE, plain, source_digest, value_digest, write_atomically
from nemo_kit.prompts import read_prompts

if TYPE_CHECKING:
    from nemo_kit.models import DiffusionModel
    from nemo_kit.neurons import NeuronSet

Rows = Mapping[str, Any] | Sequence[Mapping[str, Any]] | pd.DataFrame
METHOD = (
    "neurons",
    "layers",
    "hooks",
    "models",
    "similarity",
    "settings",
    "calibration",
    "localization",
    "generation",
)
_NOTE = b"nemo_kit"


@dataclass(frozen=True)
class Sweep:
    """What a run over items gave.

    ``frame``: rows of all items that succeeded, in the order of the items; ``failed``: item and
    error of the others; ``computed`` and ``reused``: how many items were worked on now and before.
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
    retry_failed: bool = False,
    progress: bool = True,
) -> Sweep:
    """Call ``function(item)`` for each item that the store doesn't hold, and gather all rows.

    Returns a ``Sweep``; an item given twice is computed and listed once. ``function`` returns a
    row, a list of rows or a frame. ``key`` holds all that its results depend on besides the item
    (seeds, settings, model), ``name`` is the folder in the store and part of the key. A recorded
    failure is tried again only with ``retry_failed``.
    Raises RuntimeError when every item failed, OSError when a shard can't be written; what was
    computed until then stays.
    """
    shards = _shards(items, Path(store), name, key)
    found = {path: _read(path) for path in shards}
    todo = [p for p, shard in found.items() if shard is None or (retry_failed and shard.error)]
    reused = len(shards) - len(todo)
    label = f"{name}, {reused} found" if reused else name
    for path in tqdm(todo, desc=label, unit="prompt", disable=not (progress and todo)):
        found[path] = _compute(function, shards[path], path)
    return _gather(shards, found, len(todo))


def detect_all(
    model: DiffusionModel,
    prompts: Iterable[str],
    seeds: Iterable[int] = range(1, 11),
    *,
    store: str | Path,
    retry_failed: bool = False,
    progress: bool = True,
    **options: Any,
) -> pd.DataFrame:
    """``detect`` for many prompts, resumable: one row a prompt, as ``detect`` gives them.

    ``options`` go to ``detect``. Raises what ``run`` raises; prompts that failed are named in a
    warning and have no row.
    """
    from nemo_kit.localization import detect

    chosen = list(seeds)
    key = {"seeds": chosen, "options": options, **model_key(model)}
    sweep = run(
        lambda prompt: detect(model, [prompt], chosen, **options), prompts, store, key,
        name="detect", retry_failed=retry_failed, progress=progress,
    )  # fmt: skip
    return _tidy(sweep)


def localize_all(
    model: DiffusionModel,
    prompts: Iterable[str],
    seeds: Iterable[int] = range(1, 11),
    *,
    store: str | Path,
    retry_failed: bool = False,
    progress: bool = True,
    **options: Any,
) -> pd.DataFrame:
    """``localize`` for many prompts, resumable: one row a prompt (``Localization.to_row``).

    The columns ``initial`` and ``refined`` hold a ``NeuronSet``. ``options`` go to ``localize``.
    Raises what ``run`` raises; prompts that failed are named in a warning and have no row.
    """
    from nemo_kit.localization import localize

    chosen = list(seeds)
    key = {"seeds": chosen, "options": options, **model_key(model)}
    sweep = run(
        lambda prompt: localize(model, prompt, seeds=chosen, **options).to_row(),
        prompts, store, key, name="localize", retry_failed=retry_failed, progress=progress,
    )  # fmt: skip
    return _with_sets(_tidy(sweep))


def generate_all(
    model: DiffusionModel,
    prompts: Iterable[str],
    seeds: Iterable[int],
    neurons: NeuronSet | Mapping[str, NeuronSet] | None = None,
    *,
    store: str | Path,
    retry_failed: bool = False,
    progress: bool = True,
    **options: Any,
) -> pd.DataFrame:
    """``generate`` for many prompts, resumable: columns prompt, seed, image (uint8 [H, W, 3]).

    ``neurons``: one set for all prompts, or a set for each (a prompt without one is undisturbed).
    ``options`` go to ``generate``. Raises what ``run`` raises; prompts that failed are named in a
    warning and have no row.
    """
    from nemo_kit.generation import generate

    chosen = list(seeds)
    texts = list(prompts)
    sets = neurons if isinstance(neurons, Mapping) else dict.fromkeys(texts, neurons)
    items = [{"prompt": text, "neurons": sets.get(text)} for text in texts]

    def rows(item: dict[str, Any]) -> list[dict[str, Any]]:
        images = generate(model, item["prompt"], chosen, neurons=item["neurons"], **options)
        pairs = zip(chosen, images, strict=True)
        return [{"prompt": item["prompt"], "seed": s, "image": _png(image)} for s, image in pairs]

    key = {"seeds": chosen, "options": options, **model_key(model)}
    sweep = run(
        rows, items, store, key, name="generate", retry_failed=retry_failed, progress=progress
    )
    frame = _tidy(sweep)
    return frame.assign(image=[_image(png) for png in frame["image"]])


def prompt_table(files: Sequence[str | Path] = ()) -> pd.DataFrame:
    """Prompts to work on: those of the lab model, or those of the files given.

    Returns the columns of ``lab.prompts()``: prompt, type ("VM", "TM", ""), role, family, image,
    repetitions. A file is a CSV of the released code (``;``, ``Caption``, ``type``), a CSV with
    a column ``prompt`` and any of the others, or a text file with one prompt a line.
    Raises ValueError that names a file which can't be read so, FileNotFoundError for a missing one.
    """
    if not files:
        from nemo_kit import lab

        return lab.prompts()
    frames = [_complete(_read_prompts(Path(name))) for name in files]
    return pd.concat(frames, ignore_index=True).drop_duplicates("prompt", ignore_index=True)


def model_key(model: DiffusionModel) -> dict[str, Any]:
    """What results depend on besides prompt, seeds and settings, as plain values for a key.

    Returns digests of the weights as they are in memory (also after an edit) and of the
    calibration, the number type, and the version and sources of the package's method.
    """
    parts = (model.denoiser, model.text_encoder, model.vae)
    return {
        "model": str(model.name),
        "weights": [value_digest(dict(part.state_dict())) for part in parts],
        "dtype": str(model.dtype),
        "guidance": model.guidance,
        "calibration": value_digest(model.calibration),
        "version": [__version__, method_digest()],
    }


@cache
def method_digest() -> str:
    """Digest of the sources that results depend on; the version alone stays behind edits."""
    files = [path for name in METHOD for path in [PACKAGE / f"{name}.py"] if path.is_file()]
    folders = [path for name in METHOD for path in (PACKAGE / name).rglob("*.py")]
    return source_digest([*files, *folders])


@dataclass(frozen=True)
class _Shard:
    frame: pd.DataFrame
    error: str


def _shards(
    items: Iterable[Any], store: Path, name: str, key: Mapping[str, Any]
) -> dict[Path, Any]:
    """Path of each item's shard → item, in order; a doubled item has one path."""
    if not name.replace("_", "").isalnum():
        raise ValueError(f"name must consist of letters, digits and '_', got {name!r}")
    shards = {}
    for item in items:
        digest = value_digest({"name": name, "key": key, "item": item})
        shards.setdefault(store / name / digest[:2] / f"{digest}.parquet", item)
    return shards


def _compute(function: Callable[[Any], Rows], item: Any, path: Path) -> _Shard:
    """Work on one item; its error is a result like any other, a failing write is not."""
    started = time.monotonic()
    try:
        shard = _Shard(_frame(function(item)), "")
    except Exception as error:
        shard = _Shard(pd.DataFrame(), f"{type(error).__name__}: {error}")
    _write(path, shard, {"item": plain(item), "seconds": round(time.monotonic() - started, 3)})
    return shard


def _frame(rows: Rows) -> pd.DataFrame:
    if isinstance(rows, pd.DataFrame):
        return rows.reset_index(drop=True)
    return pd.DataFrame([rows] if isinstance(rows, Mapping) else list(rows))


def _write(path: Path, shard: _Shard, about: dict[str, Any]) -> None:
    table = pa.Table.from_pandas(shard.frame, preserve_index=False)
    note = json.dumps({"version": __version__, "error": shard.error, **about}).encode()
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), _NOTE: note})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda part: pq.write_table(table, part, write_page_checksum=True))


def _read(path: Path) -> _Shard | None:
    """The shard, or None where there is none or it can't be read (said in a warning)."""
    if not path.is_file():
        return None
    try:
        table = pq.read_table(path, page_checksum_verification=True, partitioning=None)
        note = json.loads(table.schema.metadata[_NOTE])
        return _Shard(table.to_pandas(), note["error"])
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        warnings.warn(f"{path} can't be read and is computed again: {error}", stacklevel=3)
        return None


def _gather(shards: Mapping[Path, Any], found: Mapping[Path, Any], computed: int) -> Sweep:
    done = [found[path] for path in shards]
    good = [shard.frame for shard in done if not shard.error]
    failed = [
        {"item": _title(item), "error": shard.error}
        for item, shard in zip(shards.values(), done, strict=True)
        if shard.error
    ]
    if failed and not good:
        raise RuntimeError(f"all {len(failed)} prompts failed; the first with {failed[0]['error']}")
    frame = pd.concat(good, ignore_index=True) if good else pd.DataFrame()
    errors = pd.DataFrame(failed, columns=["item", "error"])
    return Sweep(frame, errors, computed, len(shards) - computed)


def _title(item: Any) -> str:
    return str(item["prompt"]) if isinstance(item, Mapping) and "prompt" in item else str(item)


def _tidy(sweep: Sweep) -> pd.DataFrame:
    if len(sweep.failed):
        first = sweep.failed.iloc[0]
        warnings.warn(
            f"{len(sweep.failed)} prompts failed and have no row (try again with "
            f"retry_failed=True); the first, {first['item']!r}, with {first['error']}",
            stacklevel=3,
        )
    return sweep.frame


def _with_sets(frame: pd.DataFrame) -> pd.DataFrame:
    from nemo_kit.neurons import NeuronSet

    named = [name for name in ("initial", "refined") if name in frame]
    return frame.assign(**{name: [NeuronSet.from_json(t) for t in frame[name]] for name in named})


def _read_prompts(path: Path) -> pd.DataFrame:
    if path.suffix != ".csv":
        lines = path.read_text(encoding="utf-8").splitlines()
        return pd.DataFrame({"prompt": [line.strip() for line in lines if line.strip()]})
    with path.open(encoding="utf-8") as file:
        head = file.readline()
    if "Caption" in head:
        return read_prompts(path).rename(columns={"Caption": "prompt"})
    frame = pd.read_csv(path, keep_default_na=False)
    if "prompt" not in frame:
        raise ValueError(f"{path} needs a column 'prompt' (or 'Caption'), got {list(frame)}")
    return frame


def _complete(frame: pd.DataFrame) -> pd.DataFrame:
    """The lab's columns; a role follows from the type where the file names none."""
    roles = {"VM": "verbatim", "TM": "template"}
    types = frame["type"] if "type" in frame else pd.Series("", index=frame.index)
    defaults = {"type": types, "role": types.map(lambda t: roles.get(t, "non_memorized"))}
    defaults |= {"family": "", "image": "", "repetitions": 0}
    full = frame.assign(**{k: v for k, v in defaults.items() if k not in frame})
    return full[["prompt", "type", "role", "family", "image", "repetitions"]]


def _png(image: Any) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def _image(png: bytes) -> Any:
    import numpy as np
    from PIL import Image

    return np.array(Image.open(io.BytesIO(png)))
