"""Options and small parts that several commands share: prompts, models, tables, progress.

Whatever needs torch is imported inside the function that uses it, so that ``--help`` is quick.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import pandas as pd


class Device(StrEnum):
    """Where the model runs."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Dtype(StrEnum):
    """Number type of a model's weights."""

    auto = "auto"
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="NAME",
        help='"lab" (the small model that comes with nemo_kit), a folder with a diffusers model, '
        'a .safetensors checkpoint, or a hub id such as "CompVis/stable-diffusion-v1-4".',
    ),
]
RevisionOption = Annotated[
    str | None, typer.Option("--revision", metavar="COMMIT",
                             help="Commit of a hub model; published "
                             "results name it.")
]  # fmt: skip
LoraOption = Annotated[
    str | None, typer.Option("--lora", metavar="FILE[:SCALE]",
                             help="LoRA weights (.safetensors) to fuse into the model's.")
]  # fmt: skip
ConfigOption = Annotated[
    str | None, typer.Option("--config", metavar="NAME",
                             help="Folder or hub id whose settings a .safetensors checkpoint has; "
                             "Stable Diffusion 2.x needs it.")
]  # fmt: skip
DeviceOption = Annotated[
    Device, typer.Option("--device", help='"auto" takes the GPU where there is one.')
]
DtypeOption = Annotated[
    Dtype,
    typer.Option("--dtype", help='Number type of the weights; "auto" is float16 on a GPU, float32 '
                 "elsewhere. A model whose latents overflow in float16 needs float32."),
]  # fmt: skip
SeedsOption = Annotated[
    int,
    typer.Option("--seeds", metavar="N", min=2, max=10_000, help="How many seeds to compare: 1 to "
                 "this number, at least 2."),
]  # fmt: skip
PromptsOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--prompts",
        metavar="FILE",
        help="File with prompts: .csv, .tsv, .json, .jsonl or .parquet with a column 'prompt' or "
        "'caption' (the lists of the field are such), or .txt with one a line. May be repeated.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, one object a prompt.")]
ThresholdOption = Annotated[
    float | None,
    typer.Option("--threshold", metavar="X",
                 help="Score above which a prompt counts as memorized; by default "
                 "the one that came with the model."),
]  # fmt: skip
StatisticsOption = Annotated[
    Path | None,
    typer.Option("--statistics", metavar="FILE",
                 help="Activation statistics for a model that has none: the "
                 "released .pt file, or a .safetensors file written by nemo_kit."),
]  # fmt: skip


def load(
    model: str,
    device: Device,
    revision: str | None = None,
    dtype: Dtype = Dtype.auto,
    lora: str | None = None,
    config: str | None = None,
) -> Any:
    """The model on that device, opened when the command runs and not before."""
    from nemo_kit.models import load

    return load(model, device.value, dtype.value, revision, lora=lora, config=config)


def absolute(model: str) -> str:
    """A folder or file as an absolute path: notebooks run in another folder."""
    from nemo_kit.store.work import absolute

    return absolute(model)


def texts(prompt: Sequence[str] | None, files: Sequence[Path] | None, model: str) -> list[str]:
    """Prompts of the command line, then of the files; the lab's own where there are neither."""
    given = list(prompt or ())
    if not given and not files and model != "lab":
        raise ValueError("a PROMPT is needed, or --prompts FILE")
    if files or not given:
        from nemo_kit.store import prompt_table

        given += list(prompt_table(existing(files or (), "--prompts"))["prompt"])
    if any(not text.strip() for text in given):
        raise ValueError("a PROMPT must not be empty")
    return list(dict.fromkeys(given))


def existing(files: Sequence[Path], option: str) -> Sequence[Path]:
    """The files, or FileNotFoundError that names the option."""
    for path in files:
        if not path.is_file():
            raise FileNotFoundError(f"{option}: there is no file {path}")
    return files


def writable(folder: Path, option: str) -> None:
    """Make the folder, and refuse before any work is done one that nothing can be written to.

    Raises ValueError that names the option.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"{option}: nothing can be written to {folder} ({error.strerror or error})"
        ) from error


@contextmanager
def interruptible(kept: str) -> Iterator[None]:
    """Ctrl-C ends the command with exit code 130 and one line that says what is kept."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"nemo-kit: interrupted; {kept}", file=sys.stderr)
        raise typer.Exit(130) from None


def statistics(path: Path | None) -> Any:
    """Activation statistics of either kind of file, None without one."""
    if path is None:
        return None
    from nemo_kit.localization import ActivationStatistics

    existing([path], "--statistics")
    released = path.suffix == ".pt"
    return ActivationStatistics.from_released(path) if released else ActivationStatistics.load(path)


def writer(out: Path | None) -> Any:
    """What writes the table; refuses before any work is done a file that it can't write."""
    from nemo_kit.files import spreadsheet_safe, write_atomically

    if out is None:
        return lambda frame: None
    if out.suffix not in {".csv", ".parquet"}:
        raise ValueError(f"--out must end in .csv or .parquet, got {out}")
    if out.is_dir():
        raise ValueError(f"--out must be a file, got the folder {out}")
    if not out.resolve().parent.is_dir():
        raise ValueError(f"--out: there is no folder {out.resolve().parent}")
    writable(out.resolve().parent, "--out")
    if out.suffix == ".csv":
        return lambda frame: write_atomically(
            out, lambda part: spreadsheet_safe(frame).to_csv(part, index=False)
        )
    return lambda frame: write_atomically(out, lambda part: frame.to_parquet(part, index=False))


def bar(total: int, label: str, quiet: bool) -> Any:
    """A progress bar over prompts, where there is more than one."""
    from tqdm import tqdm

    return tqdm(total=total, desc=label, unit="prompt", disable=quiet or total < 2)


def joined(rows: list[Any]) -> pd.DataFrame:
    """Rows or frames as one frame."""
    import pandas as pd

    return pd.DataFrame(rows) if isinstance(rows[0], dict) else pd.concat(rows, ignore_index=True)


def show(frame: pd.DataFrame, columns: list[str], as_json: bool) -> None:
    """Print the named columns as a table, or every row as JSON."""
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
