"""Imported by the kernel of the lessons: what they ask of the model twice is answered once.

A lesson is run with its solutions and without, and the same model is opened in all of them. Only
answers of the model as it is are kept: inside an intervention, the package's or a lesson's own, the
call is made.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import cache, wraps
from typing import Any

from nemo_kit import generation, localization, models


def once(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function of a model, whose answers are kept by its other arguments."""
    known: dict[bytes, Any] = {}

    @wraps(function)
    def asked(model: models.DiffusionModel, *given: Any, **options: Any) -> Any:
        if any(module._forward_hooks for module in model.denoiser.modules()):
            return function(model, *given, **options)
        key = pickle.dumps((given, options))
        if key not in known:
            known[key] = function(model, *given, **options)
        return copy.deepcopy(known[key])

    return asked


models.load = cache(models.load)
generation.generate = once(generation.generate)
localization.localize = once(localization.localize)
localization.detect = once(localization.detect)
