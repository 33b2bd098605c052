"""Argument checks that all metrics share: arrays from anything, finite numbers, uint8 images."""

from typing import Any

import numpy as np


def array(values: Any) -> np.ndarray:
    """Values as float64 on the CPU, from a list, an array or a tensor of any device and dtype."""
    if hasattr(values, "detach"):
        values = values.detach().float().cpu().numpy()
    return np.asarray(values, dtype=np.float64)


def finite(name: str, values: Any) -> np.ndarray:
    """Values as a flat float64 array; ValueError where there is none, or one that is not finite."""
    values = array(values).ravel()
    bad = int((~np.isfinite(values)).sum())
    if not len(values) or bad:
        raise ValueError(
            f"{name} must be finite numbers, at least one, got {len(values)}, {bad} not finite"
        )
    return values


def check_images(name: str, images: Any) -> np.ndarray:
    """Images as uint8 [N >= 1, H, W, 3]; ValueError for anything else."""
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not len(images):
        raise ValueError(
            f"{name} must be uint8 with three channels last ([N, H, W, 3]), "
            f"got {images.dtype} {list(images.shape)}"
        )
    return images


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1; a row of zeros stays one."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12)
