"""How fast the explorer answers: `python -m benchmarks.explorer`.

Scope: measures, on this machine, from a request to the numbers and pictures being ready for the
page: a change of the selection, four images, a localization. Seconds are reported, never tested.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from nemo_kit import load
from nemo_kit.explorer import explore
from nemo_kit.explorer.session import Session

TARGETS = {"selection": 1.0, "images": 10.0}  # seconds, with the lab model on two cores
_LONGEST = 600.0


def measure(session: Session, request: Callable[[], None]) -> float:
    """Seconds from a request until all it led to is computed and drawn.

    Raises what went wrong, TimeoutError after ten minutes.
    """
    start = time.perf_counter()
    request()
    session.wait(_LONGEST)
    return time.perf_counter() - start


def run(model: str = "lab", repeats: int = 5, steps: int = 20) -> dict[str, object]:
    """Measure each request a few times.

    Returns plain values: seconds (median and all) by request, targets, threads and cores.
    Parameters: `model`, a name for `load`; `repeats`, from 1; `steps`, of the four images.
    """
    session = explore(load(model))
    if not session.prompt:
        session.prompt = "a photograph"
    measure(session, lambda: setattr(session, "steps", steps))
    layer = min(session.probe.widths)
    seconds: dict[str, list[float]] = {"selection": [], "images": [], "images_first": []}
    for place in range(repeats):
        by_hand = partial(setattr, session, "selection", {layer: [place]})
        seconds["selection"].append(measure(session, by_hand))
        name = "images" if place else "images_first"  # the undisturbed four are remembered
        seconds[name].append(measure(session, session.generate))
    session.close()
    return {
        "seconds": {k: round(statistics.median(v), 3) for k, v in seconds.items() if v},
        "all": {k: [round(one, 3) for one in v] for k, v in seconds.items()},
        "targets": TARGETS,
        "model": model,
        "steps": steps,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }


def main() -> None:
    """Read the options, measure, print JSON."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.explorer", description=__doc__)
    options.add_argument("--model", default="lab", help="lab, a diffusers folder, or a hub id")
    options.add_argument("--repeats", type=int, default=5, help="how often, at least 1")
    options.add_argument("--steps", type=int, default=20, help="denoising steps of an image")
    given = options.parse_args()
    if given.repeats < 1:
        options.error(f"--repeats must be at least 1, got {given.repeats}")
    print(json.dumps(run(given.model, given.repeats, given.steps), indent=1))


if __name__ == "__main__":
    main()
