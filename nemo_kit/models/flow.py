"""Rectified flow: noise levels σ, on which x_σ = (1 − σ)·x_0 + σ·ε, and the velocity v = ε − x_0.

Scope: diffusers' Euler schedule with what the package asks of any schedule. A model is run on the
noise levels that its own pipeline visits.
Source: Esser et al., "Scaling Rectified Flow Transformers" (arXiv 2403.03206), section 2; the
Euler steps are diffusers'.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from nemo_kit.checks import UnsupportedError

EULER = "FlowMatchEulerDiscreteScheduler"
_OTHERS = {
    "stochastic_sampling": "noise drawn anew at each step",
    "invert_sigmas": "a flow that runs the other way",
}


class FlowSchedule(FlowMatchEulerDiscreteScheduler):
    """A rectified flow's noise levels, timesteps and Euler steps.

    Attributes, which a family sets: `image_tokens`, on which a dynamic shift depends; `even`,
    whether the levels before the shift are 1, 1 − 1/n, … 1/n (FLUX) and not those from the largest
    to the smallest trained (Stable Diffusion 3).
    """

    image_tokens, even = 0, False

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.register_to_config(prediction_type="flow_prediction")

    def set_timesteps(self, steps: int, device: Any = None) -> None:  # type: ignore[override]
        """The noise levels of that many steps."""
        given: dict[str, Any] = {}
        if self.even:
            given["sigmas"] = np.linspace(1.0, 1 / steps, steps)
        if self.config.use_dynamic_shifting:
            given["mu"] = self._mu()
        super().set_timesteps(steps, device, **given)

    def _mu(self) -> float:
        """How far the levels are shifted: linear in the image's tokens, as in the pipelines."""
        told = self.config
        span = told.max_image_seq_len - told.base_image_seq_len
        slope = (told.max_shift - told.base_shift) / span
        return told.base_shift + slope * (self.image_tokens - told.base_image_seq_len)

    def sigma(self, timestep: Tensor | float, like: Tensor) -> Tensor:
        """σ at one timestep or [N] of them, [1 or N, 1, 1, 1] where `like` is."""
        places = torch.as_tensor(timestep, dtype=torch.float32, device=like.device)
        return places.reshape(-1, 1, 1, 1) / self.config.num_train_timesteps

    def add_noise(self, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """x at the timesteps: (1 − σ)·x_0 + σ·ε."""
        level = self.sigma(timestep, clean)
        return (1 - level) * clean + level * noise

    @property
    def alphas_cumprod(self) -> Tensor:
        """There are none: UnsupportedError for what is defined by them."""
        raise UnsupportedError(
            "model: its noise is a rectified flow's, which has no ᾱ; not supported"
        )

    def plain(self) -> FlowMatchEulerDiscreteScheduler:
        """Diffusers' own schedule of these settings, for a pipeline that is saved."""
        return FlowMatchEulerDiscreteScheduler.from_config(self.config)


def read(config: Mapping[str, Any], named: str | None = None) -> FlowSchedule:
    """The schedule of a scheduler_config.json.

    Raises ValueError for another class (`named`, by model_index.json) or process.
    """
    for kind in {named, config.get("_class_name")} - {None}:
        if kind != EULER:
            raise ValueError(f"scheduler: must be a {EULER} (a rectified flow), got {kind}")
    for name, what in _OTHERS.items():
        if config.get(name):
            raise ValueError(f"scheduler: {name} means {what}; not supported")
    known = inspect.signature(FlowMatchEulerDiscreteScheduler.__init__).parameters
    given = {name: value for name, value in config.items() if name in known}
    try:
        return FlowSchedule(**given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"scheduler: its settings can't be read ({error})") from error
