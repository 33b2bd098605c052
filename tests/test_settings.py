"""Choices: defaults, presets, validation, and the way through plain values."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import pytest

from nemo_kit.settings import (
    DetectionSettings,
    LocalizationSettings,
    SimilaritySettings,
)


def test_defaults_are_the_codes_where_they_fix_the_threshold() -> None:
    detection = DetectionSettings()
    assert (detection.steps, detection.timestep_index, detection.guidance) == (50, 1, 0)
    assert (detection.calibration_guidance, detection.threshold_from) == (0, "pairs")
    settings = LocalizationSettings()
    assert (settings.theta, settings.theta_step, settings.theta_min) == (5, 0.25, 1)
    assert (settings.k, settings.k_step, settings.factor) == (0, 1, 0)
    assert settings.two_sided
    assert settings.score_theta_min
    assert settings.halves == "conditional"


def test_presets_take_a_side_in_all_ten_points() -> None:
    code, text = LocalizationSettings.released(), LocalizationSettings.paper()
    assert [s.name for s in (code, text)] == ["released", "paper"]

    def sides(s: LocalizationSettings) -> list:
        d = s.detection
        guided = (d.calibration_guidance, d.calibration_swapped)
        return [d.timestep_index, s.similarity.kind, guided, d.threshold_from, s.two_sided,
                s.score_theta_min, s.halves, s.order,
                s.similarity.data_range, d.noise]  # fmt: skip

    assert sides(code) == [
        1, "ms_ssim", (7.0, True), "pairs", True, False, "both", "released", "batch",
        "one generator",
    ]  # fmt: skip
    assert sides(text) == [
        0, "ssim", (0.0, False), "maxima", True, True, "conditional", "index", "pair",
        "per seed",
    ]  # fmt: skip


def test_presets_keep_the_similarity_of_smaller_latents() -> None:
    small = SimilaritySettings(kernel=3)
    assert LocalizationSettings.paper(small).similarity == SimilaritySettings("ssim", 3)
    batch = SimilaritySettings(kernel=3, data_range="batch")
    assert LocalizationSettings.released(small).similarity == batch


def test_calibration_may_be_guided() -> None:
    found = DetectionSettings.released().for_calibration()
    assert (found.guidance, found.swapped) == (7.0, True)
    assert DetectionSettings().for_calibration() == DetectionSettings()


@pytest.mark.parametrize("value", [DetectionSettings.released(), SimilaritySettings(kernel=3)])
def test_settings_come_back_from_plain_values(value: object) -> None:
    assert type(value)(**json.loads(json.dumps(asdict(value)))) == value


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"steps": 0}, "steps must be an integer of at least 1, got 0"),
        ({"timestep_index": -1}, "timestep_index must be an integer of at least 0"),
        ({"timestep_index": 50}, r"timestep_index must be below steps \(50\), got 50"),
        ({"guidance": math.inf}, "guidance must be a finite number of at least 0"),
        ({"calibration_guidance": -1}, "calibration_guidance must be a finite number"),
        ({"deviations": math.nan}, "deviations must be a finite number"),
        ({"threshold_from": "median"}, "threshold_from must be one of pairs, maxima"),
        ({"noise": "one"}, "noise must be one of per seed, one generator; got 'one'"),
    ],
)
def test_bad_detection_settings(changes: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        DetectionSettings(**changes)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"theta": math.nan}, "theta must be a number of at least 0, got nan"),
        ({"theta": 0.5}, "theta must be at least theta_min, got 0.5"),
        ({"theta_step": -0.25}, "theta_step must be a finite number of at least 0"),
        ({"theta_min": -1}, "theta_min must be a finite number of at least 0"),
        ({"k": -1}, "k must be an integer of at least 0"),
        ({"k_step": 0.5}, "k_step must be an integer of at least 0"),
        ({"theta_step": 0, "k_step": 0}, "theta_step and k_step can't both be 0"),
        ({"theta": math.inf, "k_step": 0}, "theta_step and k_step can't both be 0"),
        ({"factor": math.inf}, "factor must be a finite number"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1"),
        ({"halves": "text"}, "halves must be one of conditional, both; got 'text'"),
        ({"order": "size"}, "order must be one of index, released; got 'size'"),
    ],
)
def test_bad_localization_settings(changes: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        LocalizationSettings(**changes)
