"""A report that is a notebook: run with parameters in a kernel, shown as one page.

Scope: the kernel ends with the command, whatever ends that; the page, ``report.html``, needs
nothing but itself: pictures are in it.
"""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nemo_kit.figures import gallery
from nemo_kit.files import write_atomically
from nemo_kit.keys import PACKAGE

PLACES = (Path(__file__).parent, PACKAGE.parent / "notebooks")  # in a wheel, in a clone


def notebook(name: str) -> Path:
    """The notebook of a report; FileNotFoundError where neither package nor clone has it."""
    for place in PLACES:
        if (path := place / f"{name}.ipynb").is_file():
            return path
    raise FileNotFoundError(f"the report needs the notebook {name}.ipynb of a clone of nemo_kit")


def run(name: str, title: str, page: Path, values: Mapping[str, Any]) -> None:
    """Run a report's notebook and write what it shows, without its code, as a page.

    Raises ValueError or RuntimeError with the notebook's own message where it fails.
    """
    from nemo_kit.figures import worker

    with TemporaryDirectory(prefix="nemo-kit-report-") as folder:
        executed = Path(folder) / "executed.ipynb"
        worker.make_kernel(Path(folder), {})
        try:
            worker.execute(Path(folder), str(notebook(name)), str(executed), dict(values))
        except worker.PapermillExecutionError as error:
            bad = error.ename in ("ValueError", "TypeError", "FileNotFoundError")
            kind = ValueError if bad else RuntimeError
            raise kind(f"the report failed: {error.evalue or error.ename}") from error
        text = html(executed, title)
    write_atomically(page, lambda part: part.write_text(text, encoding="utf-8"))


def html(executed: Path, title: str) -> str:
    """An executed notebook as one page: its words, and what its cells show but for progress."""
    import nbformat
    from nbconvert import HTMLExporter

    content = nbformat.read(executed, as_version=4)
    content.metadata.pop("widgets", None)
    for cell in content.cells:
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if _stays(one)]
    hidden = dict.fromkeys(("exclude_input", "exclude_output_prompt", "exclude_anchor_links"), True)
    exporter = HTMLExporter(template_name="basic", **hidden)
    body, _ = exporter.from_notebook_node(content)
    return gallery.page("report.html", title=title, body=body)


def _stays(output: Any) -> bool:
    """Whether an output says something on a page: no bar, as text or as a widget, no script."""
    if "data" not in output:
        return output.get("name") != "stderr"
    return not any(kind.startswith("application/") for kind in output["data"])
