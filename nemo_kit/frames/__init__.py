"""Tidy frames behind the figures: from results per prompt to what `nemo_kit.plots` takes.

Scope: choosing prompts, naming their groups, reshaping what `nemo_kit.experiments` gave. Nothing
here draws. What several notebooks need is at hand as `frames.NAME`:
- `prompts`, `detection`, `activations`, `localization`
What belongs to one notebook is imported by its module: `evaluation` and `mitigation` (05, 08),
`memorization_types` (06), `quality` (07), `ablation` (08), `paper` (the paper's own numbers), and
others named after what they show.
Source: Hintersdorf et al., "Finding NeMo", NeurIPS 2024; each module names its figures.
"""

from nemo_kit.frames.activations import layer_rows, workflow_neurons, z_table
from nemo_kit.frames.detection import (
    MEASURES,
    UNITS,
    calibration_scores,
    clearest,
    detection_numbers,
    pairwise,
)
from nemo_kit.frames.localization import (
    ALGORITHMS,
    against_truth,
    costs,
    example,
    found,
    neuron_counts,
    neuron_names,
    neurons_by_layer,
    refined_sets,
    rows_for_grid,
    verdicts,
)
from nemo_kit.frames.prompts import GROUP_OF_ROLE, choose, choose_ladder, first_prompt, grouped

__all__ = [
    "ALGORITHMS",
    "GROUP_OF_ROLE",
    "MEASURES",
    "UNITS",
    "against_truth",
    "calibration_scores",
    "choose",
    "choose_ladder",
    "clearest",
    "costs",
    "detection_numbers",
    "example",
    "first_prompt",
    "found",
    "grouped",
    "layer_rows",
    "neuron_counts",
    "neuron_names",
    "neurons_by_layer",
    "pairwise",
    "refined_sets",
    "rows_for_grid",
    "verdicts",
    "workflow_neurons",
    "z_table",
]
