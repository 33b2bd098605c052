"""The report of a permanent removal: numbers, page, and the command that writes it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from books import run_cells
from test_cli import call

from nemo_kit.figures import report as page
from nemo_kit.metrics.attention import disentanglement
from nemo_kit.mitigation import NeMo, RandomNeurons, WandaPruning, export
from nemo_kit.models import DiffusionModel, StableDiffusion
from nemo_kit.neurons import NeuronSet

PROMPT = "<b>=a & b"
FOUND = NeuronSet({layer: range(8) for layer in range(1, 8)})
OTHERS = ["Öl", "red cup"]


@pytest.fixture
def report(
    toy_model: DiffusionModel, toy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Any:
    """What the notebook leaves behind for an export of the toy; the model before is calibrated."""
    from nemo_kit import models

    real = models.load
    before = str(toy_folder)

    def load(name: str, *rest: Any, **more: Any) -> DiffusionModel:
        return toy_model if name == before else real(name, *rest, **more)

    def made(mitigation: Any, prompts: Any = (), others: Any = OTHERS, **options: Any) -> Any:
        folder = export(toy_model, mitigation, tmp_path / "out", prompts)
        (tmp_path / "control.txt").write_text("\n".join(others), "utf-8")
        given = {"pictures": 2, "steps": 1, "store": str(tmp_path / "store")} | options
        files = [str(tmp_path / "control.txt")]
        return run_cells("removal", after=str(folder), control_files=files, **given)

    monkeypatch.setattr(models, "load", load)
    return made


def test_before_and_after_side_by_side(report: Any, tmp_path: Path) -> None:
    found = report(NeMo({PROMPT: FOUND}), steps=2)
    assert found["removed"] == FOUND
    row = found["own"].iloc[0]
    assert row["prompt"] == PROMPT
    assert NeuronSet.from_json(row["neurons"]) == FOUND
    assert row["score_after"] < row["score_before"]
    assert -1 <= row["gen"] < 0.999
    assert np.isnan(row["orig_before"]), "the toy has no training images"
    assert list(found["rest"]["prompt"]) == OTHERS
    assert "neurons" not in found["rest"]
    layers, quality = found["layers"], found["quality"]
    assert layers["cosine"].between(-1, 1).all()
    assert len(layers) == 16
    assert layers["cosine"].iloc[0] < 1
    assert set(quality["against"]) == {"pictures before"}
    assert quality["deviation"].notna().tolist() == [False, True]  # of the kernel distance
    assert quality["references"].tolist() == [4, 4]
    assert {"memorized", "others"} == set(found["medians"]["group"])
    assert found["drawn"]["before"][PROMPT].shape == (2, 32, 32, 3)
    data = json.loads((tmp_path / "out" / "removal.json").read_text("utf-8"))
    assert data["memorized"][0]["prompt"] == PROMPT
    assert data["memorized"][0]["orig_before"] is None
    assert data["about"]["seeds"] == [101, 102]
    assert data["about"]["unet_after"] == found["record"]["unet_after"]
    assert {"torch", "diffusers", "nemo_kit"} <= set(data["about"]["versions"])


def test_other_weights_have_no_neurons(report: Any) -> None:
    found = report(WandaPruning(), ["a"])
    assert NeuronSet.from_json(found["own"]["neurons"][0]) == NeuronSet()
    assert found["layers"].empty


def test_the_neurons_are_those_that_were_removed(report: Any, toy_model: DiffusionModel) -> None:
    """Of a random control the drawn ones, not those it is a control for; of the prompts alone."""
    sets = {PROMPT: NeuronSet({1: [0]}), "other": NeuronSet({1: [1, 2]})}
    way = RandomNeurons(sets, seed=1)
    drawn = way.chosen(toy_model, PROMPT)
    found = report(way, [PROMPT])
    assert found["removed"] == NeuronSet.from_json(found["own"]["neurons"][0]) == drawn
    wanted = disentanglement(toy_model, OTHERS, drawn)
    assert found["layers"]["cosine"].tolist() == wanted["cosine"].tolist()


@pytest.mark.parametrize(
    ("others", "options", "text"),
    [
        (["a"], {}, r"2 prompts that are not memorized .* got 1"),
        ([PROMPT, "b", "b"], {}, r"2 prompts that are not memorized .* got 1"),
        (OTHERS, {"first_seed": 10}, "but 10 is in both; start the pictures above 10"),
    ],
)
def test_the_report_refuses(report: Any, others: list[str], options: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        report(NeMo({PROMPT: FOUND}), others=others, **options)


def test_a_set_for_all_prompts_needs_the_prompts(report: Any) -> None:
    with pytest.raises(ValueError, match="names no prompts"):
        report(NeMo(FOUND))


def test_a_prompt_whose_pictures_failed_is_left_out(
    report: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = StableDiffusion.embed

    def embed(model: DiffusionModel, prompts: Any) -> Any:
        if "kitten" in prompts:
            raise MemoryError("no room")
        return real(model, prompts)

    monkeypatch.setattr(StableDiffusion, "embed", embed)
    with pytest.warns(UserWarning, match="1 prompts failed"):
        found = report(NeMo({PROMPT: FOUND}), others=[*OTHERS, "kitten"])
    assert list(found["rest"]["prompt"]) == OTHERS
    assert "left out, as their pictures failed:\nkitten" in capsys.readouterr().out


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


# -- the command --


def test_the_command_writes_folder_and_report(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, toy_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "sets.json").write_text(json.dumps({PROMPT: {"1": [0]}}))
    (tmp_path / "control.txt").write_text("Öl\nred cup\n", "utf-8")
    (tmp_path / "prompts.txt").write_text(f"{PROMPT}\n")
    monkeypatch.setattr("nemo_kit.provenance.root", lambda: tmp_path)
    arguments = [
        "export", "--model", str(toy_folder), "--neurons", str(tmp_path / "sets.json"),
        "--neurons", '{"2": [1]}', "--prompts", str(tmp_path / "prompts.txt"),
        "--set", "pictures=2", "--set", "steps=1", "--set", "clip=lab",
        "--control", str(tmp_path / "control.txt"),
        "--out", str(tmp_path / "out"), "--device", "cpu",
    ]  # fmt: skip
    assert call(monkeypatch, *arguments) == 0
    told = capsys.readouterr()
    assert "removal.html" in told.out
    assert "Passed unknown parameter" not in told.err
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"model_index.json", "unet", "nemo", "removal.html", "removal.json"} <= files
    data = json.loads((tmp_path / "out/removal.json").read_text("utf-8"))
    assert data["about"]["mitigation"]["neurons"] == {"1": [0], "2": [1]}
    assert data["memorized"][0]["neurons"] == '{"1": [0], "2": [1]}'
    assert data["memorized"][0]["score_before"] is None, "this folder has no threshold"
    assert call(monkeypatch, *arguments) == 2
    assert "never overwrites" in capsys.readouterr().err

    text = (tmp_path / "out/removal.html").read_text("utf-8")
    seen = Outside()
    seen.feed(text)
    assert seen.images == 1
    assert all(link.startswith("data:image/png;base64,") for link in seen.links)
    assert "&lt;b&gt;=a &amp; b" in text
    assert not re.search(r"https?://", text)
    assert "import" not in text, "the page holds no code"
    assert "Out[" not in text


@pytest.mark.parametrize(("error", "code"), [("ValueError", 2), ("RuntimeError", 1)])
def test_a_report_that_fails_is_told_in_one_line_and_nothing_is_written(
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    toy_folder: Path,
    tmp_path: Path,
    error: str,
    code: int,
) -> None:
    real = nbformat.read(page.notebook("removal"), 4).cells
    cells = [cell for cell in real if "parameters" in cell.metadata.get("tags", ())]
    cells.append(nbformat.v4.new_code_cell(f"raise {error}('it broke')"))
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "removal.ipynb")
    monkeypatch.setattr(page, "PLACES", (tmp_path,))
    monkeypatch.setattr("nemo_kit.provenance.root", lambda: tmp_path)
    for name in ("prompts", "control"):
        (tmp_path / f"{name}.txt").write_text("a\nb\n")
    words = ["export", "--model", toy_folder, "--neurons", '{"2": [1]}', "--prompts",
             tmp_path / "prompts.txt", "--control", tmp_path / "control.txt", "--device", "cpu",
             "--set", "clip=lab", "--out", tmp_path / "out"]  # fmt: skip
    assert call(monkeypatch, *map(str, words)) == code
    assert capsys.readouterr().err.splitlines()[-1] == "nemo-kit: the report failed: it broke"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "Missing option '--neurons'"),
        (["--neurons", "none.json"], "there is no file none.json"),
        (["--neurons", "12"], "neurons must be a file"),
        (["--neurons", "[[1]]"], "the report needs the prompts: give --prompts FILE, or --no-"),
        (["--neurons", "[[1]]", "--model", "x/y"], "the report of x/y needs --control FILE"),
        (["--neurons", "[[1]]", "--prompts", "no.txt"], "file 'no.txt' does not exist"),
        (["--neurons", "[[1]]", "--factor", "nan", "--no-report"], "factor must be a finite"),
        (["--neurons", "[[9999]]", "--no-report"], "index 9999 in layer 1 is out of range"),
    ],
)
def test_bad_input_ends_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path, arguments: list[str], text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "export", "--out", "out", *arguments) == 2
    told = capsys.readouterr().err.strip()
    assert text in told
    assert "\n" not in told
    assert not list(tmp_path.iterdir())


def test_a_clip_that_can_t_be_had_is_told_before_any_work(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("a\n")
    words = ["export", "--out", tmp_path / "out", "--neurons", "[[1]]", "--set", "clip=/no/clip"]
    monkeypatch.setattr("nemo_kit.models.load", None)
    assert call(monkeypatch, *map(str, words), "--prompts", str(tmp_path / "prompts.txt")) == 2
    assert "--set clip=NAME: name must be" in capsys.readouterr().err
