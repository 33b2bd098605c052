"""Every notebook through papermill on a tiny setting, on the embedded model."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from nemo_kit import figures
from nemo_kit.figures import registry, runner

MODEL = Path(figures.__file__).parents[1] / "lab" / "model" / "model_index.json"
TINY = {
    "memorized": 1, "non_memorized": 2, "holdout": 3, "per_rate": 1, "grid": 1, "extremes": 1,
    "largest": 1, "seeds": 3, "images": 2, "steps": 2, "bootstrap": 20,
    "compared": 1, "known": 1, "detector_seeds": 1,
    "ordinary": 2, "repeats": 1, "counts": [1], "noise_candidates": 1, "factors": [0.5],
}  # fmt: skip
LARGE = {"03_localization", "04_dose_response", "05_mitigation", "07_quality", "08_ablation"}
ALL = [
    pytest.param(name, marks=pytest.mark.slow if name in LARGE else ())
    for name in figures.NOTEBOOKS
]


@pytest.mark.skipif(not MODEL.is_file(), reason="the embedded model is not there: make lab")
@pytest.mark.parametrize("name", ALL)
def test_a_notebook_draws_its_figures(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = runner.root() / "notebooks"
    monkeypatch.setattr(runner, "root", lambda: tmp_path)
    fields = registry.NOTEBOOKS[name].parameters.model_fields
    tiny = {key: value for key, value in TINY.items() if key in fields}
    [job] = runner.plan(
        figures.select([name]), "quick", tmp_path / "out", notebooks=folder, device="cpu", **tiny
    )
    outcome = runner.run(job, 900, lambda seconds, cell: None)
    assert outcome.error == ""
    for row in job.figures:
        assert len(pd.read_csv(job.out / f"{row.name}.csv")) > 0, row.name
        if row.picture:
            image = Image.open(job.out / f"{row.name}.png")
            assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1)
            assert len(set(image.convert("L").resize((64, 64)).tobytes())) > 4, "an empty picture"
    manifest = runner.read_manifest(job.out, name)
    assert manifest["model"]["name"] == "lab"
    assert {key: manifest["parameters"][key] for key in tiny} == tiny
