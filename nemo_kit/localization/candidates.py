"""Out-of-distribution neurons: activations from the text side, z-scores, candidates.

Scope: Algorithm 2; a denoiser call is made only where values depend on the image.
Source: "Finding NeMo" (arXiv 2406.02366), section 3.2, Algorithm 2: a_i(y) is the mean over tokens
of |activation|, z = (a − μ_i) / σ_i, a candidate has |z| > θ or one of its layer's k largest a.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from nemo_kit.calibration import ActivationStatistics
from nemo_kit.checks import check_finite, check_number, check_whole
from nemo_kit.models.base import DiffusionModel
from nemo_kit.neurons import NeuronSet

VERSION = 1  # raised where results change (see nemo_kit.keys)
_TEXTS_AT_ONCE = 64


def mean_activations(values: Mapping[int, Tensor], mask: Tensor | None = None) -> dict[int, Tensor]:
    """Mean over tokens of the absolute value.

    Returns layer -> [N, width], values ≥ 0.
    Parameters: `values`, layer -> [N, tokens, width], as `DiffusionModel.value_activations` gives;
    `mask`, bool [N, tokens], of the tokens that count, where attention is blind for the others.
    Raises ValueError for other shapes and for NaN.
    Source: Algorithm 2, a_i(y).
    """
    for layer, value in values.items():
        if value.ndim != 3:
            raise ValueError(
                f"values: layer {layer} must be [N, tokens, width], got {list(value.shape)}"
            )
        check_finite(f"values: layer {layer}", value)
    if mask is None:
        return {layer: value.float().abs().mean(dim=1) for layer, value in values.items()}
    shares = (mask / mask.sum(dim=1, keepdim=True)).unsqueeze(1)  # [N, 1, tokens]
    return {
        layer: (shares.to(value.device) @ value.float().abs())[:, 0]
        for layer, value in values.items()
    }


def text_activations(model: DiffusionModel, prompts: Sequence[str]) -> dict[int, Tensor]:
    """Mean activations of prompts in the searched layers: layer -> [prompts, width], on the CPU."""
    parts = []
    for start in range(0, len(prompts), _TEXTS_AT_ONCE):
        embeddings = model.embed(prompts[start : start + _TEXTS_AT_ONCE])
        values = model.value_activations(embeddings, model.searched)
        mask = getattr(embeddings, "beside", {}).get("mask")
        parts.append({k: v.cpu() for k, v in mean_activations(values, mask).items()})
    return {layer: torch.cat([part[layer] for part in parts]) for layer in parts[0]}


def z_scores(
    activations: Mapping[int, Tensor], statistics: ActivationStatistics
) -> dict[int, Tensor]:
    """How many standard deviations each activation lies from its hold-out mean.

    Returns layer -> the shape of the activations; a neuron that never varied (σ = 0) scores 0
    at its mean and ±infinity elsewhere.
    Parameters: `activations`, layer -> [width] or [N, width].
    Raises ValueError for NaN, and where layers or widths differ from the statistics'.
    Source: Algorithm 2.
    """
    scores = {}
    for layer, activation in activations.items():
        width = statistics.widths.get(layer)
        if width != activation.shape[-1]:
            raise ValueError(
                f"activations: layer {layer} has {activation.shape[-1]} neurons, the statistics "
                f"have {width or 'none'} there; do they belong to this model?"
            )
        check_finite(f"activations: layer {layer}", activation)
        mean, std = (
            t[layer - 1].to(activation.device) for t in (statistics.means, statistics.stds)
        )
        deviation = activation.float() - mean
        scores[layer] = torch.where(deviation == 0, 0.0, deviation / std)
    return scores


def candidates(
    activations: Mapping[int, Tensor],
    z: Mapping[int, Tensor],
    theta: float,
    k: int,
    two_sided: bool = True,
) -> NeuronSet:
    """The neurons with |z| > θ, and the k largest activations of each layer.

    Returns a `NeuronSet` over the layers of `z`; parameters and errors as `candidate_lists`.
    Source: Algorithm 2.
    """
    return NeuronSet(candidate_lists(activations, z, theta, k, two_sided))


def candidate_lists(
    activations: Mapping[int, Tensor],
    z: Mapping[int, Tensor],
    theta: float,
    k: int,
    two_sided: bool = True,
) -> dict[int, list[int]]:
    """The candidates as the released code lists them.

    Returns layer -> indices: those with |z| > θ by index, then those of the k largest activations,
    largest first; a neuron that is both stands there twice (difference 9).
    Parameters: `activations`, `z`, layer -> [width]; `theta` ≥ 0; `k` ≥ 0, cut to the width;
    `two_sided`, False for z > θ alone.
    Raises ValueError for NaN, other shapes, negative θ or k.
    Source: Algorithm 2; difference 5: its listing has z, text and code have |z|.
    """
    check_number("theta", theta, 0, finite=False)
    check_whole("k", k, 0)
    found: dict[int, list[int]] = {}
    for layer, scores in z.items():
        activation = activations[layer]
        if scores.ndim != 1 or scores.shape != activation.shape:
            raise ValueError(
                f"z and activations: layer {layer} must both be [width], got "
                f"{list(scores.shape)} and {list(activation.shape)}"
            )
        if scores.isnan().any():
            raise ValueError(f"z: layer {layer} holds NaN")
        check_finite(f"activations: layer {layer}", activation)
        outlying = (scores.abs() if two_sided else scores) > theta
        largest = activation.topk(min(k, len(activation))).indices
        found[layer] = [*outlying.nonzero().flatten().tolist(), *largest.tolist()]
    return found
