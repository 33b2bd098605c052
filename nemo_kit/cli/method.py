"""``nemo-kit detect`` and ``nemo-kit localize``: the method on prompts, given or from a file.

Prompts of the command line are worked on and shown; those of files go through a store, so that a
long run can be stopped, killed and gone on with.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nemo_kit.cli.options import (
    ConfigOption,
    Device,
    DeviceOption,
    Dtype,
    DtypeOption,
    JsonOption,
    LoraOption,
    ModelOption,
    PromptsOption,
    RevisionOption,
    SeedsOption,
    StatisticsOption,
    ThresholdOption,
    existing,
    interruptible,
    joined,
    show,
    writer,
)
from nemo_kit.cli.options import (
    bar as progress_bar,
)
from nemo_kit.cli.options import (
    statistics as read_statistics,
)
from nemo_kit.cli.options import (
    texts as read_texts,
)
from nemo_kit.cli.sweeps import (
    STORE,
    HoldOutOption,
    Place,
    Preset,
    RetryOption,
    SchedulerOption,
    SettingsOption,
    StoreOption,
    WorkersOption,
    calibrated,
    end,
    for_workers,
    opened,
    refuse_both,
    refuse_calibration,
    refuse_elsewhere,
    sweep,
)

if TYPE_CHECKING:
    import pandas as pd

OutOption = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE", help="Write the table to this .csv or .parquet file."),
]
PromptArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[PROMPT]...", help="Prompts to look at.")
]


def detect(
    prompt: PromptArgument = None,
    prompts: PromptsOption = None,
    model: ModelOption = "lab",
    revision: RevisionOption = None,
    lora: LoraOption = None,
    config: ConfigOption = None,
    device: DeviceOption = Device.auto,
    dtype: DtypeOption = Dtype.auto,
    seeds: SeedsOption = 10,
    threshold: ThresholdOption = None,
    settings: SettingsOption = Preset.default,
    hold_out: HoldOutOption = None,
    store: StoreOption = STORE,
    workers: WorkersOption = 1,
    scheduler: SchedulerOption = None,
    retry_failed: RetryOption = False,
    as_json: JsonOption = False,
    out: OutOption = None,
) -> None:
    """Tell which prompts a model memorizes, from one prediction a seed.

    The score is the largest similarity between the noise predictions of two seeds: a memorized
    prompt pulls every seed to the same picture. With neither prompts nor a file, and the model
    lab, the lab's own prompts are taken.
    """
    from nemo_kit.store import detect_all
    from nemo_kit.store.method import Detect

    refuse_both(threshold, hold_out)
    place = Place(store, workers, scheduler, retry_failed)
    if prompt and not prompts:
        refuse_elsewhere(place)
    texts = read_texts(prompt, prompts, model)
    write = writer(out)
    refuse_calibration(hold_out, device, place)
    loaded = opened(model, device, revision, dtype, place, lora, config)
    numbers = range(1, seeds + 1)
    chosen = calibrated(loaded, settings, threshold, hold_out, numbers, store)
    options = {
        "threshold": threshold,
        "settings": chosen.detection,
        "similarity": chosen.similarity,
    }
    if prompt and not prompts:
        frame = _one_by_one(Detect(loaded, list(numbers), options), texts, "detect", as_json)
    else:
        named = for_workers(loaded, device, place)
        frame = sweep(detect_all, named, texts, place, as_json, seeds=numbers, **options)
    frame = frame.drop(columns=["pairwise"], errors="ignore")
    show(frame, ["memorized", "score", "prompt"], as_json)
    write(frame)
    end(frame)


def localize(
    prompt: PromptArgument = None,
    prompts: PromptsOption = None,
    model: ModelOption = "lab",
    revision: RevisionOption = None,
    lora: LoraOption = None,
    config: ConfigOption = None,
    device: DeviceOption = Device.auto,
    dtype: DtypeOption = Dtype.auto,
    seeds: SeedsOption = 10,
    search: Annotated[
        str,
        typer.Option(
            "--search",
            metavar="MODE",
            help='How to search: "speculative" gives the paper\'s sets, batched; "sequential" is '
            'call by call; "bisect" and "attributed" are cheaper and verified.',
        ),
    ] = "speculative",
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Score with torch.compile: minutes at the first prompt, then less for each.",
        ),
    ] = False,
    threshold: ThresholdOption = None,
    statistics: StatisticsOption = None,
    settings: SettingsOption = Preset.default,
    hold_out: HoldOutOption = None,
    store: StoreOption = STORE,
    workers: WorkersOption = 1,
    scheduler: SchedulerOption = None,
    retry_failed: RetryOption = False,
    as_json: JsonOption = False,
    out: OutOption = None,
    released: Annotated[
        bool,
        typer.Option("--released", help="Write --out FILE.csv in the released code's form."),
    ] = False,
) -> None:
    """Find the neurons by which a model memorizes the image of a prompt.

    Prints layer and index of each neuron; layers are numbered from 1 as in the paper. A prompt
    that is not memorized has none. Hard prompts take minutes. Prompts of --prompts files go
    through --store: run the same command again and it goes on where it stopped.
    """
    from nemo_kit.localization.search import find_search
    from nemo_kit.store import localize_all
    from nemo_kit.store.method import Localize

    if not prompt and not prompts:
        raise ValueError("localize needs a PROMPT, or --prompts FILE")
    find_search(search)
    refuse_both(threshold, hold_out)
    place = Place(store, workers, scheduler, retry_failed)
    if not prompts:
        refuse_elsewhere(place)
    texts = read_texts(prompt, prompts, model)
    write = _released_writer(out, prompts) if released else writer(out)
    known = read_statistics(statistics)
    refuse_calibration(hold_out, device, place)
    loaded = opened(model, device, revision, dtype, place, lora, config)
    numbers = range(1, seeds + 1)
    chosen = calibrated(loaded, settings, threshold, hold_out, numbers, store)
    chosen = replace(chosen, compile=compiled)
    options = {"search": search, "statistics": known, "threshold": threshold, "settings": chosen}
    if not prompts:
        frame = _one_by_one(Localize(loaded, list(numbers), options), texts, "localize", as_json)
    else:
        named = for_workers(loaded, device, place)
        frame = sweep(localize_all, named, texts, place, as_json, seeds=numbers, **options)
        sets = {name: [one.to_json() for one in frame[name]] for name in ("initial", "refined")}
        frame = frame.assign(**sets)
    show(frame, ["memorized", "score", "n_initial", "n_refined", "refined", "prompt"], as_json)
    write(frame)
    end(frame)


def _one_by_one(work: Any, texts: list[str], label: str, quiet: bool) -> pd.DataFrame:
    """Without a store: a prompt that fails ends the command, and Ctrl-C keeps nothing."""
    rows = []
    kept = "nothing is kept of prompts on the command line; those of --prompts FILE would be"
    with interruptible(kept), progress_bar(len(texts), label, quiet) as bar:
        for text in texts:
            rows.append(work(text))
            bar.update()
    return joined(rows)


def _released_writer(out: Path | None, files: list[Path] | None) -> Any:
    """Writes the released result CSV, a row for each row of the prompt files."""
    from nemo_kit.neuron_files import write_released
    from nemo_kit.prompts import prompt_rows

    if out is None or out.suffix != ".csv":
        raise ValueError(f"--released needs --out FILE.csv, got {out}")
    writer(out)  # for its checks of the folder
    rows = prompt_rows(existing(files, "--prompts")) if files else None
    return lambda frame: write_released(out, frame, _with_others(rows, frame))


def _with_others(rows: pd.DataFrame | None, frame: pd.DataFrame) -> pd.DataFrame | None:
    """The files' rows, and behind them the prompts of the command line, which have no URL."""
    if rows is None:
        return None
    import pandas as pd

    others = frame.loc[~frame["prompt"].isin(rows["prompt"]), ["prompt"]].assign(url="")
    return pd.concat([rows[["prompt", "url"]], others], ignore_index=True)
