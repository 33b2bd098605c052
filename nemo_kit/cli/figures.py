"""``nemo-kit figures``: the figures of the paper, drawn by the notebooks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nemo_kit.cli.options import (
    Device,
    DeviceOption,
    Dtype,
    DtypeOption,
    ModelOption,
    PromptsOption,
    RevisionOption,
    absolute,
    existing,
    interruptible,
    writable,
)

if TYPE_CHECKING:
    from nemo_kit.figures import Figure

_WITHOUT_STATISTICS = {"06_memorization_types"}  # compares pictures, localizes nothing


class Preset(StrEnum):
    """How much the figures are computed from."""

    quick = "quick"
    lab = "lab"
    paper = "paper"


class Format(StrEnum):
    """What a picture may come as beside PNG."""

    pdf = "pdf"
    svg = "svg"


def figures(
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="NAME",
            help="Draw this figure (by name or number in the paper), or all of this notebook. May "
            "be repeated.",
        ),
    ] = None,
    show: Annotated[
        bool, typer.Option("--list", help="Say what there is and what is up to date; draw nothing.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Say what would be drawn, why, and how long it takes; draw nothing."
        ),
    ] = False,
    preset: Annotated[
        Preset,
        typer.Option(
            "--preset",
            help='"quick": few prompts and seeds, some minutes. "lab": all of '
            'them, as in the committed figures, within two hours on two cores. "paper": all, with '
            "the settings of the paper, meant for a GPU: 10 seeds, 10 images of 50 steps, "
            "guidance 7.",
        ),
    ] = Preset.quick,
    model: ModelOption = "lab",
    revision: RevisionOption = None,
    prompts: PromptsOption = None,
    training_images: Annotated[
        Path | None,
        typer.Option(
            "--training-images",
            metavar="FOLDER",
            help="Folder with training images, one a prompt, named as the column 'image' or "
            "'Index' of the prompt file says. Missing ones are counted and left out.",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="A parameter of the notebooks that have it, as in their first code cell, such as "
            "sscd=FILE or steps=30. May be repeated.",
        ),
    ] = None,
    device: DeviceOption = Device.auto,
    dtype: DtypeOption = Dtype.auto,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FOLDER",
            help="Output folder; by default figures/MODEL, with -quick or -paper.",
        ),
    ] = None,
    notebooks: Annotated[
        Path | None,
        typer.Option(
            "--notebooks", metavar="FOLDER", help="Folder of the notebooks, outside a clone."
        ),
    ] = None,
    limit: Annotated[
        float | None,
        typer.Option(
            "--limit",
            metavar="MINUTES",
            min=0.01,
            help="Minutes after which a notebook is ended; by default 30 (quick), 120 (lab), or a "
            "week (paper).",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Draw also what is up to date.")] = False,
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed",
            help="Try again the prompts that failed before, and draw what was drawn without them.",
        ),
    ] = False,
    keep_going: Annotated[
        bool,
        typer.Option(
            "--keep-going",
            help="Go on after a notebook that failed; without it the rest is not begun.",
        ),
    ] = False,
    also: Annotated[
        list[Format] | None,
        typer.Option("--also", help="Each picture in this format too (pdf, svg). May be repeated."),
    ] = None,
    log: Annotated[
        bool | None,
        typer.Option(
            "--log/--bars",
            help="Plain lines for the log of a batch system, or bars; by default bars on a "
            "terminal.",
        ),
    ] = None,
) -> None:
    """Draw the figures of the paper from the notebooks: what is missing or stale, or all.

    A figure is up to date while its notebook, the package, its parameters and the model are those
    it was drawn with. Beside each PNG lies the data behind it as CSV, for each notebook a manifest,
    and over all the page index.html. Executed notebooks stay in runs/figures/. A run that was
    stopped, at whatever moment, is gone on with by the same command.
    """
    from nemo_kit.figures import gallery, report, runner, select

    if model != "lab" and not prompts:
        raise ValueError(f"--model {model} needs --prompts FILE: the built-in prompts are lab's")
    if model != "lab":
        from nemo_kit.models import resolve

        resolve(model)  # a wrong name is told now, not by the first notebook
    rows = select(only or ())
    target = out or runner.output_folder(preset, model)
    common = _common(model, revision, prompts, training_images, device, dtype)
    if not (show or dry_run) and model != "lab":
        common["revision"] = _fetched(model, revision, rows)
    formats = [one.value for one in also or ()]
    jobs = runner.plan(
        rows, preset.value, target, notebooks=notebooks, force=force, also=formats,
        retry_failed=retry_failed, settings=_settings(settings or ()), **common,
    )  # fmt: skip
    runner.check_model(jobs)
    if show or dry_run:
        print(report.listing(rows, jobs) if show else report.dry(jobs))
        return
    writable(target, "--out")
    print(report.announce(jobs), flush=True)
    seconds = runner.LIMITS[preset] if limit is None else 60 * limit
    kept = "figures drawn so far are kept, and the same command goes on"
    with runner.alone(jobs), interruptible(kept):
        outcomes = report.draw(jobs, seconds, keep_going=keep_going, log=log)
        page = gallery.write(target)
    print(report.table(rows, jobs, outcomes))
    print(f"all of them on one page: {runner.shown(page)}")
    if failed := report.failures(jobs):
        print(failed)
    if failed or any(outcome.error for outcome in outcomes.values()):
        raise typer.Exit(1)


def _fetched(model: str, revision: str | None, rows: Sequence[Figure]) -> str | None:
    """The commit to draw from, its files on this machine; the revision itself for a folder.

    Raises ValueError where a notebook needs activation statistics that the model does not have:
    before a download, and again after it for what was there only before.
    """
    from nemo_kit.calibration import CALIBRATION_FILE, STATISTICS_FILE
    from nemo_kit.models import hub, notes_folder, resolve

    files = [f"nemo/{name}" for name in (CALIBRATION_FILE, STATISTICS_FILE)]
    needing = any(row.notebook not in _WITHOUT_STATISTICS for row in rows)

    def check(lacking: Sequence[str]) -> None:
        if needing and lacking:
            pinned = f" --revision {revision}" if revision else ""
            raise ValueError(
                f"--model must have activation statistics, {model} has none: nemo-kit calibrate "
                f"--model {model}{pinned} with --statistics FILE or --hold-out FILE writes them "
                "once"
            )

    place = resolve(model)
    if isinstance(place, Path):
        notes = notes_folder(place)
        check([name for name in files if not (notes / Path(name).name).is_file()])
        return revision
    if needing:
        check(hub.lacking(model, revision, files))
    folder, commit = hub.fetch(model, revision)
    check([name for name in files if not (folder / name).is_file()])
    return commit


def _settings(given: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE as name and value: JSON where it is some, an existing file's path, or text."""
    values: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise ValueError(f"--set must be NAME=VALUE, got {text!r}")
        try:
            values[name] = json.loads(value)
        except ValueError:
            values[name] = str(Path(value).resolve()) if Path(value).exists() else value
    return values


def _common(
    model: str,
    revision: str | None,
    prompts: list[Path] | None,
    training_images: Path | None,
    device: Device,
    dtype: Dtype,
) -> dict[str, Any]:
    """Parameters of every notebook; paths are absolute, since notebooks run in another folder."""
    if training_images is not None and not training_images.is_dir():
        raise FileNotFoundError(f"--training-images: there is no folder {training_images}")
    return {
        "model": absolute(model),
        "revision": revision,
        "device": device.value,
        "dtype": dtype.value,
        "prompt_files": [str(path.resolve()) for path in existing(prompts or (), "--prompts")],
        "training_images": training_images and str(training_images.resolve()),
    }
