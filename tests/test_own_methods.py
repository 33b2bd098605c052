"""A detector, a mitigation, a localization method and a measure of one's own: in every table."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
import pytest
from books import ROOT, cell, cells, detector_table, house, run, run_cells
from matplotlib import pyplot as plt
from test_cli import call
from test_notebooks import needs_lab

from nemo_kit import NeuronSet
from nemo_kit.detectors import DETECTORS
from nemo_kit.localization.methods import METHODS
from nemo_kit.metrics import MEASURES, listed, summary
from nemo_kit.mitigation import MITIGATIONS, Found, Mitigation, table_rows
from nemo_kit.models import DiffusionModel
from nemo_kit.study import study

OWN = '''"""Methods of my own."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace

from nemo_kit.detectors import detector
from nemo_kit.localization.methods import method
from nemo_kit.metrics import measure
from nemo_kit.mitigation import Mitigation


@measure("redness", "red", "higher")
def redness(seen):
    """How red the pictures are."""
    return seen.images[..., 0].mean(axis=(1, 2))


@detector("letters", "each counts {worth:g}", worth=2.0)
def letters(model, prompt, seeds, worth=1.0):
    """How long a prompt is.

    Source: nobody.
    """
    model.predict(model.noise(seeds), 1, model.embed([prompt] * len(seeds)))
    return worth * len(prompt)


@method("first neurons", "none")
def first_neurons(model, prompt, seeds, budget, turn=-1):
    """The lower the index, the higher.

    Source: nobody.
    """
    import torch

    return {one.index: turn * torch.arange(one.width) for one in model.searched}


@dataclass(frozen=True)
class Halfway(Mitigation):
    """Halfway to the empty prompt."""

    name = "halfway"
    share: float = 0.5
    source = "nobody"

    @contextmanager
    def apply(self, run):
        empty = run.model.embed("")
        yield replace(run, embeddings=empty + self.share * (run.embeddings - empty))
'''
PROMPTS = pd.DataFrame({"prompt": ["long one", "a", "bb"], "group": ["VM", "TM", "non-memorized"]})
SETS = {"a": NeuronSet({1: [0]})}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file; what it registers is forgotten afterwards."""
    file = tmp_path / "my_methods.py"
    file.write_text(OWN)
    registries = (DETECTORS, MITIGATIONS, MEASURES, METHODS)
    kept = [dict(known) for known in registries]
    monkeypatch.syspath_prepend(tmp_path)
    yield file
    sys.modules.pop("my_methods", None)
    for known, before in zip(registries, kept, strict=True):
        known.clear()
        known.update(before)


def test_an_own_detector_is_in_the_notebook_s_table(
    own: Path, toy_model: DiffusionModel, tmp_path: Path
) -> None:
    importlib.import_module("my_methods")
    scores = detector_table(toy_model, PROMPTS, tmp_path / "store")
    mine = scores.query("detector == 'letters'").set_index("prompt")
    assert mine["score"].to_dict() == {"long one": 16, "a": 2, "bb": 4}
    assert mine["samples"].tolist() == [2, 2, 2]
    assert set(mine["protocol"]) == {"2 images, each counts 2"}
    separation = cell("01_detection", "def separation").split("\n\n\n")[0]
    given = house(scores=scores, bootstrap=5)
    table = run([separation, cell("01_detection", "rows.append(row)")], given)["table"]
    assert table["detector"].unique().tolist() == [*DETECTORS]
    assert "letters" in DETECTORS


def test_an_own_mitigation_and_measure_are_in_the_notebook_s_table(
    own: Path, toy_model: DiffusionModel, tmp_path: Path
) -> None:
    importlib.import_module("my_methods")
    frame = pd.DataFrame({"prompt": ["a"], "refined": [SETS["a"]], "initial": [SETS["a"]]})
    names: dict[str, Any] = {"localized": frame, "avoided": frame}
    names |= {"repeats": 1, "noise_candidates": 1, "Found": Found, "table_rows": table_rows}
    settings = run([cell("05_mitigation", "table_rows(")], house(**names))["settings"]
    assert list(settings)[-1] == "halfway", "behind those of the field"
    assert settings["halfway"][0].source == "nobody"
    few = {name: settings[name] for name in ("default", "halfway")}
    how = {"store": tmp_path / "store", "steps": 2, "progress": False}
    got = study(toy_model, PROMPTS[1:2], few, [11], **how)
    assert got["gen"][0] == pytest.approx(1)
    assert got["gen"][1] < 1 - 1e-9, "its pictures are others"
    assert got["redness"].between(0, 255).all()
    assert "redness" in set(summary(got, listed())["measure"])


def test_a_mitigation_without_defaults_is_told(own: Path) -> None:
    @dataclass(frozen=True)
    class Needy(Mitigation):
        name = "needy"
        much: float

    assert MITIGATIONS["needy"] is Needy
    with pytest.raises(TypeError, match=r"'needy' must have defaults .* missing .* 'much'"):
        table_rows(Found(SETS))


@needs_lab
def test_an_own_localization_method_is_in_every_table_of_the_benchmark(
    own: Path, tmp_path: Path
) -> None:
    importlib.import_module("my_methods")
    kept = {"|z|", "random", "first neurons"}
    small: dict[str, Any] = {"known": 2, "natural": 1, "other": 1, "seeds": 2, "budget": 40}
    small |= {"budgets": [20], "most": 2, "images": 1, "steps": 1, "audited": 1, "audit_steps": 1}
    folder = tmp_path / "figures"
    with mpl.rc_context():
        run_cells(
            "12_who_finds_them", out=str(folder), store=str(tmp_path / "store"), device="cpu",
            without=[name for name in METHODS if name not in kept], **small,
        )  # fmt: skip
    plt.close("all")
    for name in ("injection", "grades", "damage", "consistency", "resurfacing", "cost"):
        rows = pd.read_csv(folder / f"{name}.csv")
        assert rows["method"].str.contains("first neurons").any(), name
    assert "first neurons" in set(pd.read_csv(folder / "deletion.csv")["setting"])
    file = pd.read_parquet(folder / "benchmark.parquet")
    mine = file[file["method"] == "first neurons"]
    parts = {"injection", "deletion", "damage", "consistency", "resurfacing", "cost"}
    assert set(mine["part"]) == parts
    assert (mine["loss"] == "none").all()
    assert mine.query("measure == 'samples'")["mean"].tolist() == [0]
    page = (ROOT / "docs" / "benchmark.md").read_text("utf-8").partition("## The results file")[2]
    schema = re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE)
    assert list(file) == schema, "the page tells the file's columns"


def test_own_methods_are_in_the_command_s_list(
    own: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "methods") == 0
    plain = capsys.readouterr().out
    assert all(f"detector: {name}" in plain for name in DETECTORS)
    assert all(f"mitigation: {name}" in plain for name in MITIGATIONS)
    assert all(f"localization: {name}" in plain for name in METHODS)
    assert all(f"measure: {name}" in plain for name in MEASURES)
    assert call(monkeypatch, "methods", str(own)) == 0
    text = capsys.readouterr().out
    assert "detector: letters (worth=2.0)\n    nobody" in text
    assert "mitigation: halfway (share=0.5)\n    nobody" in text
    assert "localization: first neurons (turn=-1)\n    nobody" in text
    assert "measure: redness (higher is better)\n    How red the pictures are." in text
    assert call(monkeypatch, "methods", "none.py") == 2
    assert "FILE.py must be a Python file, got none.py" in capsys.readouterr().err


def test_the_example_of_an_own_detector_works(
    own: Path, toy_model: DiffusionModel, tmp_path: Path
) -> None:
    """The commented cell, without the signs of comment."""
    [source] = [source for source, _ in cells("01_detection") if "# @detector(" in source]
    code = source[source.index("# from nemo_kit") :].replace("# ", "").replace("#\n", "\n")
    file = tmp_path / "cell.py"
    file.write_text(code)
    exec(compile(code, str(file), "exec"), {"__name__": "__main__"})
    [name] = [name for name in DETECTORS if name.startswith("deviation")]
    from nemo_kit.detectors import score

    got = score(name, toy_model, "a b", [1, 2])
    assert (got.samples, got.score > 0) == (4, True)
