"""Measures of each prompt's pictures by hand, and measures of one's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from nemo_kit import lab, metrics

RED, GREEN, BLUE = np.eye(3, dtype=np.uint8) * 200


def solid(*colours: np.ndarray) -> np.ndarray:
    """Pictures of one colour each, uint8 [N, 64, 64, 3]."""
    return np.stack([np.broadcast_to(c, (64, 64, 3)) for c in colours]).astype(np.uint8)


def mean_colour(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1, 3).mean(axis=1)


ROWS = pd.DataFrame({"prompt": ["red", "green"], "group": ["VM", "TM"]}, index=[7, 3])
IMAGES = [solid(RED, RED, RED + GREEN), solid(BLUE)]
HALF = np.sqrt(0.5)


def seen(images: np.ndarray, **known: Any) -> metrics.Seen:
    """What was drawn of one prompt, whichever."""
    return metrics.Seen("a prompt", images, mean_colour, **known)


# ------------------------------------------------------------------------------ per prompt


def test_the_table_by_hand() -> None:
    before = [seen(solid(RED, GREEN, RED)), seen(solid(BLUE))]
    drawn = [
        seen(IMAGES[0], before=before[0], training=solid(RED)[0]),
        seen(IMAGES[1], before=before[1]),
    ]
    got = metrics.measured(ROWS, drawn)
    first, second = got.loc[7], got.loc[3]
    assert (first.images, first.orig, first.orig_max) == (3, pytest.approx(1), pytest.approx(1))
    assert first.above == 1  # 1, 1 and 0.707, all above 0.7
    assert first.gen == pytest.approx(HALF)  # 1, 0, 0.707
    assert first.diversity == pytest.approx(HALF)  # 1, 0.707, 0.707
    assert second[["orig", "orig_max", "above", "diversity", "alignment"]].isna().all()
    assert second.gen == pytest.approx(1)
    assert set(got["embedder"]) == {"mean_colour"}
    assert set(got["protocol"]) == {"as given"}
    assert set(got["clip_model"]) == {""}
    assert list(got["group"]) == ["VM", "TM"]


def test_which_median_over_seeds_is_told() -> None:
    pictures = solid(RED, GREEN)  # cosines 1 and 0 to the training image
    known = {"before": seen(pictures), "training": solid(RED)[0]}
    usual, lower = (
        metrics.measured(ROWS[:1], [seen(pictures, **known, **how)])
        for how in ({}, {"median": "lower middle"})
    )
    assert (usual.orig.item(), usual.seed_median.item()) == (pytest.approx(0.5), "middle two")
    assert (lower.orig.item(), lower.seed_median.item()) == (pytest.approx(0), "lower middle")
    assert lower.gen.item() == usual.gen.item() == pytest.approx(1)


def test_against_the_functions_for_one_prompt() -> None:
    prompts, known = lab.training_images()
    rows = pd.DataFrame({"prompt": prompts[:1], "group": ["VM"]})
    images, look, clip = known[:4], metrics.lab_descriptor(), metrics.load_clip()
    before = metrics.Seen(prompts[0], images[::-1], look)
    drawn = metrics.Seen(prompts[0], images, look, clip, before, known[0])
    one = metrics.measured(rows, [drawn]).iloc[0]
    assert one.orig == pytest.approx(metrics.sscd_orig(images, known[0], look), abs=1e-6)
    assert one.gen == pytest.approx(metrics.sscd_gen(images, images[::-1], look), abs=1e-6)
    assert one.diversity == pytest.approx(metrics.diversity(images, look), abs=1e-6)
    wanted = np.median(metrics.load_clip().align(images, prompts[0]))
    assert one.alignment == pytest.approx(wanted)
    assert (one.embedder, one.clip_model) == ("lab descriptor", "lab CLIP")


def test_pictures_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="images must be uint8"):
        seen(np.zeros((1, 4, 4, 3)))
    with pytest.raises(ValueError, match="unmitigated must hold one image for each"):
        metrics.measured(ROWS[:1], [seen(IMAGES[0], before=seen(solid(RED)))])
    with pytest.raises(ValueError, match="seen must be one for each of 2 rows, got 1"):
        metrics.measured(ROWS, [seen(IMAGES[0])])


@pytest.mark.parametrize(
    ("measures", "text"),
    [
        (["nothing"], "measures must be one of orig, .*; got 'nothing'"),
        ([lambda seen: [1, 2]], "must give one number, or one for each of 3"),
    ],
)
def test_bad_measures(measures: list, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        metrics.measured(ROWS[:1], [seen(IMAGES[0])], measures)


def test_a_measure_of_ones_own_and_its_direction() -> None:
    def red(one: metrics.Seen) -> np.ndarray:
        return one.images[..., 0].mean(axis=(1, 2))

    darkest = metrics.Measure("darkest", red, "darkest", over=np.min)
    got = metrics.measured(ROWS[:1], [seen(IMAGES[0])], [red, darkest, "diversity"])
    assert got.loc[7, ["red", "darkest"]].tolist() == [200, 200]
    assert list(got)[2:6] == ["images", "red", "darkest", "diversity"]
    with pytest.raises(ValueError, match="better must be one of lower, higher, ; got 'up'"):
        metrics.measure("x", better="up")  # type: ignore[arg-type]


def test_a_measure_of_everything_tells_the_median_asked_for() -> None:
    """Of an even number of pairs too: pairs 1, 0, 0 and 0, 1, 0.7 of four pictures."""
    four = solid(RED, RED, GREEN, RED + GREEN)
    usual, lower = (
        metrics.measured(ROWS[:1], [seen(four, median=kind)], ["diversity"])
        for kind in ("middle two", "lower middle")
    )
    pairs = np.sort([1, 0, HALF, 0, HALF, HALF])
    assert usual["diversity"].item() == pytest.approx(np.median(pairs))
    assert lower["diversity"].item() == pytest.approx(pairs[2])
