"""Near-duplicate prompts, by letters that captions share."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from nemo_kit import metrics
from nemo_kit.prompts import prompt_rows


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
    with pytest.raises(ValueError, match="frame lacks prompt; it has text"):
        metrics.distinct(pd.DataFrame({"text": ["a"]}))
