"""Distances between two sets of pictures or features: Fréchet distance (FID) and kernel distance.

Scope: features of one network on both sides; torchmetrics computes, in float64, and the result is
named after the network. Real pictures come as an array, a folder, or features made before.
Source: Heusel et al. 2017 (Fréchet), Bińkowski et al. 2018 (kernel); Hintersdorf et al., "Finding
NeMo", NeurIPS 2024, figures 5a and 8.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nemo_kit import lab
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


def image_distances(
    images: np.ndarray, reference: np.ndarray | str | Path, extractor: Embedder
) -> list[FeatureDistance]:
    """Fréchet and kernel distance between pictures and real ones, by one network.

    Returns two `FeatureDistance`: the Fréchet distance of both sets as normal distributions, at
    least 0, and the unbiased squared MMD with the cubic kernel, mean and deviation over 100 drawn
    subsets, which may fall slightly below 0. They are called FID and KID only for Inception,
    CLIP-FID and CLIP-KID for a CLIP, Fréchet and kernel distance for others; `extractor` is its
    name and protocol.

    Parameters: `images`, uint8 [N >= 2, H, W, 3]; `reference`, what `real_features` takes;
    `extractor`, such as `inception(path)` or `load_clip(name).embedder`.
    Raises ValueError for fewer than two pictures on a side, features that are not finite or of
    another width, and as `real_features`.
    Source: Heusel et al. 2017, equation 6; Bińkowski et al. 2018; paper, figures 5a and 8.
    """
    ours, real = extractor.features(images), real_features(reference, extractor)
    for name, values in (("images", ours), ("reference", real)):
        if values.ndim != 2 or len(values) < 2 or not np.isfinite(values).all():
            shape = list(values.shape)
            raise ValueError(f"{name} must have finite features [N >= 2, D], got shape {shape}")
    if ours.shape[1] != real.shape[1]:
        widths = f"{ours.shape[1]} and {real.shape[1]}"
        raise ValueError(
            f"reference must come from {extractor.name!r} as well, got widths {widths}"
        )
    found = (_frechet(ours, real), None), _kernel(ours, real)
    label, counts = f"{extractor.name} ({extractor.protocol})", (len(ours), len(real))
    return [
        FeatureDistance(name, value, label, *counts, deviation)
        for name, (value, deviation) in zip(
            _NAMES.get(extractor.family, _OTHER), found, strict=True
        )
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


def _frechet(features: np.ndarray, reference: np.ndarray) -> float:
    from torchmetrics.image.fid import FrechetInceptionDistance

    return max(_filled(FrechetInceptionDistance, features, reference).compute().item(), 0.0)


def _kernel(
    features: np.ndarray, reference: np.ndarray, subsets: int = 100, size: int | None = None
) -> tuple[float, float]:
    """Mean and deviation; a subset is at most half of the smaller set, so that subsets differ."""
    from torchmetrics.image.kid import KernelInceptionDistance

    size = size or min(1000, max(min(len(features), len(reference)) // 2, 2))
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save")
        torch.manual_seed(0)  # torchmetrics draws its subsets from torch's own generator
        drawn = {"subsets": subsets, "subset_size": size}
        value, deviation = _filled(KernelInceptionDistance, features, reference, **drawn).compute()
    return value.item(), deviation.item()


def _filled(kind: Any, features: np.ndarray, reference: np.ndarray, **options: Any) -> Any:
    """A metric of torchmetrics that takes features as they are: they are made once, before."""
    passing = torch.nn.Identity()
    passing.num_features = features.shape[1]
    metric = kind(feature=passing, **options)
    metric.set_dtype(torch.float64)
    metric.update(torch.from_numpy(reference), real=True)
    metric.update(torch.from_numpy(features), real=False)
    return metric
