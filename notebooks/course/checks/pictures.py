"""Pictures in the course's notebooks: one row a name."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure


def pictures(rows: Mapping[str, np.ndarray], width: float = 7.0) -> Figure:
    """Pictures beside one another, a row for each name.

    Parameters: `rows`, name -> uint8 [N, H, W, 3] or one picture [H, W, 3]; `width`, in inches.
    Raises ValueError without rows, or for other shapes or dtypes.
    """
    strips = {name: _strip(name, np.asarray(images)) for name, images in rows.items()}
    if not strips:
        raise ValueError("rows must hold at least one name with its pictures, got none")
    longest = max(strip.shape[1] for strip in strips.values())
    height = width * sum(len(strip) for strip in strips.values()) / longest + 0.28 * len(strips)
    figure, axes = plt.subplots(
        len(strips), figsize=(width, height), squeeze=False, layout="constrained"
    )
    for ax, (name, strip) in zip(axes[:, 0], strips.items(), strict=True):
        rest = ((0, 0), (0, longest - strip.shape[1]), (0, 0))
        ax.imshow(np.pad(strip, rest, constant_values=255))
        ax.set_title(name, loc="left", fontsize=8, parse_math=False)
        ax.axis("off")
    plt.close(figure)  # shown as the cell's value, not a second time
    return figure


def _strip(name: str, images: np.ndarray) -> np.ndarray:
    """[H, W', 3]: the pictures in a row, white between them."""
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[-1] != 3:
        raise ValueError(
            f"{name} must be uint8 with shape [..., H, W, 3], got {images.dtype} "
            f"{list(images.shape)}"
        )
    images = images if images.ndim == 4 else images[None]
    gap = max(1, images.shape[2] // 16)
    spaced = np.pad(images, ((0, 0), (0, 0), (0, gap), (0, 0)), constant_values=255)
    return np.concatenate(list(spaced), axis=1)[:, :-gap]
