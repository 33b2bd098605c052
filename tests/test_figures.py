"""What notebooks write, and the runner, on tiny notebooks made here."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny import COMMON, DRAW, IMAGES, NAME, TABLE, end, notebook, wait_until_gone

from nemo_kit import figures, progress
from nemo_kit.figures import output, runner
from nemo_kit.files import write_json
from nemo_kit.models import hub


def draw(job: runner.Job, limit: float = 600) -> str:
    """Run a job; what went wrong, or nothing."""
    return runner.draw([job], limit, keep_going=False, log=True).get(job.book.path.stem, "")


# ------------------------------------------------------------------------ what a notebook writes


def test_a_large_page_of_pictures_is_kept_with_256_colours(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    page = Figure(figsize=(6, 6))
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8)
    page.subplots().imshow(noise)
    [path, _] = output.save(page, pd.DataFrame({"a": [1]}), "F3", tmp_path)
    image = Image.open(path)
    assert image.mode == "P"
    assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1)


def test_a_figure_is_a_png_at_200_dpi_and_its_data(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    fig = Figure(figsize=(2, 1))
    frame = pd.DataFrame({"prompt": ["=SUM(A1)", 'ok, "q"', "-1"], "value": [-1.5, 2, np.nan]})
    paths = figures.save(fig, frame, "F2a", tmp_path / "new" / "folder", shows="a density")
    assert [path.name for path in paths] == ["F2a.png", "F2a.csv"]
    assert Image.open(paths[0]).info["dpi"] == pytest.approx((200, 200), abs=0.1)
    read = pd.read_csv(paths[1])
    assert list(read["prompt"]) == ["'=SUM(A1)", 'ok, "q"', "'-1"]
    assert list(read["value"].dropna()) == [-1.5, 2]
    first = paths[0].read_bytes()
    figures.save(fig, frame, "F2a", tmp_path / "new" / "folder")
    assert paths[0].read_bytes() == first


def test_a_table_is_its_csv_alone(tmp_path: Path) -> None:
    [path] = figures.save(None, pd.DataFrame({"a": [1]}), "T2", tmp_path)
    assert [path.name] == [path.name for path in tmp_path.iterdir()] == ["T2.csv"]


def test_data_that_others_go_on_with_are_listed_with_their_figure(tmp_path: Path) -> None:
    frame = pd.DataFrame({"method": ["a"], "mean": [0.25]})
    table, data = figures.save(None, frame, "T9", tmp_path, parquet=True)
    assert (table.name, data.name) == ("T9.csv", "T9.parquet")
    assert pd.read_parquet(data).equals(frame)


def test_pdf_and_svg_on_request_are_the_same_for_the_same_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    def drawn(out: Path) -> dict[str, bytes]:
        fig = Figure((2, 1), layout="constrained")
        axes = fig.subplots()
        axes.plot([1, 3, 2], label="$x$")
        axes.imshow(np.eye(3))
        paths = figures.save(fig, pd.DataFrame({"a": [1]}), "F2a", out)
        return {path.name: path.read_bytes() for path in paths}

    monkeypatch.setattr(progress.followed, "also", ("pdf", "svg"))
    first = drawn(tmp_path / "a")
    assert list(first) == ["F2a.png", "F2a.pdf", "F2a.svg", "F2a.csv"]
    assert first == drawn(tmp_path / "b")
    assert not any(word in first["F2a.pdf"] for word in (b"CreationDate", b"ModDate"))
    assert b"<dc:date>" not in first["F2a.svg"]


@pytest.mark.parametrize("name", ["../F1", "a b", "", ".hidden", "F1/x", "ü"])
def test_names_that_could_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="name must consist of letters, digits"):
        figures.save(None, pd.DataFrame({"a": [1]}), name, tmp_path)
    with pytest.raises(ValueError, match="name must consist of letters, digits"):
        figures.write_manifest(tmp_path, name, {})
    assert not list(tmp_path.iterdir())


def test_a_failing_write_leaves_the_earlier_figure(tmp_path: Path) -> None:
    class Broken:
        def savefig(self, part: Path, **_: Any) -> None:
            part.write_bytes(b"half")
            raise OSError("No space left on device")

    (tmp_path / "F1.png").write_bytes(b"earlier")
    with pytest.raises(OSError, match="No space left"):
        figures.save(Broken(), pd.DataFrame({"a": [1]}), "F1", tmp_path)
    assert (tmp_path / "F1.png").read_bytes() == b"earlier"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["F1.png"]


def test_the_manifest_says_what_was_drawn_from_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Model:
        name, revision, device, dtype = "lab", None, "cpu", "torch.float32"

    monkeypatch.chdir(notebook(tmp_path / "notebooks"))
    figures.save(None, pd.DataFrame({"a": [1]}), "tiny", "../figs")
    values = {"out": "../figs", "store": "s", "images": 4, "sscd": None, "other": object()}
    path = figures.write_manifest("../figs", NAME, values, model=Model())
    assert path == tmp_path / "figs" / f"{NAME}.manifest.json"
    content = json.loads(path.read_text())
    assert content["files"] == {"tiny": ["tiny.csv"]}
    assert content["parameters"] == {"images": 4, "sscd": None}
    assert content["model"]["name"] == "lab"
    assert content["model"]["device"].startswith("cpu (")
    assert {"python", "torch", "diffusers", "nemo_kit"} <= set(content["versions"])
    assert set(content) >= {"commit", "finished", "seconds"}


# -------------------------------------------------------------------------- when it is stale


def test_the_key_counts_code_parameters_model_and_versions_alone(
    tmp_path: Path, plan: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = notebook(tmp_path / "notebooks", parameters=COMMON + "images = 4\n")
    model = tmp_path / "model"
    (model / "unet").mkdir(parents=True)
    weights = model / "unet" / "weights.safetensors"
    weights.write_bytes(b"1")

    def key(name: str = "model", **given: Any) -> dict[str, str]:
        return plan(model=str(tmp_path / name), **given).key

    def changed(**given: Any) -> list[str]:
        return [name for name, value in key(**given).items() if value != before[name]]

    before = key()
    content = nbformat.read(folder / f"{NAME}.ipynb", 4)
    content.cells[2].outputs = [nbformat.v4.new_output("stream", text="hello")]
    content.cells[2].execution_count = 7
    content.metadata["kernelspec"] = {"name": "other", "display_name": "Other"}
    content.cells[1].source = "# words\n" + content.cells[1].source
    content.cells.append(nbformat.v4.new_markdown_cell("More words."))
    nbformat.write(content, folder / f"{NAME}.ipynb")
    assert changed(device="cpu") == []
    (tmp_path / "moved").symlink_to(model)
    assert changed(name="moved") == []
    assert changed(settings={"images": "5"}) == ["parameters"]
    assert changed(dtype="float16") == ["parameters"]
    content.cells[2].source += "\n1"
    nbformat.write(content, folder / f"{NAME}.ipynb")
    assert changed() == ["notebook"]
    weights.write_bytes(b"2")
    assert changed() == ["notebook", "model"]
    monkeypatch.setattr(runner, "versions", lambda: {"localization.detection": 2})
    assert changed() == ["notebook", "model", "versions"]


def test_a_hub_models_digest_is_its_commit_and_its_own_calibration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    place = tmp_path / "models--owner--model"
    elsewhere = hub.digest("owner/model")
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("abc123")
    (snapshot := place / "snapshots" / "abc123").mkdir(parents=True)
    (snapshot / "model_index.json").write_text("{}")
    before = hub.digest("owner/model")
    assert before != elsewhere
    assert hub.digest("owner/model", "main") == hub.digest("owner/model", "abc123") == before
    assert hub.digest("owner/model", "fff") != before
    (snapshot / "nemo").mkdir()
    (snapshot / "nemo" / "calibration.json").write_text("1")
    assert hub.digest("owner/model") != before


def test_files_and_folders_that_a_parameter_names_count_by_content(
    tmp_path: Path, plan: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = IMAGES + 'clip = "lab"\nprompt_files: list[str] = []\n'
    notebook(tmp_path / "notebooks", parameters=cell)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real").mkdir()
    for name in ("net.pt", "copy.pt"):
        (tmp_path / name).write_bytes(b"1")
    (tmp_path / "p.csv").write_text("prompt\na\n")

    def key(sscd: str = "net.pt", clip: str = "real/") -> str:
        given = {"sscd": sscd, "clip": clip}
        return plan(settings=given, prompt_files=[str(tmp_path / "p.csv")]).key["parameters"]

    before = key()
    assert key("copy.pt") == before
    (tmp_path / "net.pt").write_bytes(b"2")
    assert (second := key()) != before
    (tmp_path / "real" / "a.png").write_bytes(b"a picture")
    assert (third := key()) != second
    assert key(clip="owner/clip") != third
    (tmp_path / "p.csv").write_text("prompt\nb\n")
    assert key() != third


def test_another_models_figures_are_never_mixed_with_these(
    tmp_path: Path, plan: Callable[..., Any]
) -> None:
    notebook(tmp_path / "notebooks", parameters=COMMON)
    for name in ("a", "b"):
        (tmp_path / name / "model").mkdir(parents=True)
        (tmp_path / name / "model" / "w.bin").write_text(name)
    first = plan(model=str(tmp_path / "a" / "model"))
    manifest = {"parameters": {"model": str(tmp_path / "a" / "model")}, "key": first.key}
    (tmp_path / "figs").mkdir()
    write_json(tmp_path / "figs" / f"{NAME}.manifest.json", manifest)
    with pytest.raises(
        ValueError, match=r"figs holds figures of the model .*a/model, not of .*b/m"
    ):
        plan(model=str(tmp_path / "b" / "model"))
    (tmp_path / "b" / "model" / "w.bin").write_text("a")  # the same model, moved
    assert plan(model=str(tmp_path / "b" / "model")).key["model"] == first.key["model"]


def test_a_lora_and_a_checkpoint_s_settings_tell_models_apart(
    tmp_path: Path, plan: Callable[..., Any]
) -> None:
    notebook(tmp_path / "notebooks", parameters=COMMON)
    for name in ("model", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model_index.json").write_text(name)
    save_file({"w": torch.ones(2)}, lora := tmp_path / "l.safetensors")
    model = str(tmp_path / "model")
    plain = plan(model=model)
    keys = [plan(model=model, **more).key for more in (
        {}, {"lora": str(lora)}, {"lora": f"{lora}:0.5"}, {"config": model},
        {"config": str(tmp_path / "other")},
    )]  # fmt: skip
    assert len({key["model"] for key in keys}) == 5
    assert len({key["parameters"] for key in keys}) == 1
    (tmp_path / "figs").mkdir()
    manifest = {"parameters": {"model": model}, "key": plain.key}
    write_json(tmp_path / "figs" / f"{NAME}.manifest.json", manifest)
    with pytest.raises(ValueError, match=r"of the model .*model, not of .*model with .*l.safet"):
        plan(model=model, lora=str(lora))
    with pytest.raises(ValueError, match=r"lora must be a \.safetensors file"):
        plan(model=model, lora="nowhere")


def test_figures_not_asked_for_are_named(tmp_path: Path, plan: Callable[..., Any]) -> None:
    more = TABLE.replace('"tiny"', '"other"')
    notebook(tmp_path / "notebooks", DRAW, more, end(NAME))
    job = plan()
    [first, second] = job.book.figures
    last = "1 of 1 notebooks to run, about 60 s"
    assert runner.announced([first], [job]) == [f"{NAME} also writes other", last]
    assert runner.announced([first, second], [job]) == [last]


def test_reasons(tmp_path: Path) -> None:
    for name in ("F2a.png", "F2a.csv", "F2a.pdf"):
        (tmp_path / name).touch()
    files = {"F2a": ["F2a.png", "F2a.pdf", "F2a.csv"]}
    key = {"notebook": "1", "model": "1", "versions": "1"}

    def reason(*also: str, retry: bool = False, **other: Any) -> str:
        manifest = {"key": key, "files": files, "failed": ["a", "b"]} | other
        return runner.staleness(tmp_path, manifest, key, also, retry)

    assert (reason(), reason("pdf"), reason("svg")) == ("", "", "F2a.svg missing")
    (tmp_path / "F2a.pdf").unlink()  # as in a clone, which holds none
    assert (reason(), reason("pdf")) == ("", "F2a.pdf missing")
    assert reason(retry=True) == "2 prompts failed"
    assert reason(retry=True, failed=[]) == ""
    assert reason(key={}) == "drawn by hand"
    assert reason(key=key | {"model": "0"}) == "model changed"
    assert reason(key={}, retry=True) == "drawn by hand"
    assert reason(key={"model": "1"}) == "notebook and versions changed"
    assert reason(key={"other": "1"}) == "notebook, model and versions changed"
    assert runner.staleness(tmp_path, {}, key, (), False) == "missing"
    (tmp_path / "F2a.png").unlink()
    assert reason() == "F2a.png missing"


def test_prompts_without_a_needed_role_leave_a_notebook_out(
    tmp_path: Path, plan: Callable[..., Any]
) -> None:
    notebook(tmp_path / "notebooks", parameters=COMMON, role="ladder")
    (tmp_path / "p.csv").write_text("prompt,type\na,VM\n")
    (tmp_path / "q.csv").write_text("prompt,type,role,repetitions\na,VM,ladder,4\n")
    job = plan(prompt_files=[str(tmp_path / "p.csv")])
    assert (job.lacks, job.runs) == ("needs prompts of the role ladder", False)
    told = runner.listing(job.book.figures, [job])
    assert "left out: needs prompts of the role ladder" in told
    assert runner.announced([], [job])[-1] == "0 of 1 notebooks to run, about 0 s"
    assert plan(prompt_files=[str(tmp_path / "q.csv")]).runs
    assert plan().runs


# ---------------------------------------------------------------------- what a run is said to take


def test_what_a_run_would_take_comes_from_earlier_runs_of_the_same_preset(
    tmp_path: Path, plan: Callable[..., Any]
) -> None:
    folder = notebook(tmp_path / "notebooks", seconds={"quick": 50, "full": 90})
    (folder / "presets").mkdir()
    for name in ("full", "more"):
        (folder / "presets" / f"{name}.toml").touch()
    assert [plan(preset=p).expected for p in ("quick", "full", "more")] == [50, 90, 360]
    rows = plan().book.figures
    assert "  missing, about 50 s on two cores  a number" in runner.listing(rows, [plan()])
    path = tmp_path / "figs" / f"{NAME}.manifest.json"
    path.parent.mkdir()
    known = {"preset": "quick", "seconds": 20.0, "slowest": 4000.0}
    write_json(path, known | {"key": plan().key | {"notebook": "0"}})
    assert plan().expected == 20  # only the notebook changed: results are in the store
    assert runner.announced([], [plan()])[-1] == "1 of 1 notebooks to run, about 20 s"
    write_json(path, known | {"key": plan().key | {"model": "0"}})
    assert plan().expected == 4000
    assert "  model changed, about 1 h 7 min  a number" in runner.listing(rows, [plan()])
    assert plan(preset="full").expected == 90


def test_folders_follow_preset_model_and_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "root", lambda: Path("r"))
    assert runner.output_folder("lab") == Path("r/figures/lab")
    assert runner.output_folder("quick") == Path("r/figures/lab-quick")
    assert runner.output_folder("lab", "owner/a model") == Path("r/figures/a-model")
    assert runner.output_folder("paper", "owner/a model") == Path("r/figures/a-model-paper")
    assert os.sep not in runner.output_folder("lab", "x/..").name.replace("..", "")
    assert runner.output_folder("lab", "a/model", "b/c.safetensors:0.5") == Path(
        "r/figures/model-c"
    )


# ------------------------------------------------------------------- runs: each starts a kernel


def test_figures_are_drawn_once_and_again_when_stale(
    tmp_path: Path, plan: Callable[..., Any], request: pytest.FixtureRequest
) -> None:
    folder = notebook(tmp_path / "note {books}", "# a brace in the folder's name", DRAW, end(NAME))
    job = plan(folder, also=["pdf"])
    assert (job.reason, draw(job)) == ("missing", "")
    assert pd.read_csv(job.out / "tiny.csv")["n"].tolist() == [4]
    manifest = runner.read_manifest(job.out, NAME)
    assert manifest["key"] == job.key
    assert manifest["preset"] == "quick"
    assert manifest["parameters"] == {"images": 4, "sscd": None}
    assert str(tmp_path) not in json.dumps(manifest)
    executed = job.out / "executed" / f"{NAME}.ipynb"
    assert nbformat.read(executed, 4).cells[-1].execution_count
    assert "without encryption" not in executed.with_suffix(".log").read_text()
    assert sorted(path.name for path in job.out.iterdir()) == [
        f"{NAME}.manifest.json", "executed", "tiny.csv", "tiny.pdf", "tiny.png",
    ]  # fmt: skip
    assert plan(folder).reason == plan(folder, also=["pdf"]).reason == ""
    assert draw(plan(folder)) == ""  # nothing to do
    notebook(folder, TABLE, end(NAME))
    request.getfixturevalue("in_process")
    job = plan(folder, settings={"images": "6"})
    assert job.reason == "notebook and parameters changed"
    assert job.expected == manifest["slowest"]
    assert draw(job) == ""
    assert pd.read_csv(job.out / "tiny.csv")["n"].tolist() == [6]
    assert sorted(path.name for path in job.out.iterdir()) == [  # no picture of before
        f"{NAME}.manifest.json", "executed", "tiny.csv",
    ]  # fmt: skip


@pytest.mark.usefixtures("in_process")
def test_prompts_that_failed_are_in_the_manifest_and_tried_again_on_request(
    tmp_path: Path, plan: Callable[..., Any]
) -> None:
    sweep = (
        "from pathlib import Path\n"
        "from nemo_kit.store import run\n"
        "def work(prompt):\n"
        f"    if prompt == 'b' and not Path({str(tmp_path / 'go')!r}).exists():\n"
        "        raise ValueError('no memory')\n"
        "    return {'prompt': prompt}\n"
        "for name in ('detect', 'localize'):\n"
        "    run(work, 'abc', store, {}, name=name)\n"
    )
    notebook(tmp_path / "notebooks", sweep, TABLE, end(NAME))
    job = plan()
    assert draw(job) == ""
    manifest = runner.read_manifest(job.out, NAME)
    assert manifest["failed"] == ["b"]  # once, of two sweeps
    assert runner.failures([manifest]) == "1 prompt failed"
    (tmp_path / "go").touch()
    assert plan().reason == ""
    job = plan(retry_failed=True)
    assert (job.reason, draw(job)) == ("1 prompt failed", "")
    assert runner.read_manifest(job.out, NAME)["failed"] == []
    assert plan(retry_failed=True).reason == ""


def test_failed_prompts_of_several_notebooks_count_once() -> None:
    assert runner.failures([{"failed": ["a", "b"]}, {"failed": ["b", "c"]}, {}]) == (
        "3 prompts failed"
    )
    assert runner.failures([{}]) == ""


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("images = 1 / 0", "ZeroDivisionError: division by zero in cell 5:\n"),
        ("import os; os._exit(9)", "DeadKernelError"),
    ],
)
def test_a_run_that_fails_says_where_and_leaves_the_earlier_figures(
    tmp_path: Path, plan: Callable[..., Any], cell: str, message: str
) -> None:
    out = tmp_path / "figs"
    out.mkdir()
    (out / "tiny.csv").write_bytes(b"earlier")
    notebook(tmp_path / "notebooks", TABLE, cell, end(NAME))
    error = draw(job := plan())
    assert message in error
    assert sorted(path.name for path in out.iterdir()) == ["executed", "tiny.csv"]
    assert (out / "tiny.csv").read_bytes() == b"earlier"
    work = job.out / "executed"
    assert {path.name for path in work.iterdir()} - {".lock"} == {f"{NAME}.ipynb", f"{NAME}.log"}
    if "ZeroDivisionError" in message:
        assert "    images = 1 / 0" in error
        assert f"executed copy: {work / NAME}.ipynb" in error


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    "cells",
    [
        (TABLE,),
        ("if not images:\n    " + TABLE.replace("\n", "\n    "),
         "from nemo_kit import figures", end(NAME)),
    ],
)  # fmt: skip
def test_a_notebook_that_did_not_save_leaves_the_earlier_figures(
    tmp_path: Path, plan: Callable[..., Any], cells: tuple[str, ...]
) -> None:
    out = tmp_path / "figs"
    out.mkdir()
    (out / "tiny.csv").write_bytes(b"earlier")
    notebook(tmp_path / "notebooks", *cells)
    assert "came to its end but did not save tiny, or wrote no manifest; ex" in draw(plan())
    assert (out / "tiny.csv").read_bytes() == b"earlier"


def test_a_notebook_past_its_limit_is_ended_with_its_kernel(
    tmp_path: Path, plan: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pid, clock = tmp_path / "pid", time.monotonic
    monkeypatch.setattr(  # the limit comes once the kernel hangs, however slow its start was
        runner.time, "monotonic", lambda: clock() + 600 * bool(pid.exists() and pid.read_text())
    )
    hang = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    notebook(tmp_path / "notebooks", hang, TABLE, end(NAME))
    error = draw(plan())
    assert "ran past its limit of 10 minutes, in cell 4" in error
    wait_until_gone(int(pid.read_text()))


def test_a_run_stops_at_a_failure_unless_it_is_told_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "root", lambda: tmp_path)
    folder = notebook(tmp_path / "notebooks")
    notebook(folder, DRAW.replace("tiny", "other"), name="01_other")
    books = figures.read_all(folder)
    rows = figures.select(books)
    planned = runner.plan(books, rows, "quick", tmp_path / "figs")

    def fail(job: runner.Job, limit: float, tick: Callable[..., None]) -> str:
        tick(job, 5.0, 3700.0, "cell 3, localize 12 of 500")
        return "broke" if job.book.path.stem == NAME else ""

    monkeypatch.setattr(runner, "_run", fail)
    monkeypatch.setattr(progress, "EVERY", 0.0)
    outcomes = runner.draw(planned, 60, keep_going=False, log=True)
    assert outcomes == {NAME: "broke"}
    first, second = runner.listing(rows, planned, outcomes).splitlines()[1:]
    assert "failed, see above" in first
    assert "not begun" in second
    said = capsys.readouterr().err
    assert f"{NAME} (missing): about 60 s\n" in said
    assert f"{NAME} failed after 0 s: broke\n" in said
    assert "left in all, cell 3, localize 12 of 500\n" in said
    assert all(line[:2] == "20" for line in said.splitlines()), "each with date and time"
    outcomes = runner.draw(planned, 60, keep_going=True, log=True)
    assert outcomes == {NAME: "broke", "01_other": ""}
    assert " drawn " in runner.listing(rows, planned, outcomes).splitlines()[2]
    capsys.readouterr()
    runner.draw(planned, 60, keep_going=True, log=False)
    bar = capsys.readouterr().err
    assert "\r" in bar
    assert "01_other drew other in 0 s" in bar
