"""Distances between two sets of pictures or features: Fréchet distance (FID) and kernel distance.

Scope: features of one network on both sides; torchmetrics computes, in float64, and the result is
named after the network. Real pictures come as an array, a folder, or features made before.
Source: Heusel et al. 2017 (Fréchet), Bińkowski et al. 2018 (kernel); Hintersdorf et al., "Finding
NeMo", NeurIPS 2024, figures 5a and 8.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nemo_kit import lab
from nemo_kit.checks import check_whole
from nemo_kit.files import PICTURES, open_picture
from nemo_kit.metrics._checks import array
from nemo_kit.metrics.embedders import Embedder

VERSION = 1  # raised where results change (see nemo_kit.keys)
_NAMES = {"Inception": ("FID", "KID"), "CLIP": ("CLIP-FID", "CLIP-KID")}
_OTHER = ("Fréchet distance", "kernel distance")


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
    return max(_filled(FrechetInceptionDistance, a, b).compute().item(), 0.0)


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
    from torchmetrics.image.kid import KernelInceptionDistance

    a, b = _feature_pair(features, reference)
    check_whole("subsets", subsets, 1)
    least = min(len(a), len(b))
    size = min(1000, max(least // 2, 2)) if subset_size is None else subset_size
    if not 2 <= size <= least:
        raise ValueError(f"subset_size must lie in 2..{least} for these features, got {size}")
    if not extractor.strip():
        raise ValueError("extractor must name the network the features come from, got ''")
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save")
        torch.manual_seed(seed)  # torchmetrics draws its subsets from torch's own generator
        metric = _filled(KernelInceptionDistance, a, b, subsets=subsets, subset_size=size)
        value, deviation = (one.item() for one in metric.compute())
    return FeatureDistance("KID", value, extractor, len(a), len(b), deviation)


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
        if extractor.name != "lab CLIP":
            raise ValueError(
                f"reference 'lab' holds features of the lab CLIP, not of {extractor.name!r}; "
                "give a folder of real pictures"
            )
        return array(lab.reference_features())
    if isinstance(reference, (str, Path)):
        return np.concatenate([extractor.features(part) for part in _pictures(Path(reference))])
    if getattr(reference, "ndim", 0) == 2:
        return array(reference)
    return extractor.features(reference)


def _pictures(folder: Path) -> Iterator[np.ndarray]:
    """Pictures of a folder in the order of their paths, batched where sizes are the same."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
    if not files:
        raise ValueError(f"reference must be a folder with pictures ({PICTURES}), got {folder}")
    opened = enumerate(np.asarray(open_picture(path, "reference")) for path in files)
    for _, group in groupby(opened, key=lambda one: (one[0] // 32, one[1].shape)):
        yield np.stack([image for _, image in group])


def _filled(kind: Any, features: np.ndarray, reference: np.ndarray, **options: Any) -> Any:
    """A metric of torchmetrics that takes features as they are: they are made once, before."""
    passing = torch.nn.Identity()
    passing.num_features = features.shape[1]
    metric = kind(feature=passing, **options)
    metric.set_dtype(torch.float64)
    metric.update(torch.from_numpy(reference), real=True)
    metric.update(torch.from_numpy(features), real=False)
    return metric


def _feature_pair(features: Any, reference: Any) -> tuple[np.ndarray, np.ndarray]:
    a, b = array(features), array(reference)
    for name, values in (("features", a), ("reference", b)):
        if values.ndim != 2 or len(values) < 2 or not np.isfinite(values).all():
            raise ValueError(f"{name} must be finite [N >= 2, D], got shape {list(values.shape)}")
    if a.shape[1] != b.shape[1]:
        widths = f"{a.shape[1]} and {b.shape[1]}"
        raise ValueError(f"features and reference must come from one network, got widths {widths}")
    return a, b
