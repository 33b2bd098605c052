"""``nemo-kit detect`` and ``nemo-kit localize``: the method on prompts, given or from a file.

Prompts of the command line are worked on and shown; those of files go through a store, here or in
other processes, so that a long run can be stopped, killed and gone on with.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from nemo_kit.cli.options import (
    Kept,
    Method,
    Model,
    Prompts,
    Shown,
    Statistics,
    end,
    interruptible,
)

if TYPE_CHECKING:
    import pandas as pd

    from nemo_kit.calibration import Calibration


# fmt: off
@dataclass(frozen=True)
class Place(Kept):
    """Where results are kept and who computes them."""

    workers: Annotated[int, Option(metavar="N", min=1, help="Processes on this machine; on GPUs, "
        "one for each GPU. Only for prompts of files.")] = 1
    scheduler: Annotated[str | None, Option(metavar="ADDRESS", help="Address of a dask scheduler "
        "(tcp://HOST:PORT) or its scheduler file (.json): the work is done by its workers. "
        "docs/cluster.md has a recipe for SLURM.")] = None
    # fmt: on

    @property
    def elsewhere(self) -> bool:
        """Whether other processes do the work."""
        return self.workers > 1 or self.scheduler is not None

    def on_gpus(self, device: str) -> bool:
        """Whether other processes do it on GPUs; what a scheduler has, --device cuda must say."""
        from nemo_kit.models import default_device

        seen = self.scheduler is None and device == "auto" and default_device().type == "cuda"
        return self.elsewhere and (device == "cuda" or seen)

    def check(self, prompts: Prompts, method: Method, model: Model) -> None:
        """Raise ValueError for what other processes can't do."""
        if self.elsewhere and prompts.here:
            given = "workers" if self.workers > 1 else "scheduler"
            raise ValueError(
                f"--{given} {getattr(self, given)} needs --prompts FILE: prompts of the command "
                "line are worked on in this process"
            )
        if method.hold_out and self.on_gpus(model.device):
            raise ValueError(
                "--hold-out computes the threshold in this process, which leaves the GPUs to the "
                "workers: write it once with `nemo-kit calibrate --hold-out FILE`, or give "
                "--threshold"
            )

    def open(self, model: Model) -> Any:
        """The model; where other processes use GPUs, it is opened here without taking one."""
        if not self.on_gpus(model.device):
            return model.open()
        import torch

        from nemo_kit.models import default_dtype
        from nemo_kit.store.work import check_gpus

        check_gpus("cuda", self.workers)
        gpus = default_dtype(torch.device("cuda"))
        return model.open("cpu", gpus if model.dtype == "auto" else None)


def detect(*, prompts: Prompts, model: Model, method: Method, place: Place, shown: Shown) -> None:
    """Tell which prompts a model memorizes, from one prediction a seed.

    The score is the largest similarity between the noise predictions of two seeds: a memorized
    prompt pulls every seed to the same picture. With neither prompts nor a file, and the model
    lab, the lab's own prompts are taken.
    """

    def options(chosen: Any) -> dict[str, Any]:
        return {"settings": chosen.detection, "similarity": chosen.similarity}

    frame = _rows("detect", prompts, model, method, place, shown, options)
    frame = frame.drop(columns=["pairwise"], errors="ignore")
    shown.show(frame, ["flagged", "score", "prompt"])
    shown.write(frame)
    end(frame)


# fmt: off
def localize(
    *,
    prompts: Prompts,
    model: Model,
    method: Method,
    search: Annotated[str, Option(metavar="MODE", help='How to search: "speculative" gives the '
        'paper\'s sets, batched; "sequential" is call by call; "bisect" and "attributed" are '
        "cheaper and verified.")] = "speculative",
    statistics: Statistics = None,
    place: Place,
    shown: Shown,
    released: Annotated[bool, Option("--released", help="Write --out FILE.csv in the released "
        "code's form.")] = False,
) -> None:
    # fmt: on
    """Find the neurons by which a model memorizes the image of a prompt.

    Prints layer and index of each neuron; layers are numbered from 1 as in the paper. A prompt
    that is not flagged has none. Hard prompts take minutes. Prompts of --prompts files go
    through --store: run the same command again and it goes on where it stopped.
    """
    from nemo_kit.calibration import ActivationStatistics
    from nemo_kit.localization.search import find_search
    from nemo_kit.neuron_files import write_released
    from nemo_kit.prompts import prompt_rows

    if not prompts.prompt and not prompts.prompts:
        raise ValueError("localize needs a PROMPT, or --prompts FILE")
    find_search(search)
    if released and (shown.out is None or shown.out.suffix != ".csv"):
        raise ValueError(f"--released needs --out FILE.csv, got {shown.out}")
    known = statistics and ActivationStatistics.load(statistics)

    def options(chosen: Any) -> dict[str, Any]:
        return {"search": search, "statistics": known, "settings": chosen}

    frame = _rows("localize", prompts, model, method, place, shown, options)
    texts = {name: [one if isinstance(one, str) else one.to_json() for one in frame[name]]
             for name in ("initial", "refined")}  # fmt: skip
    frame = frame.assign(**texts)
    shown.show(frame, ["flagged", "score", "n_initial", "n_refined", "refined", "prompt"])
    if released:
        write_released(shown.out, frame, prompt_rows(prompts.prompts) if prompts.prompts else None)
    else:
        shown.write(frame)
    end(frame)


def _rows(
    command: str,
    prompts: Prompts,
    model: Model,
    method: Method,
    place: Place,
    shown: Shown,
    options: Callable[[Any], dict[str, Any]],
) -> pd.DataFrame:
    """A row a prompt: worked on here and shown, or through the store."""
    from nemo_kit.store import ModelRef, detect_all, localize_all
    from nemo_kit.store import method as work

    shown.check()
    place.check(prompts, method, model)
    texts, seeds = prompts.texts(model.model), range(1, method.seeds + 1)
    loaded = place.open(model)
    chosen = method.prepare(loaded, place.store)
    _tell_false_alarms(loaded.calibration, chosen, method.threshold)
    given = options(chosen) | {"threshold": method.threshold}
    if prompts.here:
        one = {"detect": work.detected, "localize": work.localized}[command]
        return _one_by_one(command, partial(one, loaded, seeds=[*seeds], **given), texts, shown)
    if place.on_gpus(model.device):
        loaded = ModelRef.of(loaded, "cuda")
    every = {"detect": detect_all, "localize": localize_all}[command]
    with place.running():
        return every(
            loaded, texts, seeds, store=place.store, workers=place.workers,
            executor=place.scheduler, retry_failed=place.retry_failed,
            progress=not shown.as_json, **given,
        )  # fmt: skip


def _one_by_one(command: str, work: Any, texts: list[str], shown: Shown) -> pd.DataFrame:
    """Without a store: a prompt that fails ends the command, and Ctrl-C keeps nothing."""
    import pandas as pd
    from tqdm import tqdm

    hidden = shown.as_json or len(texts) < 2
    kept = "nothing is kept of prompts on the command line; those of --prompts FILE would be"
    with interruptible(kept), tqdm(texts, command, unit="prompt", disable=hidden) as told:
        rows = [work(text) for text in told]
    frames = [pd.DataFrame([row]) if isinstance(row, dict) else row for row in rows]
    return pd.concat(frames, ignore_index=True)


def _tell_false_alarms(own: Calibration | None, chosen: Any, threshold: float | None) -> None:
    """Say what share is expected to be flagged of prompts that are not memorized, where known."""
    from nemo_kit.calibration import resolve

    if own is None or not own.holds(*resolve(own, chosen.detection, chosen.similarity)):
        return
    share, limit = own.false_alarms(threshold), own.threshold if threshold is None else threshold
    if share is not None:
        print(f"nemo-kit: flagged is what scores above {limit:.3f}; of prompts that are not "
              f"memorized {share:.0%} are expected to", file=sys.stderr)  # fmt: skip
