"""Sphinx settings of ``make book``: course, notebooks and guides as a small site.

The source folder is the project's root, so that the notebooks stay where they are. They are not
executed: the course's exercises are open, and below each cell that saves a figure stands the one
in figures/lab. Formulas are written as MathML, so the site needs no network.
"""

import re
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx

from nemo_kit import __version__, figures

project = "nemo_kit"
author = "the nemo_kit developers"
version = release = __version__
root_doc = "docs/index"
include_patterns = ["docs/**", "notebooks/**", "nemo_kit/lab/CARD.md"]
exclude_patterns = [
    "notebooks/course/solutions",
    "notebooks/course/checks",
    "notebooks/explorer.ipynb",
    "**/.ipynb_checkpoints",
]
extensions = ["myst_nb"]
nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 2
html_theme = "furo"
html_title = "nemo_kit"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = html_show_copyright = html_use_index = False
suppress_warnings = ["myst.xref_missing"]  # links to files outside the site

FIGURES = Path(__file__).resolve().parents[1] / "figures" / "lab"
BOOKS = figures.read_all(FIGURES.parents[1] / "notebooks")
SHOWS = {row.name: row.shows for row in figures.select(BOOKS)}
SAVED = re.compile(
    r'"(\w+)",\s*folder\s*,\s*shows='
)  # figures.save(figure, table, "F2a", folder, …)


def write_formula(translator: Any, node: nodes.Element) -> None:
    """A formula as MathML, which browsers draw and read aloud themselves."""
    block = isinstance(node, nodes.math_block)
    translator.body.append(tex2mathml(node.astext(), as_block=block))
    raise nodes.SkipNode


def show_figures(app: Sphinx, doctree: nodes.document) -> None:
    """Put each committed figure below the cell that saves it."""
    for cell in [node for node in doctree.findall(nodes.container) if "cell" in node["classes"]]:
        for name in reversed(SAVED.findall(cell.astext())):
            if (FIGURES / f"{name}.png").is_file():
                cell.parent.insert(cell.parent.index(cell) + 1, picture(name))


def picture(name: str) -> nodes.figure:
    """A figure of the embedded model, with what it shows as its caption."""
    shows = SHOWS.get(name, name)
    image = nodes.image(uri=f"/figures/lab/{name}.png", alt=shows)
    caption = nodes.caption(text=f"figures/lab/{name}.png: {shows}")
    return nodes.figure("", image, caption, ids=[nodes.make_id(name)])


def setup(app: Sphinx) -> None:
    """Register both with Sphinx, the figures before it collects images."""
    app.add_html_math_renderer("mathml", (write_formula, None), (write_formula, None))
    app.connect("doctree-read", show_figures, priority=400)
