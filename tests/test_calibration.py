"""Calibration and statistics: by hand, and every file there and back."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_kit.calibration import ActivationStatistics, Calibration, published
from nemo_kit.settings import DetectionSettings, SimilaritySettings

STATISTICS = ActivationStatistics(
    (torch.tensor([1.0, 2.0]), torch.tensor([0.5])), (torch.tensor([0.1, 0.0]), torch.tensor([2.0]))
)
CALIBRATION = Calibration(
    0.3, 0.1, 0.4, STATISTICS, SimilaritySettings(kernel=3, data_range=1.0),
    DetectionSettings(steps=20, threshold_from="maxima"), 7, "by hand", (1, 2),
)  # fmt: skip


def equal(a: ActivationStatistics, b: ActivationStatistics) -> bool:
    pairs = zip((*a.means, *a.stds), (*b.means, *b.stds), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def test_mean_and_unbiased_deviation() -> None:
    found = ActivationStatistics.from_activations({1: torch.tensor([[1.0, 2.0], [3.0, 2.0]])})
    torch.testing.assert_close(found.means[0], torch.tensor([2.0, 2.0]))
    torch.testing.assert_close(found.stds[0], torch.tensor([2.0**0.5, 0.0]))
    assert found.widths == {1: 2}


def test_statistics_come_back(tmp_path: Path) -> None:
    STATISTICS.save(tmp_path / "s.safetensors")
    assert equal(ActivationStatistics.load(tmp_path / "s.safetensors"), STATISTICS)


def test_calibration_comes_back(tmp_path: Path) -> None:
    CALIBRATION.save(tmp_path / "nemo")
    found = Calibration.load(tmp_path / "nemo")
    for name in (
        "mean",
        "std",
        "threshold",
        "similarity",
        "detection",
        "prompts",
        "source",
        "seeds",
    ):
        assert getattr(found, name) == getattr(CALIBRATION, name)
    assert found.statistics is not None
    assert equal(found.statistics, STATISTICS)


@pytest.mark.parametrize("failing", [1, 2])
def test_what_was_there_stays_where_it_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    CALIBRATION.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    calls = []

    def full(file: int) -> None:
        calls.append(file)
        if len(calls) == failing:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("nemo_kit.files.os.fsync", full)
    other = ActivationStatistics((torch.ones(4),), (torch.ones(4),))
    with pytest.raises(OSError, match="No space left"):
        replace(CALIBRATION, threshold=0.9, statistics=other).save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("statistics", [STATISTICS, None])
@pytest.mark.parametrize("last", range(1, 3))
def test_a_kill_leaves_no_calibration_beside_the_statistics_of_another(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    last: int,
    statistics: ActivationStatistics | None,
) -> None:
    """Killed at any step of the exchange, the old pair is there in full, or no calibration."""
    other = ActivationStatistics((torch.ones(2), torch.ones(1)), STATISTICS.stds)
    replace(CALIBRATION, threshold=0.9, statistics=other).save(tmp_path)
    steps = []

    def killed(real: Any) -> Any:
        def step(*arguments: Any, **options: Any) -> None:
            steps.append(real)
            if len(steps) > last:
                raise KeyboardInterrupt
            real(*arguments, **options)

        return step

    monkeypatch.setattr("nemo_kit.files.os.replace", killed(os.replace))
    monkeypatch.setattr("nemo_kit.files.Path.unlink", killed(Path.unlink))
    with pytest.raises(KeyboardInterrupt):
        replace(CALIBRATION, statistics=statistics).save(tmp_path)
    with pytest.raises(FileNotFoundError):
        Calibration.load(tmp_path)


def test_statistics_of_before_do_not_stay(tmp_path: Path) -> None:
    CALIBRATION.save(tmp_path)
    replace(CALIBRATION, statistics=None).save(tmp_path)
    assert Calibration.load(tmp_path).statistics is None


def test_statistics_of_another_model() -> None:
    assert STATISTICS.check({1: 2, 2: 1}) is STATISTICS
    text = r"the widths of the model's layers, \{1: 2\}, got \{1: 2, 2: 1\}"
    with pytest.raises(ValueError, match=text):
        STATISTICS.check({1: 2})


def test_a_calibration_without_statistics(tmp_path: Path) -> None:
    Calibration(0.3, 0.1, 0.4, None).save(tmp_path)
    assert Calibration.load(tmp_path).statistics is None


def test_the_published_threshold() -> None:
    found = published("CompVis/stable-diffusion-v1-4")
    assert found is not None
    assert (found.mean, found.std, found.threshold) == (0.358, 0.070, 0.428)
    assert found.statistics is None
    assert published("lab") is None


def test_the_released_statistics(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "statistics_additional_laion_prompts_v1_4.pt"
    found = ActivationStatistics.load(path)
    assert list(found.widths.values()) == [320, 320, 640, 640, 1280, 1280, 1280]
    found.save(tmp_path / "s.safetensors")
    assert equal(ActivationStatistics.load(tmp_path / "s.safetensors"), found)
    means, _ = torch.load(path, weights_only=True)
    assert torch.equal(means[6], found.means[6])


class Code:
    """Runs when it is unpickled by a careless reader."""

    def __reduce__(self) -> tuple:
        return (print, ("code of a .pt file was run",))


@pytest.mark.parametrize("content", [Code(), [1, 2, 3], (torch.ones(2), torch.ones(2)), 5])
def test_other_pt_files_are_refused(
    tmp_path: Path, content: object, capsys: pytest.CaptureFixture
) -> None:
    torch.save(content, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match=r"bad\.pt holds no activation statistics"):
        ActivationStatistics.load(tmp_path / "bad.pt")
    assert "was run" not in capsys.readouterr().out


def test_files_that_are_no_statistics(tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="holds no activation statistics"):
        ActivationStatistics.load(tmp_path / "bad.safetensors")
    (tmp_path / "bad.pt").write_bytes(b"no")
    with pytest.raises(ValueError, match="holds no activation statistics") as refused:
        ActivationStatistics.load(tmp_path / "bad.pt")
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    "activations",
    [{}, {2: torch.rand(3, 2)}, {0: torch.rand(3, 2), 1: torch.rand(3, 2)}, {1: torch.rand(1, 2)}],
)
def test_activations_that_give_no_statistics(activations: dict[int, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match=r"must be of layers 1 to n, .* at least 2 prompts, got"):
        ActivationStatistics.from_activations(activations)


@pytest.mark.parametrize(
    ("means", "stds", "text"),
    [
        ([], [], "means must be a list of tensors"),
        ([torch.ones(2, 2)], [torch.ones(2)], "means: layer 1 must be a 1-D tensor"),
        ([torch.ones(2)], [torch.ones(3)], "must have the same widths"),
        ([torch.ones(2)], [torch.ones(2), torch.ones(2)], "must have the same widths"),
        ([torch.tensor([torch.nan])], [torch.ones(1)], "means: layer 1 holds NaN or infinity"),
        ([torch.ones(1)], [-torch.ones(1)], "stds must not be negative"),
    ],
)
def test_bad_statistics(means: list, stds: list, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        ActivationStatistics(means, stds)  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [{"mean": None}, {"detection": {"seeds": 1}}, {"std": "x"}])
def test_a_damaged_calibration(tmp_path: Path, change: dict) -> None:
    CALIBRATION.save(tmp_path)
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=r"is no calibration"):
        Calibration.load(tmp_path)
    path.write_text("{")
    with pytest.raises(ValueError, match="is no calibration"):
        Calibration.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        Calibration.load(tmp_path / "none")


def test_a_threshold_that_is_no_number() -> None:
    with pytest.raises(ValueError, match="threshold must be a finite number, got nan"):
        Calibration(0.3, 0.1, float("nan"), None)


def test_false_alarms_are_the_share_of_a_normal_above_the_threshold() -> None:
    assert CALIBRATION.false_alarms() == pytest.approx(0.1587, abs=1e-4)  # one deviation above
    assert CALIBRATION.false_alarms(0.3) == pytest.approx(0.5)
    of_pairs = replace(CALIBRATION, detection=DetectionSettings(threshold_from="pairs"))
    assert of_pairs.false_alarms() is None  # a prompt's score is the largest of many
