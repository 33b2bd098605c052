"""``nemo-kit lab-report``: what the embedded model reaches, each number beside its target."""

from __future__ import annotations

from typing import Annotated

import typer

from nemo_kit.cli.options import Device, DeviceOption, interruptible, load, show


def register(app: typer.Typer) -> None:
    """Add these commands to the app."""
    app.command("lab-report", short_help="Measure what the embedded model reaches.")(lab_report)


def lab_report(
    device: DeviceOption = Device.auto,
    steps: Annotated[
        int, typer.Option("--steps", min=1, help="DDIM steps of each generation.")
    ] = 50,
    pictures: Annotated[
        int, typer.Option("--pictures", min=2, max=10, help="Pictures of each prompt.")
    ] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """Measure what the embedded model reaches, each number beside its target.

    Whether it memorizes is measured without the method: generations against training images with
    the copy descriptor. Then: is the switch where it was planted, and does the method find it?
    Takes long on a CPU, goes on where it was stopped, and keeps its results in runs/store.
    """
    from nemo_kit.figures.runner import root
    from nemo_kit.lab.report import Report

    store = root() / "runs" / "store"
    with interruptible(f"what is measured is kept in {store}, and the same command goes on"):
        table = Report(store, load("lab", device), steps, pictures).targets()
    show(table, list(table), as_json)
