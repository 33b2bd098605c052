"""Figure runs that are killed, stopped, or met by a second one: real processes, a tiny notebook.

The notebook works on six items through ``experiments.run``; each item that is worked on leaves a
line in a file, so that the tests count work and never seconds.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from test_figures import NAME, notebook, wait_until_gone

RUN = """
import signal, sys
from pathlib import Path
from nemo_kit import figures
from nemo_kit.figures import gallery, keys, report, runner
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored behind nohup
root = Path(sys.argv[1])
runner.root = lambda: root
keys.package_digest = lambda: "as it is"
jobs = runner.plan(figures.select(["quickstart"]), "quick", root / "figs")
with runner.alone(jobs):
    outcomes = report.draw(jobs, 600, log=True)
    gallery.write(root / "figs")
sys.exit(any(outcome.error for outcome in outcomes.values()))
"""
WORK = """
import os, time
from pathlib import Path
from matplotlib.figure import Figure
from nemo_kit import experiments, figures
root = Path(store).parents[1]
def work(item):
    with (root / "worked").open("a") as file:
        file.write(f"{item}\\n")
    if item == 3 and not (root / "go").exists():
        (root / "pid").write_text(str(os.getpid()))
        time.sleep(600)
    return {"n": item, "square": item * item}
frame = experiments.run(work, range(6), store, {}, name="work").frame
fig = Figure(figsize=(2, 1))
fig.subplots().plot(frame["n"], frame["square"])
figures.save(fig, frame, "quickstart", out)
"""
END = f"figures.write_manifest(out, {NAME!r}, globals())"
HALF = {"00_quickstart.ipynb", "00_quickstart.log", ".lock"}


class Run:
    """A folder with the tiny notebook, and processes that draw it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        notebook(root / "notebooks", WORK, END)

    def start(self) -> subprocess.Popen[str]:
        """A runner in a process of its own."""
        command = [sys.executable, "-c", RUN, str(self.root)]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    def until_item_3(self) -> tuple[subprocess.Popen[str], int]:
        """A runner whose kernel has worked on three items; the kernel's process id."""
        runner, pid = self.start(), self.root / "pid"
        while not pid.exists() or not pid.read_text():
            assert runner.poll() is None, runner.communicate()[1]
            time.sleep(0.05)
        return runner, int(pid.read_text())

    def finish(self) -> str:
        """Draw without a hitch; what it said."""
        (self.root / "go").touch()
        runner = self.start()
        said = runner.communicate(timeout=120)[1]
        assert runner.returncode == 0, said
        return said

    def figures(self) -> dict[str, bytes]:
        """Name and content of what was published, the manifest's aside."""
        out = self.root / "figs"
        files = sorted(out.iterdir()) if out.exists() else []
        return {p.name: p.read_bytes() for p in files if p.suffix in {".png", ".csv"}}

    @property
    def worked(self) -> list[int]:
        """Items in the order they were worked on."""
        return [int(line) for line in (self.root / "worked").read_text().split()]

    def left(self) -> set[str]:
        """What is in the work folder."""
        return {path.name for path in (self.root / "runs" / "figures" / "figs").iterdir()}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


@pytest.fixture
def undisturbed(tmp_path: Path) -> dict[str, bytes]:
    """The figures as the notebook's cell draws them where nobody disturbs it."""
    root = tmp_path / "undisturbed"
    (root / "runs").mkdir(parents=True)
    (root / "go").touch()
    exec(WORK, {"store": str(root / "runs" / "store"), "out": str(root / "figs")})
    return {path.name: path.read_bytes() for path in (root / "figs").iterdir()}


def kill_runner(runner: subprocess.Popen[str], kernel: int) -> None:
    runner.send_signal(signal.SIGKILL)


def kill_kernel(runner: subprocess.Popen[str], kernel: int) -> None:
    psutil.Process(kernel).kill()


@pytest.mark.slow
@pytest.mark.parametrize("kill", [kill_runner, kill_kernel])
def test_after_a_kill_the_next_run_goes_on_and_ends_with_the_same_figures(
    run: Run, undisturbed: dict[str, bytes], kill: Callable[[subprocess.Popen[str], int], None]
) -> None:
    runner, kernel = run.until_item_3()
    refused = run.start().communicate(timeout=60)[1] if kill is kill_runner else ""
    kill(runner, kernel)
    said = runner.communicate(timeout=60)[1]
    wait_until_gone(kernel)
    assert run.figures() == {}
    if kill is kill_runner:
        assert "another run is drawing these figures" in refused
        assert "wait until it has ended, or name another folder with --out" in refused
    else:
        assert runner.returncode == 1
        assert "failed after" in said
        assert run.left() == HALF
    run.finish()
    assert run.worked == [0, 1, 2, 3, 3, 4, 5]  # only what was under way is done twice
    assert sorted(run.figures()) == ["quickstart.csv", "quickstart.png"]
    assert run.figures() == undisturbed
    assert run.left() == HALF
    assert (run.root / "figs" / "index.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_ends_its_kernel_and_leaves_the_earlier_figures(
    run: Run, number: signal.Signals
) -> None:
    runner, kernel = run.until_item_3()
    out = run.root / "figs"
    out.mkdir()
    (out / "quickstart.png").write_bytes(b"earlier")
    runner.send_signal(number)
    runner.communicate(timeout=60)
    assert runner.returncode not in (0, 1)
    wait_until_gone(kernel)
    assert run.figures() == {"quickstart.png": b"earlier"}
    assert run.left() == HALF


def test_what_a_killed_run_left_is_cleared_away(tmp_path: Path) -> None:
    from nemo_kit.figures import jobs, registry, runner

    job = jobs.Job(
        NAME, "quick", tmp_path, registry.parameters(NAME), tmp_path / "o", tmp_path / "w", {}, ""
    )
    (job.work / f"{NAME}-17").mkdir(parents=True)
    (job.work / f"{NAME}-17" / "quickstart.png").touch()
    (job.work / f"{NAME}-17.job.json").touch()
    (job.work / f"{NAME}.ipynb").touch()
    job.out.mkdir()
    for name in (".quickstart.png.abc.tmp", f".{NAME}.manifest.json.abc.tmp", "quickstart.png"):
        (job.out / name).touch()
    with runner.alone([job]):
        assert {path.name for path in job.work.iterdir()} == {f"{NAME}.ipynb", ".lock"}
        assert [path.name for path in job.out.iterdir()] == ["quickstart.png"]


def test_a_run_stops_at_a_failure_unless_it_is_told_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from nemo_kit import figures
    from nemo_kit.figures import jobs, registry, report

    names = [NAME, "01_detection"]
    planned = [
        jobs.Job(name, "quick", tmp_path, registry.parameters(name), tmp_path, tmp_path, {}, "x")
        for name in names
    ]
    rows = figures.select(names)
    place = jobs.Place(3, 9, "localize", 12, 500, 3700.0)

    def fail(
        job: jobs.Job, limit: float, tick: Callable[[float, jobs.Place], None]
    ) -> jobs.Outcome:
        tick(5.0, place)
        return jobs.Outcome(5.0, "broke" if job.notebook == NAME else "")

    monkeypatch.setattr(report, "run", fail)
    outcomes = report.draw(planned, 60, log=True)
    assert list(outcomes) == [NAME]
    assert report.table(rows, planned, outcomes).splitlines()[2].split()[-3:] == [
        "-",
        "not",
        "drawn",
    ]
    said = capsys.readouterr().err
    assert "00_quickstart: cell 3 of 9, localize 12 of 500, about 1:01:40 left of this," in said
    assert "00_quickstart failed after 5 s: broke" in said
    assert list(report.draw(planned, 60, keep_going=True, log=True)) == names
    capsys.readouterr()
    report.draw(planned, 60, keep_going=True, log=False)
    bars = capsys.readouterr().err
    assert "localize 12/500" in bars
    assert "about 1:01:40 left" in bars


def test_a_bar_tells_its_numbers_while_it_is_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import json

    from nemo_kit.progress import FILE, Bar

    path = tmp_path / "work.json"
    with Bar(total=8, desc="detect", mininterval=0, file=(tmp_path / "shown").open("w")):
        assert not path.exists()  # nobody asked
    monkeypatch.setenv(FILE, str(path))
    with Bar(total=8, desc="detect", mininterval=0, file=(tmp_path / "shown").open("w")) as bar:
        assert json.loads(path.read_text()) == {
            "label": "detect", "done": 0, "total": 8, "left": None,
        }  # fmt: skip
        bar.update(2)
        bar.refresh()
        told = json.loads(path.read_text())
        assert (told["done"], told["total"]) == (2, 8)
        assert told["left"] > 0
    assert not path.exists()
    with Bar(total=8, disable=True) as bar:
        bar.update(2)
    assert not path.exists()
    monkeypatch.setenv(FILE, str(tmp_path / "nowhere" / "work.json"))
    with Bar(total=8, mininterval=0, file=(tmp_path / "shown").open("w")) as bar:
        bar.update(8)  # work goes on


def test_a_place_says_cell_and_work() -> None:
    from nemo_kit.figures.jobs import Place

    assert str(Place()) == "start-up"
    assert str(Place(3, 9)) == "cell 3 of 9"
    assert str(Place(3, 9, "detect", 1, 8)) == "cell 3 of 9, detect 1 of 8"
