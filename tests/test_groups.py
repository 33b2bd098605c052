"""Which prompts to work on, and results beside their groups."""

from __future__ import annotations

import pandas as pd
import pytest

from nemo_kit.groups import choose, grouped, spread


def table() -> pd.DataFrame:
    roles = ["verbatim"] * 5 + ["template"] * 3 + ["non_memorized"] * 4 + ["holdout"] * 2
    return pd.DataFrame({"prompt": [f"p{number}" for number in range(len(roles))], "role": roles})


def test_choose_spreads_over_the_table_and_names_groups() -> None:
    got = choose(table(), memorized=2, non_memorized=3, holdout=1)
    assert got["prompt"].tolist() == ["p0", "p4", "p5", "p7", "p8", "p10", "p11", "p12"]
    assert got["group"].tolist() == ["VM"] * 2 + ["TM"] * 2 + ["non-memorized"] * 3 + ["hold-out"]


def test_choose_takes_all_for_none_and_no_hold_out_unless_asked() -> None:
    assert choose(table())["group"].value_counts().to_dict() == {
        "VM": 5, "non-memorized": 4, "TM": 3
    }  # fmt: skip
    assert len(choose(table(), 99, 0)) == 8


def test_without_hold_out_prompts_non_memorized_ones_take_their_place() -> None:
    got = choose(table()[:12], 0, 0, 2)
    assert got["prompt"].tolist() == ["p8", "p11"]
    assert set(got["group"]) == {"hold-out"}


def test_choose_refuses() -> None:
    with pytest.raises(ValueError, match="0 or more, or None for all, got -1"):
        choose(table(), memorized=-1)
    with pytest.raises(ValueError, match="no prompt of the roles asked for"):
        choose(table(), 0, 0)
    with pytest.raises(ValueError, match="table lacks role; it has prompt"):
        choose(pd.DataFrame({"prompt": ["a"]}))


def test_spread_takes_the_first_and_the_last() -> None:
    assert spread(table(), 3)["prompt"].tolist() == ["p0", "p6", "p13"]
    assert len(spread(table(), None)) == len(spread(table(), 99)) == 14
    assert spread(table(), 0).empty


def test_grouped_follows_the_prompts_and_drops_those_without_a_result() -> None:
    prompts = pd.DataFrame({"prompt": ["y", "x", "z"], "group": ["VM", "TM", "VM"]})
    got = grouped(pd.DataFrame({"prompt": ["x", "y"], "score": [1, 2]}), prompts)
    assert got.to_dict("list") == {"prompt": ["y", "x"], "group": ["VM", "TM"], "score": [2, 1]}
    with pytest.raises(ValueError, match="prompts lacks group; it has prompt"):
        grouped(prompts, prompts[["prompt"]])


def test_grouped_keeps_whether_it_was_planted() -> None:
    prompts = pd.DataFrame({"prompt": ["x"], "group": ["VM"], "origin": ["natural"], "role": [""]})
    got = grouped(pd.DataFrame({"prompt": ["x"], "score": [1]}), prompts)
    assert list(got) == ["prompt", "group", "origin", "score"]
