"""Sweeps in real processes: whatever is killed, every prompt once and the same results."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
from units import ITEMS, Deadly, Slow, held, length, started, wait_for

from nemo_kit import files
from nemo_kit.checks import MachineError
from nemo_kit.models import DiffusionModel
from nemo_kit.store import Sweep, detect_all, localize_all, run
from nemo_kit.store.work import ModelRef

LAB = Path(__file__).parents[1] / "nemo_kit" / "lab" / "model" / "model_index.json"


def sweep(store: Path, function: Any, items: Any = ITEMS, **options: Any) -> Sweep:
    return run(function, items, store, {}, name="slow", progress=False, **options)


def assert_each_once(found: Sweep, store: Path, items: Any = ITEMS) -> None:
    assert list(found.frame["prompt"]) == list(items)
    assert list(found.frame["n"]) == [len(item) for item in items]
    assert len(set(held(store))) == len(items)
    assert not list(store.rglob("*.tmp"))


class Killer(threading.Thread):
    """Kills by SIGKILL the process that took the latest item, in mid-sweep."""

    def __init__(self, log: Path, calls: int = 6) -> None:
        super().__init__()
        self.log, self.calls = log, calls
        self.start()

    def run(self) -> None:
        wait_for(lambda: len(started(self.log)) >= self.calls)
        self.seen = started(self.log)
        self.victim = self.seen[-1][0]
        os.kill(self.victim, signal.SIGKILL)

    def check(self) -> None:
        """Work went on without it, and hardly any was done twice."""
        self.join()
        later = started(self.log)[len(self.seen) + 2 :]  # it may have begun two more until then
        assert len(later) > len(ITEMS) / 2
        assert self.victim not in {process for process, _ in later}
        assert len(started(self.log)) <= 1.25 * len(ITEMS)  # few are done twice


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, processes=True, threads_per_worker=1, dashboard_address=None
    ) as local:
        yield local


def test_a_killed_worker_process_is_replaced(tmp_path: Path) -> None:
    store, log = tmp_path / "store", tmp_path / "log"
    killer = Killer(log)
    found = sweep(store, Slow(str(log)), workers=2)
    killer.check()
    assert_each_once(found, store)
    assert (found.computed, found.reused) == (len(ITEMS), 0)


def test_an_item_that_kills_its_process_is_recorded_and_the_rest_is_done(tmp_path: Path) -> None:
    items = ITEMS[:8]
    found = sweep(tmp_path / "store", Deadly(str(tmp_path / "log"), 0.0), items, workers=2)
    assert list(found.frame["prompt"]) == [item for item in items if item != Deadly.item]
    [failed] = found.failed.to_dict("records")
    assert failed["item"] == Deadly.item
    assert failed["error"].startswith("WorkerDied: its process was killed 2 times")
    again = sweep(tmp_path / "store", Slow(str(tmp_path / "log"), 0.0), items, retry_failed=True)
    assert (again.computed, len(again.failed)) == (1, 0)


def test_a_dask_worker_killed_in_mid_sweep(cluster: Any, tmp_path: Path) -> None:
    from distributed import Client

    store, log = tmp_path / "store", tmp_path / "log"
    with Client(cluster) as client:
        killer = Killer(log)
        found = sweep(store, Slow(str(log)), executor=client)
        killer.check()
        assert_each_once(found, store)
        assert client.status == "running"  # what was lent is not shut down
    address = cluster.scheduler_address
    again = sweep(store, Slow(str(log)), [*ITEMS, "new"], executor=address)
    assert (again.computed, again.reused) == (1, len(ITEMS))


def test_what_the_cluster_gave_up_on_is_recorded(tmp_path: Path) -> None:
    scheduler = pytest.importorskip("distributed.scheduler")
    found = sweep(tmp_path, length, ITEMS[:3], executor=GivesUp(scheduler.KilledWorker))
    assert list(found.failed["item"]) == ITEMS[1:2]
    assert found.failed["error"][0].startswith("WorkerDied: Attempted to run task")
    assert sweep(tmp_path, length, ITEMS[:3], retry_failed=True).computed == 1


class GivesUp(ThreadPoolExecutor):
    """Stands for a cluster on which the second item killed every worker it was tried on."""

    def __init__(self, error: Any) -> None:
        super().__init__(1)
        self.error = error

    def submit(self, attempt: Any, function: Any, item: Any) -> Any:
        return super().submit(self.die if item == ITEMS[1] else attempt, function, item)

    def die(self, *_: Any) -> None:
        from distributed.scheduler import WorkerState

        worker = WorkerState(address="tcp://127.0.0.1:1", status="closed", pid=1, name="w",
                             nthreads=1, memory_limit=0, local_directory="", nanny="",
                             server_id="w", services={}, versions={}, extra={})  # fmt: skip
        raise self.error("task", worker, 3)


def test_a_killed_runner_goes_on_and_leaves_no_worker_behind(tmp_path: Path) -> None:
    """It loses at most the open batch, and never what was written; one without, test_store has."""
    store, log, workers, batch = tmp_path / "store", tmp_path / "log", 2, 15
    script = str(Path(__file__).with_name("units.py"))
    command = [sys.executable, script, str(store), str(log), str(workers), str(batch)]
    runner = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: len(started(log)) >= 20)
    children = psutil.Process(runner.pid).children(recursive=True)
    runner.kill()
    runner.wait()
    assert psutil.wait_procs(children, timeout=60)[1] == []
    kept, begun = len(held(store)), len(started(log))
    assert begun - batch - 2 * workers <= kept < len(ITEMS)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    computed, reused, total = map(int, done.stdout.split())
    assert (computed, reused) == (len(ITEMS) - kept, kept)
    assert total == sum(map(len, ITEMS))
    assert "prompt/s" in done.stderr  # a bar that says how long


def test_an_interrupt_ends_workers_in_the_middle_of_their_items(tmp_path: Path) -> None:
    code = (
        "import signal, sys; from units import *; from nemo_kit.store import run\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored behind nohup\n"
        "run(Slow(sys.argv[2], 300.0), ITEMS, sys.argv[1], {}, name='slow', workers=2)"
    )
    store, log = tmp_path / "store", tmp_path / "log"
    runner = subprocess.Popen(
        [sys.executable, "-c", code, str(store), str(log)], cwd=Path(__file__).parent,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for(lambda: len(started(log)) == 2)
    children = psutil.Process(runner.pid).children(recursive=True)
    runner.send_signal(signal.SIGINT)
    told = runner.communicate(timeout=60)[1]  # each item would take five minutes
    assert told.rstrip().endswith("KeyboardInterrupt")
    assert psutil.wait_procs(children, timeout=10)[1] == []
    assert len(started(log)) == 2
    assert not list(store.rglob("*.parquet"))


def test_two_sweeps_on_one_store_share_the_work(tmp_path: Path) -> None:
    store, log = tmp_path / "store", tmp_path / "log"
    with ThreadPoolExecutor(2) as both:
        results = list(both.map(lambda _: sweep(store, Slow(str(log)), batch=1), range(2)))
    for found in results:
        assert_each_once(found, store)
    assert sum(found.computed for found in results) <= 1.25 * len(ITEMS)  # few are done twice
    assert min(found.computed for found in results) >= 5


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_any_executor_will_do_and_is_left_open(tmp_path: Path, kind: str) -> None:
    made = {
        "threads": lambda: ThreadPoolExecutor(3),
        "processes": lambda: ProcessPoolExecutor(1, get_context("spawn")),
    }
    with made[kind]() as executor:
        found = sweep(tmp_path, length, [*ITEMS, "broken"], executor=executor)
        assert executor.submit(len, "open").result() == 4
    assert list(found.frame["prompt"]) == ITEMS
    assert list(found.failed["error"]) == ["ValueError: cannot do broken"]


def test_a_lent_pool_whose_worker_dies_ends_the_run_with_a_clear_error(tmp_path: Path) -> None:
    deadly = Deadly(str(tmp_path / "log"), 0.0)
    with (
        ProcessPoolExecutor(1, get_context("spawn")) as pool,
        pytest.raises(RuntimeError, match=r"a worker process of the executor died.*are kept"),
    ):
        sweep(tmp_path / "store", deadly, executor=pool)
    assert sweep(tmp_path / "store", Slow(str(tmp_path / "log"), 0.0)).reused >= 3


def test_a_full_disk_ends_the_run_with_its_workers_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    before = active_children()  # a cluster's, maybe

    def full(file: int) -> None:
        calls.append(file)
        if len(calls) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match=r"can't be written to .*No space left.*goes on from there"):
        sweep(tmp_path / "store", length, workers=2, batch=1)
    monkeypatch.undo()
    assert set(active_children()) <= set(before)
    assert len(held(tmp_path / "store")) == 3
    again = sweep(tmp_path / "store", length)
    assert (again.computed, again.reused) == (len(ITEMS) - 3, 3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"workers": 0}, ValueError, "workers must be an integer of at least 1, got 0"),
        ({"workers": 2, "executor": "tcp://x:1"}, ValueError, "workers must be 1 beside an exec"),
        ({"executor": 3}, TypeError, "executor must be a concurrent.futures.Executor, a dask"),
    ],
)
def test_bad_executors_are_refused(
    tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        sweep(tmp_path, length, **options)


def test_a_function_that_cannot_be_sent_is_refused(tmp_path: Path) -> None:
    with (
        ProcessPoolExecutor(1, get_context("spawn")) as pool,
        pytest.raises(TypeError, match="function can't be sent to another process"),
    ):
        sweep(tmp_path, lambda item: {"prompt": item}, executor=pool)


def test_a_function_of_a_notebook_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def typed(item: str) -> dict[str, str]:
        return {"prompt": item}

    typed.__module__ = "__main__"
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    with pytest.raises(TypeError, match="is of this session alone; it must be importable"):
        sweep(tmp_path, typed, workers=2)


def test_without_dask_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ValueError, match=r"pip install 'nemo_kit\[cluster\]'"):
        sweep(tmp_path, length, executor="tcp://127.0.0.1:1")


def test_the_progress_bar_has_an_estimate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(length, ITEMS[:3], tmp_path, {}, name="slow")
    run(length, ITEMS[:5], tmp_path, {}, name="slow")
    shown = capsys.readouterr().err
    assert "slow, 3 found: 100%" in shown
    assert "2/2 [00:0" in shown


# the model in workers


@pytest.mark.slow
@pytest.mark.skipif(not LAB.is_file(), reason="the embedded model is not there: make lab")
@pytest.mark.usefixtures("warm_workers")
def test_workers_open_the_model_by_its_name(tmp_path: Path) -> None:
    """The same neurons as in this process, and the same key, so that each goes on from others."""
    from nemo_kit import lab, load

    model = load("lab", device="cpu")
    prompts = [*lab.prompts("verbatim")["prompt"][:1], *lab.prompts("non_memorized")["prompt"][:2]]
    options: dict[str, Any] = {"seeds": range(1, 5), "progress": False}
    here = localize_all(model, prompts, store=tmp_path / "here", **options)
    model.samples_evaluated = 0
    there = localize_all(model, prompts, store=tmp_path / "there", workers=2, **options)
    assert model.samples_evaluated == 0
    assert list(here["prompt"]) == list(there["prompt"]) == prompts
    assert list(there["refined"]) == list(here["refined"])
    assert any(here["refined"])
    assert list(there["samples_evaluated"]) == list(here["samples_evaluated"])
    names = [
        (path.parent.name, held(tmp_path / folder))
        for folder in ("here", "there")
        for path in (tmp_path / folder).rglob("*.parquet")
    ]
    assert names[0][0] == names[1][0]
    assert sorted(names[0][1]) == sorted(names[1][1])


def test_threads_take_turns_with_one_model(toy_model: DiffusionModel, tmp_path: Path) -> None:
    options: dict[str, Any] = {"seeds": [1, 2], "progress": False}
    prompts = ["cat 0", "cat 1", "cat 2"]
    here = detect_all(toy_model, prompts, store=tmp_path / "here", **options)
    with ThreadPoolExecutor(3) as pool:
        found = detect_all(toy_model, prompts, store=tmp_path / "t", executor=pool, **options)
    assert list(found["score"]) == list(here["score"])


def test_a_reference_holds_the_place_of_the_model(
    toy_model: DiffusionModel, tmp_path: Path
) -> None:
    reference = pickle.loads(pickle.dumps(ModelRef.of(toy_model)))
    assert reference.model is None, "no weights are sent"
    options: dict[str, Any] = {"seeds": [1, 2], "store": tmp_path, "progress": False}
    first = detect_all(toy_model, ["cat 0"], **options)
    again = detect_all(reference, ["cat 0"], **options)
    pd.testing.assert_frame_equal(first.drop(columns=["pairwise", "kept_seeds"]),
                                  again.drop(columns=["pairwise", "kept_seeds"]))  # fmt: skip
    other = detect_all(reference, ["cat 1"], **options)
    assert list(other["prompt"]) == ["cat 1"]
    assert ModelRef.of(toy_model, "cuda").opening["device"] == "cuda"


def test_a_model_changed_in_memory_is_not_mistaken_for_its_folder(
    toy_model: DiffusionModel, tmp_path: Path
) -> None:
    weight = next(toy_model.denoiser.parameters())
    kept = weight.clone()
    try:
        weight.view(-1)[0] += 1
        reference = ModelRef.of(toy_model, "cpu")
    finally:
        weight.copy_(kept)
    with pytest.raises(MachineError, match=r"is not the one given: they differ in weights. Was it"):
        detect_all(reference, ["cat 0"], [1, 2], store=tmp_path, progress=False)
    assert not list(tmp_path.rglob("*.parquet"))  # no fault of the prompt


def test_a_model_that_cannot_be_opened_ends_the_run(
    toy_model: DiffusionModel, tmp_path: Path
) -> None:
    from dataclasses import replace

    known = ModelRef.of(toy_model, "cpu")
    opening = known.opening | {"name": str(tmp_path / "gone")}
    gone = replace(known, opening=opening, key={"other": 1})
    with pytest.raises(MachineError, match="a worker can't open the model"):
        detect_all(gone, ["cat 0"], [1, 2], store=tmp_path, progress=False)


def test_workers_do_not_share_a_gpu(
    toy_model: DiffusionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    on_gpu = ModelRef.of(toy_model, "cuda")
    with pytest.raises(ValueError, match="workers must be at most 1, one for each GPU here, got 2"):
        localize_all(on_gpu, ["cat 0"], store=tmp_path, workers=2)
