"""Δε, the difference that the text makes to the predicted noise, and sizes relative to SD's.

Source: Wen et al., ICLR 2024 (arXiv 2407.21720), which measures memorization by ‖Δε‖.
"""

import math

from torch import Tensor

from nemo_kit.checks import ROUNDING, check_finite
from nemo_kit.models.base import DiffusionModel
from nemo_kit.sampling import Run, both_outputs

SD2_WIDTH = 1024  # of the text embeddings, by which SD 2.x is known
_SD_LATENT = 4 * 64 * 64
SAMPLES_AT_ONCE = 4  # with gradients, which take several times the memory


def predicted_gap(
    model: DiffusionModel, noise: Tensor, timestep: Tensor | int, text: Tensor, empty: Tensor
) -> Tensor:
    """Δε, ε of the text minus ε of the empty prompt, [N, C, H, W]; as `both_outputs`."""
    with_text, without = both_outputs(model.predict_compared, noise, timestep, text, empty)
    return with_text - without


def first_gap(run: Run, noise: Tensor, text: Tensor) -> Tensor:
    """Δε of a run's first timestep at other noise, [n, C, H, W], for other embeddings of the text.

    Parameters: `text`, [1 or n, tokens, dim].
    """
    empty = run.model.embed("") if run.empty is None else run.empty
    text = text.expand(len(noise), -1, -1)
    return predicted_gap(run.model, noise, run.model.timesteps(run.steps)[0], text, empty)


def norms(gap: Tensor) -> Tensor:
    """‖Δε‖₂ of each sample, [N].

    Raises FloatingPointError where one is not finite, ValueError where none differs from 0.
    """
    found = gap.flatten(1).norm(dim=1)
    check_finite("the predicted noise", found, FloatingPointError)
    if found.max() <= ROUNDING * math.sqrt(gap[0].numel()):
        raise ValueError(
            "prompt: the text makes no difference at all to the predicted noise, so nothing can be "
            "told from it; is the schedule (prediction_type, first timestep) the model's own, and "
            "do its weights and text embeddings vary?"
        )
    return found


def relative_size(model: DiffusionModel) -> float:
    """√(numbers in a latent / numbers in Stable Diffusion's 4×64×64), 1 there.

    A norm of independent numbers grows with the root of how many there are; so do the published
    bounds, which hold for 4×64×64.
    """
    return math.sqrt(math.prod(model.latent_shape) / _SD_LATENT)
