"""Files: what is written comes back as it was."""

from __future__ import annotations

import io

import pandas as pd
import pytest

from nemo_kit.files import spreadsheet_safe, without_guard


@pytest.mark.parametrize(
    "text", ["=1+1", "+a", "-a", "@a", "\tx", "'=x", "'quoted'", "'", "", "a=b"]
)
def test_the_guard_against_spreadsheets_comes_off_again(text: str) -> None:
    safe = spreadsheet_safe(pd.DataFrame({"prompt": [text]}))["prompt"][0]
    assert not safe.startswith(("=", "+", "-", "@", "\t"))
    written = io.StringIO()
    pd.DataFrame({"prompt": [safe], "n": [1]}).to_csv(written, index=False)
    read = pd.read_csv(io.StringIO(written.getvalue()), keep_default_na=False)["prompt"][0]
    assert without_guard(read) == text
