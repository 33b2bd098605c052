"""The command: help a newcomer understands, one line for bad input, results as printed."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import warnings
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from nemo_kit import NeuronSet, __version__, cli
from nemo_kit.cli.options import grouped
from nemo_kit.models import DiffusionModel

COMMANDS = ("figures", "detect", "localize", "calibrate", "export", "methods")
SD = "CompVis/stable-diffusion-v1-4"
LAB = Path(cli.__file__).parents[1] / "lab" / "model" / "model_index.json"


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str, main: Any = cli.main) -> int:
    """Exit code of the command in this process."""
    monkeypatch.setattr(sys, "argv", ["nemo-kit", *arguments])
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, toy_model: DiffusionModel) -> DiffusionModel:
    """Whatever model the command names, it gets the toy."""
    monkeypatch.setattr("nemo_kit.models.load", lambda *_, **__: toy_model)
    return toy_model


def test_help_names_every_command_and_is_quick(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "--help") == 0
    text = capsys.readouterr().out
    assert all(command in text for command in COMMANDS)
    assert call(monkeypatch) == 0
    assert capsys.readouterr().out == text
    code = "import sys, nemo_kit.cli; print(any(m in sys.modules for m in ('torch', 'pandas')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_every_command_is_explained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert call(monkeypatch, command, "--help") == 0
    lines = capsys.readouterr().out.splitlines()
    options = [number for number, line in enumerate(lines) if line.strip().startswith("--")]
    assert options
    for number in options:
        name, *rest = lines[number].split()
        told = " ".join(rest) + (lines[number + 1] if number + 1 < len(lines) else "")
        assert len(told.split()) > 3, name


def test_the_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"nemo-kit {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["walk"], "No such command 'walk'"),
        (["figures", "--only", "F14"], "got 'F14'; did you mean F14a, F14b, F14c, F14d?"),
        (["figures", "--only", "dose"], "got 'dose'; did you mean dose_response, 04_dose_resp"),
        (["figures", "--only", "quikstart"], "did you mean quickstart, 00_quickstart?"),
        (["figures", "--only", "zzz"], "(--list shows them), got 'zzz'"),
        (["figures", "--only", ""], "(--list shows them), got ''"),
        (["figures", "--only", "F2a", "--out", "FULL/x"], "--out: nothing can be written to FULL"),
        (["figures", "--model", "FOLDER", "--prompts", "P"], "'FOLDER' has no model_index.json"),
        (["figures", "--model", "a/b/c", "--prompts", "P"], "got 'a/b/c'"),
        (["figures", "--preset", "full"], "preset must be one of quick, lab, paper; got 'full'"),
        (["figures", "--set", "steps"], "--set must be NAME=VALUE, got 'steps'"),
        (["figures", "--set", "stepz=3"], "got 'stepz'; did you mean steps"),
        (["figures", "--set", "steps=many"], "steps of 00_quickstart must be int, got 'many'"),
        (
            ["figures", "--set", "device=cpu"],
            "NAME of --set must be one of audit_batch, audit_steps",
        ),
        (["figures", "--also", "gif"], "--also must be one of pdf, svg; got 'gif'"),
        (
            ["figures", "--training-images", "/nowhere"],
            "'--training-images': dir '/nowhere' does not exist",
        ),
        (["figures", "--device", "tpu"], "'tpu' is not one of 'auto', 'cpu', 'cuda'"),
        (["figures", "--limit", "0"], "0"),
        (["figures", "--model", "owner/model"], "needs --prompts FILE"),
        (
            ["figures", "--prompts", "/nowhere.csv", "--model", "a/b"],
            "'--prompts': file '/nowhere.csv' does not exist",
        ),
        (["figures", "--wrong"], "No such option"),
        (["figures", "--lora", "none.pt"], "lora must be a .safetensors file, or"),
        (["calibrate", "--hold-out", "P"], "--model must be a folder or a hub id, got lab"),
        (["calibrate", "--lora", "x"], "No such option"),
        (
            ["calibrate", "--model", "a/b"],
            "needs --statistics FILE or --hold-out FILE, got neither",
        ),
        (
            ["calibrate", "--model", "lab", "--hold-out", "P"],
            "--model must be a folder or a hub id",
        ),
        (
            ["calibrate", "--model", "a/b", "--hold-out", "/no.txt"],
            "'--hold-out': file '/no.txt' does not exist",
        ),
        (
            ["calibrate", "--model", "a/b", "--statistics", "/no.pt"],
            "'--statistics': file '/no.pt' does not exist",
        ),
        (["localize"], "localize needs a PROMPT, or --prompts FILE"),
        (["localize", ""], "a PROMPT must not be empty"),
        (
            ["localize", "x", "--seeds", "1"],
            "'--seeds': Input should be greater than or equal to 2",
        ),
        (["localize", "x", "--seeds", "many"], "(nemo-kit localize --help shows what there is)"),
        (["localize", "x", "--seeds", "-3"], "greater than or equal to 2"),
        (["localize", "x", "--seeds", "99999999999"], "less than or equal to 10000"),
        (["localize", "x", "--model", "no such model"], "'no such model'"),
        (["localize", "x", "--model", "FOLDER"], "'FOLDER' has no model_index.json"),
        (["localize", "x", "  "], "a PROMPT must not be empty"),
        (["localize", "x", "--statistics", "/nowhere.pt"], "file '/nowhere.pt' does not exist"),
        (["localize", "x", "--out", "x.txt"], "--out must end in .csv or .parquet, got x.txt"),
        (["detect", "x", "--out", "/nowhere/x.csv"], "there is no folder /nowhere"),
        (["detect", "--model", "a/b"], "a PROMPT is needed, or --prompts FILE"),
        (["detect", "x", "--out", "FOLDER.csv"], "'--out': file 'FOLDER.csv' is a directory"),
        (["detect", "x", "--out", "FULL/x.csv"], "--out: there is no folder"),
        (
            ["detect", "--prompts", "/nowhere.csv"],
            "'--prompts': file '/nowhere.csv' does not exist",
        ),
        (["detect", "--prompts", "FOLDER"], "'--prompts': file 'FOLDER' is a directory"),
        (["detect", "--prompts", "EMPTY.txt"], "EMPTY.txt holds no prompt"),
        (["export", "--out", "x"], "Missing option '--neurons'"),
        (
            ["export", "--out", "FULL/x/y", "--neurons", '{"1": [1]}', "--no-report"],
            "--out: nothing can be written to",
        ),
        (["detect", "x", "--device", "cuda:x"], "is not one of 'auto', 'cpu', 'cuda'"),
    ],
)
def test_bad_input_ends_with_code_2_and_one_clear_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("FOLDER", "FOLDER.csv"):
        Path(folder).mkdir()
    Path("P").write_text("prompt\na cat\n")
    for name in ("EMPTY.txt", "FULL"):  # a file where a folder must be: root too fails
        Path(name).touch()
    assert call(monkeypatch, *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("nemo-kit: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_overview_and_usage_fit_and_have_the_name_of_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert call(monkeypatch, "--help") == 0
    text = capsys.readouterr().out
    assert text.startswith("Usage: nemo-kit ")
    assert "..." not in text.split("Commands:")[1]  # no summary is cut
    assert "130 interrupted" in " ".join(text.split())


def test_an_interrupt_is_told_wherever_it_comes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nemo_kit.models.load", interrupted)
    assert call(monkeypatch, "detect", "a dog") == 130
    assert capsys.readouterr().err == "nemo-kit: interrupted\n"


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize("where", ["file", "words"])
def test_an_interrupt_says_what_is_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, where: str
) -> None:
    from nemo_kit import localization

    real, seen = localization.detect, []

    def interrupted(model: Any, prompts: Any, *rest: Any, **options: Any) -> Any:
        seen.append(prompts)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return real(model, prompts, *rest, **options)

    monkeypatch.setattr(localization, "detect", interrupted)
    (tmp_path / "p.txt").write_text("a dog\na cat\na cow\n")
    store = str(tmp_path / "store")
    given = {"file": ["--prompts", str(tmp_path / "p.txt")], "words": ["a dog", "a cat", "a cow"]}
    words = ["detect", *given[where], "--seeds", "2", "--store", store]
    assert call(monkeypatch, *words) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    kept = {"file": f"every prompt finished so far is kept in {store}", "words": "nothing is kept"}
    assert last.startswith("nemo-kit: interrupted; ")
    assert kept[where] in last
    assert len(list(Path(tmp_path).rglob("*.parquet"))) == (where == "file")
    assert call(monkeypatch, *words) == 0
    assert len(seen) == (4 if where == "file" else 5)  # the finished one is not done again


@pytest.mark.usefixtures("toy")
def test_a_store_that_cannot_be_written_is_told_before_any_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "p.txt").write_text("a dog\n")
    (tmp_path / "full").touch()
    words = ["--prompts", str(tmp_path / "p.txt"), "--store", str(tmp_path / "full" / "store")]
    assert call(monkeypatch, "detect", *words) == 2
    assert "--store: nothing can be written to" in capsys.readouterr().err.splitlines()[-1]


def test_a_real_process_ends_the_same_way() -> None:
    command = [sys.executable, "-m", "nemo_kit.cli", "figures", "--only", "F99"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_a_bug_is_no_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "app", lambda **_: {}["bug"])
    with pytest.raises(KeyError):
        cli.main()


def test_list_says_what_there_is_and_draws_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from tiny import COMMON, notebook

    cell = 'figures.save(f, d, "F2b", out, shows="density of z")'
    notebook(tmp_path / "notebooks", cell, parameters=COMMON, seconds={"quick": 20})
    monkeypatch.setattr("nemo_kit.figures.runner.root", lambda: tmp_path)
    arguments = ["--only", "F2b", "--out", str(tmp_path / "out")]
    for option in ("--list", "--dry-run"):
        assert call(monkeypatch, "figures", option, *arguments) == 0
        head, row, total = capsys.readouterr().out.splitlines()
        assert head.split() == ["--only", "in", "the", "paper", "notebook", "state", "shows"]
        assert row.split()[:6] == ["F2b", "Figure", "2b", "00_tiny", "missing,", "about"]
        assert row.endswith("missing, about 20 s on two cores  density of z")
        assert total == "1 of 1 notebooks to run, about 20 s"
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("in_process")
def test_figures_draws_what_is_stale_and_shows_the_list(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from tiny import COMMON, DRAW, TABLE, end, notebook

    from nemo_kit.figures import runner

    monkeypatch.setattr(runner, "root", lambda: tmp_path)
    cells = (TABLE, DRAW.replace("tiny", "other"), end("00_tiny"))
    notebook(tmp_path / "notebooks", *cells, parameters=COMMON + "images = 4")
    assert call(monkeypatch, "figures", "--only", "tiny") == 0
    shown = capfd.readouterr()
    assert "00_tiny drew tiny other in" in shown.err
    assert shown.out.splitlines()[0] == "00_tiny also writes other"
    assert " drawn " in shown.out.splitlines()[-2]
    assert shown.out.splitlines()[-1].endswith("figures/lab-quick/index.html")
    assert call(monkeypatch, "figures") == 0
    assert " up to date " in capfd.readouterr().out.splitlines()[-2]
    (tmp_path / "p.csv").write_text("prompt,type\na,VM\nb,TM\n")
    with pytest.warns(UserWarning, match="^0 of 2 prompts have a training image; similarities to"):
        assert call(monkeypatch, "figures", "--prompts", str(tmp_path / "p.csv")) == 0


def test_figures_says_what_failed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from tiny import COMMON, TABLE, notebook

    from nemo_kit.figures import runner

    monkeypatch.setattr(runner, "root", lambda: tmp_path)
    monkeypatch.setattr(runner, "_execute", lambda *_: "ValueError: it broke in cell 5:\n")
    notebook(tmp_path / "notebooks", TABLE, parameters=COMMON + "images = 4")
    (out := tmp_path / "figures" / "lab-quick").mkdir(parents=True)
    (out / "tiny.csv").write_text("earlier")
    assert call(monkeypatch, "figures", "--only", "tiny") == 1
    shown = capfd.readouterr()
    assert "failed after" in shown.err
    assert "ValueError: it broke in cell 5" in shown.err
    assert " failed, see above " in shown.out.splitlines()[-2]
    assert (out / "tiny.csv").read_text() == "earlier"


@pytest.mark.usefixtures("toy")
def test_detect_prints_a_table_json_and_writes_files(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "p.txt").write_text("a dog\na cat\n")
    words = ["a cat", "--prompts", str(tmp_path / "p.txt"), "--seeds", "3"]
    assert call(monkeypatch, "detect", *words, "--out", str(tmp_path / "t.csv")) == 0
    table = capsys.readouterr().out
    assert table.split()[:3] == ["flagged", "score", "prompt"]
    assert list(pd.read_csv(tmp_path / "t.csv")["prompt"]) == ["a cat", "a dog"]
    assert call(monkeypatch, "detect", *words, "--json", "--threshold", "0") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["prompt"] for row in rows] == ["a cat", "a dog"]
    assert all(row["flagged"] and row["kept_seeds"] for row in rows)


@pytest.mark.usefixtures("toy")
def test_detect_says_what_share_is_expected_to_be_flagged_by_chance(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], toy_model: DiffusionModel
) -> None:
    own = replace(toy_model.calibration, mean=0.5, std=0.1, threshold=0.6)
    for which, words in (("maxima", "above 0.600; of prompts that are not memorized 16%"),
                         ("pairs", "")):  # fmt: skip
        kind = replace(own.detection, threshold_from=which)
        monkeypatch.setattr(toy_model, "calibration", replace(own, detection=kind))
        assert call(monkeypatch, "detect", "a cat", "--seeds", "3") == 0
        told = capsys.readouterr().err
        assert words in told
        assert ("memorized" in told) == bool(words)


@pytest.mark.usefixtures("toy")
def test_localize_prints_neurons_as_text_and_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["a cat", "--seeds", "3", "--threshold", "0.5"]  # few candidates suffice
    assert call(monkeypatch, "localize", *words, "--out", str(tmp_path / "t.parquet")) == 0
    assert "n_refined" in capsys.readouterr().out
    assert call(monkeypatch, "localize", *words, "--json") == 0
    [row] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert NeuronSet({int(k): v for k, v in row["refined"].items()}) == NeuronSet.from_json(
        pd.read_parquet(tmp_path / "t.parquet")["refined"][0]
    )
    assert isinstance(row["settings"], dict)
    assert call(monkeypatch, "localize", *words, "--seeds", "2", "--json") == 0


@pytest.mark.usefixtures("toy")
def test_statistics_come_from_either_kind_of_file(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    toy_model: DiffusionModel,
) -> None:
    import torch

    known: Any = toy_model.calibration.statistics
    known.save(tmp_path / "s.safetensors")
    torch.save((list(known.means), list(known.stds)), tmp_path / "s.pt")
    words = ["localize", "a cat", "--seeds", "3", "--threshold", "0.5", "--json", "--statistics"]
    refined = []
    for name in ("s.safetensors", "s.pt"):
        assert call(monkeypatch, *words, str(tmp_path / name)) == 0
        refined.append(json.loads(capsys.readouterr().out)["refined"])
    assert refined[0] == refined[1]
    (tmp_path / "bad.pt").write_bytes(b"no tensors")
    assert call(monkeypatch, *words, str(tmp_path / "bad.pt")) == 2
    assert "bad.pt holds no activation statistics" in capsys.readouterr().err


def test_prompts_that_failed_are_told_at_the_end_with_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from tiny import COMMON, notebook

    from nemo_kit.figures import runner

    retried = []

    def draw(jobs: Any, *_: Any) -> dict[str, Any]:
        retried.append([job.told["retry_failed"] for job in jobs])
        return {}

    monkeypatch.setattr(runner, "root", lambda: tmp_path)
    monkeypatch.setattr(runner, "draw", draw)
    out = tmp_path / "figures" / "lab-quick"
    out.mkdir(parents=True)
    (out / "00_tiny.manifest.json").write_text('{"files": {}, "failed": ["a", "b"]}')
    notebook(tmp_path / "notebooks", parameters=COMMON)
    assert call(monkeypatch, "figures") == 1
    told = "2 prompts failed; nemo-kit figures --retry-failed tries again"
    assert capsys.readouterr().out.splitlines()[-1] == told
    assert call(monkeypatch, "figures", "--retry-failed") == 1
    assert retried == [[False], [True]]


@pytest.fixture
def cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, toy_folder: Path) -> Path:
    """The toy pipeline in the hub's cache under the name of Stable Diffusion 1.4; its snapshot."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    place = tmp_path / "hub" / f"models--{SD.replace('/', '--')}"
    commit = "133a221b8aa7292a167afc5127cb63fb5005638b"
    shutil.copytree(toy_folder, place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    return place / "snapshots" / commit


def test_released_statistics_are_joined_to_the_published_threshold(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    cached: Path,
    toy_model: DiffusionModel,
) -> None:
    import torch

    from nemo_kit import load

    known: Any = toy_model.calibration.statistics
    torch.save((list(known.means), list(known.stds)), tmp_path / "s.pt")
    torch.save(([torch.ones(3)], [torch.ones(3)]), tmp_path / "other.pt")
    words = ["calibrate", "--model", SD, "--device", "cpu", "--statistics"]
    assert call(monkeypatch, *words, str(tmp_path / "other.pt")) == 2
    assert "statistics must have the widths of the model's" in capsys.readouterr().err
    assert not (cached / "nemo").exists()
    assert call(monkeypatch, *words, str(tmp_path / "s.pt")) == 0
    said = f"threshold 0.428 and activation statistics written to {cached / 'nemo'}\n"
    assert capsys.readouterr().out == said
    found: Any = load(SD, device="cpu").calibration
    assert found.threshold == 0.428
    assert torch.equal(found.statistics.means[0], known.means[0])
    names = {path.name for path in (cached / "nemo").iterdir()}
    assert names == {"calibration.json", "statistics.safetensors"}
    assert call(monkeypatch, *words, str(tmp_path / "s.pt")) == 2
    assert "calibration.json; --force overwrites it" in capsys.readouterr().err
    assert call(monkeypatch, *words, str(tmp_path / "s.pt"), "--force") == 0


def test_hold_out_prompts_give_a_folder_threshold_and_statistics(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    toy_folder: Path,
    toy_model: DiffusionModel,
) -> None:
    from nemo_kit import load

    known: Any = toy_model.calibration
    known.statistics.save(tmp_path / "s.safetensors")
    (tmp_path / "p.txt").write_text("a dog\na cat\na cow\n")
    model = str(shutil.copytree(toy_folder, tmp_path / "model"))
    words = ["calibrate", "--model", model, "--device", "cpu", "--seeds", "3"]
    statistics = ["--statistics", str(tmp_path / "s.safetensors")]
    assert call(monkeypatch, *words, *statistics) == 2
    assert "has no threshold to join them to; --hold-out FILE" in capsys.readouterr().err
    replace(known, statistics=None).save(Path(model) / "nemo")  # the kernel for its small latents
    hold_out = ["--hold-out", str(tmp_path / "p.txt")]
    assert call(monkeypatch, *words, *hold_out) == 2
    assert "--force overwrites it" in capsys.readouterr().err
    assert call(monkeypatch, *words, *hold_out, "--force") == 0
    found: Any = load(model, device="cpu").calibration
    assert (found.prompts, found.seeds) == (3, (1, 2, 3))
    assert found.threshold != known.threshold
    assert not found.statistics.means[0].equal(known.statistics.means[0])
    assert call(monkeypatch, *words, *hold_out, *statistics, "--force") == 0
    both: Any = load(model, device="cpu").calibration
    assert both.threshold == found.threshold
    assert both.statistics.means[0].equal(known.statistics.means[0])


def test_smaller_latents_are_calibrated_with_a_smaller_kernel(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    toy_folder: Path,
) -> None:
    from nemo_kit.calibration import Calibration

    (tmp_path / "p.txt").write_text("a dog\na cat\na cow\n")
    model = shutil.copytree(toy_folder, tmp_path / "model")
    words = ["calibrate", "--model", str(model), "--device", "cpu", "--seeds", "3"]
    words += ["--hold-out", str(tmp_path / "p.txt")]
    assert call(monkeypatch, *words) == 2
    assert "kernel 11 with 3 scales needs larger latents than 16×16" in capsys.readouterr().err
    assert not (model / "nemo" / "calibration.json").exists()
    assert call(monkeypatch, *words, "--kernel", "5") == 0
    assert "calibrate: 100%" in capsys.readouterr().err
    found = Calibration.load(model / "nemo")
    assert found.similarity.kernel == 5
    own = replace(found.similarity, kind="ssim", kernel=7)
    replace(found, similarity=own).save(model / "nemo")
    assert call(monkeypatch, *words, "--force", "--kernel", "3") == 0
    assert Calibration.load(model / "nemo").similarity == replace(own, kernel=3)
    assert call(monkeypatch, *words, "--force", "--kernel", "4") == 2
    assert "kernel must be an odd integer from 3, got 4" in capsys.readouterr().err
    assert call(monkeypatch, *words[:-2], "--statistics", words[-1], "--kernel", "5") == 2
    assert "--kernel goes with --hold-out FILE" in capsys.readouterr().err


def test_figures_of_a_model_without_statistics_are_refused_before_anything_is_done(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    cached: Path,
    toy_folder: Path,
) -> None:
    from tiny import COMMON, DRAW, notebook

    from nemo_kit.figures import runner
    from nemo_kit.models import hub

    monkeypatch.setattr(runner, "root", lambda: tmp_path)
    notebook(tmp_path / "notebooks", parameters=COMMON)
    cells = (DRAW.replace("tiny", "pictures"),)
    notebook(tmp_path / "notebooks", *cells, name="x", parameters=COMMON, statistics=False)
    monkeypatch.setattr(hub, "fetch", lambda *_: pytest.fail("something was downloaded"))
    (tmp_path / "p.txt").write_text("a dog\n")
    assert cached.is_dir()
    for model in (SD, str(toy_folder)):
        words = ["figures", "--model", model, "--prompts", str(tmp_path / "p.txt")]
        assert call(monkeypatch, *words) == 2
        captured = capsys.readouterr()
        assert captured.err == (
            f"nemo-kit: --model must have activation statistics, {model} has none: nemo-kit "
            f"calibrate --model {model} with --statistics FILE or --hold-out FILE writes them "
            "once\n"
        )
        assert captured.out == ""
    assert not (tmp_path / "figures").exists()


@pytest.mark.usefixtures("in_process")
def test_figures_of_a_hub_model_are_up_to_date_after_the_run_that_fetched_it(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    cached: Path,
) -> None:
    from tiny import COMMON, TABLE, end, notebook

    from nemo_kit.figures import runner
    from nemo_kit.models import hub

    monkeypatch.setattr(runner, "root", lambda: tmp_path)
    reference = cached.parents[1] / "refs" / "main"
    reference.unlink()  # not on this machine yet

    def fetch(name: str, revision: str | None) -> tuple[Path, str]:
        reference.write_text(cached.name)
        return cached, cached.name

    monkeypatch.setattr(hub, "fetch", fetch)
    monkeypatch.setattr(hub, "lacking", lambda *_: [])
    (cached / "nemo").mkdir()
    for name in ("calibration.json", "statistics.safetensors"):
        (cached / "nemo" / name).touch()
    (tmp_path / "p.txt").write_text("a dog\n")
    cells = ("images = 1\n" + TABLE, end("00_tiny"))
    notebook(tmp_path / "notebooks", *cells, parameters=COMMON)
    words = ["figures", "--model", SD, "--prompts", str(tmp_path / "p.txt")]
    assert call(monkeypatch, *words, "--dry-run") == 0
    assert not reference.exists()
    assert call(monkeypatch, *words) == 0
    manifest = tmp_path / "figures" / "stable-diffusion-v1-4-quick" / "00_tiny.manifest.json"
    assert json.loads(manifest.read_text())["parameters"]["revision"] == cached.name
    capfd.readouterr()
    assert call(monkeypatch, *words, "--dry-run") == 0
    assert "0 of 1 notebooks to run" in capfd.readouterr().out
    assert call(monkeypatch, *words) == 0
    assert " up to date " in capfd.readouterr().out


@pytest.mark.skipif(not LAB.is_file(), reason="the embedded model is not there: make lab")
def test_localize_on_the_embedded_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from nemo_kit import lab

    prompt = lab.prompts("non_memorized")["prompt"][0]
    assert call(monkeypatch, "localize", prompt, "--json") == 0
    assert json.loads(capsys.readouterr().out)["prompt"] == prompt


@pytest.mark.parametrize(("error", "code"), [(RuntimeError, 1), (NotImplementedError, None)])
def test_the_end_of_a_run_is_one_line_and_a_bug_is_not(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: type[Exception],
    code: int | None,
) -> None:
    def end(**_: Any) -> None:
        raise error("all 2 prompts\nfailed")

    monkeypatch.setattr(cli, "app", end)
    if code is None:
        with pytest.raises(error):
            cli.main()
        return
    assert call(monkeypatch, "detect") == code
    assert capsys.readouterr().err == "nemo-kit: all 2 prompts failed\n"
    monkeypatch.setenv("NEMO_KIT_TRACEBACK", "1")
    with pytest.raises(error):
        cli.main()


def test_figures_of_two_models_are_never_mixed_in_one_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """a/model and b/model share figures/model-quick; a model that was moved is the same one."""
    from tiny import COMMON, notebook

    from nemo_kit.figures import runner

    monkeypatch.setattr(runner, "root", lambda: tmp_path)
    (tmp_path / "p.txt").write_text("a cat\n")
    for name in ("a", "b", "moved"):
        (tmp_path / name / "model").mkdir(parents=True)
        index = '{"note": "another"}' if name == "b" else "{}"
        (tmp_path / name / "model" / "model_index.json").write_text(index)
    cell = 'figures.save(None, frame, "tiny", out, shows="a number")\n'
    notebook(tmp_path / "notebooks", cell, name="x", parameters=COMMON, statistics=False)
    shared = tmp_path / "figures" / "model-quick"
    shared.mkdir(parents=True)
    before = str(tmp_path / "a" / "model")
    drawn = {"parameters": {"model": before}, "key": {"model": runner.hub.digest(before)}}
    (shared / "x.manifest.json").write_text(json.dumps(drawn))

    def figures(name: str, *more: str) -> int:
        words = ["--prompts", str(tmp_path / "p.txt"), "--dry-run"]
        return call(
            monkeypatch, "figures", "--model", str(tmp_path / name / "model"), *words, *more
        )

    assert (figures("a"), figures("moved")) == (0, 0)
    capsys.readouterr()
    assert figures("b") == 2
    told = capsys.readouterr().err
    assert "holds figures of the model" in told
    assert "--out" in told
    assert told.count("\n") == 1
    assert figures("b", "--out", str(tmp_path / "other")) == 0


@pytest.mark.usefixtures("toy")
def test_duplicates_are_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.jsonl").write_text('{"caption": "a cat"}\n{"caption": "007"}\n{"caption": "a cat"}\n')
    monkeypatch.setattr(warnings, "formatwarning", None)  # the command sets it
    with pytest.warns(UserWarning, match="1 of 3 rows repeat a prompt, 2 are kept") as told:
        assert call(monkeypatch, "detect", "--prompts", "p.jsonl", "--seeds", "2", "--json") == 0
    shown = [json.loads(line)["prompt"] for line in capsys.readouterr().out.splitlines()]
    assert shown == ["a cat", "007"]
    line = warnings.formatwarning(told[0].message, UserWarning, "file.py", 1)
    assert line == "nemo-kit: 1 of 3 rows repeat a prompt, 2 are kept\n"


def test_the_hash_of_an_own_sscd_file_can_be_given(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The error names the option, and the option is what the embedder gets."""
    monkeypatch.chdir(tmp_path)
    Path("s.pt").write_bytes(b"not a script")
    digest = hashlib.sha256(b"not a script").hexdigest()
    words = ["export", "--neurons", '{"1": [0]}', "--prompts", "p.txt", "--out", "o"]
    Path("p.txt").write_text("a cat\n")
    monkeypatch.setattr("nemo_kit.models.load", lambda *_, **__: None)
    file, given = ["--set", "sscd=s.pt"], ["--set", f"sscd_sha256={digest}"]
    for more, told in (
        (file, f"has the SHA-256 {digest}, .* --set sscd_sha256="),
        ([*file, "--set", f"sscd_sha256={'0' * 64}"], f"must be {'0' * 64}, got {digest}"),
        ([*file, *given], "s.pt holds no TorchScript"),
        (["--set", "picturs=3"], "NAME of --set must be one of clip, .*; got 'picturs'; did you m"),
        (["--set", "store=here"], "NAME of --set must be one of clip, .*; got 'store'"),
        (["--set", "pictures=many"], "pictures of removal must be int, got 'many'"),
    ):
        assert call(monkeypatch, *words, *more) == 2
        assert re.search(told, capsys.readouterr().err)


@pytest.mark.parametrize(
    "words",
    [
        ["detect", "a cat"],
        ["localize", "a cat"],
        ["localize", "--prompts", "p.txt", "--workers", "2"],
        ["export", "--neurons", "n.json", "--no-report", "--out", "out"],
        ["calibrate", "--model", "{toy}", "--hold-out", "p.txt"],
    ],
)
@pytest.mark.parametrize("given", ["auto", "bfloat16"])
def test_the_number_type_arrives_where_the_model_is_opened(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    toy_folder: Path,
    words: list[str],
    given: str,
) -> None:
    asked = []

    def load(_name: str, _device: str, dtype: str, *_: Any, **__: Any) -> Any:
        asked.append(dtype)
        raise ValueError("enough")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("nemo_kit.models.load", load)
    Path("p.txt").write_text("a dog\na cat\n")
    Path("n.json").write_text(NeuronSet({1: [0]}).to_json())
    named = [word.format(toy=toy_folder) for word in words]
    assert call(monkeypatch, *named, "--dtype", given, "--device", "cpu") == 2
    assert asked == [given]


@pytest.mark.parametrize(("given", "opened"), [("auto", torch.float16), ("float32", "float32")])
def test_workers_on_gpus_get_the_number_type_that_a_gpu_would(
    monkeypatch: pytest.MonkeyPatch, given: Any, opened: Any
) -> None:
    """Their model is opened on the CPU, where "auto" is another type."""
    from nemo_kit.cli.method import Asked

    asked = []
    monkeypatch.setattr("nemo_kit.models.load", lambda *words, **_: asked.append(words))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    Asked("a/b", "c", workers=2, device="cuda", dtype=given).open_here()
    assert asked == [("a/b", "cpu", opened, "c")]


@dataclass
class Group:
    """Two options."""

    first: int = 1
    second: str = "x"


def test_groups_are_options_of_the_command() -> None:
    seen = []

    def command(*, before: int = 0, group: Group) -> None:
        seen.append((before, group))

    made = grouped(command)
    assert list(signature(made).parameters) == ["before", "first", "second"]
    made(before=2, first=3, second="y")
    assert seen == [(2, Group(3, "y"))]
