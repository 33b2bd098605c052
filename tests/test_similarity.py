"""Similarity against torchmetrics one pair at a time, by hand, and on bad input."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure as ms_ssim,
)
from torchmetrics.functional.image import structural_similarity_index_measure as ssim

from nemo_kit.settings import SimilaritySettings
from nemo_kit.similarity import noise_differences, pairwise, similarity

SMALL = SimilaritySettings(kernel=3)


def differences(n: int, side: int, seed: int = 0, shared: float = 0.0) -> Tensor:
    torch.manual_seed(seed)
    common = torch.randn(1, 4, side, side)
    return noise_differences(
        torch.randn(n, 4, side, side) + shared * common, torch.zeros(n, 4, side, side)
    )


def test_noise_differences_by_hand() -> None:
    prediction = torch.tensor([[[[1.0, 3.0], [5.0, 9.0]], [[7.0, 7.0], [7.0, 7.0]]]])
    noise = torch.tensor([[[[1.0, 1.0], [1.0, 1.0]], [[2.0, 2.0], [2.0, 2.0]]]])
    expected = torch.tensor([[[[0.0, 0.25], [0.5, 1.0]], [[0.0, 0.0], [0.0, 0.0]]]])
    torch.testing.assert_close(noise_differences(prediction, noise), expected)


def test_noise_differences_scale_each_sample_and_channel() -> None:
    found = differences(3, 8)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.amin((2, 3)), torch.zeros(3, 4))
    torch.testing.assert_close(found.amax((2, 3)), torch.ones(3, 4))


def test_multi_scale_is_torchmetrics_pair_by_pair() -> None:
    a, b = differences(4, 64, 1, shared=1.0), differences(4, 64, 2)
    expected = [
        ms_ssim(x[None], y[None], kernel_size=11, betas=(0.33, 0.33, 0.33), reduction="none")
        for x, y in zip(a, b, strict=True)
    ]
    torch.testing.assert_close(similarity(a, b), torch.cat(expected))


def test_batch_range_is_torchmetrics_on_the_whole_batch() -> None:
    a, b = differences(4, 64, 1, shared=1.0), differences(4, 64, 2)
    expected = ms_ssim(a, b, kernel_size=11, betas=(0.33, 0.33, 0.33), reduction="none")
    torch.testing.assert_close(similarity(a, b, SimilaritySettings(data_range="batch")), expected)


def test_plain_ssim_and_fixed_range() -> None:
    a, b = differences(4, 64, 1), differences(4, 64, 2)
    settings = SimilaritySettings(kind="ssim", data_range=1.0)
    expected = ssim(a, b, data_range=1.0, kernel_size=11, reduction="none")
    torch.testing.assert_close(similarity(a, b, settings), expected)


@pytest.mark.parametrize("kernel", range(3, 30, 2))
def test_the_kernel_is_as_wide_as_it_is_called(kernel: int) -> None:
    sigma = SimilaritySettings(kernel=kernel).sigma
    assert int(3.5 * sigma + 0.5) * 2 + 1 == kernel  # torchmetrics' width for this sigma
    assert SimilaritySettings().sigma == 1.5


def test_equal_ones_score_1_and_unrelated_ones_little() -> None:
    a = differences(5, 64)
    torch.testing.assert_close(similarity(a, a), torch.ones(5))
    assert similarity(a, differences(5, 64, 9)).max() < 0.1
    flat = torch.zeros(2, 4, 16, 16)
    torch.testing.assert_close(similarity(flat, flat, SMALL), torch.ones(2))


def test_anti_correlated_ones_score_0() -> None:
    a = differences(2, 16)
    found = similarity(a, 1 - a, SMALL)
    torch.testing.assert_close(found, torch.zeros(2))


def test_scores_do_not_depend_on_the_batch() -> None:
    a, b = differences(600, 16, 1, shared=1.0), differences(600, 16, 2, shared=1.0)
    whole = similarity(a, b, SMALL)
    torch.testing.assert_close(whole[::100], similarity(a[::100], b[::100], SMALL))


def test_half_precision_is_compared_in_float32() -> None:
    a, b = differences(3, 16, 1, shared=1.0).half(), differences(3, 16, 2, shared=1.0).half()
    found = similarity(a, b, SMALL)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, similarity(a.float(), b.float(), SMALL))


def test_pairwise_is_symmetric_without_a_diagonal() -> None:
    a = differences(4, 16, shared=1.0)
    found = pairwise(a, SMALL)
    assert found.shape == (4, 4)
    assert found.diagonal().isnan().all()
    torch.testing.assert_close(found, found.T, equal_nan=True)
    torch.testing.assert_close(found[1, 3], similarity(a[1:2], a[3:4], SMALL)[0])


@pytest.mark.parametrize("side", [4, 5, 8, 11, 12, 15, 16, 24, 32, 44, 64])
@pytest.mark.parametrize("kernel", [3, 5, 7, 11])
@pytest.mark.parametrize("scales", [1, 2, 3])
def test_check_allows_exactly_what_can_be_measured(side: int, kernel: int, scales: int) -> None:
    settings = SimilaritySettings(kernel=kernel, betas=(0.33,) * scales)
    try:
        settings.check(side, side + 1)
    except ValueError:
        with pytest.raises(ValueError, match=r"needs larger latents .* choose a smaller kernel"):
            similarity(torch.rand(1, 1, side, side), torch.rand(1, 1, side, side), settings)
    else:
        found = similarity(torch.rand(2, 2, side, side), torch.rand(2, 2, side, side), settings)
        assert found.isfinite().all()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"kind": "psnr"}, "kind must be one of ms_ssim, ssim; got 'psnr'"),
        ({"kernel": 4}, "kernel must be an odd integer from 3, got 4"),
        ({"kernel": 1}, "kernel must be an odd integer"),
        ({"kernel": 3.0}, "kernel must be an odd integer"),
        ({"betas": ()}, "betas must be positive weights"),
        ({"betas": (0.3, -0.1)}, "betas must be positive weights"),
        ({"data_range": "all"}, "data_range must be one of pair, batch; got 'all'"),
        ({"data_range": 0}, "data_range must be a finite number"),
    ],
)
def test_bad_settings(changes: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        SimilaritySettings(**changes)


def test_nan_is_refused() -> None:
    good, bad = torch.rand(2, 4, 16, 16), torch.rand(2, 4, 16, 16)
    bad[0, 0, 0, 0] = torch.nan
    for call in (
        lambda: similarity(good, bad, SMALL),
        lambda: similarity(bad, good, SMALL),
        lambda: pairwise(bad, SMALL),
        lambda: noise_differences(bad, good),
    ):
        with pytest.raises(ValueError, match="became NaN or infinite"):
            call()


def test_wrong_shapes_are_refused() -> None:
    a = torch.rand(2, 4, 16, 16)
    with pytest.raises(ValueError, match=r"one shape \[N, C, H, W\], got \[2, 4, 16, 16\] and \[1"):
        similarity(a, a[:1], SMALL)
    with pytest.raises(ValueError, match="prediction and noise must have one shape"):
        noise_differences(a[0], a[0])
    with pytest.raises(ValueError, match="at least 2 seeds to compare, got 1"):
        pairwise(a[:1], SMALL)
