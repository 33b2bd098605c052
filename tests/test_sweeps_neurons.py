"""A disturbed sweep of the method: each prompt once, and the neurons of an undisturbed run.

The disturbances themselves, with cheap work, are in test_sweeps.py and test_store.py.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from test_sweeps import Killer
from units import PROMPTS, Noted, held, localizing, main, started, wait_for, warm

from nemo_kit import files, localize
from nemo_kit.models import DiffusionModel, load
from nemo_kit.store import Sweep, run

SAME = ["prompt", "flagged", "score", "initial", "refined", "samples_evaluated", "settings"]


@pytest.fixture(scope="module")
def model(_toy: DiffusionModel, tmp_path_factory: pytest.TempPathFactory) -> DiffusionModel:
    """The toy in a folder that holds its calibration too, as another process opens it."""
    folder = shutil.copytree(_toy.name, tmp_path_factory.mktemp("calibrated") / "toy")
    _toy.calibration.save(folder / "nemo")
    return load(str(folder), "cpu")


@pytest.fixture(scope="module")
def undisturbed(model: DiffusionModel) -> pd.DataFrame:
    """What `localize` itself says of each prompt, without store or workers."""
    rows = [localize(model, p, [1, 2], threshold=0.5).to_row() for p in PROMPTS]
    frame = pd.DataFrame(rows)[SAME]
    assert frame["score"].nunique() == len(PROMPTS)  # a row of another prompt would show
    return frame


@pytest.fixture
def sweep(model: DiffusionModel, tmp_path: Path) -> Callable[..., Sweep]:
    """The sweep of the script in units.py, in this process or in workers of it."""
    work = localizing(model)

    def call(**options: Any) -> Sweep:
        noted = Noted(str(tmp_path / "log"), work)
        return run(noted, PROMPTS, tmp_path / "store", work.model.key, name="localize",
                   progress=False, batch=1, **options)  # fmt: skip

    return call


def shards(folder: Path) -> list[Path]:
    return sorted((folder / "store").rglob("*.parquet"))


def assert_same(found: Sweep, expected: pd.DataFrame, folder: Path) -> None:
    pd.testing.assert_frame_equal(found.frame[SAME], expected)
    assert found.failed.empty
    assert len(set(held(folder / "store"))) == len(PROMPTS)
    assert not list(folder.rglob("*.tmp"))


def test_after_a_worker_was_killed(
    sweep: Callable[..., Sweep], undisturbed: pd.DataFrame, tmp_path: Path
) -> None:
    dask, distributed = (pytest.importorskip(name) for name in ("dask", "distributed"))
    warm()
    with (
        dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}),
        distributed.LocalCluster(n_workers=2, processes=True, threads_per_worker=1,
                                 dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):  # fmt: skip
        killer = Killer(tmp_path / "log", calls=4)
        found = sweep(executor=client)
    killer.join()
    assert killer.victim not in {
        pid for pid, _ in started(tmp_path / "log")[len(killer.seen) + 2 :]
    }
    assert_same(found, undisturbed, tmp_path)
    assert (found.computed, found.reused) == (len(PROMPTS), 0)


def test_after_the_runner_was_killed(
    sweep: Callable[..., Sweep],
    model: DiffusionModel,
    undisturbed: pd.DataFrame,
    tmp_path: Path,
    begin: Callable[..., Any],
) -> None:
    out, store, log = tmp_path / "out", str(tmp_path / "store"), str(tmp_path / "log")
    runner = begin(out, main, store, log, 1, 1, model.name)
    wait_for(lambda: len(shards(tmp_path)) >= 3 or not runner.is_alive())
    runner.kill()
    runner.join()
    assert runner.exitcode == -9, out.read_text()
    kept = len(shards(tmp_path))
    assert 3 <= kept < len(PROMPTS)
    done = begin(out, main, store, log, 1, 1, model.name)
    done.join()
    assert done.exitcode == 0, out.read_text()
    computed, reused = map(int, out.read_text().splitlines()[-1].split()[:2])
    assert (computed, reused) == (len(PROMPTS) - kept, kept)
    again = sweep()
    assert again.computed == 0
    assert_same(again, undisturbed, tmp_path)


def test_after_a_shard_was_torn(
    sweep: Callable[..., Sweep], undisturbed: pd.DataFrame, tmp_path: Path
) -> None:
    sweep()
    os.truncate(shards(tmp_path)[1], 300)
    with pytest.warns(UserWarning, match="can't be read and is computed again"):
        again = sweep()
    assert again.computed == 1
    assert_same(again, undisturbed, tmp_path)


def test_after_the_disk_was_full(
    sweep: Callable[..., Sweep],
    undisturbed: pd.DataFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []

    def full(file: int) -> None:
        calls.append(file)
        if len(calls) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        sweep()
    monkeypatch.undo()
    assert len(shards(tmp_path)) == 3
    again = sweep()
    assert (again.computed, again.reused) == (len(PROMPTS) - 3, 3)
    assert_same(again, undisturbed, tmp_path)


def test_of_two_on_one_store(
    sweep: Callable[..., Sweep], undisturbed: pd.DataFrame, tmp_path: Path
) -> None:
    with ThreadPoolExecutor(2) as both:
        found = list(both.map(lambda _: sweep(), range(2)))
    for one in found:
        assert_same(one, undisturbed, tmp_path)
    assert sum(one.computed for one in found) <= len(PROMPTS) + 1  # they may meet at one
    assert min(one.computed for one in found) >= 1
