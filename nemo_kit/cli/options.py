"""Options that several commands share, in groups, and small parts of the commands.

Scope: a group is a dataclass whose fields are options; `grouped` gives a command those of its
groups. What opens a model, reads prompts and says what is kept is here once.
Whatever needs torch is imported inside the function that uses it, so that ``--help`` is quick.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_type_hints

import typer
from typer import Option

if TYPE_CHECKING:
    import pandas as pd


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the fields of its dataclass parameters as options of its own."""
    hints = get_type_hints(command, include_extras=True)
    groups = {name: kind for name, kind in hints.items() if is_dataclass(kind)}

    @wraps(command)
    def run(**given: Any) -> None:
        made = {}
        for name, kind in groups.items():
            made[name] = kind(**{one.name: given.pop(one.name) for one in fields(kind)})
        command(**given, **made)

    flat = {}
    for name, parameter in inspect.signature(command).parameters.items():
        if name not in groups:
            flat[name] = parameter.replace(annotation=hints[name])
            continue
        own = get_type_hints(groups[name], include_extras=True)
        for one in fields(groups[name]):
            flat[one.name] = inspect.Parameter(
                one.name, parameter.KEYWORD_ONLY, default=one.default, annotation=own[one.name]
            )
    run.__signature__ = inspect.Signature(flat.values())  # type: ignore[attr-defined]
    run.__annotations__ = {name: one.annotation for name, one in flat.items()}
    return run


Device = Literal["auto", "cpu", "cuda", "offload"]
Dtype = Literal["auto", "float32", "float16", "bfloat16"]


# fmt: off
@dataclass(frozen=True)
class PlainModel:
    """Which model, and how it is opened."""

    model: Annotated[str, Option(metavar="NAME", help='"lab" or "lab-flow" (small models that come '
        'with nemo_kit), a folder with a diffusers model, a .safetensors checkpoint, or a hub id '
        'such as "CompVis/stable-diffusion-v1-4".')] = "lab"
    revision: Annotated[str | None, Option(metavar="COMMIT", help="Commit of a hub model; "
        "published results name it.")] = None
    config: Annotated[str | None, Option(metavar="NAME", help="Folder or hub id whose settings a "
        ".safetensors checkpoint has; Stable Diffusion 2.x needs it.")] = None
    device: Annotated[
        Device,
        Option(
            help='"auto" takes the GPU where there is one; "offload" as well, with the denoiser\'s '
            "weights in main memory."
        ),
    ] = "auto"
    dtype: Annotated[Dtype, Option(help='Number type of the weights; "auto" is float16 on a GPU, '
        "float32 elsewhere. A model whose latents overflow in float16 needs float32.")] = "auto"
    lora: ClassVar[str | None] = None  # what a LoRA is fused into is not calibrated beside it
    # fmt: on

    def open(self, device: str = "", dtype: Any = None) -> Any:
        """The model, opened when the command runs and not before."""
        from nemo_kit.models import load

        where, kind = device or self.device, dtype or self.dtype
        return load(self.model, where, kind, self.revision, lora=self.lora, config=self.config)

    def parameters(self) -> dict[str, str | None]:
        """What a notebook is told to open the same, from another folder."""
        from nemo_kit.store.work import absolute

        lora = self.lora
        if lora:
            from nemo_kit.models.lora import Lora

            lora = Lora.of(lora).text
        given = {"model": absolute(self.model), "revision": self.revision, "lora": lora}
        given |= {"config": self.config and absolute(self.config)}
        return given | {"device": self.device, "dtype": self.dtype}


# fmt: off
@dataclass(frozen=True)
class Model(PlainModel):
    """Which model, with which LoRA."""

    lora: Annotated[str | None, Option(metavar="FILE[:SCALE]", help="LoRA weights (.safetensors) "
        "to fuse into the model's.")] = None  # type: ignore[misc]


FILE: dict[str, Any] = {"exists": True, "dir_okay": False, "resolve_path": True, "metavar": "FILE"}
Files = Annotated[list[Path] | None, Option(**FILE, help="File with prompts: .csv, .tsv, "
    ".json, .jsonl or .parquet with a column 'prompt' or 'caption' (the lists of the field are "
    "such), or .txt with one a line. May be repeated.")]
Seeds = Annotated[int, Option(metavar="N", min=2, max=10_000, help="How many seeds to compare: 1 "
    "to this number, at least 2.")]
Statistics = Annotated[Path | None, Option(**FILE, help="Activation statistics, for a "
    "model that has none: the released .pt file, or a .safetensors file written by nemo_kit.")]
Settings = Annotated[list[str] | None, Option("--set", metavar="NAME=VALUE", help="A parameter of "
    "the notebooks that have it, as in their first code cell, such as sscd=FILE.pt or steps=30. "
    "May be repeated.")]
Images = Annotated[Path | None, Option(exists=True, file_okay=False, resolve_path=True,
    metavar="FOLDER", help="Folder with training images, one a prompt, named as the column 'image' "
    "or 'Index' of the prompt file says. Missing ones are counted and left out.")]


@dataclass(frozen=True)
class Kept:
    """Where results are kept, and what is done with failures of before."""

    store: Annotated[Path, Option(metavar="FOLDER", help="Folder that keeps the result of every "
        "prompt of a --prompts file; the same command goes on from there, whatever stopped "
        "it.")] = Path("runs/store")
    retry_failed: Annotated[bool, Option("--retry-failed", help="Try again the prompts that failed "
        "before.")] = False
    # fmt: on

    @contextmanager
    def running(self) -> Iterator[None]:
        """Say where results are; Ctrl-C in one line."""
        writable(self.store, "--store")
        where = f"kept in {self.store}"
        print(f"nemo-kit: results are {where}; the same command goes on from there",
              file=sys.stderr)  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.filterwarnings("ignore", ".*retry_failed")  # `end` says it
            with interruptible(
                f"every prompt finished so far is {where}, and the same command goes on"
            ):
                yield


def end(frame: pd.DataFrame) -> None:
    """Exit code 1 and one line where prompts failed."""
    failed = frame.attrs.get("failed", {})
    if not failed:
        return
    prompt, error = next(iter(failed.items()))
    every = len(failed) + frame["prompt"].nunique()  # a prompt may have several rows
    print(
        f"nemo-kit: {len(failed)} of {every} prompts failed (--retry-failed tries them again), "
        f"the first, {prompt!r}, with {error}",
        file=sys.stderr,
    )
    raise typer.Exit(1)


@contextmanager
def interruptible(kept: str) -> Iterator[None]:
    """Ctrl-C ends the command with exit code 130 and one line that says what is kept."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"nemo-kit: interrupted; {kept}", file=sys.stderr)
        raise SystemExit(130) from None


def read(files: Sequence[Path] | None) -> list[str]:
    """The prompts of files, each once; none where there is no file."""
    if not files:
        return []
    from nemo_kit.prompts import prompt_table

    return list(prompt_table(files)["prompt"])


def paths(files: Sequence[Path] | None) -> list[str]:
    """Files as a notebook is told them."""
    return [str(path) for path in files or ()]


def settings_of(texts: Sequence[str] | None) -> dict[str, str]:
    """What --set gives, by name."""
    if wrong := [text for text in texts or () if not text.partition("=")[1]]:
        raise ValueError(f"--set must be NAME=VALUE, got {wrong[0]!r}")
    return dict(text.split("=", 1) for text in texts or ())


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
def counted(label: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar over prompts that begins with the first step that is told to it."""
    from tqdm import tqdm

    bar = None

    def told(_stage: str, done: int, total: int) -> None:
        nonlocal bar
        if bar is None:
            bar = tqdm(total=total, desc=label, unit="prompt")
        bar.update(done - bar.n)

    try:
        yield told
    finally:
        if bar is not None:
            bar.close()
