"""The largest activations, and nothing else."""

from torch import Tensor

from nemo_kit.localization.candidates import text_activations
from nemo_kit.localization.methods.base import method
from nemo_kit.models.base import DiffusionModel

VERSION = 1  # raised where results change (see nemo_kit.keys)


@method("activation")
def activation(
    model: DiffusionModel, prompt: str, seeds: object = (), budget: int | None = None
) -> dict[int, Tensor]:
    """a_i(y), the mean over tokens of |activation|, from the text alone, over all layers.

    Source: "Finding NeMo" (arXiv 2406.02366), Algorithm 2, which takes the largest of each layer.
    """
    return {layer: values[0] for layer, values in text_activations(model, [prompt]).items()}
