"""``nemo-kit plan``: hours, memory, disk and cost of a sweep before it is started."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from nemo_kit.cli.options import (
    ConfigOption,
    Device,
    DeviceOption,
    Dtype,
    DtypeOption,
    LoraOption,
    ModelOption,
    RevisionOption,
    SeedsOption,
    StatisticsOption,
    ThresholdOption,
    existing,
    interruptible,
    load,
)
from nemo_kit.cli.options import statistics as read_statistics
from nemo_kit.cli.sweeps import (
    STORE,
    HoldOutOption,
    Preset,
    SettingsOption,
    calibrated,
    refuse_both,
)


def register(app: typer.Typer) -> None:
    """Add this command to the app."""
    app.command(short_help="Say beforehand what many prompts will take.")(plan)


def plan(
    prompts: Annotated[
        int | None,
        typer.Option("--prompts", metavar="N", min=1,
                     help="How many prompts the sweep will have (a "
                     "number; files go to --sample). With --check it is as many as the sample."),
    ] = None,
    devices: Annotated[
        int,
        typer.Option("--devices", metavar="N", min=1,
                     help="How many devices like this one will work on them."),
    ] = 1,
    sample: Annotated[
        list[Path] | None,
        typer.Option("--sample", metavar="FILE",
                     help="Prompt file to draw the measured prompts from, like the "
                     "many to come; the model lab has its own."),
    ] = None,
    memorized: Annotated[
        Path | None,
        typer.Option("--memorized", metavar="FILE",
                     help="File with memorized prompts, to time localization where "
                     "the sample holds hardly any."),
    ] = None,
    detections: Annotated[
        int,
        typer.Option("--detections", metavar="N", min=1,
                     help="How many prompts to time detection on; with --check all of the sample."),
    ] = 128,
    localizations: Annotated[
        int,
        typer.Option("--localizations", metavar="N", min=1,
                     help="How many flagged prompts to time localization on, at most."),
    ] = 64,
    minutes: Annotated[
        float,
        typer.Option("--minutes", metavar="X", min=0.0,
                     help="Begin no further localization after this time; more measures better."),
    ] = 5.0,
    memorized_share: Annotated[
        float | None,
        typer.Option("--memorized-share", metavar="X", min=0.0, max=1.0,
                     help="Expected share of memorized prompts, 0 to 1; by default the sample's."),
    ] = None,
    price_per_hour: Annotated[
        float | None,
        typer.Option("--price-per-hour", metavar="X", min=0.0,
                     help="What one device costs an hour."),
    ] = None,
    model: ModelOption = "lab",
    revision: RevisionOption = None,
    lora: LoraOption = None,
    config: ConfigOption = None,
    device: DeviceOption = Device.auto,
    dtype: DtypeOption = Dtype.auto,
    seeds: SeedsOption = 10,
    threshold: ThresholdOption = None,
    statistics: StatisticsOption = None,
    settings: SettingsOption = Preset.default,
    hold_out: HoldOutOption = None,
    search: Annotated[
        str, typer.Option("--search", metavar="MODE", help="Search mode, as in nemo-kit localize.")
    ] = "speculative",
    check: Annotated[
        bool,
        typer.Option("--check", help="Then localize all sample prompts for real, and say by how "
                     "much the prediction was off."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:  # fmt: skip
    """Say what localizing many prompts will take, from a few that are worked on now.

    Detection comes first and only flagged prompts are searched for neurons, so the share of
    memorized prompts decides: sample from the real prompts, or give the share.
    """
    from nemo_kit.experiments import plan as planning
    from nemo_kit.experiments import prompt_table
    from nemo_kit.localization.search import find_search

    if prompts is None and not check:
        raise ValueError("--prompts N is needed: how many prompts the sweep will have")
    if check and devices > 1:
        raise ValueError(f"--check is of this device alone: --devices must be 1, got {devices}")
    if not sample and model != "lab":
        raise ValueError("--sample FILE is needed: prompts like those to come")
    find_search(search)
    texts = list(prompt_table(existing(sample or (), "--sample"))["prompt"])
    known = [memorized] if memorized else []
    more = list(prompt_table(existing(known, "--memorized"))["prompt"]) if known else []
    refuse_both(threshold, hold_out)
    known_statistics = read_statistics(statistics)
    loaded = load(model, device, revision, dtype, lora, config)
    numbers = range(1, seeds + 1)
    options: dict[str, Any] = {
        "threshold": threshold, "statistics": known_statistics, "search": search,
        "settings": calibrated(loaded, settings, threshold, hold_out, numbers, STORE),
    }  # fmt: skip
    drawn = texts if check else planning.draw(texts, detections)
    with interruptible("nothing is kept of a plan"):
        measured = planning.measure(
            loaded, drawn, numbers, more, localizations, 60 * minutes, **options
        )
    count = len(texts) if check else prompts
    expected = planning.plan(measured, count, devices, memorized_share, price_per_hour)
    result = asdict(expected)
    if check:
        with interruptible("nothing is kept of a plan"):
            result["actual_by_predicted"] = planning.check(
                loaded, texts, expected, numbers, progress=not as_json, **options
            )
    print(json.dumps(result) if as_json else "\n".join(_lines(result, measured)))


def _lines(plan: dict[str, Any], measured: Any) -> list[str]:
    share, devices = plan["memorized_share"], plan["devices"]
    machines = "1 device" if devices == 1 else f"{devices} devices"
    left_out = f" ({measured.dropped} more not flagged, left out)" if measured.dropped else ""
    none = f"{'':16}none of the sample is; --memorized-share X says how many may be"
    lines = [
        f"measured        detection of {len(measured.detect_seconds)} prompts, {measured.flagged} "
        f"memorized; localization of {len(measured.localize_seconds)}{left_out}",
        f"expected        {plan['prompts']:,} prompts on {machines}, {share:.2%} memorized",
        *([] if measured.flagged or share else [none]),
        f"detection       {_hours(plan['detect_hours'])}",
        f"localization    {_hours(plan['localize_hours'])} more, for the flagged ones",
        f"together        {_hours(plan['hours'])} ({_hours(plan['low'])} to {_hours(plan['high'])} "
        "by the spread of the sample)",
        f"device hours    {plan['device_hours']:,.2f}",
        f"disk            {_size(plan['disk_bytes'])}, {plan['prompts']:,} files",
        f"memory          {_size(plan['worker_bytes'])} a worker, "
        f"{_size(plan['runner_bytes'])} for the final table",
    ]
    if plan["gpu_bytes"]:
        lines.append(f"GPU memory      {_size(plan['gpu_bytes'])} a worker")
    if plan["cost"] is not None:
        lines.append(f"cost            {plan['cost']:,.2f}")
    if "actual_by_predicted" in plan:
        off = plan["actual_by_predicted"] - 1
        lines.append(f"check           a real sweep took {off:+.0%} of what was predicted")
    return lines


def _hours(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:,.1f} days"
    if hours >= 1:
        return f"{hours:.1f} hours"
    return f"{hours * 60:.1f} minutes"


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
