"""The notebook ``plan``: what it measures, and how it scales that, with numbers worked out anew."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import nbformat
import papermill
import pytest
from books import NOTEBOOKS, run_cells

from nemo_kit import lab
from nemo_kit.localization import detect
from nemo_kit.models import DiffusionModel

plan = partial(run_cells, "plan", seeds=2, threshold=0.5, minutes=0.0)


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch, toy_model: DiffusionModel) -> None:
    """Whatever model the notebook names, it gets the toy."""
    monkeypatch.setattr("nemo_kit.models.load", lambda *_, **__: toy_model)


@pytest.fixture
def sample(tmp_path: Path) -> list[str]:
    (tmp_path / "sample.txt").write_text("cat 0\ncat 1\ncat 0\n")
    return [str(tmp_path / "sample.txt")]


def test_hours_disk_and_cost_follow_from_the_measurement(sample: list[str]) -> None:
    found = plan(prompt_files=sample, prompts=3600, price_per_hour=2.5, devices=2)
    made, each = found["plan"], found["detected"]["seconds"].mean()
    assert len(found["detected"]) == 2  # each prompt once
    assert len(found["localized"]) == 1  # the time is over, but one is timed
    assert made["share flagged"] == 1.0
    assert made["hours of detection"] == pytest.approx(each / 2)
    longer = found["localized"]["seconds"].mean() - each  # it contains its own detection
    assert made["hours of localization"] == pytest.approx(longer / 2)
    together = made["hours of detection"] + made["hours of localization"]
    assert made["hours together"] == pytest.approx(together)
    assert made["hours together, low"] < made["hours together"]
    assert made["device hours"] == pytest.approx(2 * together)
    assert made["cost"] == pytest.approx(5 * together)
    assert made["disk at most, GB"] == pytest.approx(
        3600 * found["localized"]["bytes"].mean() / 1e9
    )
    assert found["skipped"]["bytes"] > 0
    assert made["memory of a worker, GB"] > 0.01


def test_an_expected_share_takes_the_place_of_the_sample_s(sample: list[str]) -> None:
    made = plan(prompt_files=sample, flagged_share=0.0, minutes=1.0, localizations=1)["plan"]
    assert made["hours of localization"] == 0
    assert made["hours together, low"] <= made["hours together"] <= made["hours together, high"]
    assert made["hours together"] == pytest.approx(made["hours of detection"])


def test_prompts_given_as_memorized_count_only_where_detection_flags_them(
    toy_model: DiffusionModel, tmp_path: Path
) -> None:
    prompts = ["cat 0", "cat 1", "red cup 0", "red cup 1"]
    scores = detect(toy_model, prompts, [1, 2]).sort_values("score")
    ranked, middle = list(scores["prompt"]), scores["score"].iloc[[0, -1]].mean()
    for name, texts in (("low", ranked[:1]), ("both", [ranked[0], ranked[-1]])):
        (tmp_path / f"{name}.txt").write_text("\n".join(texts))
    low, both = ([str(tmp_path / f"{name}.txt")] for name in ("low", "both"))
    found = plan(prompt_files=low, memorized_files=both, threshold=middle)
    assert (found["hits"], len(found["localized"])) == (0, 1)
    none = found["plan"]
    assert none["share flagged"] == 0
    assert none["hours together, high"] > none["hours together"]  # 0 of 1 leaves room for some
    with pytest.raises(ValueError, match="memorized_files: detection flags none of the 2 prompts"):
        plan(prompt_files=low, memorized_files=both, threshold=2.0)
    with pytest.raises(ValueError, match="none of the 1 prompts of the sample is flagged"):
        plan(prompt_files=low, threshold=2.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": 0}, "prompts must be an integer of at least 1, got 0"),
        ({"devices": 0}, "devices must be an integer of at least 1, got 0"),
        ({"flagged_share": 1.5}, "flagged_share must be from 0 to 1, got 1.5"),
        ({"flagged_share": -1}, "flagged_share must be from 0 to 1, got -1"),
    ],
)
def test_bad_numbers_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(**options)


def test_what_is_lacking_is_told_before_anything_is_measured(
    toy_model: DiffusionModel, monkeypatch: pytest.MonkeyPatch, sample: list[str]
) -> None:
    monkeypatch.setattr("nemo_kit.store.detect_all", pytest.fail)
    bare = replace(toy_model.calibration, statistics=None)
    monkeypatch.setattr(toy_model, "calibration", bare)
    with pytest.raises((ValueError, RuntimeError), match=r"statistics: the model .* has none"):
        plan(prompt_files=sample)
    monkeypatch.setattr(toy_model, "calibration", None)
    with pytest.raises(ValueError, match="has no threshold"):
        plan(prompt_files=sample, threshold=None)


@pytest.mark.slow
def test_it_runs_through_papermill_from_another_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("some.txt").write_text("\n".join(lab.prompts("verbatim")["prompt"][:2]))
    files = {"prompt_files": ["some.txt"], "memorized_files": ["some.txt"]}
    given = files | {"prompts": 10_000_000, "localizations": 1}
    papermill.execute_notebook(
        NOTEBOOKS / "plan.ipynb", "out.ipynb", given, kernel_name="python3", progress_bar=False
    )
    text = Path("out.ipynb").read_text(encoding="utf-8")
    assert "10,000,000 prompts on 1 device(s)" in text
    cells = nbformat.reads(text, as_version=4).cells
    assert any("image/png" in o.get("data", {}) for c in cells for o in c.get("outputs", []))
