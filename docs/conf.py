"""Sphinx settings of ``make book``: course, notebooks and guides as a small site.

The source folder is the project's root, so that the notebooks stay where they are. Notebooks are
shown as committed, without outputs: their exercises are open, and their figures are in figures/.
"""

from nemo_kit import __version__

project = "nemo_kit"
author = "the nemo_kit developers"
version = release = __version__
root_doc = "docs/index"
include_patterns = ["docs/**", "notebooks/**", "nemo_kit/lab/CARD.md"]
exclude_patterns = [
    "notebooks/course/solutions",
    "notebooks/explorer.ipynb",
    "**/.ipynb_checkpoints",
]
extensions = ["myst_nb"]
nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 2
html_theme = "furo"
html_title = "nemo_kit"
html_copy_source = False
suppress_warnings = ["myst.xref_missing"]  # links to files outside the site
