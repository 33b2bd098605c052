"""A second, plain reading of Algorithms 1 to 4, held against `localize`.

Slow loops written from the paper's description alone: one seed, one pair, one neuron set at a
time, hooks of its own, torchmetrics called on single pairs. It shares no code with the package's
localization, similarity or hooks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TOY_PROMPTS, TOY_SIMILARITY
from torch import Tensor
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as ms_ssim
from torchmetrics.functional.image import structural_similarity_index_measure as ssim

from nemo_kit.localization import LocalizationSettings, calibrate, detect, localize
from nemo_kit.models import DiffusionModel
from nemo_kit.neurons import NeuronSet

LAYERS = [f"down_blocks.{b}.attentions.{a}" for b in range(3) for a in range(2)]
LAYERS += ["mid_block.attentions.0"]
Blocked = list[list[int]]  # seven lists of neuron indices


@dataclass
class Reading:
    """The parts of a model, and the numbers the algorithms are given."""

    unet: Any
    text_encoder: Any
    tokenizer: Any
    schedule: Any
    kind: str
    kernel: int
    betas: tuple[float, ...]
    means: list[Tensor]
    stds: list[Tensor]
    threshold: float
    plain: dict[int, Tensor] = field(default_factory=dict)  # of one prompt, by seed

    def value_layer(self, number: int) -> Any:
        return self.unet.get_submodule(LAYERS[number] + ".transformer_blocks.0.attn2.to_v")

    def embed(self, prompt: str) -> Tensor:
        length = self.text_encoder.config.max_position_embeddings
        tokens = self.tokenizer(
            prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        return self.text_encoder(tokens.input_ids)[0]

    def predict(self, noise: Tensor, text: Tensor, blocked: Blocked) -> Tensor:
        """One prediction at the second of 50 timesteps: 981 − 20."""
        handles = []
        for number, indices in enumerate(blocked):

            def deactivate(_m: Any, _i: Any, output: Tensor, off: list[int] = indices) -> Tensor:
                keep = torch.ones(output.shape[-1])
                keep[off] = 0
                return output * keep

            handles.append(self.value_layer(number).register_forward_hook(deactivate))
        try:
            return self.call(noise, text)
        finally:
            for handle in handles:
                handle.remove()

    def call(self, noise: Tensor, text: Tensor) -> Tensor:
        output = self.unet(noise, 961, encoder_hidden_states=text).sample
        return self.epsilon(output, noise)

    def epsilon(self, output: Tensor, noise: Tensor) -> Tensor:
        """The noise, for a net that predicts it or v = √ᾱ·ε − √(1 − ᾱ)·x_0."""
        if self.schedule["prediction_type"] == "epsilon":
            return output
        assert self.schedule["prediction_type"] == "v_prediction"
        first, last = (self.schedule[name] ** 0.5 for name in ("beta_start", "beta_end"))
        kept = 1.0
        for step in range(962):
            kept *= 1 - (first + (last - first) * step / 999) ** 2
        return kept**0.5 * output + (1 - kept) ** 0.5 * noise

    def difference(self, noise: Tensor, text: Tensor, blocked: Blocked) -> Tensor:
        delta = self.predict(noise, text, blocked) - noise
        for channel in range(delta.shape[1]):
            low, high = delta[0, channel].min(), delta[0, channel].max()
            delta[0, channel] = (delta[0, channel] - low) / (high - low)
        return delta

    def alike(self, a: Tensor, b: Tensor) -> float:
        sigma = 1.5 * self.kernel / 11  # so that torchmetrics' window is `kernel` wide
        if self.kind == "ssim":
            return ssim(a, b, sigma=sigma, kernel_size=self.kernel).item()
        return ms_ssim(a, b, sigma=sigma, kernel_size=self.kernel, betas=self.betas).item()

    def algorithm_1(self, text: Tensor, seeds: list[int]) -> tuple[list[int], float]:
        """The seeds that memorize, and the largest pairwise score."""
        drawn = {
            seed: self.difference(self.noise(seed), text, [[]] * len(self.means)) for seed in seeds
        }
        best = {
            seed: max(self.alike(drawn[seed], drawn[other]) for other in seeds if other != seed)
            for seed in seeds
        }
        return [seed for seed in seeds if best[seed] > self.threshold], max(best.values())

    def noise(self, seed: int) -> Tensor:
        side = self.unet.config.sample_size
        generator = torch.Generator().manual_seed(seed)
        return torch.randn((4, side, side), generator=generator)[None]

    def activations(self, text: Tensor, number: int) -> list[float]:
        """[width]: mean over tokens of the absolute value."""
        return self.value_layer(number)(text)[0].abs().mean(dim=0).tolist()

    def algorithm_2(self, text: Tensor, theta: float, k: int) -> Blocked:
        candidates = []
        for number in range(len(self.means)):
            a = self.activations(text, number)
            mean, std = self.means[number].tolist(), self.stds[number].tolist()
            outlying = {i for i in range(len(a)) if abs(a[i] - mean[i]) / std[i] > theta}
            largest = sorted(range(len(a)), key=lambda i: -a[i])[:k]
            candidates.append(sorted(outlying | set(largest)))
        return candidates

    def score(self, text: Tensor, seeds: list[int], blocked: Blocked) -> float:
        scores = []
        for seed in seeds:
            noise = self.noise(seed)
            if seed not in self.plain:
                self.plain[seed] = self.difference(noise, text, [[]] * len(self.means))
            blocked_difference = self.difference(noise, text, blocked)
            scores.append(self.alike(self.plain[seed], blocked_difference))
        return max(scores)

    def algorithm_3(
        self, text: Tensor, seeds: list[int]
    ) -> tuple[Blocked, float, int, float, float]:
        theta, k = 5.0, 0
        while True:
            blocked = self.algorithm_2(text, theta, k)
            score = self.score(text, seeds, blocked)
            if score <= self.threshold:
                return blocked, theta, k, score, self.threshold
            if theta - 0.25 < 1:
                return blocked, theta, k, score, score
            theta, k = theta - 0.25, k + 1

    def algorithm_4(
        self, text: Tensor, seeds: list[int], blocked: Blocked, limit: float
    ) -> Blocked:
        kept = [list(layer) for layer in blocked]
        for number in reversed(range(len(self.means))):
            if kept[number]:
                trial = [[] if n == number else layer for n, layer in enumerate(kept)]
                if self.score(text, seeds, trial) < limit:
                    kept = trial
        for number in reversed(range(len(self.means))):
            for neuron in list(kept[number]):
                trial = [list(layer) for layer in kept]
                trial[number].remove(neuron)
                if self.score(text, seeds, trial) < limit:
                    kept = trial
        return kept


def reading(model: DiffusionModel, threshold: float) -> Reading:
    calibration = model.calibration
    assert calibration is not None
    assert calibration.detection.timestep_index == 1
    return Reading(
        unet=model.denoiser,
        text_encoder=model.text_encoder,
        tokenizer=model.tokenizer,
        schedule=model.scheduler.config,
        kind=calibration.similarity.kind,
        kernel=calibration.similarity.kernel,
        betas=calibration.similarity.betas,
        means=list(calibration.statistics.means),
        stds=list(calibration.statistics.stds),
        threshold=threshold,
    )


def neurons(blocked: Blocked) -> NeuronSet:
    return NeuronSet(dict(enumerate(blocked, start=1)))


@torch.no_grad()
def compare(
    model: DiffusionModel,
    prompt: str,
    seeds: list[int],
    threshold: float,
    plain: Reading | None = None,
) -> Any:
    """Run both and hold every intermediate result against the other."""
    plain = plain or reading(model, threshold)
    text = plain.embed(prompt)
    found = localize(model, prompt, seeds, threshold=threshold, settings=LocalizationSettings())
    kept, score = plain.algorithm_1(text, seeds)
    assert list(found.kept_seeds) == kept
    assert found.score == pytest.approx(score, abs=1e-4)
    if not kept:
        assert not found.flagged
        return found
    blocked, theta, k, initial_score, limit = plain.algorithm_3(text, kept)
    assert (found.theta, found.k) == (theta, k)
    assert found.initial == neurons(blocked)
    assert found.initial_score == pytest.approx(initial_score, abs=1e-4)
    assert found.refinement_threshold == pytest.approx(limit, abs=1e-4)
    refined = plain.algorithm_4(text, kept, blocked, limit)
    assert found.refined == neurons(refined)
    assert found.refined_score == pytest.approx(plain.score(text, kept, refined), abs=1e-4)
    return found


@pytest.mark.parametrize(
    ("prompt", "threshold"),
    [
        ("a red cup", 0.5),  # candidates suffice early: θ stops at 4.25
        ("astronaut", 0.4),
        ("a", 0.3),  # θ runs out, and the score reached becomes the threshold
        ("astronaut", 0.76),  # one seed is left out
        ("a", 0.95),  # not memorized
    ],
)
def test_the_random_model_reads_the_same(
    toy_model: DiffusionModel, prompt: str, threshold: float
) -> None:
    found = compare(toy_model, prompt, [1, 2, 3], threshold)
    assert found.flagged == (threshold < 0.9)


def test_a_model_that_predicts_v_reads_the_same(
    sd2_model: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = calibrate(sd2_model, TOY_PROMPTS[:4], [1, 2, 3], similarity=TOY_SIMILARITY)
    monkeypatch.setattr(sd2_model, "calibration", own)
    threshold = min(detect(sd2_model, "a red cup", [1, 2, 3])["pairwise"][0]) - 0.05
    assert compare(sd2_model, "a red cup", [1, 2, 3], threshold).flagged


def lab_prompts() -> list[str]:
    from nemo_kit import lab

    frame = lab.prompts()
    shown = frame[frame["role"].isin(["verbatim", "template", "non_memorized"])]
    return [str(p) for _, group in shown.groupby("role") for p in group["prompt"].iloc[:2]]


@pytest.mark.slow
def test_the_embedded_model_reads_the_same(lab_model: DiffusionModel) -> None:
    assert lab_model.calibration is not None
    verdicts = [
        compare(lab_model, prompt, [1, 2, 3, 4], lab_model.calibration.threshold).flagged
        for prompt in lab_prompts()
    ]
    assert np.any(verdicts)
    assert not np.all(verdicts)
