"""``nemo-kit figures``: the figures of the paper, drawn by the notebooks."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from nemo_kit.cli.options import (
    Device,
    DeviceOption,
    ModelOption,
    PromptsOption,
    RevisionOption,
    absolute,
    existing,
)


def register(app: typer.Typer) -> None:
    """Add these commands to the app."""
    app.command()(figures)


class Preset(StrEnum):
    """How much the figures are computed from."""

    quick = "quick"
    lab = "lab"


def figures(
    only: Annotated[
        list[str] | None,
        typer.Option("--only", help="Draw this figure, or all of this notebook. May be repeated."),
    ] = None,
    show: Annotated[
        bool, typer.Option("--list", help="Say what there is and what is up to date; draw nothing.")
    ] = False,
    preset: Annotated[
        Preset,
        typer.Option(
            "--preset",
            help='"quick": few prompts and seeds, some minutes. "lab": all of '
            "them, as in the committed figures, within an hour on two cores.",
        ),
    ] = Preset.quick,
    model: ModelOption = "lab",
    revision: RevisionOption = None,
    prompts: PromptsOption = None,
    training_images: Annotated[
        Path | None,
        typer.Option(
            "--training-images",
            help="Folder with training images, one a prompt, named as the column 'image' or "
            "'Index' of the prompt file says. Missing ones are counted and left out.",
        ),
    ] = None,
    device: DeviceOption = Device.auto,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Output folder; by default figures/lab-quick or figures/lab."),
    ] = None,
    notebooks: Annotated[
        Path | None, typer.Option("--notebooks", help="Folder of the notebooks, outside a clone.")
    ] = None,
    limit: Annotated[
        float | None,
        typer.Option(
            "--limit",
            min=0.01,
            help="Minutes after which a notebook is ended; by default 30 (quick) or 120 (lab).",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Draw also what is up to date.")] = False,
) -> None:
    """Draw the figures of the paper from the notebooks: what is missing or stale, or all.

    A figure is up to date while its notebook, the package, its parameters and the model are those
    it was drawn with. Beside each PNG lies the data behind it as CSV, and for each notebook a
    manifest. Executed notebooks stay in runs/figures/.
    """
    from nemo_kit.figures import report, runner, select

    if model != "lab" and not prompts:
        raise ValueError(f"--model {model} needs --prompts FILE: the built-in prompts are lab's")
    rows = select(only or ())
    target = out or runner.output_folder(preset, model)
    files = [str(path.resolve()) for path in existing(prompts or (), "--prompts")]
    common = {"model": absolute(model), "revision": revision, "device": device.value}
    if training_images is not None:
        if not training_images.is_dir():
            raise FileNotFoundError(f"--training-images: there is no folder {training_images}")
        common["training_images"] = str(training_images.resolve())
    jobs = runner.plan(
        rows, preset.value, target, notebooks=notebooks, force=force, prompt_files=files, **common
    )
    print(report.announce(jobs), flush=True)
    if show:
        return
    seconds = runner.LIMITS[preset] if limit is None else 60 * limit
    with runner.alone(jobs):
        outcomes = report.draw(jobs, seconds)
    print(report.table(rows, jobs, outcomes))
    if any(outcome.error for outcome in outcomes.values()):
        raise typer.Exit(1)
