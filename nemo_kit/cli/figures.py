"""``nemo-kit figures``: the figures of the paper, drawn by the notebooks."""

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from nemo_kit.cli import options


# fmt: off
def figures(
    *,
    only: Annotated[list[str] | None, Option(metavar="NAME", help="Draw this figure (by name or "
        "number in the paper), or all of this notebook. May be repeated.")] = None,
    show: Annotated[bool, Option("--list", "--dry-run", help="Say what there is, what is up to "
        "date, and what would be drawn, why, and how long it takes; draw nothing.")] = False,
    preset: Annotated[str, Option(metavar="NAME", help='"quick": few prompts and seeds, some '
        'minutes. "lab": all of them, as in the committed figures, within two hours on two cores. '
        '"paper": all, with the settings of the paper, meant for a GPU: 10 seeds, 10 images of 50 '
        "steps, guidance 7. Or another file in notebooks/presets.")] = "quick",
    model: options.Model,
    prompts: options.Files = None,
    training_images: options.Images = None,
    settings: options.Settings = None,
    out: Annotated[Path | None, Option(metavar="FOLDER", help="Output folder; by default "
        "figures/MODEL, with -quick or -paper.")] = None,
    limit: Annotated[float | None, Option(metavar="MINUTES", min=0.01, help="Minutes after which a "
        "notebook is ended; by default what the preset says, or 30.")] = None,
    retry_failed: Annotated[bool, Option("--retry-failed", help="Try again the prompts that failed "
        "before, and draw what was drawn without them.")] = False,
    keep_going: Annotated[bool, Option("--keep-going", help="Go on after a notebook that failed; "
        "without it the rest is not begun.")] = False,
    also: Annotated[list[str] | None, Option(metavar="FORMAT", help="Each picture in this format "
        "too: pdf or svg. May be repeated.")] = None,
    log: Annotated[bool | None, Option("--log/--bar", help="Plain lines for the log of a batch "
        "system, or a bar; by default a bar on a terminal.")] = None,
) -> None:
    # fmt: on
    """Draw the figures of the paper from the notebooks: what is missing or stale, or all.

    A figure is up to date while its notebook's code, its parameters, the model and the versions of
    what the package computes are those it was drawn with. Beside each PNG lies the data behind it
    as CSV, for each notebook a manifest, and over all the page index.html; executed notebooks are
    in the folder executed. A run that was stopped, at whatever moment, is gone on with by the same
    command.
    """
    from nemo_kit import lab
    from nemo_kit.checks import check_choice
    from nemo_kit.figures import gallery, read_all, runner, select
    from nemo_kit.notebooks import presets

    own = model.model in lab.TABLES
    if not own and not prompts:
        raise ValueError(f"--model {model.model} needs --prompts FILE: the built-in prompts are "
                         "lab's")  # fmt: skip
    images = training_images and str(training_images)
    texts, files = options.settings_of(settings), options.paths(prompts)
    for kind in also or ():
        check_choice("--also", kind, runner.FORMATS)
    books = read_all(folder := runner.root() / "notebooks")
    rows = select(books, only or ())
    out = out or runner.output_folder(preset, model.model, model.lora)
    plan = partial(
        runner.plan, books, rows, preset, out, also=also or (), retry_failed=retry_failed,
        settings=texts, prompt_files=files, training_images=images,
    )  # fmt: skip
    if not own:
        from nemo_kit.models import resolve

        resolve(model.model)
    jobs = plan(**(given := model.parameters()))
    needing = [job for job in jobs if job.book.about.get("statistics", True)]
    if needing and model.lora and not own and "holdout" not in runner.roles(files):
        raise ValueError("--lora needs prompts of the role holdout in --prompts FILE: what it is "
                         "fused into has another threshold, computed from these")  # fmt: skip
    if show:
        print("\n".join([runner.listing(rows, jobs), *runner.announced(rows, jobs)]))
        return
    if not own:  # what is wrong was told before a download
        given["revision"] = _commit(model, bool(needing) and not model.lora)
        jobs = plan(**given)
    options.writable(out, "--out")
    if files:
        from nemo_kit.originals import TrainingImages
        from nemo_kit.prompts import prompt_table

        TrainingImages(prompt_table(files), images)  # warns where no prompt has one
    print(*runner.announced(rows, jobs), sep="\n", flush=True)
    seconds = 60 * (limit or presets(folder)[preset].get("minutes", 30))
    with options.interruptible("figures drawn so far are kept, and the same command goes on"):
        plain = not sys.stderr.isatty() if log is None else log
        outcomes = runner.draw(jobs, seconds, keep_going, plain)
        page = gallery.write(out, books)
    print(f"{runner.listing(rows, jobs, outcomes)}\nall of them on one page: {page}")
    failed = runner.failures(runner.read_manifest(out, row.notebook) for row in rows)
    if failed:
        print(f"{failed}; nemo-kit figures --retry-failed tries again")
    if failed or any(outcomes.values()):
        raise typer.Exit(1)


def _commit(model: options.Model, needing: bool) -> str | None:
    """The commit to draw from, its files on this machine; the revision itself for a folder.

    Raises ValueError before a download where activation statistics are needed and not there.
    """
    from nemo_kit.calibration import CALIBRATION_FILE, STATISTICS_FILE
    from nemo_kit.models import hub

    name, revision = model.model, model.revision
    if needing and hub.lacking(name, revision, (CALIBRATION_FILE, STATISTICS_FILE)):
        pinned = f" --revision {revision}" if revision else ""
        raise ValueError(
            f"--model must have activation statistics, {name} has none: nemo-kit calibrate "
            f"--model {name}{pinned} with --statistics FILE or --hold-out FILE writes them once"
        )
    return revision if Path(name).exists() else hub.fetch(name, revision)[1]
