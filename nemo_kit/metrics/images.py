"""Metrics that look at images: copying, diversity and alignment with the prompt.

Images are uint8 arrays; the networks that look at them (a copy descriptor, a CLIP) are arguments,
so that every number can be named after the network that gave it.

Source: Hintersdorf et al., "Finding NeMo", NeurIPS 2024, section 4.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np

from nemo_kit.checks import check_choice
from nemo_kit.metrics._checks import array, check_images, unit

VERSION = 1  # raised where results change (see nemo_kit.keys)
Look = Callable[[np.ndarray], Any]
"""uint8 images [N, H, W, 3] -> vectors [N, D] (array or tensor); an `Embedder` is one."""


Median = Literal["middle two", "lower middle"]


def median(values: np.ndarray, kind: Median = "middle two") -> float:
    """Median of a prompt's values over seeds or pairs.

    Parameters: `kind`, what it is of an even number: numpy's, or the lower of the middle two, as
    `torch.median` has it and the released metrics with it.
    Raises ValueError for another kind.
    """
    check_choice("median", kind, get_args(Median))
    if kind == "lower middle":
        return float(np.quantile(values, 0.5, method="lower"))
    return float(np.median(values))


def copy_similarities(images: np.ndarray, training_image: np.ndarray, embedder: Look) -> np.ndarray:
    """Cosine of every image to one training image.

    Returns float64 [N] in [-1, 1].

    Parameters: `images`, uint8 [N, H, W, 3]; `training_image`, uint8 [H, W, 3]; `embedder`, the
    copy descriptor.
    Raises ValueError for wrong shapes or dtypes.
    Source: paper, section 4 (SSCD_orig before the median).
    """
    reference = _embed(check_images("training_image", np.asarray(training_image)[None]), embedder)
    return _embed(check_images("images", images), embedder) @ reference[0]


def sscd_orig(images: np.ndarray, training_image: np.ndarray, embedder: Look) -> float:
    """Median cosine of a prompt's images to its training image, in [-1, 1].

    Parameters and errors as `copy_similarities`.
    Source: paper, section 4, SSCD_orig; over prompts use `summarize`.
    """
    return median(copy_similarities(images, training_image, embedder))


def sscd_gen(images: np.ndarray, unmitigated: np.ndarray, embedder: Look) -> float:
    """Median cosine of images to those of the same seed without mitigation, in [-1, 1].

    Parameters: `images` and `unmitigated`, uint8 [N, H, W, 3], the same seeds in the same order;
    `embedder`, the copy descriptor.
    Raises ValueError for wrong shapes or dtypes, or different numbers of images.
    Source: paper, section 4, SSCD_gen.
    """
    images, unmitigated = check_images("images", images), check_images("unmitigated", unmitigated)
    return median(same_seed(_embed(images, embedder), _embed(unmitigated, embedder)))


def same_seed(vectors: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Cosines of unit vectors, [N, D] each, pair by pair; ValueError for other numbers of them."""
    if len(vectors) != len(others):
        raise ValueError(
            "unmitigated must hold one image for each of images (same seeds), "
            f"got {len(others)} for {len(vectors)}"
        )
    return (vectors * others).sum(axis=1)


def diversity(images: np.ndarray, embedder: Look) -> float:
    """Median cosine over pairs of a prompt's images (D_SSCD), in [-1, 1]; lower is more diverse.

    Parameters: `images`, uint8 [N >= 2, H, W, 3]; `embedder`, the copy descriptor.
    Raises ValueError for wrong shapes or dtypes, or fewer than two images.
    Source: paper, section 4, D_SSCD.
    """
    return between_seeds(_embed(check_images("images", images), embedder))


def between_seeds(vectors: np.ndarray, kind: Median = "middle two") -> float:
    """D_SSCD of unit vectors, [N, D]; ValueError for fewer than two."""
    if len(vectors) < 2:
        raise ValueError(f"images must hold at least 2 images to form a pair, got {len(vectors)}")
    return median((vectors @ vectors.T)[np.triu_indices(len(vectors), 1)], kind)


def _embed(images: np.ndarray, embedder: Look) -> np.ndarray:
    return unit(array(embedder(images)))
