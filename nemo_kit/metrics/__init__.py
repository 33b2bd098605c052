"""Metrics of copying, diversity, alignment, image quality, detection and localization.

Formulas over arrays, embeddings and neuron sets. Nothing here runs a diffusion model: images come
in as uint8 arrays, and the networks that look at them come in as arguments.
"""

from nemo_kit.metrics.distances import (
    FeatureDistance,
    clip_fid,
    frechet_distance,
    kernel_distance,
)
from nemo_kit.metrics.images import (
    Embedder,
    alignment,
    clip_embeddings,
    clip_pixels,
    copy_similarities,
    diversity,
    sscd_gen,
    sscd_orig,
)
from nemo_kit.metrics.scores import (
    COPY_THRESHOLD,
    Summary,
    detection_metrics,
    localization_quality,
    roc_curve,
    share_above,
    summarize,
)

__all__ = [
    "COPY_THRESHOLD",
    "Embedder",
    "FeatureDistance",
    "Summary",
    "alignment",
    "clip_embeddings",
    "clip_fid",
    "clip_pixels",
    "copy_similarities",
    "detection_metrics",
    "diversity",
    "frechet_distance",
    "kernel_distance",
    "localization_quality",
    "roc_curve",
    "share_above",
    "sscd_gen",
    "sscd_orig",
    "summarize",
]
