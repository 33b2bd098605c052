"""Fixtures shared by the tests: small models, nothing downloaded."""

from __future__ import annotations

import json
import os

os.environ["HF_HUB_OFFLINE"] = "1"

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import SD2, ToyDenoiser, save_pipeline
from units import warm, written

from nemo_kit import lab
from nemo_kit.localization import calibrate
from nemo_kit.models import DiffusionModel, load
from nemo_kit.settings import SimilaritySettings

TOY_SIMILARITY = SimilaritySettings(kernel=3)  # for 16×16 latents
TOY_PROMPTS = [f"{word} {number}" for number in range(6) for word in ("cat", "red cup", "Öl")]
REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--every-family",
        action="store_true",
        help="run every notebook on every family of models, not a selection (six minutes)",
    )


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random-weight pipeline in the shape of SD 1.x, as a diffusers folder."""
    return save_pipeline(tmp_path_factory.mktemp("models") / "toy")


@pytest.fixture(scope="session")
def _toy(toy_folder: Path) -> DiffusionModel:
    model = load(str(toy_folder), device="cpu")
    model.calibration = calibrate(model, TOY_PROMPTS, range(1, 5), similarity=TOY_SIMILARITY)
    return model


@pytest.fixture
def toy_model(_toy: DiffusionModel) -> DiffusionModel:
    """The random-weight model, calibrated, with its sample count at 0."""
    _toy.samples_evaluated = 0
    return _toy


@pytest.fixture(scope="session")
def _lab() -> DiffusionModel:
    if not (lab.MODEL / "model_index.json").is_file():
        pytest.skip("the embedded model is not there: make lab")
    return load("lab", device="cpu")


@pytest.fixture
def lab_model(_lab: DiffusionModel) -> DiffusionModel:
    """The embedded model, opened once, with its sample count at 0; tests leave it as it is."""
    _lab.samples_evaluated = 0
    return _lab


@pytest.fixture(scope="session")
def sd2_model(tmp_path_factory: pytest.TempPathFactory) -> DiffusionModel:
    """The same in the shape of SD 2.x, which predicts v."""
    folder = tmp_path_factory.mktemp("models") / "sd2"
    return load(str(save_pipeline(folder, prediction="v_prediction", **SD2)), device="cpu")


@pytest.fixture
def toy_denoiser() -> ToyDenoiser:
    """Three value layers whose outputs can be worked out on paper."""
    return ToyDenoiser()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The released code's data files, from NEMO_KIT_SHARED or beside the repository."""
    folder = Path(os.environ.get("NEMO_KIT_SHARED", REPOSITORY.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip(f"the released code's data files are not at {folder}; set NEMO_KIT_SHARED")
    return folder


@pytest.fixture
def begin() -> Iterator[Callable[..., Any]]:
    """Begins a function in a process of its own, with a file for what it prints; none outlives."""
    begun = []

    def one(out: Path, function: Callable[..., None], *given: Any) -> Any:
        begun.append(warm().Process(target=written, args=(str(out), function, *given)))
        begun[-1].start()
        return begun[-1]

    yield one
    for process in begun:
        process.kill()


@pytest.fixture
def warm_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of a sweep begin at once; that they begin as fresh ones, test_sweeps has."""
    monkeypatch.setattr("nemo_kit.store.executors.multiprocessing.get_context", lambda _: warm())


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The job of the one notebook of a folder, `tmp_path/notebooks` by default."""
    from nemo_kit import figures
    from nemo_kit.figures import runner

    monkeypatch.setattr(runner, "root", lambda: tmp_path)

    def planned(folder: Path | None = None, preset: str = "quick", **given: Any) -> Any:
        books = figures.read_all(folder or tmp_path / "notebooks")
        [job] = runner.plan(books, figures.select(books), preset, tmp_path / "figs", **given)
        return job

    return planned


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runner has cells run in this process, as a kernel would, where no kernel is tested."""
    from books import run_cells

    from nemo_kit.figures import output, runner
    from nemo_kit.progress import follow, followed

    def execute(job: Any, now: Path, *_: Any) -> str:
        task = json.loads((now / "job.json").read_text())
        with monkeypatch.context() as kernel:
            for name in ("folder", "retry_failed", "also"):
                kernel.setattr(followed, name, getattr(followed, name))
            kernel.setattr(output, "_written", {})
            kernel.chdir(job.book.path.parent)
            follow(now, **task["told"])
            run_cells(job.book.path, **task["parameters"])
        return ""

    monkeypatch.setattr(runner, "_execute", execute)
