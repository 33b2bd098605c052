"""The house style, grids of pictures and tables of results: what several notebooks draw with.

A figure itself is drawn in the notebook that shows it, with seaborn; nothing here serves one figure
alone.
"""

from nemo_kit.plots.pictures import noise_pictures, picture_rows
from nemo_kit.plots.style import (
    ACCENT,
    COLUMN,
    MARKERS,
    PALE,
    PALETTE,
    TEXT,
    legend,
    plain,
    show,
    style,
)
from nemo_kit.plots.tables import results, table
