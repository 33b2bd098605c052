"""``nemo-kit calibrate``: a model's threshold and activation statistics, written once beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from typer import Option

from nemo_kit.cli import options


# fmt: off
def calibrate(
    *,
    model: options.PlainModel,
    statistics: options.Statistics = None,
    hold_out: Annotated[list[Path] | None, Option(**options.FILE, help="File with prompts that the "
        "model does not memorize, to compute threshold and statistics from. May be "
        "repeated.")] = None,
    seeds: options.Seeds = 10,
    kernel: Annotated[int | None, Option(metavar="N", help="Width of the similarity's window, odd; "
        "by default the model's, else 11, as for latents of 64×64. Smaller latents need less, 5 "
        "for 32×32. Goes with --hold-out.")] = None,
    force: Annotated[bool, Option("--force", help="Overwrite a calibration that the model "
        "has.")] = False,
) -> None:
    # fmt: on
    """Write a model's threshold and activation statistics once to where every command finds them.

    That is the folder nemo inside the model's folder; for a hub id, inside its snapshot on this
    machine. --statistics joins a file to the threshold that the model has; --hold-out computes
    both, and with --statistics too, the threshold alone is computed.
    """
    from nemo_kit import lab
    from nemo_kit.calibration import ActivationStatistics, resolve
    from nemo_kit.localization import calibrate as computed
    from nemo_kit.models import on_this_machine
    from nemo_kit.settings import SimilaritySettings

    if model.model in lab.TABLES:
        raise ValueError(
            f"--model must be a folder or a hub id, got {model.model}: it has its calibration"
        )
    if not (statistics or hold_out):
        raise ValueError("calibrate needs --statistics FILE or --hold-out FILE, got neither")
    if kernel is not None and not hold_out:
        raise ValueError("--kernel goes with --hold-out FILE: without, no threshold is computed")
    if kernel is not None:
        SimilaritySettings(kernel=kernel)  # a wrong one is told before any work
    known, prompts = statistics and ActivationStatistics.load(statistics), options.read(hold_out)
    if place := on_this_machine(model.model, model.revision):
        _notes(place, force)
    opened = model.open()
    place = on_this_machine(model.model, opened.revision)
    if place is None:
        raise ValueError(f"--model: the files of {model.model!r} are not on this machine")
    folder = _notes(place, force)
    if known is not None:  # of another model: told before any work
        known.check({layer.index: layer.width for layer in opened.searched})
    options.writable(folder, "--model")
    made = opened.calibration
    if prompts:
        _, compared = resolve(made)
        if kernel is not None:
            compared = replace(compared, kernel=kernel)
        with options.interruptible("nothing is written"), options.counted("calibrate") as told:
            numbers = range(1, seeds + 1)
            made = computed(opened, prompts, numbers, similarity=compared, progress=told)
    if made is None:
        raise ValueError(
            f"--statistics: the model {model.model!r} has no threshold to join them to; "
            "--hold-out FILE computes one"
        )
    if known and statistics:
        source = "; ".join(filter(None, [made.source, f"statistics of {statistics.name}"]))
        made = replace(made, statistics=known, source=source)
    made.save(folder)
    print(f"threshold {made.threshold:.3f} and activation statistics written to {folder}")


def _notes(place: Path, force: bool) -> Path:
    """Where a model's calibration lies; ValueError where there is one that is not to be lost."""
    from nemo_kit.calibration import CALIBRATION_FILE, STATISTICS_FILE
    from nemo_kit.models import notes_folder

    folder = notes_folder(place.resolve())
    for name in (CALIBRATION_FILE, STATISTICS_FILE):
        if (folder / name).is_file() and not force:
            raise ValueError(f"--model has a calibration, {folder / name}; --force overwrites it")
    return folder
