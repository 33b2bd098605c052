"""Baseline and search modes in alternation, prompt by prompt, and the table of ratios.

Scope: `measure` runs them into a store, one shard a prompt, so that a run that was ended goes on;
`summary` and `disagreements` make tables of it. Which way comes first changes from prompt to
prompt. A way is a search mode, or a mode and a precision: "speculative@bfloat16".
Source: "Finding NeMo" (arXiv 2406.02366), table 2; the ratios are ours.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pandas as pd
import torch

from benchmarks import released
from benchmarks.released import localize_released
from nemo_kit.checks import check_choice, check_seeds, check_texts
from nemo_kit.keys import versions
from nemo_kit.localization import SEARCHES, Localization, LocalizationSettings, localize
from nemo_kit.localization.differences import (
    prompt_differences,
)
from nemo_kit.memory import fitting
from nemo_kit.neurons import NeuronSet
from nemo_kit.settings import Precision

if TYPE_CHECKING:
    from nemo_kit.models import DiffusionModel

BASELINE = "released"
TIE = 1e-4  # another rounding may turn a verdict whose score is this close to its threshold
WAYS = ("speculative", "bisect", "attributed")
QUALITY = {"precision": "mean", "recall": "mean", "sscd_gen": "median"}  # of `bench.quality`


def measure(
    model: DiffusionModel,
    prompts: pd.DataFrame,
    ways: Sequence[str] = WAYS,
    seeds: Iterable[int] = range(1, 11),
    *,
    store: str | Path,
    retry_failed: bool = False,
    progress: bool = True,
) -> pd.DataFrame:
    """Localize each prompt by the released algorithm and in each way, in alternation.

    Returns a frame, one row a prompt and way: prompt, group, way, seconds, samples, neurons,
    flagged, initial and refined (JSON), limit (the fewest samples a search could take),
    verified (1 or 0; NaN for modes that don't verify), fell_back (count), nearest (of the
    baseline: smallest distance to a threshold), peak (MiB). What the store holds is not run again.
    Prompts that failed are named in a warning and in `attrs["failed"]`, and have no row.
    Parameters: `prompts`, with `prompt` and `group` (VM, TM), as `groups.choose` gives;
    `retry_failed`, whether those that failed before are tried again.
    Raises ValueError for an unknown way or missing columns, and what `store.run` raises.
    """
    from nemo_kit.store import model_key, run, tidy

    if missing := {"prompt", "group"} - set(prompts):
        raise ValueError(f"prompts lacks the columns {sorted(missing)}, got {list(prompts)}")
    check_texts(prompts["prompt"])
    chosen = {BASELINE: None, **{way: _split(way) for way in ways}}
    numbers = check_seeds(seeds, least=2, distinct=True)
    warm = cache(lambda: _warm_up(model, numbers))  # not where the store has all

    def alternate(item: dict[str, str]) -> list[dict[str, Any]]:
        warm()
        turn, order = zlib.crc32(item["prompt"].encode()) % len(chosen), list(chosen)
        return [_row(model, item, way, chosen[way], numbers) for way in order[turn:] + order[:turn]]

    code = versions("localization") | {"benchmarks.released": released.VERSION}
    key = {"ways": list(ways), "seeds": numbers, "device": str(model.device), "code": code}
    key |= model_key(model)
    items = prompts[["prompt", "group"]].to_dict("records")
    sweep = run(
        alternate, items, store, key, name="bench", retry_failed=retry_failed, progress=progress
    )
    return tidy(sweep)


def _split(way: str) -> tuple[str, LocalizationSettings]:
    """Search mode and settings of a way; raises ValueError for unknown ones."""
    search, _, how = way.partition("@")
    check_choice("way", search, sorted(SEARCHES))
    check_choice("precision", how or "model", get_args(Precision))
    return search, LocalizationSettings(precision=how or "model")  # type: ignore[arg-type]


def _warm_up(model: DiffusionModel, seeds: list[int]) -> None:
    """The first calls of a process are slow; they are nobody's costs."""
    fitting(model)
    prompt_differences(model, "warm-up", seeds)


def _row(
    model: DiffusionModel,
    item: dict[str, str],
    way: str,
    how: tuple[str, LocalizationSettings] | None,
    seeds: list[int],
) -> dict[str, Any]:
    watched, nearest = start_watch(model.device) is not None, float("nan")
    if how is None:
        found, nearest = localize_released(model, item["prompt"], seeds)
    else:
        found = localize(model, item["prompt"], seeds, search=how[0], settings=how[1])
    return {
        **item,
        "way": way,
        "seconds": found.seconds,
        "samples": found.samples_evaluated,
        "flagged": found.flagged,
        "neurons": len(found.refined),
        "initial": found.initial.to_json(),
        "refined": found.refined.to_json(),
        "limit": fewest_samples(found, len(seeds)),
        "verified": math.nan if found.verified is None else float(found.verified),
        "fell_back": len(found.fell_back),
        "nearest": nearest,
        "peak": (peak(model.device) or math.nan) / 2**20 if watched else math.nan,
    }


def start_watch(device: torch.device) -> int | None:
    """Set the peak back to what is in use now, and return that."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return peak(device)


def peak(device: torch.device) -> int | None:
    """The most bytes in use since `start_watch`; None where the system doesn't tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        told = re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())
    except OSError:
        return None
    return told and int(told[1]) * 1024


def fewest_samples(found: Localization, seeds: int) -> int:
    """The samples no search for these neurons can do without.

    Detection, one sample for each kept neuron (a seed above the threshold), one final check.
    """
    if not found.flagged:
        return seeds
    return seeds + len(found.refined) + len(found.kept_seeds)


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Ratios of each way to the released algorithm, VM and TM apart and together.

    Returns a frame with group, way, prompts, faster (seconds of the baseline over the way's),
    samples (of the way over the baseline's), same (share of prompts with the baseline's
    neurons), to_limit (samples over the fewest possible), neurons (mean), peak (MiB, largest),
    verified (share; NaN for modes that don't verify) and fell_back (prompts), and where the frame
    has them mean precision and recall, and median sscd_gen. Only prompts that the released
    algorithm's detection flags count.
    Raises ValueError where the frame has no flagged prompt.
    """
    flagged = flagged_by_baseline(frame)
    if flagged.empty:
        raise ValueError("frame holds no prompt that detection flags")
    parts = [(name, part) for name, part in flagged.groupby("group", sort=False)]
    if len(parts) > 1:
        parts.append(("all", flagged))
    rows = [_ratios(str(name), part, way) for name, part in parts for way in _ways(part)]
    return pd.DataFrame(rows)


def flagged_by_baseline(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of the prompts that the released algorithm's detection flags, of every way.

    In another precision detection may flag others: such a way's row then has no neurons.
    """
    base = frame[(frame["way"] == BASELINE) & frame["flagged"]]
    return frame[frame["prompt"].isin(base["prompt"])]


def _ways(frame: pd.DataFrame) -> list[str]:
    """The ways, the baseline first, the others in the order of the searches."""
    names = [BASELINE, *SEARCHES]
    order = {name: place for place, name in enumerate(names)}
    return sorted(frame["way"].unique(), key=lambda way: (order[way.partition("@")[0]], way))


def _ratios(group: str, part: pd.DataFrame, way: str) -> dict[str, Any]:
    base, own = (part[part["way"] == name].set_index("prompt") for name in (BASELINE, way))
    base = base.loc[own.index]
    return {
        "group": group,
        "way": way,
        "prompts": len(own),
        "faster": base["seconds"].sum() / own["seconds"].sum(),
        "samples": own["samples"].sum() / base["samples"].sum(),
        "same": (own["refined"] == base["refined"]).mean(),
        "to_limit": own["samples"].sum() / own["limit"].sum(),
        "neurons": own["neurons"].mean(),
        "peak": own["peak"].max(),
        "verified": own["verified"].mean(),
        "fell_back": int((own["fell_back"] > 0).sum()),
        **{name: own[name].agg(how) for name, how in QUALITY.items() if name in own},
    }


def disagreements(frame: pd.DataFrame) -> pd.DataFrame:
    """Prompts where a way found other neurons than the released algorithm.

    Returns a frame with prompt, group, way, neurons, baseline (its number), shared, and tie:
    whether a score came so close to its threshold that rounding decides.
    """
    base = frame[frame["way"] == BASELINE].set_index("prompt")
    rows = []
    for row in frame[frame["way"] != BASELINE].itertuples():
        own, other = (
            NeuronSet.from_json(t) for t in (row.refined, base.loc[row.prompt, "refined"])
        )
        if own != other:
            tie = bool(base.loc[row.prompt, "nearest"] < TIE)
            counts = len(own), len(other), len(own & other)
            rows.append((row.prompt, row.group, row.way, *counts, tie))
    names = ["prompt", "group", "way", "neurons", "baseline", "shared", "tie"]
    return pd.DataFrame(rows, columns=names)
