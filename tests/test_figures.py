"""The registry, what notebooks write, and the runner on small notebooks made here."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import nbformat
import numpy as np
import pandas as pd
import psutil
import pytest
from PIL import Image
from pydantic import ValidationError

from nemo_kit import figures
from nemo_kit.figures import jobs, keys, output, process, registry, report, runner

mpl.use("Agg")
NAME = "00_quickstart"
DRAW = "from nemo_kit import figures\nimport pandas as pd\n" + (
    "import matplotlib.pyplot as plt\n"
    "fig, _ = plt.subplots()\n"
    "figures.save(fig, pd.DataFrame({'n': [images]}), 'quickstart', out)\n"
)
END = f"figures.write_manifest(out, {NAME!r}, globals())"


def notebook(folder: Path, *cells: str, name: str = NAME, **changed: Any) -> Path:
    """A notebook with the registry's parameters cell and these code cells."""
    values = registry.parameters(name).model_dump(mode="json") | changed
    literals = "\n".join(f"{key} = {value!r}" for key, value in values.items())
    first = nbformat.v4.new_code_cell(literals, metadata={"tags": ["parameters"]})
    rest = [nbformat.v4.new_code_cell(cell) for cell in cells or (DRAW, END)]
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=[first, *rest]), folder / f"{name}.ipynb")
    return folder


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Plans and runs ``00_quickstart`` from a folder; returns job and outcome."""
    monkeypatch.setattr(runner, "root", lambda: tmp_path)
    monkeypatch.setattr(keys, "package_digest", lambda: "as it is")

    def draw(folder: Path, limit: float = 600, **common: Any) -> tuple[jobs.Job, jobs.Outcome]:
        rows = figures.select([NAME])
        [job] = runner.plan(rows, "quick", tmp_path / "figs", notebooks=folder, **common)
        if not job.reason:
            return job, jobs.Outcome(0)
        return job, runner.run(job, limit, lambda seconds, cell: None)

    return draw


# registry


def test_every_figure_belongs_to_a_notebook_and_its_name_is_unique() -> None:
    names = [row.name for row in figures.FIGURES]
    assert len(set(names)) == len(names)
    assert {row.notebook for row in figures.FIGURES} == set(figures.NOTEBOOKS)
    wanted = {"F1", "F2a", "F2b", "F3", "F4a", "F4b", "F7a", "F7b", "F10", "F13", "T2"}
    assert wanted <= set(names)


def test_presets_differ_in_how_much_and_refuse_unknown_names() -> None:
    assert registry.parameters("01_detection").memorized == 12
    assert registry.parameters("01_detection", "lab").memorized is None
    with pytest.raises(ValueError, match="preset must be one of quick, lab, paper, got 'full'"):
        registry.parameters("01_detection", "full")
    with pytest.raises(ValueError, match=r"notebook must be one of 00_quickstart, .*, got '1'"):
        registry.parameters("1")
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        registry.parameters("01_detection", seedz=3)
    with pytest.raises(ValidationError, match="greater than or equal to 2"):
        registry.parameters("01_detection", seeds=1)


def test_every_preset_of_every_notebook_is_valid_and_plain_json() -> None:
    for name in figures.NOTEBOOKS:
        for preset in figures.PRESETS:
            json.dumps(registry.parameters(name, preset).model_dump(mode="json"))


def test_the_preset_paper_is_the_papers_settings_and_every_prompt() -> None:
    for name in figures.NOTEBOOKS:
        chosen = registry.parameters(name, "paper").model_dump()
        known = {key: chosen[key] for key in registry.PAPER if key in chosen}
        assert known == {key: registry.PAPER[key] for key in known}, name
        counts = {"memorized", "non_memorized", "holdout", "per_rate"} & set(chosen)
        counts -= set(figures.NOTEBOOKS[name].paper)  # a row may say fewer, with the reason
        assert {chosen[key] for key in counts} <= {None}, name
    assert registry.parameters("03_localization", "paper").images == 10
    assert registry.parameters("03_localization", "paper", images=2).images == 2


# Figures and tables of the paper ("text" rows are numbers of ours: ROC, detection, verdicts).
PAPERS = (
    *("F1", "F2a", "F2b", "F3", "F4a", "F4b", "F5a", "F5b", "F6", "F7a", "F7b"),
    *("F8a", "F8b", "F8c", "F9", "F10", "F11", "F12", "F13"),
    *("F14a", "F14b", "F14c", "F14d", "F15a", "F15b", "F15c", "F15d"),
    *("F16", "F17", "F18", "F19", "F20", "T1", "T2", "T3", "T4"),
)


def test_every_figure_and_table_of_the_paper_has_a_command() -> None:
    there = {number for row in figures.FIGURES for number in row.numbers}
    missing = [number for number in PAPERS if number not in there]
    assert not missing, f"no row of the registry shows {', '.join(missing)}"
    assert there <= set(PAPERS), "a number that the paper does not have"
    for number in PAPERS:
        assert figures.select([number]), number


def test_numbers_in_the_paper_in_words() -> None:
    assert registry.Figure("F2a", "n", "").paper == "Figure 2a"
    assert registry.Figure("F10", "n", "", also=("F11", "T3")).paper == "Figures 10, 11 and Table 3"
    assert registry.Figure("F8", "n", "", also=("F8a", "F8b")).paper == "Figures 8a, 8b"
    assert registry.Figure("shared", "n", "").paper == ""
    assert registry.Figure("people", "n", "", also=("F9",)).numbers == ("F9",)


def test_figures_are_selected_by_name_and_by_notebook() -> None:
    assert [row.name for row in figures.select(["f2A", "T2"])] == ["F2a", "T2"]
    assert {row.notebook for row in figures.select(["01_detection"])} == {"01_detection"}
    assert figures.select() == figures.FIGURES
    with pytest.raises(ValueError, match="only must name a figure or a notebook, got 'F99'"):
        figures.select(["F2a", "F99"])


# what a notebook writes


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
    import matplotlib.pyplot as plt

    fig, _ = plt.subplots(figsize=(2, 1))
    frame = pd.DataFrame({"prompt": ["=SUM(A1)", 'ok, "q"', "-1"], "value": [-1.5, 2, np.nan]})
    paths = figures.save(fig, frame, "F2a", tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["F2a.png", "F2a.csv"]
    assert Image.open(paths[0]).info["dpi"] == pytest.approx((200, 200), abs=0.1)
    read = pd.read_csv(paths[1])
    assert list(read["prompt"]) == ["'=SUM(A1)", 'ok, "q"', "'-1"]
    assert list(read["value"].dropna()) == [-1.5, 2]
    first = paths[0].read_bytes()
    figures.save(fig, frame, "F2a", tmp_path / "new" / "folder")
    assert paths[0].read_bytes() == first
    plt.close(fig)


def test_a_table_is_its_csv_alone(tmp_path: Path) -> None:
    assert [p.name for p in figures.save(None, pd.DataFrame({"a": [1]}), "T2", tmp_path)] == [
        "T2.csv"
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["T2.csv"]


def test_pdf_and_svg_on_request_are_the_same_for_the_same_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nemo_kit.plots.style import canvas

    def draw(out: Path) -> dict[str, bytes]:
        fig, axes = canvas(2, 1)
        axes.plot([1, 3, 2], label="$x$")
        axes.imshow(np.eye(3))
        paths = figures.save(fig, pd.DataFrame({"a": [1]}), "F2a", out)
        return {path.name: path.read_bytes() for path in paths}

    monkeypatch.setenv(output.ALSO, "pdf,svg")
    first = draw(tmp_path / "a")
    assert list(first) == ["F2a.png", "F2a.pdf", "F2a.svg", "F2a.csv"]
    assert first == draw(tmp_path / "b")
    assert not any(word in first["F2a.pdf"] for word in (b"CreationDate", b"ModDate"))
    assert b"<dc:date>" not in first["F2a.svg"]
    monkeypatch.setenv(output.ALSO, "gif")
    with pytest.raises(ValueError, match="must hold pdf, svg or both, got 'gif'"):
        draw(tmp_path)


@pytest.mark.parametrize("name", ["../F1", "a b", "", ".hidden", "F1/x", "ü"])
def test_names_that_could_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="name must consist of letters, digits"):
        figures.save(None, pd.DataFrame({"a": [1]}), name, tmp_path)
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
    assert sorted(path.name for path in tmp_path.iterdir()) == ["F1.csv", "F1.png"]


def test_the_manifest_says_what_was_drawn_from_what(tmp_path: Path) -> None:
    class Model:
        name, revision, device, dtype = "lab", None, "cpu", "torch.float32"

    figures.save(None, pd.DataFrame({"a": [1]}), "quickstart", tmp_path)
    values = registry.parameters(NAME, out=str(tmp_path)).model_dump() | {"other": object()}
    path = figures.write_manifest(tmp_path, NAME, values, model=Model())
    content = json.loads(path.read_text())
    assert content["files"] == {"quickstart": ["quickstart.csv"]}
    assert content["parameters"]["images"] == 4
    assert not {"out", "store", "device", "other"} & set(content["parameters"])
    assert content["model"]["name"] == "lab"
    assert content["model"]["device"].startswith("cpu (")
    assert {"python", "torch", "diffusers", "nemo_kit"} <= set(content["versions"])
    assert set(content) >= {"commit", "finished", "seconds"}


def test_a_manifest_of_wrong_parameters_or_notebook_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="images"):
        figures.write_manifest(tmp_path, NAME, {"images": "many"})
    with pytest.raises(ValueError, match="notebook must be one of"):
        figures.write_manifest(tmp_path, "05_more", {})


# keys


def test_a_notebooks_digest_counts_code_alone(tmp_path: Path) -> None:
    path = notebook(tmp_path) / f"{NAME}.ipynb"
    before = keys.notebook_digest(path)
    content = nbformat.read(path, 4)
    content.cells[1].outputs = [nbformat.v4.new_output("stream", text="hello")]
    content.cells[1].execution_count = 7
    content.metadata["kernelspec"] = {"name": "other", "display_name": "Other"}
    content.cells.append(nbformat.v4.new_markdown_cell("More words."))
    nbformat.write(content, path)
    assert keys.notebook_digest(path) == before
    content.cells[1].source += "\n# more"
    nbformat.write(content, path)
    assert keys.notebook_digest(path) != before


def test_the_key_knows_parameters_and_model_but_not_the_place(tmp_path: Path) -> None:
    source = notebook(tmp_path) / f"{NAME}.ipynb"
    model = tmp_path / "model"
    (model / "unet").mkdir(parents=True)
    weights = model / "unet" / "weights.safetensors"
    weights.write_bytes(b"1")

    def key(**changed: Any) -> dict[str, str]:
        return keys.content_key(source, registry.parameters(NAME, model=str(model), **changed))

    before = key()
    assert key(out="elsewhere", store="elsewhere", device="cpu") == before
    assert [name for name, value in key(images=5).items() if value != before[name]] == [
        "parameters"
    ]
    weights.write_bytes(b"2")
    assert [name for name, value in key().items() if value != before[name]] == ["model"]


def test_the_revision_of_a_hub_model_is_the_one_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert keys.hub_revision("owner/model") == "main"
    place = tmp_path / "models--owner--model"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("abc123")
    (place / "snapshots" / "abc123").mkdir(parents=True)
    (place / "snapshots" / "abc123" / "model_index.json").write_text("{}")
    assert keys.hub_revision("owner/model") == "abc123"
    assert keys.hub_revision("owner/model", "fff") == "fff"


def test_the_key_of_a_hub_model_is_its_commit_and_its_own_calibration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    source = notebook(tmp_path) / f"{NAME}.ipynb"
    place = tmp_path / "hub" / "models--owner--model"
    snapshot = place / "snapshots" / "abc123"

    def key(revision: str | None) -> dict[str, str]:
        chosen = registry.parameters(NAME, model="owner/model", revision=revision)
        return keys.content_key(source, chosen)

    elsewhere = key(None)
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("abc123")
    snapshot.mkdir(parents=True)
    (snapshot / "model_index.json").write_text("{}")
    before = key(None)
    assert before != elsewhere
    assert key("main") == key("abc123") == before
    assert key("fff") != before
    own = snapshot / "nemo"
    own.mkdir()
    (own / "calibration.json").write_text("1")
    assert [name for name, value in key(None).items() if value != before[name]] == ["model"]


def test_files_and_folders_that_a_parameter_names_count_by_content(tmp_path: Path) -> None:
    name = "07_quality"
    source = notebook(tmp_path / "notebooks", name=name) / f"{name}.ipynb"
    (tmp_path / "lab").mkdir()
    (tmp_path / "real").mkdir()
    (tmp_path / "inception.pt").write_bytes(b"1")
    given = {"inception": str(tmp_path / "inception.pt"), "real_images": str(tmp_path / "real")}

    def key(**changed: Any) -> str:
        chosen = registry.parameters(name, **(given | changed))
        return keys.content_key(source, chosen)["parameters"]

    before = key()
    (tmp_path / "copy.pt").write_bytes(b"1")
    assert key(inception=str(tmp_path / "copy.pt")) == before
    (tmp_path / "inception.pt").write_bytes(b"2")
    assert (second := key()) != before
    (tmp_path / "real" / "a.png").write_bytes(b"a picture")
    assert (third := key()) != second
    assert key(clip=str(tmp_path / "lab")) != third
    assert key(clip="owner/clip") != third


def test_a_plan_computes_each_digest_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []

    def counted(name: str, kept: Callable[..., str]) -> None:
        def digest(*given: Any) -> str:
            called.append(name)
            return kept(*given)

        monkeypatch.setattr(keys, name, digest)

    for name in ("model_digest", "package_digest", "folder_digest"):
        counted(name, lambda *_: "as it is")
    names = [NAME, "02_activations", "06_memorization_types"]
    for name in names:
        notebook(tmp_path / "notebooks", name=name)
    runner.plan(
        figures.select(names), "quick", tmp_path, notebooks=tmp_path / "notebooks",
        training_images=str(tmp_path),
    )  # fmt: skip
    assert sorted(called) == ["folder_digest", "model_digest", "package_digest"]


@pytest.mark.parametrize(
    ("cell", "message"),
    [("seeds = range(3)", "must hold literals"), ("print(1)", "gives no name a value")],
)
def test_a_parameters_cell_holds_literals(tmp_path: Path, cell: str, message: str) -> None:
    content = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell, metadata={"tags": ["parameters"]})]
    )
    nbformat.write(content, tmp_path / "x.ipynb")
    with pytest.raises(ValueError, match=message):
        keys.notebook_parameters(tmp_path / "x.ipynb")


def wait_until_gone(pid: int) -> None:
    """Until the process has ended; fails after twenty seconds."""
    for _ in range(200):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.1)
    pytest.fail(f"the kernel {pid} still runs")


# runner: each test starts a kernel, about four seconds


def test_figures_are_drawn_once_and_again_when_stale(
    tmp_path: Path, drawn: Callable[..., Any]
) -> None:
    folder = notebook(tmp_path / "note {books}", "# a brace in the folder's name", DRAW, END)
    job, outcome = drawn(folder)
    assert (job.reason, outcome.error) == ("missing", "")
    assert pd.read_csv(job.out / "quickstart.csv")["n"].tolist() == [4]
    manifest = runner.read_manifest(job.out, NAME)
    assert manifest["key"] == job.key
    assert manifest["preset"] == "quick"
    assert str(tmp_path) not in json.dumps(manifest)
    assert nbformat.read(job.executed, 4).cells[-1].execution_count
    assert sorted(path.name for path in job.out.iterdir()) == [
        "00_quickstart.manifest.json", "quickstart.csv", "quickstart.png",
    ]  # fmt: skip

    assert drawn(folder)[0].reason == ""
    assert drawn(folder, images=6)[0].reason == "parameters changed"
    assert pd.read_csv(job.out / "quickstart.csv")["n"].tolist() == [6]
    notebook(folder, DRAW + "# edited", END)
    [planned] = runner.plan(figures.select([NAME]), "quick", job.out, notebooks=folder)
    assert planned.reason == "notebook and parameters changed"
    assert planned.expected == runner.read_manifest(job.out, NAME)["slowest"]
    (job.out / "quickstart.png").unlink()
    assert runner.staleness(job.out, NAME, runner.read_manifest(job.out, NAME)["key"]) == (
        "quickstart.png missing"
    )


def test_prompts_that_failed_are_in_manifest_and_table_and_tried_again_on_request(
    tmp_path: Path, drawn: Callable[..., Any]
) -> None:
    sweep = (
        "from pathlib import Path\n"
        "from nemo_kit import experiments\n"
        "def work(prompt):\n"
        f"    if prompt == 'b' and not Path({str(tmp_path / 'go')!r}).exists():\n"
        "        raise ValueError('no memory')\n"
        "    return {'prompt': prompt}\n"
        "for name in ('detect', 'localize'):\n"
        "    experiments.run(work, 'abc', store, {}, name=name)\n"
    )
    folder = notebook(tmp_path / "notebooks", sweep, DRAW, END)
    rows = figures.select([NAME])
    job, outcome = drawn(folder)
    assert outcome.error == ""
    manifest = runner.read_manifest(job.out, NAME)
    assert (manifest["failed_prompts"], manifest["failed"]) == (1, ["b"])  # once, of two sweeps
    assert report.table(rows, [job], {NAME: outcome}).endswith("quickstart.png  (1 prompt failed)")
    told = "1 prompt failed; nemo-kit figures --retry-failed tries it again"
    assert report.failures([job]) == told
    (tmp_path / "go").touch()
    job, _ = drawn(folder)
    assert (job.reason, report.failures([job])) == ("", told)
    job, _ = drawn(folder, retry_failed=True)
    assert job.reason == "1 prompt failed"
    assert "failed_prompts" not in runner.read_manifest(job.out, NAME)
    assert report.failures([job]) == ""
    assert drawn(folder, retry_failed=True)[0].reason == ""


def test_failed_prompts_of_several_notebooks_count_once(tmp_path: Path) -> None:
    planned = [
        jobs.Job(name, "quick", tmp_path, registry.parameters(name), tmp_path, tmp_path, {}, "")
        for name in (NAME, "01_detection")
    ]
    for job, failed in zip(planned, (["a", "b"], ["b", "c"]), strict=True):
        output.write_json(output.manifest_path(tmp_path, job.notebook), {"failed": failed})
    told = "3 prompts failed; nemo-kit figures --retry-failed tries them again"
    assert report.failures(planned) == told


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ((DRAW, "images = 1 / 0", END), r"ZeroDivisionError: division by zero in cell 4:\n"),
        ((DRAW, "import os; os._exit(9)", END), "DeadKernelError"),
        ((DRAW,), "wrote no manifest"),
        (("from nemo_kit import figures", END), r"did not write quickstart.png, quickstart.csv"),
    ],
)
def test_a_run_that_fails_says_where_and_leaves_the_earlier_figures(
    tmp_path: Path, drawn: Callable[..., Any], cells: tuple[str, ...], message: str
) -> None:
    out = tmp_path / "figs"
    out.mkdir()
    (out / "quickstart.png").write_bytes(b"earlier")
    job, outcome = drawn(notebook(tmp_path / "notebooks", *cells))
    assert pd.Series([outcome.error]).str.contains(message, regex=True).all(), outcome.error
    assert [path.name for path in out.iterdir()] == ["quickstart.png"]
    assert (out / "quickstart.png").read_bytes() == b"earlier"
    assert job.executed.is_file()
    if "images = 1 / 0" in cells:
        assert "    images = 1 / 0" in outcome.error
        assert "runs/figures/figs/00_quickstart.ipynb" in outcome.error
    left = {path.name for path in job.work.iterdir()}
    assert left == {"00_quickstart.ipynb", "00_quickstart.log"}


def test_a_notebook_past_its_limit_is_ended_with_its_kernel(
    tmp_path: Path, drawn: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pid, clock = tmp_path / "pid", time.monotonic
    monkeypatch.setattr(  # the limit comes once the kernel hangs, however slow its start was
        process.time, "monotonic", lambda: clock() + 600 * bool(pid.exists() and pid.read_text())
    )
    hang = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    _, outcome = drawn(notebook(tmp_path / "notebooks", hang, END))
    assert "ran past its limit of 10 minutes, in cell 3 of 4" in outcome.error
    wait_until_gone(int(pid.read_text()))


def test_a_notebook_that_names_no_parameter_is_refused(
    tmp_path: Path, drawn: Callable[..., Any]
) -> None:
    folder = notebook(tmp_path / "notebooks")
    path = folder / f"{NAME}.ipynb"
    content = nbformat.read(path, 4)
    content.cells[0].source = content.cells[0].source.replace("guidance", "scale")
    nbformat.write(content, path)
    with pytest.raises(ValueError, match="does not name guidance"):
        drawn(folder)


def test_a_missing_notebook_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"00_quickstart.ipynb is not in .*--notebooks"):
        runner.plan(figures.select([NAME]), "quick", tmp_path, notebooks=tmp_path)


def test_the_table_names_figure_notebook_seconds_and_file(tmp_path: Path) -> None:
    rows = figures.select(["F2a", "quickstart"])
    planned = [
        jobs.Job(name, "quick", tmp_path, registry.parameters(name), tmp_path, tmp_path, {}, why)
        for name, why in ((NAME, ""), ("01_detection", "missing"))
    ]
    output.write_json(output.manifest_path(tmp_path, NAME), {"seconds": 12.3})
    outcomes = {"01_detection": jobs.Outcome(3, "broke")}
    lines = report.table(rows, planned, outcomes).splitlines()
    assert lines[0].split() == ["figure", "notebook", "seconds", "file"]
    assert lines[1].endswith(f"12  {tmp_path / 'quickstart.png'}  (up to date)")
    assert lines[2].split()[:3] == ["F2a", "01_detection", "3"]
    assert lines[2].endswith("failed, see above")
    assert report.announce(planned).splitlines()[1].endswith("calibration: missing")


def test_a_vector_format_that_is_asked_for_and_lost_is_drawn_again(tmp_path: Path) -> None:
    for name in ("F2a.png", "F2a.csv", "F2a.pdf"):
        (tmp_path / name).touch()
    manifest = {"key": {"model": "1"}, "files": {"F2a": ["F2a.png", "F2a.pdf", "F2a.csv"]}}
    output.write_json(output.manifest_path(tmp_path, NAME), manifest)

    def reason(*also: str) -> str:
        return runner.staleness(tmp_path, NAME, {"model": "1"}, also)

    assert (reason(), reason("pdf"), reason("svg")) == ("", "", "F2a.svg missing")
    (tmp_path / "F2a.pdf").unlink()  # as in a clone, which holds none
    assert (reason(), reason("pdf")) == ("", "F2a.pdf missing")
    with pytest.raises(ValueError, match="also must be of pdf, svg, got 'gif'"):
        runner.plan(figures.select([NAME]), "quick", tmp_path, also=["gif"])


def test_settings_go_to_the_notebooks_that_know_them(tmp_path: Path) -> None:
    rows = figures.select(["00_quickstart", "02_activations"])
    folder = notebook(tmp_path / "notebooks")
    notebook(folder, name="02_activations")
    planned = runner.plan(rows, "quick", tmp_path, notebooks=folder, settings={"steps": 3})
    assert planned[0].parameters.steps == 3
    assert "steps" not in planned[1].parameters.model_dump()
    with pytest.raises(ValueError, match="no notebook chosen has the parameter 'holdout'; they"):
        runner.plan(rows, "quick", tmp_path, notebooks=folder, settings={"holdout": 3})
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        runner.plan(rows, "quick", tmp_path, notebooks=folder, settings={"steps": 0})


def test_prompts_without_a_needed_role_leave_a_notebook_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "root", lambda: tmp_path)
    folder = notebook(tmp_path / "notebooks", name="04_dose_response")
    (tmp_path / "p.csv").write_text("prompt,type\na,VM\n")
    (tmp_path / "q.csv").write_text("prompt,type,role,repetitions\na,VM,ladder,4\n")
    rows = figures.select(["04_dose_response"])

    def planned(name: str) -> jobs.Job:
        files = [str(tmp_path / name)]
        return runner.plan(rows, "lab", tmp_path, notebooks=folder, prompt_files=files)[0]

    job = planned("p.csv")
    assert (job.lacks, job.runs) == ("needs prompts of the role ladder", False)
    assert (
        report.dry([job]).splitlines()[0].endswith("left out: it needs prompts of the role ladder")
    )
    assert report.table(rows, [job], {}).endswith("not drawn: needs prompts of the role ladder")
    assert planned("q.csv").runs


def test_what_a_run_would_take_comes_from_earlier_runs_of_the_same_preset(tmp_path: Path) -> None:
    values = registry.parameters(NAME)
    key = {"notebook": "1", "package": "1", "model": "1", "parameters": "1"}
    job = jobs.Job(NAME, "lab", tmp_path, values, tmp_path, tmp_path, key, "missing")
    assert job.expected == figures.NOTEBOOKS[NAME].expected["lab"]
    assert report.dry([job]).splitlines()[0].split()[1] == "~"
    known = {"preset": "lab", "seconds": 20.0, "slowest": 4000.0, "key": key | {"notebook": "0"}}
    output.write_json(output.manifest_path(tmp_path, NAME), known)
    assert job.expected == 20  # only the notebook changed: results are in the store
    assert report.dry([job]).splitlines()[-1] == "1 notebook would run, about 0:20; 0 up to date"
    output.write_json(output.manifest_path(tmp_path, NAME), known | {"key": {}})
    assert job.expected == 4000
    assert report.clock(job.expected) == "1:06:40"


def test_the_list_names_number_notebook_and_state(tmp_path: Path) -> None:
    rows = figures.select(["quickstart", "T2"])
    states = {NAME: "", "03_localization": "model changed"}
    planned = [
        jobs.Job(name, "quick", tmp_path, registry.parameters(name), tmp_path, tmp_path, {}, why)
        for name, why in states.items()
    ]
    head, first, second = report.listing(rows, planned).splitlines()
    assert first[head.index("state") :].startswith("up to date")
    assert second[head.index("in the paper") :].startswith("Table 2 ")
    assert second[head.index("state") :].startswith("model changed")


def test_work_folders_are_apart_where_names_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "root", lambda: Path("/r"))
    assert runner.work_folder(Path("/r/figures/lab")) == Path("/r/runs/figures/lab")
    assert runner.work_folder(Path("/r/figures/a/lab")) == Path("/r/runs/figures/a-lab")
    outside = {runner.work_folder(Path(name)) for name in ("/x/lab", "/y/lab")}
    assert len(outside) == 2
    assert all(path.name.startswith("lab-") for path in outside)


def test_default_folders_follow_preset_and_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "root", lambda: Path("r"))
    assert runner.output_folder("lab") == Path("r/figures/lab")
    assert runner.output_folder("quick") == Path("r/figures/lab-quick")
    assert runner.output_folder("lab", "owner/a model") == Path("r/figures/a-model")
    assert runner.output_folder("paper", "owner/a model") == Path("r/figures/a-model-paper")
    assert os.sep not in runner.output_folder("lab", "x/..").name.replace("..", "")
