"""How far each neuron's activation lies from its hold-out mean, and nothing else."""

from torch import Tensor

from nemo_kit.calibration import check_statistics
from nemo_kit.localization.candidates import text_activations, z_scores
from nemo_kit.localization.methods.base import method
from nemo_kit.models.base import DiffusionModel

VERSION = 1  # raised where results change (see nemo_kit.keys)


@method("|z|")
def absolute_z(
    model: DiffusionModel, prompt: str, seeds: object = (), budget: int | None = None
) -> dict[int, Tensor]:
    """|z| of each neuron, from the text alone; one that never varied on hold-out prompts has 1e6.

    Raises ValueError where the model has no activation statistics.
    Source: "Finding NeMo" (arXiv 2406.02366), Algorithm 2.
    """
    found = text_activations(model, [prompt])
    known = check_statistics(model, None)
    z = z_scores({layer: values[0] for layer, values in found.items()}, known)
    return {layer: one.abs().clamp(max=1e6) for layer, one in z.items()}
