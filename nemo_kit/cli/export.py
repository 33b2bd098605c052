"""``nemo-kit export``: a model without its memorization neurons, as a folder anyone can open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    existing,
    interruptible,
    load,
    writable,
)

if TYPE_CHECKING:
    from nemo_kit.mitigation import Mitigation


def register(app: typer.Typer) -> None:
    """Add these commands to the app."""
    app.command(short_help="Write a model without these neurons, with a report.")(export)


def export(
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER",
                                      help="Folder to write; must not exist yet.")],
    neurons: Annotated[
        list[str] | None,
        typer.Option(
            "--neurons",
            metavar="FILE|TEXT",
            help="What to switch off: a file that localize --out or --json wrote, a result CSV of "
            'the released code, a JSON file, or text such as {"1": [12, 40]} (layer: neurons). '
            "May be repeated.",
        ),
    ] = None,
    factor: Annotated[
        float, typer.Option("--factor", metavar="X",
                            help="Scale the neurons by this; 0 switches them off.")
    ] = 0.0,
    wanda: Annotated[
        bool,
        typer.Option("--wanda", help="Instead of neurons: prune the feed-forward weights that the "
                     "prompts of --prompts use most."),
    ] = False,
    prompts: Annotated[
        list[Path] | None,
        typer.Option("--prompts", metavar="FILE", help="File with the prompts it is made for; by "
                     "default those that the neurons' files name. May be repeated."),
    ] = None,
    control: Annotated[
        list[Path] | None,
        typer.Option("--control", metavar="FILE", help="File with prompts that are not memorized, "
                     "for the report; by default the lab's own. May be repeated."),
    ] = None,
    model: ModelOption = "lab",
    revision: RevisionOption = None,
    lora: LoraOption = None,
    config: ConfigOption = None,
    device: DeviceOption = Device.auto,
    dtype: DtypeOption = Dtype.auto,
    report: Annotated[
        bool,
        typer.Option("--report/--no-report", help="Measure before and after, and write "
                     "removal.html and removal.json into the folder."),
    ] = True,
    training: Annotated[
        Path | None,
        typer.Option("--training-images", metavar="FOLDER",
                     help="Folder of training images, named by the prompt "
                     "file's column image or Index; without it copies are not measured, but for "
                     "the lab's own prompts."),
    ] = None,
    sscd: Annotated[
        Path | None,
        typer.Option("--sscd", metavar="FILE",
                     help="TorchScript file of SSCD for the report; by default the "
                     "lab's copy descriptor, whose numbers are its own."),
    ] = None,
    clip: Annotated[
        str | None,
        typer.Option("--clip", metavar="NAME",
                     help="CLIP for alignment and quality: a hub id or a folder; by "
                     "default the lab's own for the lab model, else ViT-B/32."),
    ] = None,
    pictures: Annotated[
        int, typer.Option("--pictures", min=2, help="Pictures of each prompt in the report.")
    ] = 4,
    steps: Annotated[
        int, typer.Option("--steps", min=1, help="DDIM steps of each picture of the report.")
    ] = 50,
    most: Annotated[
        int, typer.Option("--control-prompts", min=2, help="How many control prompts to draw.")
    ] = 20,
) -> None:  # fmt: skip
    """Write a model without its memorization neurons: a diffusers folder, with a report.

    The rows of the value projections are zeroed (or scaled) in the weights, so that any program
    that opens the folder draws without them, for every prompt. The folder is there in full or not
    at all, and is never written over another one. The report's pictures are kept in runs/store: an
    export that was ended goes on where it stopped.
    """
    from nemo_kit.mitigation import export as write

    way, named = _mitigation(neurons, factor, wanda, _texts(prompts))
    others = _control(control, model, most) if report else []
    if report and not named:
        raise ValueError("the report needs the prompts: give --prompts FILE, or --no-report")
    existing([sscd] if sscd else [], "--sscd")
    if not out.exists():
        writable(out.resolve().parent, "--out")
    loaded = load(model, device, revision, dtype, lora, config)
    finish = None
    if report:
        _use_training_images(prompts, training)
        options = {"seeds": pictures, "steps": steps, **_networks(model, sscd, clip)}
        finish = _reporter(loaded, way, named, others, options)
    with interruptible(f"{out} is not written; the report's pictures so far are in runs/store"):
        folder = write(loaded, way, out, named, finish)
    print(f"wrote {folder}" + (f", report: {folder / 'removal.html'}" if report else ""))


def _mitigation(
    neurons: Sequence[str] | None, factor: float, wanda: bool, texts: list[str]
) -> tuple[Mitigation, list[str]]:
    """What to write into the weights, and the prompts it is for."""
    from nemo_kit.mitigation import NeMo, WandaPruning, read_neurons

    if wanda == bool(neurons):
        raise ValueError("export needs either --neurons FILE or TEXT, or --wanda with --prompts")
    if wanda:
        if not texts:
            raise ValueError("--wanda needs --prompts FILE: it prunes what these prompts use")
        return WandaPruning(), texts
    sets = read_neurons(neurons or ())
    for_all = sets.pop("", None)
    names = texts or list(sets)
    if for_all is None:
        return NeMo({name: sets[name] for name in names if name in sets}, factor), names
    if sets:
        for_all = for_all.of([*for_all, *(n for name in names for n in sets.get(name, ()))])
    return NeMo(for_all, factor), names


def _texts(files: Sequence[Path] | None) -> list[str]:
    if not files:
        return []
    from nemo_kit.experiments import prompt_table

    return list(prompt_table(existing(files, "--prompts"))["prompt"])


def _control(files: Sequence[Path] | None, model: str, most: int) -> list[str]:
    from nemo_kit import lab
    from nemo_kit.experiments import prompt_table

    if files:
        return list(prompt_table(existing(files, "--control"))["prompt"])[:most]
    if model != "lab":
        raise ValueError(f"the report of {model} needs --control FILE, or give --no-report")
    return list(lab.prompts("non_memorized")["prompt"])[:most]


def _use_training_images(prompts: Sequence[Path] | None, folder: Path | None) -> None:
    from nemo_kit.experiments import prompt_table
    from nemo_kit.originals import use

    if folder is not None:
        if not prompts:
            raise ValueError("--training-images needs --prompts FILE with a column image or Index")
        use(prompt_table(prompts), folder)


def _networks(model: str, sscd: Path | None, clip: str | None) -> dict[str, Any]:
    """Those that measure, opened before anything is written."""
    from nemo_kit import metrics

    name = clip or ("lab" if model == "lab" else metrics.PAPER_CLIP)
    return {"embedder": metrics.sscd(sscd) if sscd else None, "clip": metrics.load_clip(name)}


def _reporter(
    model: Any,
    way: Mitigation,
    prompts: list[str],
    others: list[str],
    options: dict[str, Any],
) -> Callable[[Path], None]:
    """What measures the written folder and puts the report into it."""
    import json

    from nemo_kit.effects import picture_seeds
    from nemo_kit.figures.runner import root
    from nemo_kit.models import load as open_model
    from nemo_kit.removal import measure
    from nemo_kit.removal_page import write_report

    store, seeds = root() / "runs" / "store", picture_seeds(options.pop("seeds"))

    def finish(folder: Path) -> None:
        after = open_model(str(folder), str(model.device), model.dtype)
        found = measure(model, after, way, prompts, others, store=store, seeds=seeds, **options)
        record = json.loads((folder / "nemo" / "export.json").read_text("utf-8"))
        write_report(found, record, folder)

    return finish
