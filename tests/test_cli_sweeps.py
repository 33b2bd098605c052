"""The commands on prompt files: resumable, in several processes, in the released form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from test_cli import call
from units import held

from nemo_kit import NeuronSet, localize
from nemo_kit.models import DiffusionModel
from nemo_kit.neuron_files import read_released, write_released

RELEASED = ''';Caption;URL;type
0;"a cat; ""quoted""";https://a;VM
1;=red cup;https://b;TM
2;"a cat; ""quoted""";https://c;VM
'''
PROMPTS = ['a cat; "quoted"', "=red cup"]


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch, toy_model: DiffusionModel) -> None:
    """Whatever model the command names, it gets the toy."""
    monkeypatch.setattr("nemo_kit.models.load", lambda *_, **__: toy_model)


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """Options that every call here has."""
    (tmp_path / "p.csv").write_text(RELEASED)
    return ["--prompts", str(tmp_path / "p.csv"), "--store", str(tmp_path / "store"),
            "--seeds", "2", "--threshold", "0.5"]  # fmt: skip


def test_localize_reads_released_files_resumes_and_writes_released_results(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    toy_model: DiffusionModel,
    words: list[str],
) -> None:
    out = str(tmp_path / "x.csv")
    assert call(monkeypatch, "localize", *words, "--out", out, "--released") == 0
    told = capsys.readouterr().err
    assert f"results are kept in {tmp_path / 'store'}; the same command goes on" in told
    assert len(held(tmp_path / "store")) == 2
    samples = toy_model.samples_evaluated
    assert call(monkeypatch, "localize", *words, "--json") == 0
    assert toy_model.samples_evaluated == samples
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["prompt"] for row in rows] == PROMPTS
    found = {p: localize(toy_model, p, range(1, 3), threshold=0.5).refined for p in PROMPTS}
    assert [NeuronSet.from_json(json.dumps(row["refined"])) for row in rows] == [*found.values()]
    written = read_released(out)
    assert list(written["prompt"]) == [*PROMPTS, PROMPTS[0]]  # a row for each row of the file
    assert list(written["url"]) == ["https://a", "https://b", "https://c"]
    assert list(written["refined"]) == [found[prompt] for prompt in written["prompt"]]


def test_prompts_beside_a_file_are_in_the_released_form_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str]
) -> None:
    out = str(tmp_path / "x.csv")
    assert call(monkeypatch, "localize", "a dog", *words, "--out", out, "--released") == 0
    written = read_released(out)
    assert list(written["prompt"]) == [*PROMPTS, PROMPTS[0], "a dog"]
    assert list(written["url"]) == ["https://a", "https://b", "https://c", ""]


def test_no_threshold_is_computed_while_the_gpus_are_the_workers(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    words: list[str],
) -> None:
    (tmp_path / "held.txt").write_text("x\ny\nz\n")
    more = ["--hold-out", str(tmp_path / "held.txt"), "--scheduler", "tcp://localhost:1"]
    for command in ("detect", "localize"):
        assert call(monkeypatch, command, *words[:-2], *more, "--device", "cuda") == 2
        told = capsys.readouterr().err
        assert "write it once with `nemo-kit calibrate --hold-out FILE`" in told


def test_the_search_mode_is_chosen_and_recorded(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    words: list[str],
) -> None:
    assert call(monkeypatch, "localize", *words, "--search", "bisect", "--json") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["search"] for row in rows} == {"bisect"}
    assert len(held(tmp_path / "store")) == 2


def test_presets_are_chosen_and_recorded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    made = {}
    for name in ("default", "released", "paper"):
        given = ["a cat", *words[4:], "--settings", name, "--json"]
        assert call(monkeypatch, "localize", *given) == 0
        made[name] = json.loads(capsys.readouterr().out.splitlines()[0])["settings"]
        assert made[name]["name"] == name
    assert made["released"]["halves"] == "both"
    assert made["paper"]["similarity"]["kind"] == "ssim"
    assert call(monkeypatch, "detect", *words, "--settings", "paper", "--json") == 0
    [first, _] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert first["settings"]["detection"] == made["paper"]["detection"]
    assert first["settings"]["similarity"] == made["paper"]["similarity"]


def test_presets_need_a_threshold_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    toy_model: DiffusionModel,
    words: list[str],
) -> None:
    own = toy_model.calibration
    arguments = ["detect", *words[:-2], "--settings", "released"]
    assert call(monkeypatch, *arguments) == 2
    assert "give --threshold, or --hold-out with prompts" in capsys.readouterr().err
    (tmp_path / "held.txt").write_text("x\ny\nz\n")
    try:
        arguments += ["--hold-out", str(tmp_path / "held.txt"), "--json"]
        assert call(monkeypatch, *arguments) == 0
        first = json.loads(capsys.readouterr().out.splitlines()[0])
        assert first["threshold"] == pytest.approx(toy_model.calibration.threshold)
        assert toy_model.calibration.seeds == (1, 2)
        toy_model.calibration, toy_model.samples_evaluated = own, 0
        assert call(monkeypatch, *arguments) == 0
        assert toy_model.samples_evaluated == 0  # the threshold is in the store too
    finally:
        toy_model.calibration = own


def test_a_failing_prompt_is_told_and_tried_again_when_asked(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    toy_model: DiffusionModel,
    words: list[str],
) -> None:
    real = type(toy_model).embed

    def embed(model: DiffusionModel, prompts: Any) -> Any:
        if PROMPTS[1] in prompts:
            raise MemoryError("no room")
        return real(model, prompts)

    monkeypatch.setattr(type(toy_model), "embed", embed)
    for _ in range(2):
        assert call(monkeypatch, "detect", *words) == 1
        shown = capsys.readouterr()
        assert "1 of 2 prompts failed (--retry-failed tries them again)" in shown.err
        assert "MemoryError: no room" in shown.err
        assert "quoted" in shown.out
    monkeypatch.setattr(type(toy_model), "embed", real)
    assert call(monkeypatch, "detect", *words) == 1
    assert call(monkeypatch, "detect", *words, "--retry-failed") == 0
    assert call(monkeypatch, "detect", *words) == 0


def test_when_all_prompts_fail_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr("nemo_kit.localization.detect", fail)
    assert call(monkeypatch, "detect", *words) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "nemo-kit: all 2 prompts failed; the first with MemoryError: no room"


@pytest.mark.usefixtures("warm_workers")
def test_two_workers_give_the_same(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    words: list[str],
) -> None:
    assert call(monkeypatch, "localize", *words, "--out", str(tmp_path / "1.parquet")) == 0
    words[3] = str(tmp_path / "store2")
    two = ["--workers", "2", "--out", str(tmp_path / "2.parquet")]
    assert call(monkeypatch, "localize", *words, *two) == 0
    same = ["prompt", "score", "initial", "refined", "samples_evaluated", "settings"]
    one, other = (pd.read_parquet(tmp_path / f"{n}.parquet")[same] for n in (1, 2))
    pd.testing.assert_frame_equal(one, other)


def test_results_go_to_the_released_form_and_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str]
) -> None:
    """The two lines of docs/cluster.md."""
    ours = tmp_path / "o.parquet"
    assert call(monkeypatch, "localize", *words, "--out", str(ours)) == 0
    frame = pd.read_parquet(ours)
    write_released(tmp_path / "t.csv", frame)
    back = read_released(tmp_path / "t.csv")
    sets = {name: [one.to_json() for one in back[name]] for name in ("initial", "refined")}
    shared = ["prompt", "flagged", "initial", "refined", "n_initial", "n_refined",
              "initial_score", "refined_score"]  # fmt: skip
    pd.testing.assert_frame_equal(back.assign(**sets)[shared], frame[shared], check_dtype=False)


def test_hold_out_serves_a_model_without_calibration(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    toy_model: DiffusionModel,
) -> None:
    from conftest import TOY_SIMILARITY

    from nemo_kit.settings import DetectionSettings

    small = DetectionSettings(), TOY_SIMILARITY  # its latents are too small for the default
    monkeypatch.setattr("nemo_kit.presets.resolve", lambda *_: small)
    monkeypatch.setattr(toy_model, "calibration", None)
    (tmp_path / "held.txt").write_text("x\ny\nz\n")
    words = ["detect", "a cat", "--seeds", "2", "--store", str(tmp_path / "store"), "--model", "m"]
    assert call(monkeypatch, *words) == 2
    assert "has no threshold; give --threshold, or --hold-out" in capsys.readouterr().err
    assert call(monkeypatch, *words, "--hold-out", str(tmp_path / "held.txt"), "--json") == 0
    found = json.loads(capsys.readouterr().out)["threshold"]
    assert found == pytest.approx(toy_model.calibration.threshold)
    assert toy_model.calibration.prompts == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["localize", "x", "--search", "magic"], "search must be one of attributed, bisect"),
        (["localize", "x", "--released"], "--released needs --out FILE.csv, got None"),
        (["localize", "x", "--settings", "other"], "'other' is not one of 'default', 'released'"),
        (["localize", "x", "--workers", "0"], "--workers"),
        (["detect", "--prompts", "P.txt", "--workers", "2", "--scheduler", "tcp://x:1"],
         "workers must be 1 beside an executor, got 2"),
        (["detect", "x", "--settings", "paper", "--hold-out", "/no.txt"],
         "file '/no.txt' does not exist"),
        (["detect", "x", "--threshold", "1", "--hold-out", "P.txt"],
         "--hold-out computes the threshold that --threshold gives: one of them, got both"),
        (["detect", "x", "--dtype", "half"], "'half' is not one of 'auto', 'float32', 'float16'"),
        (["detect", "x", "--scheduler", "tcp://x:1", "--device", "cuda"],
         "--scheduler tcp://x:1 needs --prompts FILE"),
        (["detect", "x", "--workers", "2"], "--workers 2 needs --prompts FILE"),
        (["localize", "x", "--workers", "2"], "--workers 2 needs --prompts FILE"),
    ],
)  # fmt: skip
def test_bad_input_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("P.txt").write_text("prompt\n")
    assert call(monkeypatch, *arguments) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("nemo-kit: ")
    assert message in last
