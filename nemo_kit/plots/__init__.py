"""One function a figure: a tidy frame or an array of pictures in, a matplotlib figure out.

Nothing here runs a model, and nothing touches the state of pyplot: the figures are plain objects to
show, save or put into a widget. `nemo_kit.plots.style` holds the common look.
"""

from nemo_kit.plots.ablation import scaling
from nemo_kit.plots.activations import extreme_neurons, furthest, z_density
from nemo_kit.plots.atlas import bipartite, layer_shares, neuron_portrait, shared_alone
from nemo_kit.plots.detection import calibration, noise_differences, pairwise_density, roc
from nemo_kit.plots.detectors import detector_comparison
from nemo_kit.plots.dose import dose_response
from nemo_kit.plots.explorer import noise_pictures, png, score_in_distribution, z_map
from nemo_kit.plots.grids import layer_effects, picture_rows, threshold_map
from nemo_kit.plots.memorization_types import maximum_similarity
from nemo_kit.plots.neurons import (
    ground_truth,
    neuron_histogram,
    neurons_by_layer,
    runtime_summary,
    runtime_table,
    shared_neuron_counts,
)
from nemo_kit.plots.pictures import interventions, workflow
from nemo_kit.plots.quality import disentanglement, quality, unseen
from nemo_kit.plots.tables import results

__all__ = [
    "bipartite",
    "calibration",
    "detector_comparison",
    "disentanglement",
    "dose_response",
    "extreme_neurons",
    "furthest",
    "ground_truth",
    "interventions",
    "layer_effects",
    "layer_shares",
    "maximum_similarity",
    "neuron_histogram",
    "neuron_portrait",
    "neurons_by_layer",
    "noise_differences",
    "noise_pictures",
    "pairwise_density",
    "picture_rows",
    "png",
    "quality",
    "results",
    "roc",
    "runtime_summary",
    "runtime_table",
    "scaling",
    "score_in_distribution",
    "shared_alone",
    "shared_neuron_counts",
    "threshold_map",
    "unseen",
    "workflow",
    "z_density",
    "z_map",
]
