"""Tables of copying by hand, near-duplicate prompts, and medians both ways."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nemo_kit import lab, metrics
from nemo_kit.prompts import prompt_rows

RED, GREEN, BLUE = np.eye(3, dtype=np.uint8) * 200


def solid(*colours: np.ndarray) -> np.ndarray:
    """Pictures of one colour each, uint8 [N, 64, 64, 3]."""
    return np.stack([np.broadcast_to(c, (64, 64, 3)) for c in colours]).astype(np.uint8)


def mean_colour(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1, 3).mean(axis=1)


ROWS = pd.DataFrame({"prompt": ["red", "green"], "group": ["VM", "TM"]}, index=[7, 3])
IMAGES = [solid(RED, RED, RED + GREEN), solid(BLUE)]
HALF = np.sqrt(0.5)

# ------------------------------------------------------------------------------ per prompt


def test_the_table_by_hand() -> None:
    before = [solid(RED, GREEN, RED), solid(BLUE)]
    got = metrics.copying_table(
        ROWS, IMAGES, mean_colour, [solid(RED)[0], None], before, threshold=0.7
    )
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
    usual, lower = (
        metrics.copying_table(ROWS[:1], [pictures], mean_colour, [solid(RED)[0]], [pictures], **how)
        for how in ({}, {"kind": "lower middle"})
    )
    assert (usual.orig.item(), usual.seed_median.item()) == (pytest.approx(0.5), "middle two")
    assert (lower.orig.item(), lower.seed_median.item()) == (pytest.approx(0), "lower middle")
    assert metrics.sscd_orig(pictures, solid(RED)[0], mean_colour, "lower middle") == 0
    assert lower.gen.item() == usual.gen.item() == pytest.approx(1)


def test_the_threshold_is_told_and_strict() -> None:
    got = metrics.copying_table(
        ROWS[:1], IMAGES[:1], mean_colour, [solid(RED)[0]], threshold=0.75
    ).iloc[0]
    assert (got.above, got.threshold) == (pytest.approx(2 / 3), 0.75)


def test_against_the_functions_for_one_prompt() -> None:
    prompts, known = lab.training_images()
    rows = pd.DataFrame({"prompt": prompts[:1], "group": ["VM"]})
    images, clip = known[:4], metrics.load_clip()
    got = metrics.copying_table(rows, [images], lab.descriptor(), known[:1], [images[::-1]], clip)
    one, look = got.iloc[0], lab.descriptor()
    assert one.orig == pytest.approx(metrics.sscd_orig(images, known[0], look), abs=1e-6)
    assert one.gen == pytest.approx(metrics.sscd_gen(images, images[::-1], look), abs=1e-6)
    assert one.diversity == pytest.approx(metrics.diversity(images, look), abs=1e-6)
    wanted = np.median(metrics.alignment(images, prompts[0], *lab.clip()))
    assert one.alignment == pytest.approx(wanted)
    assert (one.embedder, one.clip_model) == ("lab descriptor", "lab CLIP")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"images": IMAGES[:1]}, "images must be one for each of 2 rows, got 1"),
        ({"training": [None]}, "training must be one for each of 2 rows, got 1"),
        ({"unmitigated": [solid(RED)] * 2}, "unmitigated must hold one image for each"),
        ({"images": [np.zeros((1, 4, 4, 3))] * 2}, "images must be uint8"),
    ],
)
def test_bad_tables(change: dict, text: str) -> None:
    given = {"images": IMAGES, "embedder": mean_colour} | change
    with pytest.raises(ValueError, match=text):
        metrics.copying_table(ROWS, **given)


# ----------------------------------------------------------------------------- near duplicates


def test_near_duplicates_by_hand() -> None:
    # trigrams of "abcd" within bounds: " ab", "abc", "bcd", "cd "; "abc" shares 2 of 5
    assert list(metrics.near_duplicates(["abcd", "abc"], 0.4)) == [False, True]
    assert list(metrics.near_duplicates(["abcd", "abc"], 0.41)) == [False, False]


def test_markup_and_case_don_t_count() -> None:
    prompts = [
        "<i>Daredevil</i> Trailer",
        "daredevil trailer",
        "Salt &amp; Pepper",
        "salt & pepper",
    ]
    assert list(metrics.near_duplicates(prompts, 1)) == [False, True, False, True]


def test_a_dropped_prompt_drops_no_other() -> None:
    """b is near a, c near b alone: c stays, as b is gone."""
    prompts = ["aaa bbb ccc ddd", "ccc ddd eee fff", "eee fff ggg hhh"]
    assert list(metrics.near_duplicates(prompts, 0.3)) == [False, True, False]


def test_the_paper_s_number(shared_data: Path) -> None:
    prompts = list(prompt_rows([shared_data / "memorized_laion_prompts.csv"])["prompt"])
    assert (~metrics.near_duplicates(prompts)).sum() == 304


def test_distinct_keeps_all_rows_of_a_prompt() -> None:
    frame = pd.DataFrame({"prompt": ["a red cup", "a red cup!", "whale", "a red cup"]})
    assert list(metrics.distinct(frame).index) == [0, 2, 3]


def test_bad_duplicates() -> None:
    with pytest.raises(ValueError, match=r"threshold must lie in \(0, 1\], got 0"):
        metrics.near_duplicates(["a"], 0)
    with pytest.raises(ValueError, match="at least one prompt"):
        metrics.near_duplicates([])
    with pytest.raises(ValueError, match="needs a column 'prompt'"):
        metrics.distinct(pd.DataFrame({"text": ["a"]}))


# -------------------------------------------------------------------------------- over prompts


def measured() -> pd.DataFrame:
    prompts = ["blue whale", "blue whales", "green tea", "old clock", "tall tree"]
    groups = ["VM", "VM", "VM", "TM", "TM"]
    names = {"embedder": "x", "protocol": "y", "clip_model": ""}
    values = {"orig": [0.9, 0.8, 0.1, 0.3, np.nan], "gen": np.nan}
    return pd.DataFrame({"prompt": prompts, "group": groups} | values | names)


def test_medians_both_ways_by_hand() -> None:
    got = metrics.over_groups(measured(), ["orig", "gen"]).set_index(["kept", "group"])
    assert set(got["measure"]) == {"orig"}, "a measure nobody has is left out"
    every, less = got.loc[("all", "VM")], got.loc[("without near duplicates", "VM")]
    assert (every["prompts"], every["median"], every["mad"]) == (3, 0.8, pytest.approx(0.1))
    assert (less["prompts"], less["median"], less["mad"]) == (2, 0.5, 0.4)
    assert every["low"] <= 0.8 <= every["high"]
    assert got.loc[("all", "TM"), "prompts"] == 1  # NaN leaves the prompt out
    assert (got["embedder"] == "x").all()
    assert (got["protocol"] == "y").all()


def test_medians_of_nothing_have_their_columns() -> None:
    got = metrics.over_groups(measured(), ["gen"])
    assert len(got) == 0
    assert {"kept", "median", "embedder"} <= set(got)


def test_bad_medians() -> None:
    with pytest.raises(ValueError, match="measured lacks above"):
        metrics.over_groups(measured(), ["orig", "above"])
    with pytest.raises(ValueError, match="level must lie between 0 and 1"):
        metrics.over_groups(measured(), ["orig"], level=95)
