"""Initial noise x_T of several seeds: one generator each, or all from one as the released code.

Source: the authors' released code of "Finding NeMo" (arXiv 2406.02366) draws its "ten seeds" from
one generator, seeded 1 for localization and 2 for pictures.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, get_args

import torch
from torch import Tensor

from nemo_kit.checks import check_choice, check_seeds
from nemo_kit.settings import Noise

if TYPE_CHECKING:
    from nemo_kit.models import DiffusionModel


def initial_noise(model: DiffusionModel, seeds: Iterable[int], kind: Noise = "per seed") -> Tensor:
    """The noise of these seeds, [N, C, H, W], float32, as the model's scheduler wants it.

    Parameters: `kind`, "per seed" (`DiffusionModel.noise`: a seed's noise does not depend on the
    others) or "one generator" (one draw of all N from a generator with the first seed; the others
    number its draws, so they must follow it: 1, 2, … 10 is the released code's seed 1).
    Raises ValueError for bad seeds, another kind, and seeds that do not follow one another.
    """
    check_choice("noise", kind, get_args(Noise))
    if kind == "per seed":
        return model.noise(seeds)
    numbers = check_seeds(seeds)
    if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        raise ValueError(
            "seeds must follow one another (1, 2, 3, …) where all noise comes from one generator, "
            f"got {numbers!r:.80}"
        )
    generator = torch.Generator("cpu").manual_seed(numbers[0])
    drawn = torch.randn((len(numbers), *model.latent_shape), generator=generator)
    return drawn.to(model.device) * model.scheduler.init_noise_sigma
