"""Noise of several seeds: a generator each, or all from one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from nemo_kit import detect, generate, localize
from nemo_kit.localization import prompt_differences
from nemo_kit.models import DiffusionModel
from nemo_kit.settings import DetectionSettings, LocalizationSettings, SimilaritySettings
from nemo_kit.similarity import noise_differences


def test_one_generator_is_one_draw_from_the_first_seed(toy_model: DiffusionModel) -> None:
    torch.manual_seed(1)
    wanted = torch.randn(10, 4, 16, 16)
    drawn = toy_model.noise(range(1, 11), "one generator")
    assert torch.equal(drawn, wanted)
    per_seed = toy_model.noise(range(1, 11))
    assert torch.equal(per_seed, toy_model.noise(range(1, 11)))
    assert torch.equal(per_seed[0], drawn[0])  # the first draw is seed 1's own
    assert not torch.equal(per_seed[1], drawn[1])


def test_seeds_of_one_generator_follow_one_another(toy_model: DiffusionModel) -> None:
    for seeds in ([1, 3], [2, 1], [1, 1]):
        with pytest.raises(ValueError, match=r"seeds must follow one another .* one generator"):
            toy_model.noise(seeds, "one generator")
    with pytest.raises(ValueError, match="noise must be one of per seed, one generator; got 'x'"):
        toy_model.noise([1], "x")  # type: ignore[arg-type]


def test_detection_and_localization_draw_as_they_are_told(toy_model: DiffusionModel) -> None:
    settings = DetectionSettings(noise="one generator")
    noise = toy_model.noise(range(1, 4), "one generator")
    found = prompt_differences(toy_model, "a cat", range(1, 4), settings=settings)[0]
    text = toy_model.embed("a cat").expand(3, -1, -1)
    with torch.no_grad():
        predicted = toy_model.predict_noise(noise, toy_model.timesteps(50)[1], text)
    assert torch.allclose(found, noise_differences(predicted, noise), atol=1e-4)
    scores = [
        detect(toy_model, "a cat", range(1, 4), threshold=0.0, settings=one).score[0]
        for one in (settings, DetectionSettings())
    ]
    assert scores[0] != scores[1]
    quick = LocalizationSettings(theta=1.5, refine=False, detection=settings)
    run = localize(toy_model, "a cat", range(1, 4), threshold=0.0, settings=quick)
    assert run.score == pytest.approx(scores[0])


def test_released_settings_run_whole(toy_model: DiffusionModel) -> None:
    """Differences 9 and 10 and the noise together; both modes find the same neurons."""
    settings = LocalizationSettings.released(SimilaritySettings(kernel=3))
    settings = replace(settings, theta=2.0, k=3)
    found = {
        search: localize(toy_model, "a red cup", range(1, 4), search, None, 0.3, settings)
        for search in ("sequential", "speculative")
    }
    assert found["sequential"].refined == found["speculative"].refined
    assert found["sequential"].settings.order == "released"
    other = replace(settings, order="index")
    plain = localize(toy_model, "a red cup", range(1, 4), threshold=0.3, settings=other)
    assert plain.initial == found["sequential"].initial


def test_pictures_come_from_one_generator_too(toy_model: DiffusionModel) -> None:
    options = {"steps": 2, "noise": "one generator"}
    together = generate(toy_model, ["a", "b"], range(2, 5), **options)
    alone = generate(toy_model, "b", range(2, 5), **options)
    assert np.abs(together[1].astype(int) - alone.astype(int)).max() <= 1
    own = generate(toy_model, "b", [2, 3], steps=2)
    assert np.abs(own[0].astype(int) - alone[0].astype(int)).max() <= 1  # seed 2's own draw
    assert np.abs(own[1].astype(int) - alone[1].astype(int)).max() > 1
    with pytest.raises(ValueError, match="seeds must follow one another"):
        generate(toy_model, "b", [2, 4], **options)
