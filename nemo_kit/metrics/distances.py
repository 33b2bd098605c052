"""Distances between two sets of features of one network: Fréchet distance and kernel distance.

Source: Heusel et al. 2017 (Fréchet), Bińkowski et al. 2018 (kernel); Hintersdorf et al., "Finding
NeMo", NeurIPS 2024, figures 5a and 8.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from nemo_kit.metrics._checks import array


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
    Source: Heusel et al. 2017, equation 6; the trace of the root is taken from the symmetric
    product, so that it stays real where there are fewer images than features.
    """
    a, b = _feature_pair(features, reference)
    root = _root(np.cov(a, rowvar=False))
    cross = np.linalg.eigvalsh(root @ np.cov(b, rowvar=False) @ root)
    spread = a.var(axis=0, ddof=1).sum() + b.var(axis=0, ddof=1).sum()
    gap = np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2)
    return float(max(gap + spread - 2 * np.sqrt(cross.clip(min=0)).sum(), 0.0))


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
    a, b = _feature_pair(features, reference)
    least = min(len(a), len(b))
    size = min(1000, max(least // 2, 2)) if subset_size is None else subset_size
    if not 2 <= size <= least:
        raise ValueError(f"subset_size must lie in 2..{least} for these features, got {size}")
    rng = np.random.default_rng(seed)
    draws = [
        _squared_mmd(rng.permutation(a)[:size], rng.permutation(b)[:size]) for _ in range(subsets)
    ]
    value, deviation = float(np.mean(draws)), float(np.std(draws))
    return FeatureDistance("KID", value, _named(extractor), len(a), len(b), deviation)


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


def _root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(np.atleast_2d(matrix))
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T


def _squared_mmd(a: np.ndarray, b: np.ndarray) -> float:
    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x: np.ndarray) -> float:
        gram = kernel(x, x)
        return (gram.sum() - np.trace(gram)) / (len(x) * (len(x) - 1))

    return float(within(a) + within(b) - 2 * kernel(a, b).mean())
