"""Plans: what is measured and how it is scaled, with numbers that can be worked out on paper."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nemo_kit.experiments.plan import Measurement, check, draw, measure, plan
from nemo_kit.localization import detect
from nemo_kit.models import DiffusionModel

MEASURED = Measurement(
    detect_seconds=(1.0,) * 10, localize_seconds=(10.0, 12.0), flagged=2, bytes_skipped=1000.0,
    bytes_found=3000.0, row_bytes=500.0, worker_bytes=10**9, gpu_bytes=0,
)  # fmt: skip


def test_hours_disk_and_cost_follow_from_the_measurement() -> None:
    found = plan(MEASURED, 3600, price_per_hour=2.5)
    assert found.memorized_share == 0.2
    assert found.detect_hours == pytest.approx(1.0)
    assert found.localize_hours == pytest.approx(0.2 * (11 - 1))  # it contains its own detection
    assert found.hours == pytest.approx(3.0)
    assert found.low < found.hours < found.high
    assert found.cost == pytest.approx(7.5)
    assert found.disk_bytes == pytest.approx(3600 * (0.8 * 1000 + 0.2 * 3000))
    assert found.runner_bytes == 3 * 500 * 3600


def test_a_sample_without_memorized_prompts_leaves_room_for_some() -> None:
    found = plan(replace(MEASURED, flagged=0), 3600)
    assert found.hours == pytest.approx(1.0)
    assert found.low == pytest.approx(1.0, abs=0.01)
    assert found.high > 1.0 + 0.1 * (11 - 1)  # 0 of 10: above a tenth is possible
    sure = plan(replace(MEASURED, flagged=0), 3600, memorized_share=0.0)
    assert sure.high == pytest.approx(1.0)


def test_more_devices_take_fewer_hours_and_cost_the_same() -> None:
    one, four = plan(MEASURED, 1000, price_per_hour=1), plan(MEASURED, 1000, 4, price_per_hour=1)
    assert four.hours == pytest.approx(one.hours / 4)
    assert four.cost == pytest.approx(one.cost)
    assert four.worker_bytes == one.worker_bytes


def test_an_expected_share_takes_the_place_of_the_sample_s() -> None:
    none, all_ = (plan(MEASURED, 3600, memorized_share=share) for share in (0.0, 1.0))
    assert (none.localize_hours, none.hours) == (0.0, pytest.approx(1.0))
    assert all_.hours == pytest.approx(11.0)
    assert none.low == pytest.approx(none.high)  # all detections took the same
    assert none.cost is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": 0}, "prompts must be an integer of at least 1, got 0"),
        ({"devices": 0}, "devices must be an integer of at least 1, got 0"),
        ({"memorized_share": 1.5}, "memorized_share must be from 0 to 1, got 1.5"),
        ({"memorized_share": -1}, "memorized_share must be a finite number of at least 0"),
        ({"price_per_hour": -1}, "price_per_hour must be a finite number of at least 0"),
    ],
)
def test_bad_numbers_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(MEASURED, **({"prompts": 10} | options))


def test_a_draw_is_repeatable_and_in_order() -> None:
    texts = [str(i) for i in range(100)]
    assert draw(texts, 200) == texts
    some = draw(texts, 10)
    assert some == draw(texts, 10) == sorted(some, key=int)
    assert len(set(some)) == 10
    assert some != draw(texts, 10, seed=1)
    with pytest.raises(ValueError, match="count must be an integer of at least 1"):
        draw(texts, 0)


def test_a_measurement_counts_what_it_did(toy_model: DiffusionModel) -> None:
    found = measure(toy_model, ["cat 0", "cat 1", "cat 0"], [1, 2], threshold=0.5,
                    localizations=1)  # fmt: skip
    assert (len(found.detect_seconds), found.flagged, len(found.localize_seconds)) == (2, 2, 1)
    assert found.share == 1.0
    assert found.bytes_skipped > 0
    assert found.bytes_found > 0
    assert found.worker_bytes > 10**7


def test_time_ends_a_measurement_but_one_localization_is_timed(toy_model: DiffusionModel) -> None:
    prompts = ["cat 0", "cat 1", "cat 2"]
    options: dict[str, Any] = {"seeds": [1, 2], "threshold": 0.5}
    short = measure(toy_model, prompts, seconds=0.0, **options)
    assert (short.flagged, len(short.localize_seconds)) == (3, 1)
    assert len(measure(toy_model, prompts, **options).localize_seconds) == 3


def test_without_memorized_prompts_there_is_nothing_to_time(toy_model: DiffusionModel) -> None:
    options: dict[str, Any] = {"seeds": [1, 2], "threshold": 2.0}
    with pytest.raises(ValueError, match="none of the 1 prompts of the sample is memorized"):
        measure(toy_model, ["cat 0"], **options)


def test_prompts_given_as_memorized_count_only_where_detection_flags_them(
    toy_model: DiffusionModel,
) -> None:
    prompts = ["cat 0", "cat 1", "red cup 0", "red cup 1"]
    low, *_, high = sorted(detect(toy_model, prompts, [1, 2])["score"])
    ranked = list(detect(toy_model, prompts, [1, 2]).sort_values("score")["prompt"])
    options: dict[str, Any] = {"seeds": [1, 2], "threshold": (low + high) / 2}
    found = measure(toy_model, ranked[:1], memorized=[ranked[0], ranked[-1]], **options)
    assert (found.flagged, len(found.localize_seconds), found.dropped) == (0, 1, 1)
    late = measure(toy_model, ranked[:1], memorized=ranked, localizations=1, seconds=0.0, **options)
    assert len(late.localize_seconds) == 1  # however many are not flagged before it
    with pytest.raises(ValueError, match="memorized: detection flags none of the 2 prompts given"):
        measure(toy_model, ["cat 0"], memorized=["cat 1", "cat 2"], seeds=[1, 2], threshold=2.0)


def test_what_is_lacking_is_told_before_anything_is_measured(
    toy_model: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nemo_kit.experiments.plan._timed", pytest.fail)
    bare = replace(toy_model.calibration, statistics=None)
    monkeypatch.setattr(toy_model, "calibration", bare)
    with pytest.raises(ValueError, match=r"statistics: the model .* has none"):
        measure(toy_model, ["cat 0"], [1, 2], threshold=0.5)
    monkeypatch.setattr(toy_model, "calibration", None)
    with pytest.raises(ValueError, match=r"threshold: the model .* has none"):
        measure(toy_model, ["cat 0"], [1, 2])
    assert toy_model.samples_evaluated == 0


def test_a_check_is_of_the_plan_for_these_prompts(toy_model: DiffusionModel) -> None:
    with pytest.raises(ValueError, match="predicted must be for 2 prompts on 1 device, got 3 on 1"):
        check(toy_model, ["a", "b"], plan(MEASURED, 3), [1, 2])
    ratio = check(toy_model, ["a", "b"], plan(MEASURED, 2), [1, 2], progress=False, threshold=2.0)
    assert 0 < ratio < 1  # nobody needs 6 seconds for these
