"""``nemo-kit calibrate``: a model's threshold and activation statistics, written once beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nemo_kit.cli.options import (
    ConfigOption,
    Device,
    DeviceOption,
    Dtype,
    DtypeOption,
    RevisionOption,
    SeedsOption,
    bar,
    existing,
    interruptible,
    load,
    statistics,
    writable,
)

if TYPE_CHECKING:
    from nemo_kit.calibration import ActivationStatistics, Calibration
    from nemo_kit.models import DiffusionModel


def calibrate(
    model: Annotated[
        str,
        typer.Option("--model", metavar="NAME",
                     help="A folder with a diffusers model, or a hub id; the model lab has its "
                     "own calibration."),
    ],
    revision: RevisionOption = None,
    config: ConfigOption = None,
    released: Annotated[
        Path | None,
        typer.Option("--statistics", metavar="FILE",
                     help="Activation statistics: the released .pt file, or a .safetensors file "
                     "written by nemo_kit."),
    ] = None,
    hold_out: Annotated[
        list[Path] | None,
        typer.Option("--hold-out", metavar="FILE",
                     help="File with prompts that the model does not memorize, to compute "
                     "threshold and statistics from. May be repeated."),
    ] = None,
    device: DeviceOption = Device.auto,
    dtype: DtypeOption = Dtype.auto,
    seeds: SeedsOption = 10,
    kernel: Annotated[
        int | None,
        typer.Option("--kernel", metavar="N",
                     help="Width of the similarity's window, odd; by default the model's, else 11, "
                     "as for latents of 64×64. Smaller latents need less, 5 for 32×32. Goes "
                     "with --hold-out."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite a calibration that the model has.")
    ] = False,
) -> None:  # fmt: skip
    """Write a model's threshold and activation statistics once to where every command finds them.

    That is the folder nemo inside the model's folder; for a hub id, inside its snapshot on this
    machine. --statistics joins a file to the threshold that the model has; --hold-out computes
    both, and with --statistics too, the threshold alone is computed.
    """
    from nemo_kit.similarity import SimilaritySettings

    if model == "lab":
        raise ValueError("--model must be a folder or a hub id, got lab: it has its calibration")
    if not (released or hold_out):
        raise ValueError("calibrate needs --statistics FILE or --hold-out FILE, got neither")
    if kernel is not None and not hold_out:
        raise ValueError("--kernel goes with --hold-out FILE: without, no threshold is computed")
    if kernel is not None:
        SimilaritySettings(kernel=kernel)  # a wrong one is told before any work
    known = statistics(released)
    prompts = _prompts(hold_out or [])
    if (here := _here(model, revision)) is not None:
        _refuse(here, force)
    opened = load(model, device, revision, dtype, config=config)
    folder = _here(model, opened.revision)
    if folder is None:
        raise ValueError(f"--model: the files of {model!r} are not on this machine")
    _refuse(folder, force)
    if known is not None:  # of another model: told before any work
        known.check({layer.index: layer.width for layer in opened.searched})
    writable(folder, "--model")
    with interruptible("nothing is written"):
        made = _made(opened, prompts, seeds, kernel, known, released)
    made.save(folder)
    print(f"threshold {made.threshold:.3f} and activation statistics written to {folder}")


def _prompts(files: list[Path]) -> list[str]:
    if not files:
        return []
    from nemo_kit.store import prompt_table

    return list(dict.fromkeys(prompt_table(existing(files, "--hold-out"))["prompt"]))


def _here(model: str, revision: str | None) -> Path | None:
    """Where the calibration of a model lies on this machine; None where the model is not here."""
    from nemo_kit.models import hub, notes_folder, resolve

    found = resolve(model)
    place = found if isinstance(found, Path) else hub.local(found, revision)
    return place and notes_folder(place.resolve())


def _refuse(folder: Path, force: bool) -> None:
    from nemo_kit.calibration import CALIBRATION_FILE, STATISTICS_FILE

    for name in (CALIBRATION_FILE, STATISTICS_FILE):
        if (folder / name).is_file() and not force:
            raise ValueError(f"--model has a calibration, {folder / name}; --force overwrites it")


def _made(
    model: DiffusionModel,
    prompts: list[str],
    seeds: int,
    kernel: int | None,
    known: ActivationStatistics | None,
    file: Path | None,
) -> Calibration:
    """Threshold and statistics: computed where there are prompts, the file's where there is one."""
    from dataclasses import replace

    from nemo_kit.localization import calibrate
    from nemo_kit.localization.detection import resolve

    found: Any = model.calibration
    if prompts:
        _, compared = resolve(model, None, None)
        if kernel is not None:
            compared = replace(compared, kernel=kernel)
        with bar(len(prompts), "calibrate", quiet=False) as shown:
            found = calibrate(
                model,
                prompts,
                range(1, seeds + 1),
                similarity=compared,
                progress=lambda _stage, done, _total: shown.update(done - shown.n),
            )
    if found is None:
        raise ValueError(
            f"--statistics: the model {model.name!r} has no threshold to join them to; "
            "--hold-out FILE computes one"
        )
    if known is None:
        return found
    source = "; ".join(filter(None, [found.source, f"statistics of {file and file.name}"]))
    return replace(found, statistics=known, source=source)
