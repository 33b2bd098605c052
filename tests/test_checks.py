"""What callers give: each error names the parameter, what is allowed, and what came."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from nemo_kit.checks import (
    check_choice,
    check_number,
    check_seeds,
    check_seeds_apart,
    check_text,
    check_texts,
    check_whole,
)


def test_good_values_pass() -> None:
    assert check_texts("a") == ["a"]
    assert check_texts(("a", "b")) == ["a", "b"]
    assert check_texts(["", "b"], empty_allowed=True) == ["", "b"]
    assert check_text("a") == "a"
    assert check_seeds(range(3)) == [0, 1, 2]
    assert check_seeds(5) == [5]
    assert check_seeds(np.arange(2)) == [0, 1]
    assert check_seeds_apart(range(3, 5), [1, 2]) == [3, 4]
    check_number("x", np.float32(0.5), 0)
    check_number("x", math.inf, finite=False)
    check_whole("x", np.int64(3), 1)
    check_choice("x", "a", ("a", "b"))


@pytest.mark.parametrize(
    ("check", "arguments", "error", "text"),
    [
        (check_texts, ([],), ValueError, "at least one prompt, got none"),
        (check_texts, (["a", " \n"],), ValueError, r"prompts must not be empty, got ' \\n'"),
        (check_texts, (["a", None],), TypeError, r"prompts must be texts, got None \(NoneType\)"),
        (check_texts, (5,), TypeError, "prompts must be a text or a list of texts, got int"),
        (check_text, (["a"],), TypeError, r"prompt must be one text, got \['a'\] \(list\)"),
        (check_text, ("",), ValueError, "prompts must not be empty"),
        (check_seeds, ([],), ValueError, "seeds must hold at least 1, got 0"),
        (check_seeds, ([1, -2],), ValueError, r"seeds must be integers from 0, got \[1, -2\]"),
        (check_seeds, ([1.0],), ValueError, "seeds must be integers from 0"),
        (check_seeds, ([True],), ValueError, "seeds must be integers from 0"),
        (check_seeds, ("12",), ValueError, "seeds must be integers from 0"),
        (check_seeds, ([1], 2), ValueError, "seeds must hold at least 2, got 1"),
        (check_seeds, ([1, 1], 2, True), ValueError, "seeds must differ from one another"),
        (check_seeds_apart, ([5, 2], range(4)), ValueError, "but 2 is in both; start .* above 3"),
        (check_seeds_apart, (range(9), range(9)), ValueError, "but 0, 1, 2, 3, 4, … are in both"),
        (check_seeds_apart, ([], [1]), ValueError, "seeds must hold at least 1, got 0"),
        (check_whole, ("k", 0, 1), ValueError, "k must be an integer of at least 1, got 0"),
        (check_whole, ("k", 1.5, 1), ValueError, "k must be an integer of at least 1, got 1.5"),
        (check_number, ("g", math.nan), ValueError, "g must be a finite number, got nan"),
        (check_number, ("g", -1, 0), ValueError, "g must be a finite number of at least 0, got -1"),
        (check_number, ("g", "1"), ValueError, "g must be a finite number, got '1'"),
        (check_number, ("g", None), ValueError, "g must be a finite number, got None"),
        (check_number, ("g", True), ValueError, "g must be a finite number, got True"),
        (check_choice, ("h", "c", ("a", "b")), ValueError, "h must be one of a, b; got 'c'"),
    ],
)
def test_bad_values(check: Any, arguments: tuple, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        check(*arguments)
