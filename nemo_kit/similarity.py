"""Structural similarity of noise differences, batched, on the tensors' device, in float32.

Scope: the noise difference of Algorithm 1, and SSIM or multi-scale SSIM between differences.
Source: "Finding NeMo" (arXiv 2406.02366), section 3.1, equations 3 and 4; the released code uses
multi-scale SSIM (kernel 11, three scales weighted 0.33), which is what its threshold 0.428 means.

Two things of torchmetrics are settled here. Its Gaussian kernel follows from sigma, not from
`kernel_size`: sigma = 1.5 · kernel / 11 makes the kernel as wide as it is called. And its default
data range is the largest of the whole batch, so that a pair's score depends on its neighbours:
by default each pair is measured by its own range. That lowers a score by 0.002 to 0.006, at most
0.018 on the embedded model; the published 0.428 was measured with the batch's (difference 10).
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nemo_kit.checks import check_finite
from nemo_kit.settings import SimilaritySettings

_PAIRS_AT_ONCE = 512  # bounds memory: five filtered copies of each pair are alive at a time


def noise_differences(prediction: Tensor, noise: Tensor) -> Tensor:
    """δ = ε_θ − x_T, scaled to [0, 1] by minimum and maximum of each sample and channel.

    Returns [N, C, H, W], float32; a constant channel becomes 0.
    Parameters: `prediction`, the predicted noise; `noise`, the initial noise x_T; same shape.
    Raises ValueError for other shapes and for NaN or infinity.
    Source: Algorithm 1, equation 3.
    """
    _same_shape("prediction", prediction, "noise", noise)
    difference = prediction.float() - noise.float()
    check_finite("prediction − noise", difference)
    low, high = torch.aminmax(difference.flatten(2), dim=2)  # [N, C] each
    span = torch.where(high > low, high - low, 1.0)
    return (difference - low[..., None, None]) / span[..., None, None]


def similarity(a: Tensor, b: Tensor, settings: SimilaritySettings | None = None) -> Tensor:
    """Similarity of each pair (a[i], b[i]).

    Returns [N], float32: 1 for equal pairs, about 0 for unrelated ones; multi-scale values lie
    in [0, 1] (anti-correlated scales count as 0), plain SSIM in [−1, 1].
    Parameters: `a`, `b`, [N, C, H, W] noise differences; `settings`, by default SD's.
    Raises ValueError for NaN, other shapes, and sizes the settings can't measure.
    Source: section 3.1, equation 4.
    """
    settings = settings or SimilaritySettings()
    _same_shape("a", a, "b", b)
    check_finite("a", a)
    check_finite("b", b)
    settings.check(*a.shape[-2:])
    if settings.data_range == "batch":
        return _compare(a.float(), b.float(), settings)
    chunks = zip(a.split(_PAIRS_AT_ONCE), b.split(_PAIRS_AT_ONCE), strict=True)
    parts = [_compare(x.float(), y.float(), settings) for x, y in chunks if len(x)]
    return torch.cat(parts) if parts else a.new_zeros(0, dtype=torch.float32)


def pairwise(differences: Tensor, settings: SimilaritySettings | None = None) -> Tensor:
    """Similarity of every two differences.

    Returns [n, n], symmetric, float32, NaN on the diagonal (a seed is not compared with itself).
    Parameters: `differences`, [n, C, H, W], n ≥ 2; `settings`, by default SD's.
    Raises ValueError for fewer than two, NaN, or sizes the settings can't measure.
    Source: section 3.1, the memorization score.
    """
    n = len(differences)
    if n < 2:
        raise ValueError(f"differences must hold at least 2 seeds to compare, got {n}")
    first, second = torch.triu_indices(n, n, offset=1, device=differences.device)
    scores = similarity(differences[first], differences[second], settings)
    matrix = torch.full((n, n), torch.nan, device=differences.device)
    matrix[first, second] = scores
    matrix[second, first] = scores
    return matrix


def _compare(a: Tensor, b: Tensor, settings: SimilaritySettings) -> Tensor:
    """[N]: product over scales of contrast-structure^beta, the coarsest scale with luminance."""
    if settings.kind == "ssim":
        return _one_scale(a, b, settings)[0]
    parts = []
    for _ in settings.betas:
        whole, contrast = _one_scale(a, b, settings)
        parts.append(contrast)
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    parts[-1] = whole
    stacked = torch.stack(parts).relu()  # [scales, N]; a negative base would give NaN
    betas = stacked.new_tensor(settings.betas)[:, None]
    return (stacked**betas).prod(dim=0)


def _one_scale(a: Tensor, b: Tensor, settings: SimilaritySettings) -> tuple[Tensor, Tensor]:
    """([N], [N]): SSIM, and its contrast-structure part inside the window's border."""
    # here, since all of torchmetrics comes with it: seconds that opening a model doesn't need
    from torchmetrics.functional.image import structural_similarity_index_measure as ssim

    return ssim(
        a, b, sigma=settings.sigma, kernel_size=settings.kernel, reduction="none",
        data_range=_range(a, b, settings.data_range), return_contrast_sensitivity=True,
    )  # type: ignore[return-value]  # fmt: skip


def _range(a: Tensor, b: Tensor, kind: float | str) -> Any:
    """The data range: [N, 1, 1, 1] for pairs, None for torchmetrics' own (the whole batch's)."""
    if kind == "batch":
        return None
    if kind != "pair":
        return kind
    spans = [torch.aminmax(x.flatten(1), dim=1) for x in (a, b)]
    span = torch.maximum(*(high - low for low, high in spans))
    return torch.where(span > 0, span, 1.0)[:, None, None, None]  # two constants: equal, 1


def _same_shape(name_a: str, a: Tensor, name_b: str, b: Tensor) -> None:
    if a.ndim != 4 or a.shape != b.shape:
        raise ValueError(
            f"{name_a} and {name_b} must have one shape [N, C, H, W], "
            f"got {list(a.shape)} and {list(b.shape)}"
        )
