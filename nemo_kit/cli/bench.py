"""``nemo-kit bench``: what localization costs, the search modes beside the released algorithm."""

from __future__ import annotations

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
    SeedsOption,
    existing,
    load,
    writable,
)
from nemo_kit.cli.sweeps import Place, RetryOption, end, plainly

if TYPE_CHECKING:
    import pandas as pd


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(short_help="Measure what localization costs.")(bench)


def bench(
    prompts: PromptsOption = None,
    count: Annotated[
        int | None, typer.Option("--count", metavar="N", min=1, help="Prompts of each type; by "
                                "default all.")
    ] = None,
    search: Annotated[
        list[str] | None,
        typer.Option("--search", metavar="MODE",
                     help="A search mode to measure; may be repeated. By default "
                     "speculative, bisect, attributed."),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option("--precision", metavar="TYPE", help="Measure the first mode in this precision "
                     "too: bfloat16, float16. May be repeated."),
    ] = None,
    compiled: Annotated[
        bool,
        typer.Option("--compile", help="Measure each mode with torch.compile too; compiling "
                     "takes minutes and is not counted."),
    ] = False,
    model: ModelOption = "lab",
    revision: RevisionOption = None,
    device: DeviceOption = Device.auto,
    dtype: DtypeOption = Dtype.auto,
    seeds: SeedsOption = 10,
    store: Annotated[Path, typer.Option("--store", metavar="FOLDER", help="Folder that keeps the "
                     "result of every prompt.")] = Path("runs/store"),
    retry_failed: RetryOption = False,
    out: Annotated[
        Path, typer.Option("--out", metavar="FOLDER",
                           help="Folder for bench.csv, bench_summary.csv and bench.png.")
    ] = Path("runs/bench"),
    shapes: Annotated[
        bool, typer.Option("--shapes/--no-shapes", help="Throughput at the shapes of Stable "
                           "Diffusion 1.4, where there is a GPU.")
    ] = True,
    pictures: Annotated[
        int, typer.Option("--pictures", metavar="N", min=0, help="Pictures of each prompt and "
                          "mode for SSCD_gen, 100 denoiser samples each; by default none.")
    ] = 0,
) -> None:  # fmt: skip
    """Measure what localization costs, prompt by prompt, beside the released algorithm.

    Prints for VM and TM: how many times faster, the share of its samples, the share of prompts
    with the same neurons, and the distance to the fewest samples possible. A run that was ended
    goes on where it stopped.
    """
    from nemo_kit.bench import (
        disagreements,
        flagged_by_baseline,
        measure,
        summary,
        with_known,
        with_pictures,
    )
    from nemo_kit.experiments import prompt_table
    from nemo_kit.groups import choose
    from nemo_kit.lab.truth import known_neurons
    from nemo_kit.localization.search import find_search

    for mode in search or ():
        find_search(mode)
    writable(out, "--out")
    ways = list(search or ("speculative", "bisect", "attributed"))
    compiled_ways = [f"{mode}@compile" for mode in ways if compiled]
    ways += [*(f"{ways[0]}@{name}" for name in precision or ()), *compiled_ways]
    table = prompt_table(existing(prompts or (), "--prompts"))
    chosen = choose(table, memorized=count, non_memorized=0)
    loaded = load(model, device, revision, dtype)
    detection = range(1, seeds + 1)
    with plainly(Place(store, 1, None, retry_failed)):
        frame = measure(loaded, chosen, ways, detection, store=store, retry_failed=retry_failed)
    done = frame
    if known := known_neurons(model):
        frame = with_known(frame, known)
    if pictures:
        frame = with_pictures(loaded, frame, pictures, detection, store=store)
    ratios = summary(frame)
    flagged = flagged_by_baseline(frame)
    skipped = frame["prompt"].nunique() - flagged["prompt"].nunique()
    _print(ratios, disagreements(frame), skipped, len(done.attrs.get("failed", {})))
    _write(out, frame, flagged, ratios)
    if shapes:
        _shapes(out)
    end(done)


def _print(ratios: pd.DataFrame, differ: pd.DataFrame, skipped: int, failed: int) -> None:
    print(ratios.to_string(index=False, float_format="{:.3g}".format))
    print("\nfaster: seconds of the released algorithm ÷ the mode's; samples: the mode's ÷ its.")
    print(f"Prompts that detection does not flag, and that don't count here: {skipped}.")
    if failed:
        print(f"Prompts that failed, and that don't count here either: {failed}.")
    if differ.empty:
        print("All modes found the released algorithm's neurons.")
    else:
        print("\nOther neurons than the released algorithm's (tie: rounding decides):")
        print(differ.to_string(index=False, max_colwidth=50))


def _write(out: Path, frame: pd.DataFrame, flagged: pd.DataFrame, ratios: pd.DataFrame) -> None:
    from nemo_kit.files import spreadsheet_safe, write_atomically
    from nemo_kit.plots import bench_costs

    out.mkdir(parents=True, exist_ok=True)
    tables: dict[str, Any] = {"bench.csv": frame, "bench_summary.csv": ratios}
    for name, table in tables.items():
        safe = spreadsheet_safe(table)
        write_atomically(out / name, lambda part, safe=safe: safe.to_csv(part, index=False))
    figure = bench_costs(flagged)
    write_atomically(
        out / "bench.png", lambda part: figure.savefig(part, format="png", bbox_inches="tight")
    )
    print(f"\nwritten: {out}/bench.csv, bench_summary.csv, bench.png")


def _shapes(out: Path) -> None:
    """Throughput on a GPU, or one line that says why there is none."""
    from nemo_kit.bench import throughput

    try:
        table = throughput()
    except ValueError as error:
        print(f"not measured: {error}")
        return
    print("\nsamples a second at the shapes of Stable Diffusion 1.4, float16:")
    print(table.to_string(index=False, float_format="{:.3g}".format))
    table.to_csv(out / "throughput.csv", index=False)
