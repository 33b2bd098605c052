"""Versions that are raised by hand: what the package computes may not move while they stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import canary
import numpy as np
import pytest

from nemo_kit.keys import PACKAGE, versions
from nemo_kit.mitigation import MITIGATIONS

RTOL, ATOL = 2e-3, 1e-4  # another machine, another build of torch
LEVELS = 0.6  # of pictures, which are rounded to 256


def moved(name: str, found: dict[str, list[float]], noted: dict[str, Any]) -> list[str]:
    """Labels of the numbers that are not those noted."""
    told = noted["numbers"]
    drawn = name.startswith(("mitigation", "generation"))
    return sorted(
        label
        for label in {*found, *told}
        if np.shape(found.get(label)) != np.shape(told.get(label))
        or not np.allclose(found[label], told[label], RTOL, LEVELS if drawn else ATOL)
    )


def test_everything_that_states_a_version_is_watched() -> None:
    assert set(canary.CASES) == set(versions())
    assert {name: one["version"] for name, one in canary.noted().items()} == versions(), (
        "a VERSION was raised or is new: python tests/canary.py notes its numbers"
    )


def test_what_is_stored_states_a_version() -> None:
    known = versions()
    kinds = [kind.__module__.removeprefix("nemo_kit.") for kind in MITIGATIONS.values()]
    modes = [path.stem for path in (PACKAGE / "localization" / "search").glob("*.py")]
    shared = {"__init__", "steps", "verification"}  # of all modes
    assert set(kinds) <= set(known)
    assert {f"localization.search.{mode}" for mode in set(modes) - shared} <= set(known)


@pytest.mark.parametrize("name", canary.CASES)
def test_results_stay_while_the_version_does(name: str) -> None:
    found = moved(name, canary.CASES[name](), canary.noted()[name])
    assert not found, f"{name}: {found} moved, so raise its VERSION and run tests/canary.py"


def test_the_canary_notices() -> None:
    noted = canary.noted()["metrics.scores"]
    other = {label: [one + 0.01 for one in own] for label, own in noted["numbers"].items()}
    assert moved("metrics.scores", other, noted) == ["detection", "summary"]
    assert moved("metrics.scores", {"summary": [1.0]}, noted) == ["detection", "summary"]


def test_versions_of_a_room() -> None:
    assert set(versions("mitigation")) == {n for n in versions() if n.startswith("mitigation.")}
    assert list(versions("generation")) == ["generation"]
    with pytest.raises(KeyError, match=r"no file of nemo_kit\.plots states a VERSION"):
        versions("plots")


def test_a_mended_docstring_is_no_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nemo_kit import keys

    digests = []
    for text in ("VERSION = 3\n", '"""Other words."""\n\nVERSION = 3  # why\n'):
        (tmp_path / "detection.py").write_text(text)
        monkeypatch.setattr(keys, "PACKAGE", tmp_path)
        keys._all_versions.cache_clear()
        assert versions() == {"detection": 3}
        digests.append(keys.value_digest(versions()))
    assert digests[0] == digests[1]
    (tmp_path / "detection.py").write_text("VERSION = 4\n")
    keys._all_versions.cache_clear()
    assert keys.value_digest(versions()) != digests[0]
    monkeypatch.undo()
    keys._all_versions.cache_clear()
