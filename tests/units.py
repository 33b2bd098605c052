"""Work for sweeps in other processes: importable there, without a model.

Run as a script it is one sweep: `python units.py STORE LOG WORKERS BATCH`, items 0 to 39, or with
a model's folder behind that, the method over `PROMPTS`. `warm` has processes that begin at once.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from multiprocessing import forkserver, get_context
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from nemo_kit.keys import FORMS

for kind in ("Slow", "Deadly"):  # where they log is no part of what they do
    FORMS[f"{__name__}.{kind}"] = lambda work: "work on an item"
ITEMS = [f"prompt {i}" for i in range(40)]
PROMPTS = [f"{thing} {i}" for thing in ("cat", "red cup") for i in range(5)]
HEAVY = ["nemo_kit.store", "nemo_kit.localization", "torchmetrics.functional.image", "distributed",
         "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion"]  # fmt: skip


@dataclass(frozen=True)
class Slow:
    """Writes its item and process to a log, then takes a moment."""

    log: str
    seconds: float = 0.05

    def __call__(self, item: str) -> dict[str, Any]:
        with open(self.log, "a") as log:
            log.write(f"{os.getpid()} {item}\n")
        time.sleep(self.seconds)
        return {"prompt": item, "n": len(item), "process": os.getpid()}


@dataclass(frozen=True)
class Noted:
    """Other work, noted in the log like the slow one."""

    log: str
    work: Any

    def __call__(self, item: str) -> dict[str, Any]:
        Slow(self.log)(item)
        return self.work(item)


@dataclass(frozen=True)
class Deadly(Slow):
    """Ends its own process at one item, as the kernel does when memory runs out."""

    item: str = ITEMS[3]

    def __call__(self, item: str) -> dict[str, Any]:
        row = super().__call__(item)
        if item == self.item:
            os.kill(os.getpid(), 9)
        return row


def length(item: str) -> dict[str, Any]:
    """The least there is to do; fails where the item says so."""
    if "broken" in item:
        raise ValueError(f"cannot do {item}")
    return {"prompt": item, "n": len(item)}


def localizing(model: Any) -> Any:
    """The method on one prompt, with a model that each process opens itself."""
    from nemo_kit.store import ModelRef
    from nemo_kit.store.method import PerPrompt, localized

    return PerPrompt(localized, ModelRef.of(model), [1, 2], {"threshold": 0.5})


def held(store: Path) -> list[str]:
    """Digests of the items that the shards of a store hold, as often as they do."""
    notes = [pq.read_schema(path).metadata[b"nemo_kit"] for path in store.rglob("*.parquet")]
    return [item for note in notes for item, _ in json.loads(note)["items"]]


def started(log: Path) -> list[tuple[int, str]]:
    """(process, item) of each call so far."""
    lines = log.read_text().splitlines() if log.exists() else []
    parts = [line.split(" ", 1) for line in lines]
    return [(int(process), item) for process, item in parts]


def wait_for(condition: Any, seconds: float = 400.0) -> None:
    """Until it holds; the time is a bound against hanging, not a measure."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError("the condition did not come true")
        time.sleep(0.01)


@cache
def warm() -> Any:
    """Processes of one's own that begin at once: forks of one that has imported what is heavy."""
    context = get_context("forkserver")
    context.set_forkserver_preload(HEAVY)
    forkserver.ensure_running()
    return context


def written(out: str, function: Callable[..., None], *given: Any) -> None:
    """Call a function in a process whose output goes into a file."""
    with open(out, "w") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    function(*given)


def main(store: str, log: str, workers: str, batch: str, folder: str = "") -> None:
    """One sweep; prints computed, reused and a sum."""
    from nemo_kit.store import run

    if folder:
        from nemo_kit import load

        work = localizing(load(folder, "cpu"))
        function: Any = Noted(log, work)
        items, key, name = PROMPTS, work.model.key, "localize"
    else:
        function = Slow(log)
        items, key, name = ITEMS, {}, "slow"
    found = run(function, items, store, key, name=name, workers=int(workers), batch=int(batch))
    counted = "n_refined" if folder else "n"
    print(found.computed, found.reused, found.frame[counted].sum())


if __name__ == "__main__":
    main(*sys.argv[1:])
