"""The command ``nemo-kit``: figures, detection, localization and the report on the lab model.

Scope: reads arguments, calls the package, prints. Whatever needs torch is imported inside the
command that uses it, so that ``--help`` is quick. Bad input ends with exit code 2 and one line on
standard error, a figure that failed with exit code 1.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from nemo_kit import __version__

if TYPE_CHECKING:
    import pandas as pd


class Device(StrEnum):
    """Where the model runs."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Preset(StrEnum):
    """How much the figures are computed from."""

    quick = "quick"
    lab = "lab"


app = typer.Typer(
    help="Find and switch off the neurons by which a diffusion model memorizes training images.",
    epilog="Start with: nemo-kit figures --list, or nemo-kit localize 'A PROMPT'",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        help='"lab" (the small model that comes with nemo_kit), a folder with a diffusers model, '
        'or a hub id such as "CompVis/stable-diffusion-v1-4".',
    ),
]
RevisionOption = Annotated[
    str | None, typer.Option("--revision", help="Commit of a hub model; published results name it.")
]
DeviceOption = Annotated[
    Device, typer.Option("--device", help='"auto" takes the GPU where there is one.')
]
SeedsOption = Annotated[
    int, typer.Option("--seeds", min=2, help="How many seeds to compare: 1 to this number.")
]
PromptsOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--prompts",
        help="File with prompts, instead of or beside those on the command line: a CSV with a "
        "column 'prompt' or 'Caption', or a text file with one a line. May be repeated.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, one object a prompt.")]
ThresholdOption = Annotated[
    float | None,
    typer.Option("--threshold", help="Score above which a prompt counts as memorized; by default "
                 "the one that came with the model."),
]  # fmt: skip
StatisticsOption = Annotated[
    Path | None,
    typer.Option("--statistics", help="Activation statistics for a model that has none: the "
                 "released .pt file, or a .safetensors file written by nemo_kit."),
]  # fmt: skip


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,
) -> None:
    if version:
        print(f"nemo-kit {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
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
    files = [str(path.resolve()) for path in _existing(prompts or (), "--prompts")]
    common = {"model": _absolute(model), "revision": revision, "device": device.value}
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


@app.command()
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

    texts = _texts(prompt, prompts, model)
    write = _writer(out)
    loaded = _load(model, device, revision)
    with _bar(len(texts), "detect", as_json) as bar:
        rows = []
        for text in texts:
            rows.append(detect_prompts(loaded, [text], range(1, seeds + 1), threshold=threshold))
            bar.update()
    frame = _joined(rows).drop(columns=["pairwise"], errors="ignore")
    _print(frame, ["memorized", "score", "prompt"], as_json)
    write(frame)


@app.command()
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
    texts = _texts(prompt, prompts, model)
    write = _writer(out)
    known = _statistics(statistics)
    loaded = _load(model, device, revision)
    rows = []
    with _bar(len(texts), "localize", as_json) as bar:
        for text in texts:
            found = localize_prompt(
                loaded, text, range(1, seeds + 1), statistics=known, threshold=threshold
            )
            rows.append(found.to_row())
            bar.update()
    frame = _joined(rows)
    _print(frame, ["memorized", "score", "n_initial", "n_refined", "refined", "prompt"], as_json)
    write(frame)


@app.command("lab-report")
def lab_report(
    device: DeviceOption = Device.auto,
    steps: Annotated[
        int, typer.Option("--steps", min=1, help="DDIM steps of each generation.")
    ] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """Measure what the embedded model reaches, each number beside its target.

    Whether it memorizes is measured without the method: generations against training images with
    the copy descriptor. Then: is the switch where it was planted, and does the method find it?
    Takes long on a CPU, goes on where it was stopped, and keeps its results in runs/store.
    """
    from nemo_kit.figures.runner import root
    from nemo_kit.lab.report import Report

    table = Report(root() / "runs" / "store", _load("lab", device, None), steps).targets()
    _print(table, list(table), as_json)


def main() -> NoReturn:
    """Run the command; bad input ends with exit code 2 and one line."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that notebooks are ended too
    try:
        code = app(standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted", 130)
    except (ValueError, TypeError, OSError) as error:
        if os.environ.get("NEMO_KIT_TRACEBACK"):
            raise
        _fail(_one_line(error), 2)
    except Exception as error:
        if not hasattr(error, "format_message"):  # typer's own: unknown options, missing values
            raise
        _fail(f"{error.format_message()} (nemo-kit --help shows what there is)", 2)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> NoReturn:
    print(f"nemo-kit: {message}", file=sys.stderr)
    sys.exit(code)


def _one_line(error: Exception) -> str:
    """The message on one line; pydantic's names parameter, rule and value."""
    if hasattr(error, "errors") and callable(error.errors):
        parts = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}, got {e['input']!r}"
                 for e in error.errors()]  # fmt: skip
        return "; ".join(parts)
    return " ".join(str(error).split()) or type(error).__name__


def _load(model: str, device: Device, revision: str | None) -> Any:
    from nemo_kit.models import load

    return load(model, device=device.value, revision=revision)


def _absolute(model: str) -> str:
    """A folder as an absolute path: notebooks run in another folder."""
    return str(Path(model).resolve()) if model != "lab" and Path(model).is_dir() else model


def _texts(prompt: Sequence[str] | None, files: Sequence[Path] | None, model: str) -> list[str]:
    """Prompts of the command line, then of the files; the lab's own where there are neither."""
    given = list(prompt or ())
    if not given and not files and model != "lab":
        raise ValueError("a PROMPT is needed, or --prompts FILE")
    if files or not given:
        from nemo_kit.experiments import prompt_table

        given += list(prompt_table(_existing(files or (), "--prompts"))["prompt"])
    if any(not text.strip() for text in given):
        raise ValueError("a PROMPT must not be empty")
    return list(dict.fromkeys(given))


def _existing(files: Sequence[Path], option: str) -> Sequence[Path]:
    for path in files:
        if not path.is_file():
            raise FileNotFoundError(f"{option}: there is no file {path}")
    return files


def _statistics(path: Path | None) -> Any:
    if path is None:
        return None
    from nemo_kit.localization import ActivationStatistics

    _existing([path], "--statistics")
    released = path.suffix == ".pt"
    return ActivationStatistics.from_released(path) if released else ActivationStatistics.load(path)


def _writer(out: Path | None) -> Any:
    """What writes the table; refuses before any work is done a file that it can't write."""
    from nemo_kit.files import spreadsheet_safe, write_atomically

    if out is None:
        return lambda frame: None
    if out.suffix not in {".csv", ".parquet"}:
        raise ValueError(f"--out must end in .csv or .parquet, got {out}")
    if not out.resolve().parent.is_dir():
        raise ValueError(f"--out: there is no folder {out.resolve().parent}")
    if out.suffix == ".csv":
        return lambda frame: write_atomically(
            out, lambda part: spreadsheet_safe(frame).to_csv(part, index=False)
        )
    return lambda frame: write_atomically(out, lambda part: frame.to_parquet(part, index=False))


def _bar(total: int, label: str, quiet: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc=label, unit="prompt", disable=quiet or total < 2)


def _joined(rows: list[Any]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(rows) if isinstance(rows[0], dict) else pd.concat(rows, ignore_index=True)


def _print(frame: pd.DataFrame, columns: list[str], as_json: bool) -> None:
    if as_json:
        for row in json.loads(frame.to_json(orient="records")):
            print(json.dumps(_opened(row), ensure_ascii=False))
        return
    shown = frame[[name for name in columns if name in frame]]
    print(shown.to_string(index=False, float_format="{:.3f}".format, max_colwidth=100))


def _opened(row: dict[str, Any]) -> dict[str, Any]:
    """Columns that hold JSON text as JSON."""
    nested = {"initial", "refined", "settings", "kept_seeds"}
    return {k: json.loads(v) if k in nested and isinstance(v, str) else v for k, v in row.items()}


if __name__ == "__main__":
    main()
