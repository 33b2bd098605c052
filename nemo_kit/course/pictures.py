"""Pictures in the course's notebooks: one row a name."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from nemo_kit.plots.style import canvas, row_of, show, strips, styled


@styled
def pictures(rows: Mapping[str, np.ndarray], width: float = 7.0) -> Figure:
    """Pictures beside one another, a row for each name.

    Returns a figure.
    Parameters: `rows`, name -> uint8 [N, H, W, 3] or one picture [H, W, 3]; `width`, in inches.
    Raises ValueError without rows, or for other shapes or dtypes.
    """
    if not rows:
        raise ValueError("rows must hold at least one name with its pictures, got none")
    arrays = {k: strips(k, v) for k, v in rows.items()}
    strip = {k: row_of(v if v.ndim == 4 else v[None]) for k, v in arrays.items()}
    longest = max(picture.shape[1] for picture in strip.values())
    height = sum(picture.shape[0] for picture in strip.values()) / longest
    figure, axes = canvas(width, height * width + 0.28 * len(strip), rows=len(strip), squeeze=False)
    for (name, picture), place in zip(strip.items(), axes[:, 0], strict=True):
        page = np.full((picture.shape[0], longest, 3), 255, np.uint8)
        page[:, : picture.shape[1]] = picture
        show(place, page)
        for spine in place.spines.values():
            spine.set_visible(False)
        place.set_title(name, loc="left", parse_math=False)
    return figure
