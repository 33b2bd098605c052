"""Whether a model's prediction tells prompts apart at all; without that, scores mean nothing.

Scope: one comparison of two texts under the same noise, once for a model and settings. A min–max
scaled difference hides that there was none: rounding scaled up looks like a picture, and constants
look equal.
Source: ours; section 3.1 of "Finding NeMo" (arXiv 2406.02366) takes it for granted.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from nemo_kit.checks import ROUNDING, UninformativeError
from nemo_kit.models.base import DiffusionModel

if TYPE_CHECKING:
    from nemo_kit.localization.differences import Differences

TEXTS = ("", "cat")  # any two would do
_informative: WeakKeyDictionary[DiffusionModel, set[Hashable]] = WeakKeyDictionary()


def check_informative(draw: Differences) -> None:
    """Refuse a prediction that is the same for any prompt, or the noise it was made from.

    The two texts are one sample a call, so that equal work gives equal bits in any number type.
    They are drawn once for a model and its settings, are no part of any prompt's count of samples,
    and are drawn again where weights or schedule were changed.
    Raises UninformativeError.
    """
    model, known = draw.model, _informative.setdefault(draw.model, set())
    timestep = float(draw.timestep)
    if (key := (draw.settings, draw.precision, *_state(model))) in known:
        return
    counted, noise = model.samples_evaluated, model.noise([0])
    try:
        with torch.no_grad():
            empty, text = (draw.predict(noise, model.embed(text)) for text in TEXTS)
    finally:
        model.samples_evaluated = counted
    if not torch.isfinite(torch.stack([empty, text])).all():
        return  # refused by name where differences are taken
    size = max(_size(noise), _size(text))
    spread = (text - noise).flatten(2).std(dim=2).amax().item()
    passed = model.scheduler.config.prediction_type == "epsilon"  # then rounded as the noise is
    dtype = model.dtype if draw.precision == "model" else getattr(torch, draw.precision)
    about = None
    if _size(text - empty) <= ROUNDING * size:
        about = "the same whatever the prompt"
    elif spread <= max(ROUNDING, torch.finfo(dtype).eps if passed else 0) * size:
        about = "the noise it was made from, but for a constant and rounding"
    if about:
        raise UninformativeError(
            f"model: at timestep {timestep:g} the predicted noise is {about}, so no score could "
            "tell prompts apart; likely causes: another schedule or prediction_type than the model "
            "was trained with, weights or text embeddings that are constant; another timestep "
            "(steps, timestep_index) or other guidance may help"
        )
    known.add(key)


def _size(values: Tensor) -> float:
    """Root of the mean square."""
    return values.float().square().mean().sqrt().item()


def _state(model: DiffusionModel) -> tuple[Hashable, ...]:
    """What changes where the weights or the schedule do: tensors count their own changes."""
    parts = (model.denoiser, model.text_encoder)
    weights = [w for part in parts for w in part.parameters() if not w.is_inference()]
    return (*map(id, (*parts, model.scheduler)), sum(w._version for w in weights))
