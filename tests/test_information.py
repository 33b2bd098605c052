"""Models whose prediction says nothing about the prompt are refused; weak ones are not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import TOY_PROMPTS, TOY_SIMILARITY
from diffusers import DDIMScheduler
from torch import Tensor, nn

from benchmarks.released import localize_released
from nemo_kit.checks import UninformativeError
from nemo_kit.detectors import anisotropy, nemo_score, noise_magnitude, sharpness
from nemo_kit.generation import generate
from nemo_kit.hooks import scale_neurons
from nemo_kit.localization import (
    DetectionSettings,
    calibrate,
    detect,
    localize,
    prompt_differences,
)
from nemo_kit.mitigation import EmbeddingAdjustment, NoiseOptimisation
from nemo_kit.models import DiffusionModel
from nemo_kit.neurons import NeuronSet

SEEDS = [1, 2, 3]


class Echo(nn.Module):
    """A denoiser that puts out its input, and `size` times what `says` makes of the text."""

    config = SimpleNamespace(in_channels=4, sample_size=16)

    def __init__(self, says: str = "nothing", size: float = 1.0) -> None:
        super().__init__()
        self.says, self.size = says, size

    def forward(self, sample: Tensor, *, encoder_hidden_states: Tensor, **_: Any) -> tuple[Tensor]:
        """Sample and text [N, tokens, 16] -> ([N, 4, 16, 16],)."""
        text = encoder_hidden_states.float()
        said = {
            "nothing": torch.zeros(len(text), 1, 1, 1),
            "a constant": text[:, 2].mean(dim=1)[:, None, None, None],
            "a picture": (text[:, 2, :, None] * text[:, 1, None, :])[:, None],
            "its picture alone": (text[:, 2, :, None] * text[:, 1, None, :])[:, None],
        }[self.says]
        kept = 0 if self.says == "its picture alone" else sample.float()
        return ((kept + self.size * said.expand_as(sample)).to(sample.dtype),)


@pytest.fixture
def own_model(toy_model: DiffusionModel) -> DiffusionModel:
    """A copy that a test may spoil."""
    model = copy.copy(toy_model)
    model.denoiser = copy.deepcopy(toy_model.denoiser)
    model.text_encoder = copy.deepcopy(toy_model.text_encoder)
    model.scheduler = copy.deepcopy(toy_model.scheduler)
    return model


def echo(model: DiffusionModel, dtype: torch.dtype = torch.float32, **said: Any) -> DiffusionModel:
    model.denoiser, model.dtype = Echo(**said), dtype
    return model


def without_terminal_signal(model: DiffusionModel) -> None:
    model.scheduler = DDIMScheduler.from_config(
        model.scheduler.config,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )


@torch.no_grad()
def zeroed(model: DiffusionModel, part: str, names: str) -> None:
    for name, weight in getattr(model, part).named_parameters():
        if names in name:
            weight.zero_()


AT_T = DetectionSettings(timestep_index=0)
CHANGES: dict[str, Callable[[DiffusionModel], object]] = {
    "no output": lambda model: zeroed(model, "denoiser", "conv_out"),
    "no weights": lambda model: zeroed(model, "denoiser", ""),
    "text not read": lambda model: zeroed(model, "denoiser", "attn2.to_v"),
    "text constant": lambda model: zeroed(model, "text_encoder", "final_layer_norm"),
    "no signal at T": without_terminal_signal,
    "noise put out again": echo,
    "in half precision": lambda model: echo(model, torch.bfloat16),
    "but for rounding": lambda model: echo(model, says="a picture", size=1e-7),
    "but for a constant": lambda model: echo(model, says="a constant"),
    "but for a constant in half": lambda model: echo(model, torch.float16, says="a constant"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_predictions_that_say_nothing_are_refused(
    own_model: DiffusionModel, change: Callable[[DiffusionModel], object]
) -> None:
    change(own_model)
    options: dict[str, Any] = {"settings": AT_T, "similarity": TOY_SIMILARITY}
    told = r"model: at timestep \d+ the predicted noise is .* likely causes: .* may help"
    with pytest.raises(UninformativeError, match=told):
        detect(own_model, "a red cup", SEEDS, threshold=0.5, **options)
    with pytest.raises(UninformativeError, match=told):
        calibrate(own_model, TOY_PROMPTS, SEEDS, **options)
    with pytest.raises(UninformativeError, match=told):
        prompt_differences(own_model, "a red cup", SEEDS, settings=AT_T)
    assert own_model.samples_evaluated == 0


def test_every_way_to_a_score_refuses(own_model: DiffusionModel) -> None:
    zeroed(own_model, "denoiser", "attn2.to_v")
    calls: list[Callable[[], object]] = [
        lambda: localize(own_model, "a red cup", SEEDS, threshold=-1.0),
        lambda: localize_released(own_model, "a red cup", SEEDS),
        lambda: nemo_score(own_model, "a red cup", SEEDS),
        lambda: noise_magnitude(own_model, "a red cup", SEEDS, steps=2),
        lambda: sharpness(own_model, "a red cup", [1]),
        lambda: anisotropy(own_model, "a red cup", SEEDS),
    ]
    for way in (EmbeddingAdjustment(), NoiseOptimisation()):
        calls.append(lambda way=way: generate(own_model, "a", [1], steps=1, mitigation=way))
    for call in calls:
        with pytest.raises(ValueError, match=r"likely causes|no difference at all"):
            print(call())


def test_guidance_that_cancels_the_prompt(own_model: DiffusionModel) -> None:
    swapped = DetectionSettings(guidance=1, swapped=True)  # the empty prompt's alone is left
    with pytest.raises(UninformativeError, match="the same whatever the prompt"):
        detect(own_model, "a red cup", SEEDS, 0.5, settings=swapped)
    detect(own_model, "a red cup", SEEDS, 0.5, settings=DetectionSettings(guidance=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("says", ["a picture", "its picture alone"])
def test_a_weak_voice_is_heard_in_any_number_type(
    own_model: DiffusionModel, dtype: torch.dtype, says: str
) -> None:
    """At T a noise predictor's text shows in a few per cent of its output, as SD 1.4's does."""
    model = echo(own_model, dtype, says=says, size=0.02)
    settings: dict[str, Any] = {"settings": AT_T, "similarity": TOY_SIMILARITY}
    found = detect(model, ["a red cup", "cat 0"], SEEDS, 0.5, **settings)
    assert found["score"].between(-1e-3, 1 + 1e-3).all()
    if (says, dtype) == ("a picture", torch.float32):
        assert (found["score"] > 0.99).all()  # the same whatever the seed: a copy


def test_another_timestep_helps_where_there_is_no_signal_at_the_end(
    own_model: DiffusionModel,
) -> None:
    without_terminal_signal(own_model)
    found = calibrate(own_model, TOY_PROMPTS, SEEDS, DetectionSettings())
    assert 0 < found.std < found.mean < 1


def test_it_is_looked_at_once_uncounted_and_anew_after_a_change(
    own_model: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    predict = DiffusionModel.predict

    def counting(self: DiffusionModel, latents: Tensor, *others: Any) -> Tensor:
        calls.append(len(latents))
        return predict(self, latents, *others)

    monkeypatch.setattr(DiffusionModel, "predict", counting)
    for expected in ([1, 1, 3], [3]):
        calls.clear()
        before = own_model.samples_evaluated
        detect(own_model, "a red cup", SEEDS)
        assert (calls, own_model.samples_evaluated - before) == (expected, 3)
    zeroed(own_model, "denoiser", "conv_out")
    with pytest.raises(UninformativeError):
        detect(own_model, "a red cup", SEEDS)


def test_interventions_are_not_judged(own_model: DiffusionModel) -> None:
    """Under an open block the batch is the block's own, and weak text is what was asked for."""
    every = NeuronSet({layer.index: range(layer.width) for layer in own_model.value_layers})
    layers = own_model.value_layers
    with scale_neurons(own_model.denoiser, layers, [every] * 3):
        alone = prompt_differences(own_model, "a", SEEDS)
    torch.testing.assert_close(alone, prompt_differences(own_model, "a", SEEDS, every))


def test_infinities_are_told_as_such(own_model: DiffusionModel) -> None:
    with torch.no_grad():
        own_model.denoiser.conv_out.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="became NaN or infinite"):
        detect(own_model, "a red cup", SEEDS)


def test_hold_out_prompts_without_spread_are_refused(own_model: DiffusionModel) -> None:
    with pytest.raises(ValueError, match="prompts: the 3 hold-out prompts have one and the same"):
        calibrate(own_model, ["a red cup"] * 3, SEEDS)
    zeroed(own_model, "denoiser", "conv_in")  # the noise is not read, so every seed gives a copy
    with torch.no_grad():
        own_model.denoiser.conv_out.weight *= 1e5
    with pytest.raises(ValueError, match=r"prompts: all their scores are 1\.0+ .* no spread"):
        calibrate(own_model, TOY_PROMPTS, SEEDS)
