"""Figure runs that are killed, stopped, or met by a second one: real processes, a tiny notebook.

The notebook works on six items through ``nemo_kit.store.run``; each item that is worked on leaves a
line in a file, so that the tests count work and never seconds.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from tiny import NAME, TABLE, end, notebook, wait_until_gone

from nemo_kit import progress
from nemo_kit.figures import gallery, read_all, runner, select

RUN = """
import signal, sys
from pathlib import Path
from nemo_kit import figures
from nemo_kit.figures import gallery, runner
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored behind nohup
root = Path(sys.argv[1])
runner.root = lambda: root
books = figures.read_all(root / "notebooks")
jobs = runner.plan(books, figures.select(books), "quick", root / "figs")
outcomes = runner.draw(jobs, 600, keep_going=False, log=True)
gallery.write(root / "figs", books)
sys.exit(any(outcomes.values()))
"""
WORK = """
import os, time
from pathlib import Path
from matplotlib.figure import Figure
from nemo_kit import figures
from nemo_kit.store import run
root = Path(store).parents[1]
def work(item):
    with (root / "worked").open("a") as file:
        file.write(f"{item}\\n")
    if item == 3 and not (root / "go").exists():
        (root / "pid").write_text(str(os.getpid()))
        time.sleep(600)
    return {"n": item, "square": item * item}
frame = run(work, range(6), store, {}, name="work", batch=1).frame
fig = Figure(figsize=(2, 1))
fig.subplots().plot(frame["n"], frame["square"])
figures.save(fig, frame, "tiny", out, shows="squares")
"""
HALF = {f"{NAME}.ipynb", f"{NAME}.log", ".lock"}


class Run:
    """A folder with the tiny notebook, and processes that draw it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        notebook(root / "notebooks", WORK, end(NAME))

    def start(self) -> subprocess.Popen[str]:
        """A runner in a process of its own."""
        command = [sys.executable, "-c", RUN, str(self.root)]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    def until_item_3(self) -> tuple[subprocess.Popen[str], int]:
        """A runner whose kernel has worked on three items; the kernel's process id."""
        process, pid = self.start(), self.root / "pid"
        while not pid.exists() or not pid.read_text():
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.05)
        return process, int(pid.read_text())

    def finish(self) -> None:
        """Draw without a hitch, by a runner in this process."""
        (self.root / "go").touch()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(runner, "root", lambda: self.root)
            books = read_all(self.root / "notebooks")
            jobs = runner.plan(books, select(books), "quick", self.root / "figs")
            assert runner.draw(jobs, 600, keep_going=False, log=True) == {NAME: ""}
            gallery.write(self.root / "figs", books)

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
        """What is beside the figures: executed notebooks and logs."""
        return {path.name for path in (self.root / "figs" / "executed").iterdir()}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The figures as the notebook's cell draws them where nobody disturbs it."""
    root = tmp_path_factory.mktemp("undisturbed")
    (root / "runs").mkdir(parents=True)
    (root / "go").touch()
    (root / "nb.py").write_text(
        f"out, store = {str(root / 'figs')!r}, {str(root / 'runs' / 'store')!r}\n" + WORK
    )
    subprocess.run([sys.executable, str(root / "nb.py")], check=True, capture_output=True)
    return {path.name: path.read_bytes() for path in (root / "figs").iterdir()}


def kill_runner(process: subprocess.Popen[str], kernel: int) -> None:
    process.send_signal(signal.SIGKILL)


def kill_kernel(process: subprocess.Popen[str], kernel: int) -> None:
    psutil.Process(kernel).kill()


@pytest.mark.slow
@pytest.mark.parametrize("kill", [kill_runner, kill_kernel])
def test_after_a_kill_the_next_run_goes_on_and_ends_with_the_same_figures(
    run: Run, undisturbed: dict[str, bytes], kill: Callable[[subprocess.Popen[str], int], None]
) -> None:
    process, kernel = run.until_item_3()
    refused = run.start().communicate(timeout=300)[1] if kill is kill_runner else ""
    kill(process, kernel)
    said = process.communicate(timeout=300)[1]
    wait_until_gone(kernel)
    assert run.figures() == {}
    if kill is kill_runner:
        assert "another run is drawing these figures" in refused
        assert "wait until it has ended, or name another folder with --out" in refused
    else:
        assert process.returncode == 1
        assert "failed after" in said
        assert run.left() == HALF
    run.finish()
    assert run.worked == [0, 1, 2, 3, 3, 4, 5]  # only what was under way is done twice
    assert sorted(run.figures()) == ["tiny.csv", "tiny.png"]
    assert run.figures() == undisturbed
    assert run.left() == HALF
    assert (run.root / "figs" / "index.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_ends_its_kernel_and_leaves_the_earlier_figures(
    run: Run, number: signal.Signals
) -> None:
    process, kernel = run.until_item_3()
    out = run.root / "figs"
    out.mkdir(exist_ok=True)
    (out / "tiny.png").write_bytes(b"earlier")
    process.send_signal(number)
    process.communicate(timeout=300)
    assert process.returncode not in (0, 1)
    wait_until_gone(kernel)
    assert run.figures() == {"tiny.png": b"earlier"}
    assert run.left() == HALF


@pytest.mark.parametrize("at", range(5))
def test_a_kill_while_publishing_leaves_no_manifest_of_half_the_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """What a run wrote when it is killed at each of its writes; then the next run."""
    monkeypatch.setattr(runner, "root", lambda: tmp_path)
    saves = "".join(f'figures.save(f, d, "{name}", out, shows="x")\n' for name in "abc")
    books = read_all(notebook(tmp_path / "notebooks", saves, end(NAME)))
    [job] = runner.plan(books, select(books), "quick", tmp_path / "figs")
    job.out.mkdir()
    for name in "abc":
        (job.out / f"{name}.csv").write_text("earlier")
    files = {name: [f"{name}.csv"] for name in "abc"}
    manifest = job.out / f"{NAME}.manifest.json"
    manifest.write_text(json.dumps({"files": files, "key": job.key}))
    (now := job.out / "executed" / "now" / "figures").mkdir(parents=True)
    for name in "abc":
        (now / f"{name}.csv").write_text("new")
    (now / f"{NAME}.manifest.json").write_text(json.dumps({"files": files}))
    write, write_json, done = runner.write_atomically, runner.write_json, []

    def counted(call: Callable[..., None]) -> Callable[..., None]:
        def one(path: Path, content: object) -> None:
            if len(done) == at:
                (job.out / f".{path.name}.abc.tmp").write_text("half")
                raise KeyboardInterrupt
            done.append(path.name)
            call(path, content)

        return one

    monkeypatch.setattr(runner, "write_atomically", counted(write))
    monkeypatch.setattr(runner, "write_json", counted(write_json))
    if at == 4:
        assert runner._publish(job, now.parent, 0.0) == ""
        assert json.loads(manifest.read_text())["key"] == job.key
        assert done == ["a.csv", "b.csv", "c.csv", manifest.name]
        return
    with pytest.raises(KeyboardInterrupt):
        runner._publish(job, now.parent, 0.0)
    assert not manifest.exists()
    assert runner.plan(books, select(books), "quick", job.out)[0].reason == "missing"
    monkeypatch.setattr(runner, "_run", lambda *_: "")
    runner.draw([job], 60, keep_going=False, log=True)
    assert not list(job.out.glob(".*.tmp"))


def test_a_second_run_into_a_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from filelock import FileLock

    monkeypatch.setattr(runner, "root", lambda: tmp_path)
    books = read_all(notebook(tmp_path / "notebooks", TABLE, end(NAME)))
    jobs = runner.plan(books, select(books), "quick", tmp_path / "figs")
    work = tmp_path / "figs" / "executed"
    work.mkdir(parents=True)
    with (
        FileLock(work / ".lock"),
        pytest.raises(ValueError, match=r"another run is drawing these figures .* with --out"),
    ):
        runner.draw(jobs, 60, keep_going=False, log=True)


@pytest.fixture
def followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that this process reports to, for the test."""
    monkeypatch.setattr(progress.followed, "folder", None)
    monkeypatch.setattr(progress.followed, "retry_failed", False)
    return tmp_path


def test_a_bar_tells_its_numbers_while_it_is_open(followed: Path) -> None:
    path = followed / progress.WORK
    shown = (followed / "shown").open("w")
    with progress.Bar(total=8, desc="detect", mininterval=0, file=shown):
        assert not path.exists()  # nobody asked
    progress.follow(followed)
    with progress.Bar(total=8, desc="detect", mininterval=0, file=shown) as bar:
        assert json.loads(path.read_text()) == {
            "label": "detect", "done": 0, "total": 8, "left": None,
        }  # fmt: skip
        bar.update(2)
        bar.refresh()
        told = json.loads(path.read_text())
        assert (told["done"], told["total"]) == (2, 8)
        assert told["left"] > 0
    assert not path.exists()
    with progress.Bar(total=8, disable=True) as bar:
        bar.update(2)
    assert not path.exists()
    progress.follow(followed / "nowhere")
    with progress.Bar(total=8, mininterval=0, file=shown) as bar:
        bar.update(8)  # work goes on


def test_a_process_that_is_followed_tries_failed_prompts_again(followed: Path) -> None:
    from nemo_kit.store import run

    def work(item: str) -> dict[str, str]:
        if item == "b" and not (followed / "go").exists():
            raise ValueError("no memory")
        return {"prompt": item}

    def failed() -> list[str]:
        return list(
            run(work, "abc", followed / "store", {}, name="x", progress=False).failed["item"]
        )

    assert failed() == ["b"]
    assert not (followed / progress.FAILED).exists()
    (followed / "go").touch()
    progress.follow(followed)
    assert failed() == ["b"]
    assert (followed / progress.FAILED).read_text() == '"b"\n'
    progress.follow(followed, retry_failed=True)
    assert failed() == []
