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
    absolute,
    existing,
    interruptible,
    load,
    writable,
)

if TYPE_CHECKING:
    from nemo_kit.mitigation import Mitigation


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
                     "prompts of --prompts, taken together, use most."),
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
    sscd_sha256: Annotated[
        str | None,
        typer.Option("--sscd-sha256", metavar="HEX",
                     help="SHA-256 of an SSCD file other than the published ones. TorchScript is "
                     "code: give that of a file you trust."),
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
    from nemo_kit.metrics import PAPER_CLIP
    from nemo_kit.mitigation import export as write

    way, named = _mitigation(neurons, factor, wanda, _texts(prompts))
    if report and model != "lab" and not existing(control or (), "--control"):
        raise ValueError(f"the report of {model} needs --control FILE, or give --no-report")
    if report and not named:
        raise ValueError("the report needs the prompts: give --prompts FILE, or --no-report")
    existing([sscd] if sscd else [], "--sscd")
    if sscd_sha256 and not sscd:
        raise ValueError("--sscd-sha256 needs --sscd FILE")
    if report and sscd:
        from nemo_kit import metrics

        metrics.sscd(sscd, sha256=sscd_sha256)  # a wrong file is told before the work
    if not out.exists():
        writable(out.resolve().parent, "--out")
    if training and not prompts:
        raise ValueError("--training-images needs --prompts FILE with a column image or Index")
    if training and not training.is_dir():
        raise FileNotFoundError(f"--training-images: there is no folder {training}")
    loaded = load(model, device, revision, dtype, lora, config)
    settings = {
        "before": absolute(model),
        "lora": loaded.lora and loaded.lora.text,
        "config": config and absolute(config),
        "device": str(loaded.device),
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "control_files": [str(path.resolve()) for path in control or ()],
        "controls": most,
        "prompt_files": [str(path.resolve()) for path in prompts or ()],
        "training_images": training and str(training.resolve()),
        "pictures": pictures,
        "steps": steps,
        "sscd": sscd and str(sscd.resolve()),
        "sscd_sha256": sscd_sha256,
        "clip": absolute(clip) if clip else "lab" if model == "lab" else PAPER_CLIP,
    }
    finish = _reporter(loaded, settings) if report else None
    with interruptible(f"{out} is not written; the report's pictures so far are in runs/store"):
        folder = write(loaded, way, out, named, finish)
    print(f"wrote {folder}" + (f", report: {folder / 'removal.html'}" if report else ""))


def _mitigation(
    neurons: Sequence[str] | None, factor: float, wanda: bool, texts: list[str]
) -> tuple[Mitigation, list[str]]:
    """What to write into the weights, and the prompts it is for."""
    from nemo_kit.mitigation import NeMo, WandaPruning
    from nemo_kit.neuron_files import read_neurons

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
    from nemo_kit.store import prompt_table

    return list(prompt_table(existing(files, "--prompts"))["prompt"])


def _reporter(model: Any, settings: dict[str, Any]) -> Callable[[Path], None]:
    """What measures the written folder and puts the report into it."""
    from nemo_kit.cli import report
    from nemo_kit.provenance import root

    store = str(root() / "runs" / "store")
    report.notebook("removal")  # that it is there is known before anything is written

    def finish(folder: Path) -> None:
        here = {"after": str(folder.resolve()), "revision": model.revision, "store": store}
        title = f"What was removed from {model.name}"
        report.run("removal", title, folder / "removal.html", settings | here)

    return finish
