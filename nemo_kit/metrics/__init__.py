"""Metrics of copying, diversity, alignment, image quality, detection and localization.

Formulas over arrays, embeddings and neuron sets. Nothing here runs a diffusion model: images come
in as uint8 arrays, and the networks that look at them come in as arguments, by name.
"""

from nemo_kit.metrics.clip import PAPER_CLIP, Clip, load_clip
from nemo_kit.metrics.distances import FeatureDistance, image_distances, real_features
from nemo_kit.metrics.duplicates import distinct, near_duplicates
from nemo_kit.metrics.embedders import (
    SSCD_PROTOCOLS,
    Embedder,
    as_embedder,
    inception,
    lab_descriptor,
    sscd,
)
from nemo_kit.metrics.images import (
    Median,
    copy_similarities,
    diversity,
    median,
    sscd_gen,
    sscd_orig,
)
from nemo_kit.metrics.measures import MEASURES, Measure, Seen, chosen, listed, measure, measured
from nemo_kit.metrics.scores import (
    COPY_THRESHOLD,
    detection_metrics,
    localization_quality,
    orders,
    summarize,
    summary,
)
