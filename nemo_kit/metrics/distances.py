"""Distances between two sets of pictures or features: Fréchet distance (FID) and kernel distance.

Scope: features of one network on both sides; torchmetrics computes, in float64, and the result is
named after the network. Real pictures come as an array, a folder, or features made before.
Source: Heusel et al. 2017 (Fréchet), Bińkowski et al. 2018 (kernel); Hintersdorf et al., "Finding
NeMo", NeurIPS 2024, figures 5a and 8.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from nemo_kit.checks import check_whole
from nemo_kit.metrics._checks import array
from nemo_kit.metrics.embedders import Embedder

VERSION = 1  # raised where results change (see nemo_kit.keys)
_NAMES = {"Inception": ("FID", "KID"), "CLIP": ("CLIP-FID", "CLIP-KID")}
_OTHER = ("Fréchet distance", "kernel distance")
PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


@dataclass(frozen=True)
class FeatureDistance:
    """A distance between two sets of features, with the name of the network they come from."""

    name: str
    value: float
    extractor: str
    images: int
    references: int
    deviation: float | None = None


def frechet_distance(features: np.ndarray, reference: np.ndarray) -> float:
    """Fréchet distance of two sets of features, as normal distributions; >= 0, in float64.

    Parameters: `features` and `reference`, [N >= 2, D] each, of one network.
    Raises ValueError for wrong shapes, non-finite numbers or different widths.
    Source: Heusel et al. 2017, equation 6.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    a, b = _feature_pair(features, reference)
    metric = _filled(FrechetInceptionDistance(feature=_passing(a.shape[1])), a, b)
    return max(metric.compute().item(), 0.0)


def clip_fid(features: np.ndarray, reference: np.ndarray, extractor: str) -> FeatureDistance:
    """Fréchet distance on CLIP image features: CLIP-FID, never to be called FID.

    Returns a `FeatureDistance` that names its extractor.

    Parameters: `features` and `reference` as in `frechet_distance`; `extractor`, the CLIP's name.
    Raises ValueError as `frechet_distance`, and for an empty extractor.
    Source: paper, figure 8c.
    """
    value = frechet_distance(features, reference)
    return FeatureDistance("CLIP-FID", value, _named(extractor), len(features), len(reference))


def kernel_distance(
    features: np.ndarray,
    reference: np.ndarray,
    extractor: str,
    subsets: int = 100,
    subset_size: int | None = None,
    seed: int = 0,
) -> FeatureDistance:
    """Kernel distance (KID): unbiased squared MMD with the cubic kernel, mean over subsets.

    Returns a `FeatureDistance` with the deviation over subsets; may fall slightly below 0.

    Parameters: `features` and `reference`, [N >= 2, D]; `extractor`, the network's name;
    `subsets`, how many are drawn; `subset_size`, images a subset, by default at most 1000 and at
    most half of the smaller set, so that subsets differ; `seed` of the draw.
    Raises ValueError as `frechet_distance`, for an empty extractor or an impossible subset size.
    Source: Bińkowski et al. 2018; paper, figure 8b.
    """
    import torch
    from torchmetrics.image.kid import KernelInceptionDistance

    a, b = _feature_pair(features, reference)
    check_whole("subsets", subsets, 1)
    size = _subset_size(subset_size, min(len(a), len(b)))
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save")
        torch.manual_seed(seed)  # torchmetrics draws its subsets from torch's own generator
        feature = _passing(a.shape[1])
        metric = KernelInceptionDistance(feature=feature, subsets=subsets, subset_size=size)
        value, deviation = (one.item() for one in _filled(metric, a, b).compute())
    return FeatureDistance("KID", value, _named(extractor), len(a), len(b), deviation)


def image_distances(
    images: np.ndarray, reference: np.ndarray | str | Path, extractor: Embedder, **options: Any
) -> list[FeatureDistance]:
    """Fréchet and kernel distance between pictures and real ones, by one network.

    Returns two `FeatureDistance`. They are called FID and KID only for Inception, CLIP-FID and
    CLIP-KID for a CLIP, Fréchet and kernel distance for others; `extractor` is its
    name and protocol.

    Parameters: `images`, uint8 [N >= 2, H, W, 3]; `reference`, what `real_features` takes;
    `extractor`, such as `inception(path)` or `load_clip(name).embedder`; `options`, of
    `kernel_distance`.
    Raises ValueError for fewer than two pictures on a side and as `real_features`.
    Source: paper, figures 5a and 8.
    """
    ours, real = extractor.features(images), real_features(reference, extractor)
    first, second = _NAMES.get(extractor.family, _OTHER)
    label = f"{extractor.name} ({extractor.protocol})"
    value = frechet_distance(ours, real)
    kernel = kernel_distance(ours, real, label, **options)
    return [
        FeatureDistance(first, value, label, len(ours), len(real)),
        replace(kernel, name=second),
    ]


def real_features(reference: np.ndarray | str | Path, extractor: Embedder) -> np.ndarray:
    """The real side of a distance: float64 [N, D].

    Parameters: `reference`, a folder of pictures of any sizes (searched below too), an array of
    them, uint8 [N, H, W, 3], features that the same network gave, [N, D], or "lab", the features
    that come with the embedded model, which only its own CLIP may take; `extractor`.
    Raises ValueError for another reference, an empty folder, or a file that is no picture.
    """
    if isinstance(reference, str) and reference == "lab":
        return _of_lab(extractor)
    if isinstance(reference, (str, Path)):
        return np.concatenate([extractor.features(part) for part in _pictures(Path(reference))])
    if getattr(reference, "ndim", 0) == 2:
        return array(reference)
    return extractor.features(reference)


def _of_lab(extractor: Embedder) -> np.ndarray:
    from nemo_kit import lab

    if extractor.name != "lab CLIP":
        raise ValueError(
            f"reference 'lab' holds features of the lab CLIP, not of {extractor.name!r}; "
            "give a folder of real pictures"
        )
    return array(lab.reference_features())


def _pictures(folder: Path) -> Iterator[np.ndarray]:
    """Pictures of a folder in the order of their paths, batched where sizes are the same."""
    from PIL import Image

    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
    if not files:
        raise ValueError(f"reference must be a folder with pictures ({PICTURES}), got {folder}")

    def opened(path: Path) -> np.ndarray:
        try:
            return np.asarray(Image.open(path).convert("RGB"))
        except OSError as error:
            raise ValueError(f"reference: {path} is no picture: {error}") from error

    for _, group in groupby(map(opened, files), key=np.shape):
        yield from _batches(group)


def _batches(images: Iterator[np.ndarray], size: int = 32) -> Iterator[np.ndarray]:
    batch: list[np.ndarray] = []
    for image in images:
        batch.append(image)
        if len(batch) == size:
            yield np.stack(batch)
            batch = []
    if batch:
        yield np.stack(batch)


def _passing(width: int) -> Any:
    """A feature module that passes on what it is given: features are made once, before."""
    import torch

    module = torch.nn.Identity()
    module.num_features = width
    return module


def _filled(metric: Any, features: np.ndarray, reference: np.ndarray) -> Any:
    import torch

    metric.set_dtype(torch.float64)
    metric.update(torch.from_numpy(reference), real=True)
    metric.update(torch.from_numpy(features), real=False)
    return metric


def _subset_size(wanted: int | None, least: int) -> int:
    size = min(1000, max(least // 2, 2)) if wanted is None else wanted
    if not 2 <= size <= least:
        raise ValueError(f"subset_size must lie in 2..{least} for these features, got {size}")
    return size


def _named(extractor: str) -> str:
    if not extractor.strip():
        raise ValueError("extractor must name the network the features come from, got ''")
    return extractor


def _feature_pair(features: Any, reference: Any) -> tuple[np.ndarray, np.ndarray]:
    a, b = array(features), array(reference)
    for name, values in (("features", a), ("reference", b)):
        if values.ndim != 2 or len(values) < 2 or not np.isfinite(values).all():
            raise ValueError(f"{name} must be finite [N >= 2, D], got shape {list(values.shape)}")
    if a.shape[1] != b.shape[1]:
        widths = f"{a.shape[1]} and {b.shape[1]}"
        raise ValueError(f"features and reference must come from one network, got widths {widths}")
    return a, b
