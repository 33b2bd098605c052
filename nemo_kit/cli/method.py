"""``nemo-kit detect`` and ``nemo-kit localize``: the method on prompts, given or from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nemo_kit.cli.options import (
    Device,
    DeviceOption,
    JsonOption,
    ModelOption,
    PromptsOption,
    RevisionOption,
    SeedsOption,
    StatisticsOption,
    ThresholdOption,
    joined,
    load,
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


def register(app: typer.Typer) -> None:
    """Add these commands to the app."""
    app.command()(detect)
    app.command()(localize)


def detect(
    prompt: Annotated[list[str] | None, typer.Argument(help="Prompts to look at.")] = None,
    prompts: PromptsOption = None,
    model: ModelOption = "lab",
    revision: RevisionOption = None,
    device: DeviceOption = Device.auto,
    seeds: SeedsOption = 10,
    threshold: ThresholdOption = None,
    as_json: JsonOption = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the table to this .csv or .parquet file.")
    ] = None,
) -> None:
    """Tell which prompts a model memorizes, from one prediction a seed.

    The score is the largest similarity between the noise predictions of two seeds: a memorized
    prompt pulls every seed to the same picture. With neither prompts nor a file, and the model
    lab, the lab's own prompts are taken.
    """
    from nemo_kit.localization import detect as detect_prompts

    texts = read_texts(prompt, prompts, model)
    write = writer(out)
    loaded = load(model, device, revision)
    with progress_bar(len(texts), "detect", as_json) as bar:
        rows = []
        for text in texts:
            rows.append(detect_prompts(loaded, [text], range(1, seeds + 1), threshold=threshold))
            bar.update()
    frame = joined(rows).drop(columns=["pairwise"], errors="ignore")
    show(frame, ["memorized", "score", "prompt"], as_json)
    write(frame)


def localize(
    prompt: Annotated[list[str] | None, typer.Argument(help="Prompts to look at.")] = None,
    prompts: PromptsOption = None,
    model: ModelOption = "lab",
    revision: RevisionOption = None,
    device: DeviceOption = Device.auto,
    seeds: SeedsOption = 10,
    threshold: ThresholdOption = None,
    statistics: StatisticsOption = None,
    as_json: JsonOption = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the table to this .csv or .parquet file.")
    ] = None,
) -> None:
    """Find the neurons by which a model memorizes the image of a prompt.

    Prints layer and index of each neuron; layers are numbered from 1 as in the paper. A prompt
    that is not memorized has none. Hard prompts take minutes.
    """
    from nemo_kit.localization import localize as localize_prompt

    if not prompt and not prompts:
        raise ValueError("localize needs a PROMPT, or --prompts FILE")
    texts = read_texts(prompt, prompts, model)
    write = writer(out)
    known = read_statistics(statistics)
    loaded = load(model, device, revision)
    rows = []
    with progress_bar(len(texts), "localize", as_json) as bar:
        for text in texts:
            found = localize_prompt(
                loaded, text, range(1, seeds + 1), statistics=known, threshold=threshold
            )
            rows.append(found.to_row())
            bar.update()
    frame = joined(rows)
    show(frame, ["memorized", "score", "n_initial", "n_refined", "refined", "prompt"], as_json)
    write(frame)
