"""What a sweep over N prompts will take, from a few that are worked on for real.

Scope: `measure` times detection and localization of a sample through the store, as a sweep does;
`plan` scales that to N prompts on M devices; `check` compares a plan with a real sweep. Detection
comes first, and only what it flags is localized, so the share of memorized prompts decides.
"""

from __future__ import annotations

import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from nemo_kit.checks import check_number, check_texts, check_whole
from nemo_kit.experiments.method import Detect, Localize
from nemo_kit.experiments.store import shard_paths
from nemo_kit.experiments.sweep import run
from nemo_kit.localization.detection import check_threshold, resolve
from nemo_kit.memory import fitting

if TYPE_CHECKING:
    from nemo_kit.models import DiffusionModel

_RESAMPLES = 2000  # of the bootstrap behind the ranges
_UNREACHABLE = sys.float_info.max  # a threshold that no score is above
_LAYOUT = 3  # a result takes so many times its own size while the final table is put together


@dataclass(frozen=True)
class Measurement:
    """What a few prompts took on this machine, one worker.

    `detect_seconds`, `localize_seconds`: each prompt's, store included; localization contains its
    own detection. `flagged`: how many of the `detect_seconds` were memorized. `bytes_skipped`,
    `bytes_found`: disk for one prompt without and with neurons. `row_bytes`: of one result in
    memory. `worker_bytes`, `gpu_bytes`: the most one worker held. `dropped`: prompts given as
    memorized that detection does not flag, so that they say nothing about localization.
    """

    detect_seconds: tuple[float, ...]
    localize_seconds: tuple[float, ...]
    flagged: int
    bytes_skipped: float
    bytes_found: float
    row_bytes: float
    worker_bytes: int
    gpu_bytes: int
    dropped: int = 0

    @property
    def share(self) -> float:
        """Share of the sample that is memorized."""
        return self.flagged / len(self.detect_seconds)


@dataclass(frozen=True)
class Plan:
    """What N prompts on M devices are expected to take.

    Hours are of the clock; `low` and `high` hold 95 % of what other samples of the same size would
    have said. `device_hours` is what is paid for, `cost` that times the price, or None.
    """

    prompts: int
    devices: int
    memorized_share: float
    detect_hours: float
    localize_hours: float
    hours: float
    low: float
    high: float
    device_hours: float
    cost: float | None
    disk_bytes: float
    runner_bytes: float
    worker_bytes: int
    gpu_bytes: int


def draw(texts: Sequence[str], count: int, seed: int = 0) -> list[str]:
    """That many of the texts (all where there are fewer), drawn at random, in their order."""
    check_whole("count", count, 1)
    if len(texts) <= count:
        return list(texts)
    places = np.random.default_rng(seed).choice(len(texts), count, replace=False)
    return [texts[place] for place in sorted(places)]


def measure(
    model: DiffusionModel,
    prompts: Sequence[str],
    seeds: Iterable[int] = range(1, 11),
    memorized: Sequence[str] = (),
    localizations: int = 64,
    seconds: float = math.inf,
    seed: int = 0,
    **options: Any,
) -> Measurement:
    """Work on a sample for real and note what it takes.

    Parameters: `prompts`, the sample, drawn like the many to come; `memorized`, prompts known to be
    memorized, to time localization where the sample holds too few; `localizations`, how many to
    time at most, drawn by `seed`; `seconds`, after which no further one is begun (at least one is
    timed), detection counted; `options` go to `localize`.
    Raises ValueError where detection flags no prompt of either, before any work where the model
    has no fitting threshold or statistics and none were given, and what a sweep raises.
    """
    texts, numbers = list(dict.fromkeys(check_texts(prompts))), list(seeds)
    check_whole("localizations", localizations, 1)
    until = time.perf_counter() + seconds
    shared = {"threshold": options.get("threshold")}
    if settings := options.get("settings"):
        shared |= {"settings": settings.detection, "similarity": settings.similarity}
    detection = Detect(model, numbers, shared)
    localization = Localize(model, numbers, options)
    check_threshold(
        model, shared["threshold"], *resolve(model, *map(shared.get, ("settings", "similarity")))
    )
    with tempfile.TemporaryDirectory(prefix="nemo_kit-plan-") as folder:
        # checks the statistics; its one detection is what only the first call pays for
        skipping = Localize(model, numbers, options | {"threshold": _UNREACHABLE})
        skipping(texts[0])
        skipped = _timed(skipping, texts[:1], Path(folder), "skipped")
        seen = _timed(detection, texts, Path(folder), "detect")
        flagged = [text for text, row in zip(texts, seen.rows, strict=True) if row["memorized"]]
        pool = list(dict.fromkeys([*flagged, *memorized]))
        if not pool:
            raise ValueError(
                f"none of the {len(texts)} prompts of the sample is memorized, so localization "
                "can't be timed: give memorized prompts (--memorized FILE), or a larger sample"
            )
        order = list(map(str, np.random.default_rng(seed).permutation(pool)))
        fitting(model)  # measures the memory once, at the first localization
        found = _timed(localization, order, Path(folder), "localize", until, localizations)
    if not found.rows:
        raise ValueError(
            f"memorized: detection flags none of the {found.dropped} prompts given, so "
            "localization can't be timed; give prompts that the model memorizes, or a lower "
            "threshold"
        )
    return Measurement(
        detect_seconds=tuple(seen.seconds),
        localize_seconds=tuple(found.seconds),
        flagged=len(flagged),
        bytes_skipped=skipped.bytes,
        bytes_found=found.bytes,
        row_bytes=found.memory,
        worker_bytes=_peak_memory(),
        gpu_bytes=_peak_gpu(),
        dropped=found.dropped,
    )


def plan(
    measured: Measurement,
    prompts: int,
    devices: int = 1,
    memorized_share: float | None = None,
    price_per_hour: float | None = None,
) -> Plan:
    """Scale a measurement to that many prompts and devices.

    Parameters: `devices`, each like the one measured, with one worker; `memorized_share`, 0 to 1,
    by default the sample's; `price_per_hour`, of one device.
    Raises ValueError for numbers out of range.
    """
    check_whole("prompts", prompts, 1)
    check_whole("devices", devices, 1)
    share = measured.share if memorized_share is None else memorized_share
    check_number("memorized_share", share, 0.0)
    if share > 1:
        raise ValueError(f"memorized_share must be from 0 to 1, got {share}")
    if price_per_hour is not None:
        check_number("price_per_hour", price_per_hour, 0.0)
    detect, localize = np.mean(measured.detect_seconds), np.mean(measured.localize_seconds)
    parts = np.array([detect, share * (localize - detect)]) * prompts / devices / 3600
    low, high = _range(measured, memorized_share) * prompts / devices / 3600
    hours = float(parts.sum())
    paid = hours * devices
    sizes = (1 - share) * measured.bytes_skipped + share * measured.bytes_found
    return Plan(
        prompts=prompts,
        devices=devices,
        memorized_share=float(share),
        detect_hours=float(parts[0]),
        localize_hours=float(parts[1]),
        hours=hours,
        low=float(low),
        high=float(high),
        device_hours=paid,
        cost=None if price_per_hour is None else paid * price_per_hour,
        disk_bytes=sizes * prompts,
        runner_bytes=_LAYOUT * measured.row_bytes * prompts,
        worker_bytes=measured.worker_bytes,
        gpu_bytes=measured.gpu_bytes,
    )


def check(
    model: DiffusionModel,
    prompts: Sequence[str],
    predicted: Plan,
    seeds: Iterable[int] = range(1, 11),
    progress: bool = True,
    **options: Any,
) -> float:
    """Seconds of a real sweep over these prompts, by the predicted ones: 1 is exact.

    The sweep is `localize` for each prompt in this process into a new store. `options` go to
    `localize`. Raises ValueError where the plan is for another number of prompts or devices.
    """
    texts = list(dict.fromkeys(prompts))
    if (len(texts), 1) != (predicted.prompts, predicted.devices):
        raise ValueError(
            f"predicted must be for {len(texts)} prompts on 1 device, got {predicted.prompts} on "
            f"{predicted.devices}"
        )
    work = Localize(model, list(seeds), options)
    with tempfile.TemporaryDirectory(prefix="nemo_kit-check-") as folder:
        started = time.perf_counter()
        run(work, texts, folder, {}, name="localize", progress=progress)
        return (time.perf_counter() - started) / 3600 / predicted.hours


@dataclass(frozen=True)
class _Timed:
    rows: list[dict[str, Any]]
    seconds: list[float]
    bytes: float
    memory: float
    dropped: int


def _timed(
    work: Callable[[str], Any],
    texts: Sequence[str],
    store: Path,
    name: str,
    until: float = math.inf,
    flagged: int | None = None,
) -> _Timed:
    """Each prompt through the store by itself, as a sweep does it; once one counts, none is late.

    Which ones that cuts off is left to chance: they must come in random order.
    Parameters: `flagged`, count only prompts that detection flags, at most so many.
    """
    frames, seconds, sizes, dropped = [], [], [], 0
    for text in texts:
        if seconds and (time.perf_counter() > until or len(seconds) == flagged):
            break
        started = time.perf_counter()
        frame = run(work, [text], store, {}, name=name, progress=False).frame
        took = time.perf_counter() - started
        if flagged is not None and not frame["memorized"].all():
            dropped += 1
            continue
        frames.append(frame)
        seconds.append(took)
        sizes += [_on_disk(path) for path in shard_paths([text], store, name, {})]
    if not frames:
        return _Timed([], [], 0.0, 0.0, dropped)
    rows = pd.concat(frames, ignore_index=True)
    held = float(rows.memory_usage(deep=True, index=False).sum()) / len(rows)
    return _Timed(rows.to_dict("records"), seconds, float(np.mean(sizes)), held, dropped)


def _on_disk(path: Path) -> int:
    """Bytes that the file takes away from the disk: whole blocks, where the system tells."""
    state = path.stat()
    return getattr(state, "st_blocks", 0) * 512 or state.st_size


def _range(measured: Measurement, share: float | None) -> np.ndarray:
    """[2]: seconds a prompt, 2.5 % and 97.5 % of what resamples of the measurement say.

    The share that is flagged is drawn as Jeffreys' interval does, from Beta(k + ½, n − k + ½): a
    sample without any flagged prompt doesn't prove that there are none.
    """
    rng = np.random.default_rng(0)
    detect = np.array(measured.detect_seconds)
    localize = np.array(measured.localize_seconds)
    many = (_RESAMPLES, len(detect))
    others = len(detect) - measured.flagged
    shares = rng.beta(measured.flagged + 0.5, others + 0.5, _RESAMPLES)
    shares = shares if share is None else np.full(_RESAMPLES, share)
    first = rng.choice(detect, many).mean(axis=1)
    second = rng.choice(localize, (_RESAMPLES, len(localize))).mean(axis=1)
    return np.quantile(first + shares * (second - first), [0.025, 0.975])


def _peak_memory() -> int:
    """The most this process has held so far, in bytes."""
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return int(psutil.Process().memory_info().rss)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def _peak_gpu() -> int:
    import torch

    return int(torch.cuda.max_memory_reserved()) if torch.cuda.is_initialized() else 0
