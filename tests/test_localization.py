"""Detection, calibration, candidates and NeMo as a whole, on the random-weight model."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import TOY_PROMPTS, TOY_SIMILARITY
from toys import count_hooks

from nemo_kit.calibration import ActivationStatistics
from nemo_kit.hooks import gate_neurons
from nemo_kit.localization import (
    SEARCHES,
    DetectionSettings,
    Localization,
    LocalizationSettings,
    Score,
    calibrate,
    detect,
    detection,
    localize,
    prompt_differences,
    refine,
    select_initial,
)
from nemo_kit.localization.candidates import text_activations
from nemo_kit.localization.differences import Differences
from nemo_kit.memory import BatchSize
from nemo_kit.models import DiffusionModel
from nemo_kit.neuron_files import read_released, write_released
from nemo_kit.neurons import NeuronSet
from nemo_kit.settings import SimilaritySettings
from nemo_kit.similarity import noise_differences, pairwise, similarity

SEEDS = [1, 2, 3]
QUICK = LocalizationSettings(theta=2, theta_step=0.5, theta_min=1, k_step=2)
LOW = 0.1  # a threshold that every prompt of the random-weight model exceeds, blocked or not


# Algorithm 1


def test_prompt_differences_are_one_prediction(toy_model: DiffusionModel) -> None:
    found = prompt_differences(toy_model, ["a", "b"], SEEDS)
    assert found.shape == (2, 3, 4, 16, 16)
    assert toy_model.samples_evaluated == 6
    noise = toy_model.noise([2])
    epsilon = toy_model.predict_noise(noise, 961, toy_model.embed("b"))  # timesteps(50)[1]
    torch.testing.assert_close(found[1, 1], noise_differences(epsilon, noise)[0])


def test_the_papers_prediction_is_at_the_first_timestep(toy_model: DiffusionModel) -> None:
    found = prompt_differences(toy_model, "a", [2], settings=DetectionSettings.paper())
    noise = toy_model.noise([2])
    epsilon = toy_model.predict_noise(noise, 981, toy_model.embed("a"))
    torch.testing.assert_close(found[0], noise_differences(epsilon, noise))


@pytest.mark.parametrize("swapped", [False, True])
def test_guided_differences(toy_model: DiffusionModel, swapped: bool) -> None:
    settings = DetectionSettings(guidance=7, swapped=swapped)
    found = prompt_differences(toy_model, "a", [2], settings=settings)
    assert toy_model.samples_evaluated == 2
    noise = toy_model.noise([2])
    parts = [toy_model.predict_noise(noise, 961, toy_model.embed(t)) for t in ("a", "")]
    text, empty = reversed(parts) if swapped else parts
    expected = noise_differences(empty + 7 * (text - empty), noise)
    torch.testing.assert_close(found[0], expected, rtol=1e-3, atol=1e-4)


def test_differences_with_neurons_deactivated(toy_model: DiffusionModel) -> None:
    plain = prompt_differences(toy_model, "a", SEEDS)
    blocked = prompt_differences(toy_model, "a", SEEDS, NeuronSet({1: range(8)}))
    same = prompt_differences(toy_model, "a", SEEDS, NeuronSet({1: range(8)}), factor=1.0)
    assert not torch.allclose(plain, blocked, atol=1e-3)
    torch.testing.assert_close(plain, same)


def test_detection_by_hand(toy_model: DiffusionModel) -> None:
    frame = detect(toy_model, ["a", "bb", "ccc"], SEEDS, threshold=0.45)
    assert list(frame) == [
        "prompt", "score", "flagged", "kept_seeds", "mean_score", "threshold", "pairwise",
    ]  # fmt: skip
    for (_, row), drawn in zip(
        frame.iterrows(), prompt_differences(toy_model, ["a", "bb", "ccc"], SEEDS), strict=True
    ):
        pairs = pairwise(drawn, TOY_SIMILARITY)
        scores = [pairs[i, j].item() for i, j in ((0, 1), (0, 2), (1, 2))]
        assert row["pairwise"] == pytest.approx(scores, abs=1e-5)
        assert row["score"] == max(row["pairwise"])
        assert row["mean_score"] == pytest.approx(sum(scores) / 3, abs=1e-5)
        best = [max(scores[0], scores[1]), max(scores[0], scores[2]), max(scores[1:])]
        assert row["kept_seeds"] == [s for s, b in zip(SEEDS, best, strict=True) if b > 0.45]
        assert row["flagged"] == (max(scores) > 0.45)


def test_detection_uses_the_models_calibration(toy_model: DiffusionModel) -> None:
    frame = detect(toy_model, "a", SEEDS)
    assert frame["threshold"][0] == toy_model.calibration.threshold


@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_detection_in_any_batch_size(
    toy_model: DiffusionModel, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    expected = detect(toy_model, ["a", "b", "c"], SEEDS)
    calls: list[tuple] = []
    monkeypatch.setattr(detection, "AT_ONCE", at_once)
    found = detect(toy_model, ["a", "b", "c"], SEEDS, progress=lambda *c: calls.append(c))
    pd.testing.assert_frame_equal(found, expected, rtol=1e-4)
    assert calls == [("detect", done, 3) for done in (1, 2, 3)]


def test_calibration_by_hand(toy_model: DiffusionModel) -> None:
    texts = TOY_PROMPTS[:4]
    scores = torch.tensor(
        detect(toy_model, texts, SEEDS, threshold=0)["pairwise"].tolist()
    ).double()
    found = calibrate(toy_model, texts, SEEDS)
    assert found.mean == pytest.approx(scores.mean().item(), abs=1e-5)
    assert found.std == pytest.approx(scores.flatten().std().item(), abs=1e-5)
    assert found.threshold == pytest.approx(found.mean + found.std)
    assert (found.prompts, found.seeds, found.similarity) == (4, (1, 2, 3), TOY_SIMILARITY)
    maxima = DetectionSettings(threshold_from="maxima", deviations=2)
    found = calibrate(toy_model, texts, SEEDS, settings=maxima)
    assert found.mean == pytest.approx(scores.amax(1).mean().item(), abs=1e-5)
    assert found.threshold == pytest.approx(found.mean + 2 * found.std)
    expected = text_activations(toy_model, texts)
    for layer, activation in expected.items():
        torch.testing.assert_close(found.statistics.means[layer - 1], activation.mean(0))
        torch.testing.assert_close(found.statistics.stds[layer - 1], activation.std(0))


def test_guided_calibration_is_the_scripts(toy_model: DiffusionModel) -> None:
    released = calibrate(toy_model, TOY_PROMPTS[:3], SEEDS, settings=DetectionSettings.released())
    guided = DetectionSettings(guidance=7, swapped=True, noise="one generator")
    scores = detect(toy_model, TOY_PROMPTS[:3], SEEDS, 0, settings=guided)["pairwise"]
    assert released.mean == pytest.approx(torch.tensor(scores.tolist()).mean().item(), abs=1e-4)
    assert released.detection == DetectionSettings.released()


# Algorithms 1 to 4

STATISTICS = ActivationStatistics((torch.ones(2),), (torch.ones(2),))


@pytest.mark.parametrize("search", ["speculative", "bisect", "attributed"])
def test_other_modes_against_the_sequential_one(toy_model: DiffusionModel, search: str) -> None:
    """Speculative gives its sets; the verified modes a set that suffices, each neuron needed."""
    options = {"threshold": LOW, "settings": QUICK}
    plain = localize(toy_model, "a red cup", SEEDS, "sequential", **options)
    found = localize(toy_model, "a red cup", SEEDS, search, **options)
    assert found.search == search
    assert found.initial == plain.initial
    assert found.refined_score < found.refinement_threshold
    if search == "speculative":
        assert (found.refined, found.verified) == (plain.refined, None)
        assert found.refined_score == pytest.approx(plain.refined_score, abs=1e-5)
        return
    assert found.verified
    assert found.samples_evaluated < plain.samples_evaluated
    whole = prompt_differences(toy_model, "a red cup", SEEDS)[0]
    for neuron in found.refined:
        less = found.refined - NeuronSet.of([neuron])
        drawn = prompt_differences(toy_model, "a red cup", SEEDS, less)[0]
        score = similarity(whole, drawn, TOY_SIMILARITY).max()
        assert score >= found.refinement_threshold - 1e-5


@pytest.fixture
def found(toy_model: DiffusionModel) -> Localization:
    return localize(toy_model, "a red cup", SEEDS, threshold=LOW, settings=QUICK)


def test_what_localize_returns(found: Localization, toy_model: DiffusionModel) -> None:
    assert found.flagged
    assert found.kept_seeds == (1, 2, 3)
    assert found.score > LOW
    assert found.refined
    assert len(found.refined) < len(found.initial)
    assert found.refined - found.initial == NeuronSet()
    assert found.refined_score <= found.refinement_threshold
    assert found.search == "speculative"
    assert found.settings == replace(
        QUICK, detection=DetectionSettings(), similarity=TOY_SIMILARITY
    )
    widths = {layer.index: layer.width for layer in toy_model.searched}
    found.initial.check(widths)


def test_samples_and_seconds_are_counted(found: Localization, toy_model: DiffusionModel) -> None:
    assert found.samples_evaluated == toy_model.samples_evaluated == sum(found.samples.values())
    assert found.samples["detect"] == 3
    assert found.samples["activations"] == 0
    assert found.samples["refine"] >= len(found.initial.layers) + len(found.refined)
    assert found.seconds == pytest.approx(sum(found.times.values()))
    assert all(seconds > 0 for seconds in found.times.values())


def test_only_kept_seeds_are_evaluated(toy_model: DiffusionModel) -> None:
    scores = detect(toy_model, "a red cup", range(1, 6), threshold=0)["pairwise"][0]
    threshold = sorted(scores)[-1] - 1e-4  # the best pair alone is above
    found = localize(
        toy_model, "a red cup", range(1, 6), "sequential", threshold=threshold, settings=QUICK
    )
    assert len(found.kept_seeds) == 2
    assert found.samples["select"] % 2 == found.samples["refine"] % 2 == 0


def test_a_prompt_that_is_not_flagged(toy_model: DiffusionModel) -> None:
    found = localize(toy_model, "a", SEEDS, threshold=0.99)
    assert not found.flagged
    assert found.kept_seeds == ()
    assert not found.initial
    assert not found.refined
    assert found.theta is found.k is found.refined_score is None
    assert found.samples == {"detect": 3, "activations": 0, "select": 0, "refine": 0}


def test_the_refined_score_is_what_a_fresh_score_gives(
    found: Localization, toy_model: DiffusionModel
) -> None:
    plain = prompt_differences(toy_model, "a red cup", SEEDS)[0]
    blocked = prompt_differences(toy_model, "a red cup", SEEDS, found.refined)[0]
    both = torch.stack([plain, blocked], dim=1)  # [seeds, 2, C, H, W]
    scores = [pairwise(pair, TOY_SIMILARITY)[0, 1].item() for pair in both]
    assert found.refined_score == pytest.approx(max(scores), abs=1e-4)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_batch_size_changes_nothing(
    found: Localization, toy_model: DiffusionModel, batch_size: int
) -> None:
    settings = replace(QUICK, batch_size=batch_size)
    other = localize(toy_model, "a red cup", SEEDS, threshold=LOW, settings=settings)
    assert (other.initial, other.refined) == (found.initial, found.refined)
    assert other.samples == found.samples


def test_without_refinement(found: Localization, toy_model: DiffusionModel) -> None:
    settings = replace(QUICK, refine=False)
    other = localize(toy_model, "a red cup", SEEDS, threshold=LOW, settings=settings)
    assert other.refined == other.initial == found.initial
    assert other.refined_score == other.initial_score
    assert other.samples["refine"] == 0


def test_options_reach_the_search(toy_model: DiffusionModel) -> None:
    def run(**changes: Any) -> Localization:
        settings = replace(QUICK, **changes)
        return localize(toy_model, "a red cup", SEEDS, threshold=LOW, settings=settings)

    plain = run()
    assert run(factor=1.0).initial_score == pytest.approx(1.0)
    assert run(k_step=0, refine=False).k == 0
    assert run(score_theta_min=False, refine=False).theta == plain.theta + 0.5
    assert len(run(two_sided=False, refine=False).initial) < len(plain.initial)
    guided = DetectionSettings(guidance=7)
    halves = {h: run(detection=guided, halves=h, refine=False) for h in ("conditional", "both")}
    assert halves["conditional"].initial_score != halves["both"].initial_score
    assert halves["both"].samples["detect"] == 6


def test_gradients_under_guidance(toy_model: DiffusionModel) -> None:
    settings = replace(QUICK, theta=1.5, detection=DetectionSettings(guidance=3))
    found = localize(toy_model, "a", SEEDS, "attributed", threshold=LOW, settings=settings)
    assert found.verified
    assert len(found.refined) < len(found.initial)


def test_half_precision_is_an_option(toy_model: DiffusionModel) -> None:
    def initial(precision: str) -> float:
        settings = replace(QUICK, theta=1.5, refine=False, precision=precision)
        return localize(toy_model, "a", SEEDS, threshold=LOW, settings=settings).initial_score

    plain, half = initial("model"), initial("bfloat16")
    assert initial("float32") == plain
    assert half != plain
    assert half == pytest.approx(plain, abs=0.05)


def scored(*drawn: Any) -> Score:
    return Score(*drawn, TOY_SIMILARITY, BatchSize(8))


def test_effects_are_slopes(toy_model: DiffusionModel) -> None:
    """Against a difference quotient: one neuron's gate opened a little, all others shut."""
    neurons = NeuronSet({1: range(8), 7: [0, 3]})
    draw = Differences(toy_model, DetectionSettings())
    noise, text = toy_model.noise([1]), toy_model.embed("a red cup")
    unblocked = draw(noise, text)
    before = toy_model.samples_evaluated
    found = scored(draw, noise, text, unblocked).effects(neurons, 1)
    assert toy_model.samples_evaluated == before + 3  # a backward pass counts as two samples
    assert set(found) == set(neurons)

    def score(opened: tuple[int, int], gate: float) -> float:
        gates = {1: torch.ones(1, 1, 8), 7: torch.ones(1, 1, 16)}
        for layer, index in neurons:
            gates[layer][0, 0, index] = gate if (layer, index) == opened else 0.0
        with gate_neurons(toy_model.denoiser, toy_model.value_layers, gates):
            return similarity(unblocked, draw(noise, text), TOY_SIMILARITY).item()

    for neuron in max(found, key=found.get), (7, 3):
        slope = (score(neuron, 0.02) - score(neuron, -0.02)) / 0.04
        assert found[neuron] == pytest.approx(slope, rel=0.1, abs=2e-3)
    assert count_hooks(toy_model.denoiser) == 0


def test_effects_of_several_seeds_are_the_mean_of_each(toy_model: DiffusionModel) -> None:
    neurons = NeuronSet({1: range(8), 7: [0, 3]})
    draw = Differences(toy_model, DetectionSettings())
    noise, text = toy_model.noise([1, 2, 3]), toy_model.embed("a red cup")
    unblocked = draw(noise, text.expand(3, -1, -1))
    together = scored(draw, noise, text, unblocked).effects(neurons, 3)
    each = [
        scored(draw, n[None], text, u[None]).effects(neurons, 1)
        for n, u in zip(noise, unblocked, strict=True)
    ]
    mean = {neuron: sum(one[neuron] for one in each) / 3 for neuron in neurons}
    assert together == pytest.approx(mean, rel=1e-3, abs=1e-6)
    assert len(set(together.values())) == len(neurons)


def test_presets_run_on_small_latents(toy_model: DiffusionModel) -> None:
    for preset in (LocalizationSettings.released, LocalizationSettings.paper):
        settings = replace(preset(TOY_SIMILARITY), theta=1.5, refine=False)
        found = localize(toy_model, "a", SEEDS, threshold=0.1, settings=settings)
        assert found.settings.name == settings.name
        assert json.loads(found.to_row()["settings"])["name"] == settings.name


def test_progress_reports_every_stage_and_may_cancel(toy_model: DiffusionModel) -> None:
    calls: list[tuple] = []
    localize(
        toy_model, "a", SEEDS, threshold=LOW, settings=QUICK, progress=lambda *c: calls.append(c)
    )
    stages = [stage for stage, _ in itertools.groupby(call[0] for call in calls)]
    assert stages == ["detect", "activations", "select", "refine"]
    last = calls[-1]
    assert last[1] == last[2]

    def cancel(stage: str, done: int, total: int | None) -> None:
        if stage == "refine" and done >= 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        localize(toy_model, "a", SEEDS, threshold=LOW, settings=QUICK, progress=cancel)
    assert count_hooks(toy_model.denoiser) == 0


def test_a_row_is_flat(found: Localization, toy_model: DiffusionModel, tmp_path: Path) -> None:
    skipped = localize(toy_model, "a", SEEDS, threshold=0.99)
    rows = [one.to_row() for one in (found, skipped)]
    frame = pd.DataFrame(rows)
    frame.to_parquet(tmp_path / "rows.parquet")
    assert NeuronSet.from_json(frame["refined"][0]) == found.refined
    assert json.loads(frame["kept_seeds"][0]) == [1, 2, 3]
    assert frame["n_refined"].tolist() == [len(found.refined), 0]
    assert frame["theta"].isna().tolist() == [False, True]
    assert frame["samples_detect"].tolist() == [3, 3]
    assert frame["verified"].isna().all()  # this mode does not look
    assert rows[0].keys() == rows[1].keys()


def test_results_in_the_released_form(
    found: Localization, toy_model: DiffusionModel, tmp_path: Path
) -> None:
    skipped = localize(toy_model, "a", SEEDS, threshold=0.99)
    path = tmp_path / "results.csv"
    rows = pd.DataFrame([one.to_row() for one in (found, skipped)])
    write_released(path, rows)
    back = read_released(path)
    assert back["refined"].tolist() == [found.refined, NeuronSet()]
    assert back["initial_score"][0] == pytest.approx(found.initial_score)
    assert back["flagged"].tolist() == [True, False]


def test_another_search_mode_can_be_added(toy_model: DiffusionModel, monkeypatch: Any) -> None:
    used: list[str] = []

    def select(*arguments: Any, **options: Any) -> Any:
        used.append("select")
        return select_initial(*arguments, **options)

    mine = type("Mine", (), {"select": staticmethod(select), "refine": staticmethod(refine)})
    monkeypatch.setitem(SEARCHES, "mine", mine)
    found = localize(toy_model, "a", SEEDS, search="mine", threshold=LOW, settings=QUICK)
    assert found.search == "mine"
    assert used == ["select"]


def test_sd2_models_are_localized_too(sd2_model: DiffusionModel) -> None:
    own = calibrate(sd2_model, TOY_PROMPTS[:4], SEEDS, similarity=TOY_SIMILARITY)
    settings = replace(QUICK, similarity=TOY_SIMILARITY, theta=1.5)
    found = localize(
        sd2_model, "a", SEEDS, statistics=own.statistics, threshold=-1.0, settings=settings
    )
    assert found.flagged
    assert found.initial


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"prompt": ""}, ValueError, "prompts must not be empty"),
        ({"prompt": ["a", "b"]}, TypeError, "prompt must be one text, got"),
        ({"prompt": None}, TypeError, "prompt must be one text, got None"),
        ({"seeds": [1]}, ValueError, "seeds must hold at least 2, got 1"),
        ({"seeds": [1, 1]}, ValueError, "seeds must differ from one another"),
        ({"search": "quick"}, ValueError, "search must be one of"),
        ({"threshold": math.nan}, ValueError, "threshold must be a finite number, got nan"),
        ({"statistics": STATISTICS}, ValueError, "statistics must have the widths"),
        ({"statistics": "file.pt"}, TypeError, "must be ActivationStatistics, got 'file"),
        ({"settings": DetectionSettings()}, TypeError, "must be LocalizationSettings, got Det"),
        ({"settings": LocalizationSettings(similarity="ssim")}, TypeError,
         "similarity must be SimilaritySettings, got 'ssim'"),
        ({"settings": LocalizationSettings(similarity=SimilaritySettings())}, ValueError,
         "kernel 11 with 3 scales needs larger latents than 16×16"),
    ],
)  # fmt: skip
def test_bad_arguments(
    toy_model: DiffusionModel, changes: dict, error: type[Exception], text: str
) -> None:
    options = {"prompt": "a", "seeds": SEEDS, "threshold": LOW} | changes
    with pytest.raises(error, match=text):
        localize(toy_model, **options)
    assert toy_model.samples_evaluated == 0


def test_bad_arguments_of_detection_and_calibration(toy_model: DiffusionModel) -> None:
    for call in (detect, calibrate):
        for prompts, error in (([], ValueError), (["a", ""], ValueError), (["a", 1], TypeError)):
            with pytest.raises(error, match="prompts must"):
                call(toy_model, prompts, SEEDS)
        with pytest.raises(ValueError, match="seeds must"):
            call(toy_model, ["a", "b"], [1])
        with pytest.raises(TypeError, match="settings of detection must be DetectionSettings, got"):
            call(toy_model, ["a", "b"], SEEDS, settings=LocalizationSettings())
    with pytest.raises(ValueError, match="prompts must hold at least 2 for a deviation, got 1"):
        calibrate(toy_model, ["a"], SEEDS)
    with pytest.raises(ValueError, match="index 99 in layer 1 is out of range"):
        prompt_differences(toy_model, "a", SEEDS, NeuronSet({1: [99]}))


def test_a_model_without_calibration(sd2_model: DiffusionModel) -> None:
    assert sd2_model.calibration is None
    settings = replace(QUICK, similarity=TOY_SIMILARITY)
    with pytest.raises(ValueError, match=r"threshold: the model .* has none; give threshold=…"):
        detect(sd2_model, "a", SEEDS)
    with pytest.raises(ValueError, match=r"statistics: the model .* has none; give statistics=…"):
        localize(sd2_model, "a", SEEDS, threshold=LOW, settings=settings)


def test_a_threshold_of_other_settings_is_refused(toy_model: DiffusionModel) -> None:
    with pytest.raises(ValueError, match=r"was calibrated with DetectionSettings\(steps=50"):
        detect(toy_model, "a", SEEDS, settings=DetectionSettings.paper())
