"""``nemo-kit methods``: what comparisons have, with what one's own files register."""

import importlib.util
import sys
from pathlib import Path
from typing import Annotated, Any

import typer


def methods(
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FILE.py", help="Files of your own that register some."),
    ] = None,
) -> None:
    """List the detectors, mitigations, localization methods and measures that comparisons have.

    A file of your own adds one by `@detector("its name")` above a function (model, prompt, seeds),
    by `@method("its name")` above one (model, prompt, seeds, budget), by a class of `Mitigation`
    with a `name`, or by `@measure("its name")` above a function of what was drawn (`metrics.Seen`).
    Only name files you trust: they are run.
    """
    from nemo_kit.detectors import DETECTORS
    from nemo_kit.localization.methods import METHODS
    from nemo_kit.metrics import MEASURES
    from nemo_kit.mitigation import MITIGATIONS

    for file in files or ():
        _run(file)
    kinds = {"detector": DETECTORS, "mitigation": MITIGATIONS, "localization": METHODS}
    for kind, known in kinds.items():
        for name, one in known.items():
            told = ", ".join(f"{key}={_short(value)}" for key, value in _options(one).items())
            print(f"{kind}: {name}" + (f" ({told})" if told else "") + f"\n    {one.source}")
    for name, measure in MEASURES.items():
        told = f" ({measure.better} is better)" if measure.better else ""
        words = (measure.function.__doc__ or "").strip().partition("\n")[0]
        print(f"measure: {name}{told}\n    {words}")


def _run(file: Path) -> None:
    """Run a file as the module of its name, so that its dataclasses find it."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if file.suffix != ".py" or spec is None or spec.loader is None or not file.is_file():
        raise FileNotFoundError(f"FILE.py must be a Python file, got {file}")
    sys.modules[file.stem] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


def _options(one: Any) -> dict[str, Any]:
    """A detector's or a mitigation's options with the values that comparisons give them."""
    if isinstance(one, type):
        return {name: getattr(one, name) for name in one.__match_args__ if hasattr(one, name)}
    return one.defaults


def _short(value: Any) -> str:
    return f"{value.start} to {value[-1]}" if isinstance(value, range) else repr(value)
