"""``python -m benchmarks``: what localization costs, in search modes and in the released code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from typer import Option

from nemo_kit.cli import run
from nemo_kit.cli.options import Files, Kept, Model, Seeds, end, grouped, writable

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


# fmt: off
@app.command()
@grouped
def bench(
    *,
    prompts: Files = None,
    count: Annotated[int | None, Option(metavar="N", min=1, help="Prompts of each type; by default "
        "all.")] = None,
    search: Annotated[list[str] | None, Option(metavar="MODE", help="A search mode to measure; may "
        "be repeated. By default speculative, bisect, attributed.")] = None,
    precision: Annotated[list[str] | None, Option(metavar="TYPE", help="Measure the first mode in "
        "this precision too: bfloat16, float16. May be repeated.")] = None,
    model: Model,
    seeds: Seeds = 10,
    kept: Kept,
    out: Annotated[Path, Option(metavar="FOLDER", help="Folder for bench.csv, bench_summary.csv "
        "and bench.png.")] = Path("runs/bench"),
    pictures: Annotated[int, Option(metavar="N", min=0, help="Pictures of each prompt and mode for "
        "SSCD_gen, 100 denoiser samples each; by default none.")] = 0,
) -> None:
    # fmt: on
    """Measure what localization costs, prompt by prompt, beside the released algorithm.

    Prints for VM and TM: how many times faster, the share of its samples, the share of prompts
    with the same neurons, and the distance to the fewest samples possible; where there is a GPU,
    the throughput at the shapes of Stable Diffusion 1.4. A run that was ended goes on where it
    stopped.
    """
    from benchmarks import compare, quality
    from nemo_kit import lab
    from nemo_kit.groups import choose
    from nemo_kit.localization.search import find_search
    from nemo_kit.store import prompt_table

    ways = list(search or compare.WAYS)
    for mode in ways:
        find_search(mode)
    writable(out, "--out")
    ways += [f"{ways[0]}@{name}" for name in precision or ()]
    table = prompt_table(prompts or ())
    chosen = choose(table, memorized=count, non_memorized=0)
    loaded = model.open()
    detection = range(1, seeds + 1)
    store, retry = kept.store, kept.retry_failed
    with kept.running():
        done = compare.measure(loaded, chosen, ways, detection, store=store, retry_failed=retry)
    frame = done
    if model.model == "lab":
        frame = quality.with_known(frame, lab.planted())
    if pictures:
        frame = quality.with_pictures(loaded, frame, pictures, detection, store=store)
    report(frame, len(done.attrs.get("failed", {})), out)
    shapes(out)
    end(done)


def report(frame: pd.DataFrame, failed: int, out: Path) -> None:
    """Print the table of ratios and what differs, and write tables and figure."""
    from benchmarks.compare import disagreements, flagged_by_baseline, summary
    from benchmarks.plot import costs
    from nemo_kit.files import write_table

    ratios, flagged = summary(frame), flagged_by_baseline(frame)
    print(ratios.to_string(index=False, float_format="{:.3g}".format))
    print("\nfaster: seconds of the released algorithm ÷ the mode's; samples: the mode's ÷ its.")
    skipped = frame["prompt"].nunique() - flagged["prompt"].nunique()
    print(f"Prompts that detection does not flag, and that don't count here: {skipped}.")
    if failed:
        print(f"Prompts that failed, and that don't count here either: {failed}.")
    differ = disagreements(frame)
    if differ.empty:
        print("All modes found the released algorithm's neurons.")
    else:
        print("\nOther neurons than the released algorithm's (tie: rounding decides):")
        print(differ.to_string(index=False, max_colwidth=50))
    for name, table in (("bench", frame), ("bench_summary", ratios)):
        write_table(out / f"{name}.csv", table)
    costs(flagged).savefig(out / "bench.png", dpi=200)
    print(f"\nwritten: {out}/bench.csv, bench_summary.csv, bench.png")


def shapes(out: Path) -> None:
    """Throughput on a GPU, or one line that says why there is none."""
    from benchmarks.throughput import throughput

    try:
        table = throughput()
    except ValueError as error:
        print(f"not measured: {error}")
        return
    print("\nsamples a second at the shapes of Stable Diffusion 1.4, float16:")
    print(table.to_string(index=False, float_format="{:.3g}".format))
    table.to_csv(out / "throughput.csv", index=False)


if __name__ == "__main__":
    run(app, "benchmarks")
