"""What the commands that work through prompt files share: their options, model, and failures."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nemo_kit.cli.options import Device, Dtype, existing, interruptible, load, writable

if TYPE_CHECKING:
    import pandas as pd


STORE = Path("runs/store")


class Preset(StrEnum):
    """Settings by name."""

    default = "default"
    released = "released"
    paper = "paper"


StoreOption = Annotated[
    Path,
    typer.Option(
        "--store",
        metavar="FOLDER",
        help="Folder that keeps the result of every prompt of a --prompts file; the same command "
        "goes on from there, whatever stopped it.",
    ),
]
WorkersOption = Annotated[
    int,
    typer.Option(
        "--workers",
        metavar="N",
        min=1,
        help="Processes on this machine; on GPUs, one for each GPU. Only for prompts of files.",
    ),
]
SchedulerOption = Annotated[
    str | None,
    typer.Option(
        "--scheduler",
        metavar="ADDRESS",
        help="Address of a dask scheduler (tcp://HOST:PORT) or its scheduler file (.json): the "
        "work is done by its workers. docs/cluster.md has a recipe for SLURM.",
    ),
]
RetryOption = Annotated[
    bool,
    typer.Option("--retry-failed", help="Try again the prompts that failed before."),
]
SettingsOption = Annotated[
    Preset,
    typer.Option(
        "--settings",
        help='"released" follows the released code in all ten points where it differs from the '
        'paper, "paper" the text; recorded in the results.',
    ),
]
HoldOutOption = Annotated[
    Path | None,
    typer.Option(
        "--hold-out",
        metavar="FILE",
        help="File with prompts that the model does not memorize, to compute the threshold of "
        "--settings from, in place of the model's own if it has one.",
    ),
]


@dataclass(frozen=True)
class Place:
    """Where results are kept and who computes them."""

    store: Path
    workers: int
    scheduler: str | None
    retry_failed: bool

    @property
    def elsewhere(self) -> bool:
        """Whether other processes do the work."""
        return self.workers > 1 or self.scheduler is not None

    def options(self, quiet: bool) -> dict[str, Any]:
        """What `detect_all` and `localize_all` take."""
        return {
            "store": self.store,
            "workers": self.workers,
            "executor": self.scheduler,
            "retry_failed": self.retry_failed,
            "progress": not quiet,
        }


def refuse_elsewhere(place: Place) -> None:
    """Prompts of the command line are worked on here; raises ValueError for any other place."""
    given = f"--workers {place.workers}" if place.workers > 1 else f"--scheduler {place.scheduler}"
    if place.elsewhere:
        raise ValueError(
            f"{given} needs --prompts FILE: prompts of the command line are worked on in this "
            "process"
        )


def refuse_both(threshold: float | None, hold_out: Path | None) -> None:
    """Raises ValueError where the threshold is given and to be computed as well."""
    if hold_out and threshold is not None:
        raise ValueError(
            "--hold-out computes the threshold that --threshold gives: one of them, got both"
        )


def opened(
    model: str,
    device: Device,
    revision: str | None,
    dtype: Dtype,
    place: Place,
    lora: str | None = None,
    config: str | None = None,
) -> Any:
    """The model; where other processes use GPUs, it is opened here without taking one."""
    if not (place.elsewhere and _on_gpu(device, place)):
        return load(model, device, revision, dtype, lora, config)
    import torch

    from nemo_kit import models
    from nemo_kit.store.work import check_gpus

    check_gpus("cuda", place.workers)
    on_gpu = models.default_dtype(torch.device("cuda")) if dtype is Dtype.auto else dtype.value
    return models.load(model, "cpu", on_gpu, revision, lora=lora, config=config)


def refuse_calibration(hold_out: Path | None, device: Device, place: Place) -> None:
    """Raises ValueError where a threshold is to be computed, but the GPUs are the workers'."""
    if hold_out and place.elsewhere and _on_gpu(device, place):
        raise ValueError(
            "--hold-out computes the threshold in this process, which leaves the GPUs to the "
            "workers: write it once with `nemo-kit calibrate --hold-out FILE`, or give --threshold"
        )


def for_workers(model: Any, device: Device, place: Place) -> Any:
    """The model, or a reference that says where workers open it."""
    if not place.elsewhere:
        return model
    from nemo_kit.store import ModelRef

    return ModelRef.of(model, "cuda" if _on_gpu(device, place) else None)


def _on_gpu(device: Device, place: Place) -> bool:
    """What workers of a scheduler have can't be seen from here: --device cuda says it."""
    from nemo_kit.models import default_device

    if place.scheduler is not None or device == Device.cuda:
        return device == Device.cuda
    return device == Device.auto and default_device().type == "cuda"


def calibrated(
    model: Any,
    settings: Preset,
    threshold: float | None,
    hold_out: Path | None,
    seeds: Sequence[int],
    store: Path,
) -> Any:
    """The settings; the model then has the threshold that belongs to them."""
    from nemo_kit.presets import calibration_for, preset
    from nemo_kit.store import prompt_table

    chosen = preset(settings.value, model)
    if threshold is None:
        files = [hold_out] if hold_out else []
        held = list(prompt_table(existing(files, "--hold-out"))["prompt"]) if files else []
        model.calibration = calibration_for(model, chosen, held, seeds, store)
    return chosen


@contextmanager
def plainly(place: Place) -> Iterator[None]:
    """Say where results are; warnings and the end of a run in one line each."""
    writable(place.store, "--store")
    print(
        f"nemo-kit: results are kept in {place.store}; the same command goes on from there",
        file=sys.stderr,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = lambda message, *_, **__: None if "retry_failed" in str(
            message
        ) else print(f"nemo-kit: {message}", file=sys.stderr)  # fmt: skip
        kept = (
            f"every prompt finished so far is kept in {place.store}, and the same command goes on"
        )
        try:
            with interruptible(kept):
                yield
        except typer.Exit:
            raise
        except RuntimeError as error:
            print(f"nemo-kit: {' '.join(str(error).split())}", file=sys.stderr)
            raise typer.Exit(1) from error


def end(frame: pd.DataFrame) -> None:
    """Exit code 1 and one line where prompts failed."""
    failed = frame.attrs.get("failed", {})
    if not failed:
        return
    prompt, error = next(iter(failed.items()))
    done = frame["prompt"].nunique()  # a prompt may have several rows
    print(
        f"nemo-kit: {len(failed)} of {len(failed) + done} prompts failed (--retry-failed "
        f"tries them again), the first, {prompt!r}, with {error}",
        file=sys.stderr,
    )
    raise typer.Exit(1)


Sweeper = Callable[..., "pd.DataFrame"]


def sweep(
    sweeper: Sweeper, model: Any, texts: Sequence[str], place: Place, quiet: bool, **options: Any
) -> pd.DataFrame:
    """Rows of all prompts, from the store or computed now."""
    with plainly(place):
        return sweeper(model, texts, **place.options(quiet), **options)
