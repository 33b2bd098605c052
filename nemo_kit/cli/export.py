"""``nemo-kit export``: a model without its memorization neurons, as a folder anyone can open."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from nemo_kit.cli import options

if TYPE_CHECKING:
    from nemo_kit.mitigation import NeMo


# fmt: off
def export(
    *,
    out: Annotated[Path, Option(metavar="FOLDER", help="Folder to write; must not exist yet.")],
    neurons: Annotated[list[str], Option(metavar="FILE|TEXT", help="What to switch off: a "
        "file that localize --out or --json wrote, a result CSV of the released code, a JSON file, "
        'or text such as {"1": [12, 40]} (layer: neurons). May be repeated.')],
    factor: Annotated[float, Option(metavar="X", help="Scale the neurons by this; 0 switches them "
        "off.")] = 0.0,
    prompts: Annotated[list[Path] | None, Option(**options.FILE, help="File with the prompts it is "
        "made for; by default those that the neurons' files name. May be repeated.")] = None,
    control: Annotated[list[Path] | None, Option(**options.FILE, help="File with prompts that are "
        "not memorized, for the report; by default the lab's own. May be repeated.")] = None,
    model: options.Model,
    report: Annotated[bool, Option("--report/--no-report", help="Measure before and after, and "
        "write removal.html and removal.json into the folder.")] = True,
    training_images: options.Images = None,
    settings: Annotated[list[str] | None, Option("--set", metavar="NAME=VALUE", help="A parameter "
        "of the report's notebook, removal, such as pictures=8, steps=30, sscd=FILE.pt or "
        "clip=NAME. May be repeated.")] = None,
) -> None:
    # fmt: on
    """Write a model without its memorization neurons: a diffusers folder, with a report.

    The rows of the value projections are zeroed (or scaled) in the weights, so that any program
    that opens the folder draws without them, for every prompt. The folder is there in full or not
    at all, and is never written over another one. The report's pictures are kept in runs/store: an
    export that was ended goes on where it stopped.
    """
    from nemo_kit import lab
    from nemo_kit.figures import report as pages
    from nemo_kit.mitigation import export as write
    from nemo_kit.models.families import INDEX
    from nemo_kit.models.parts import read_json

    own = model.model in lab.TABLES
    way, named = _mitigation(neurons, factor, options.read(prompts))
    if report and not own and not control:
        raise ValueError(f"the report of {model.model} needs --control FILE, or give --no-report")
    if report and not named:
        raise ValueError("the report needs the prompts: give --prompts FILE, or --no-report")
    if training_images and not prompts:
        raise ValueError("--training-images needs --prompts FILE with a column image or Index")
    values: dict[str, Any] = {}
    if report:
        given = {"control_files": options.paths(control), "prompt_files": options.paths(prompts)}
        given["training_images"] = training_images and str(training_images)
        values = _values(model, options.settings_of(settings), given)
    if not out.exists():
        options.writable(out.resolve().parent, "--out")
    loaded = model.open()

    def measure(folder: Path) -> None:
        title = f"What was removed from {loaded.name}"
        here = values | {"revision": loaded.revision, "after": str(folder.resolve())}
        pages.run("removal", title, folder / "removal.html", here)

    kept = f"{out} is not written; the report's pictures so far are in runs/store"
    with options.interruptible(kept):
        folder = write(loaded, way, out, named, measure if report else None)
    print(f"wrote {folder}" + (f", report: {folder / 'removal.html'}" if report else ""))
    index = read_json(folder / INDEX)
    if lacking := [part for part in loaded.parts() if part not in loaded.parts_in(index)]:
        without = ", ".join(f"{part}=None" for part in lacking)
        print(f"in diffusers: {loaded.pipelines[0]}.from_pretrained({str(folder)!r}, {without})")


def _mitigation(neurons: list[str], factor: float, texts: list[str]) -> tuple[NeMo, list[str]]:
    """What to write into the weights, and the prompts it is for."""
    from nemo_kit.mitigation import NeMo
    from nemo_kit.neuron_files import read_neurons

    sets = read_neurons(neurons)
    for_all = sets.pop("", None)
    names = texts or list(sets)
    if for_all is None:
        return NeMo({name: sets[name] for name in names if name in sets}, factor), names
    if sets:
        for_all = for_all.of([*for_all, *(n for name in names for n in sets.get(name, ()))])
    return NeMo(for_all, factor), names


def _values(model: options.Model, texts: dict[str, str], given: dict[str, Any]) -> dict[str, Any]:
    """The report's parameters; raises before anything is written for those that it refuses."""
    from nemo_kit import lab, metrics
    from nemo_kit.checks import check_choice
    from nemo_kit.figures.report import notebook
    from nemo_kit.notebooks import read
    from nemo_kit.provenance import root

    given = given | model.parameters() | {"store": str(root() / "runs" / "store")}
    given["before"] = given.pop("model")
    if model.model not in lab.TABLES:
        texts = {"clip": metrics.PAPER_CLIP} | texts
    book = read(notebook("removal"))
    for name in texts:
        check_choice("NAME of --set", name, sorted(book.kinds.keys() - given.keys() - {"after"}))
    values = book.values(settings=texts, **given)
    if values["sscd"]:
        metrics.sscd(values["sscd"], sha256=values["sscd_sha256"])  # a wrong file is told at once
    try:
        metrics.load_clip(values["clip"])  # and so is a CLIP that can't be had
    except ValueError as error:
        raise ValueError(f"--set clip=NAME: {error}") from error
    return values
