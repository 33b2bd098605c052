"""The report of a permanent removal: numbers, page, and the command that writes it."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemo_kit import cli, removal
from nemo_kit.disentanglement import disentanglement
from nemo_kit.mitigation import NeMo, RandomNeurons, WandaPruning, export
from nemo_kit.models import DiffusionModel, load
from nemo_kit.neurons import NeuronSet
from nemo_kit.removal_page import write_report

PROMPT = "<b>=a & b"
FOUND = NeuronSet({layer: range(8) for layer in range(1, 8)})
OTHERS = ["Öl", "red cup"]


@pytest.fixture(scope="module")
def exported(_toy: DiffusionModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(_toy, NeMo({PROMPT: FOUND}), tmp_path_factory.mktemp("export") / "out")


@pytest.fixture(scope="module")
def measured(_toy: DiffusionModel, exported: Path) -> removal.Removal:
    return removal.measure(
        _toy, load(str(exported), device="cpu"), NeMo({PROMPT: FOUND}), [PROMPT], OTHERS,
        store=exported.parent / "store", seeds=(101, 102), steps=2,
    )  # fmt: skip


def test_before_and_after_side_by_side(measured: removal.Removal) -> None:
    row = measured.memorized.iloc[0]
    assert row["prompt"] == PROMPT
    assert NeuronSet.from_json(row["neurons"]) == FOUND
    assert row["score_after"] < row["score_before"]
    assert -1 <= row["gen"] < 0.999
    assert np.isnan(row["orig_before"]), "the toy has no training images"
    assert list(measured.others["prompt"]) == OTHERS
    assert "neurons" not in measured.others
    assert measured.layers["cosine"].between(-1, 1).all()
    assert len(measured.layers) == 16
    assert measured.layers["cosine"].iloc[0] < 1
    assert set(measured.quality["against"]) == {"pictures before"}
    assert measured.quality["deviation"].notna().tolist() == [False, True]  # of the kernel distance
    assert measured.quality["references"].tolist() == [4, 4]
    assert {"memorized", "others"} == set(measured.medians["group"])
    training, before, after = measured.pictures[PROMPT]
    assert training is None
    assert before.shape == after.shape == (2, 32, 32, 3)


class Outside(HTMLParser):
    """Collects what a page would fetch, and its open tags."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.images = 0

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        found = dict(attrs)
        assert tag not in ("script", "iframe", "link", "b")
        self.links += [found[k] for k in ("src", "href") if k in found]
        if tag == "img":
            self.images += 1
            assert found["alt"]


def test_the_page_needs_nothing_else_and_escapes(
    measured: removal.Removal, exported: Path, tmp_path: Path
) -> None:
    record = json.loads((exported / "nemo/export.json").read_text("utf-8"))
    page = write_report(measured, record, tmp_path)
    text = page.read_text("utf-8")
    seen = Outside()
    seen.feed(text)
    assert seen.images == 4
    assert all(link.startswith("data:image/png;base64,") for link in seen.links)
    assert "&lt;b&gt;=a &amp; b" in text
    assert not re.search(r"https?://", text)
    data = json.loads((tmp_path / "removal.json").read_text("utf-8"))
    assert data["memorized"][0]["prompt"] == PROMPT
    assert data["memorized"][0]["orig_before"] is None
    assert data["about"]["seeds"] == [101, 102]
    assert data["about"]["unet_after"] == record["unet_after"]
    assert {"torch", "diffusers", "nemo_kit"} <= set(data["about"]["versions"])


def test_other_weights_have_no_neurons(toy_model: DiffusionModel) -> None:
    assert removal._neurons(WandaPruning(), toy_model, "a") == ""
    assert removal._layers(toy_model, WandaPruning(), ["a"], OTHERS).empty


def test_the_neurons_are_those_that_were_removed(toy_model: DiffusionModel) -> None:
    """Of a random control the drawn ones, not those it is a control for; of the prompts alone."""
    sets = {PROMPT: NeuronSet({1: [0]}), "other": NeuronSet({1: [1, 2]})}
    way = RandomNeurons(sets, seed=1)
    drawn = way.chosen(toy_model, PROMPT)
    assert NeuronSet.from_json(removal._neurons(way, toy_model, PROMPT)) == drawn
    found = removal._layers(toy_model, way, [PROMPT], OTHERS)
    wanted = disentanglement(toy_model, OTHERS, drawn)
    assert found["cosine"].tolist() == wanted["cosine"].tolist()


def test_a_prompt_of_both_groups_is_no_collateral(
    toy_model: DiffusionModel, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"store": tmp_path, "seeds": (101,), "steps": 1}
    with pytest.raises(ValueError, match=r"2 prompts that are not memorized .* got 1"):
        removal.measure(toy_model, toy_model, NeMo(FOUND), ["a"], ["a", "b", "b"], **options)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"others": ["a"]}, "others must hold at least 2 prompts that are not memorized .* got 1"),
        ({"seeds": (10, 101)}, "but 10 is in both; start the pictures above 10"),
        ({"memorized": []}, "prompts must hold at least one prompt"),
    ],
)
def test_measure_refuses(
    toy_model: DiffusionModel, tmp_path: Path, change: dict, text: str
) -> None:
    options: dict[str, Any] = {"memorized": [PROMPT], "others": OTHERS, "seeds": (101,)} | change
    with pytest.raises(ValueError, match=text):
        removal.measure(toy_model, toy_model, NeMo(FOUND), store=tmp_path, **options)


# -- the command --


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["nemo-kit", "export", *arguments])
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_the_command_writes_folder_and_report(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, toy_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "sets.json").write_text(json.dumps({"a b": {"1": [0]}}))
    (tmp_path / "control.txt").write_text("Öl\nred cup\n", "utf-8")
    monkeypatch.setattr("nemo_kit.figures.runner.root", lambda: tmp_path)
    arguments = [
        "--model", str(toy_folder), "--neurons", str(tmp_path / "sets.json"), "--neurons",
        '{"2": [1]}', "--prompts", str(tmp_path / "prompts.txt"), "--pictures", "2", "--steps", "1",
        "--control", str(tmp_path / "control.txt"), "--clip", "lab",
        "--out", str(tmp_path / "out"), "--device", "cpu",
    ]  # fmt: skip
    (tmp_path / "prompts.txt").write_text("a b\n")
    assert call(monkeypatch, *arguments) == 0
    assert "removal.html" in capsys.readouterr().out
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"model_index.json", "unet", "nemo", "removal.html", "removal.json"} <= files
    data = json.loads((tmp_path / "out/removal.json").read_text("utf-8"))
    assert data["about"]["mitigation"]["neurons"] == {"1": [0], "2": [1]}
    assert data["memorized"][0]["score_before"] is None, "this folder has no threshold"
    assert call(monkeypatch, *arguments) == 2
    assert "never overwrites" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "either --neurons FILE or TEXT, or --wanda with --prompts"),
        (["--neurons", "[[1]]", "--wanda"], "either --neurons FILE or TEXT, or --wanda"),
        (["--wanda"], "--wanda needs --prompts FILE"),
        (["--neurons", "none.json"], "there is no file none.json"),
        (["--neurons", "12"], "neurons must be a file"),
        (["--neurons", "[[1]]"], "the report needs the prompts: give --prompts FILE, or --no-"),
        (["--neurons", "[[1]]", "--model", "x/y"], "the report of x/y needs --control FILE"),
        (["--neurons", "[[1]]", "--prompts", "no.txt"], "there is no file no.txt"),
        (["--neurons", "[[1]]", "--factor", "nan", "--no-report"], "factor must be a finite"),
        (["--neurons", "[[9999]]", "--no-report"], "index 9999 in layer 1 is out of range"),
    ],
)
def test_bad_input_ends_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path, arguments: list[str], text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "--out", "out", *arguments) == 2
    told = capsys.readouterr().err.strip()
    assert text in told
    assert "\n" not in told
    assert not list(tmp_path.iterdir())
