"""The search for an embedding that brings an image back: what it minimises, what stays."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from toys import count_hooks

from nemo_kit import metrics
from nemo_kit.generation import generate
from nemo_kit.hooks import scale_neurons
from nemo_kit.mitigation import EmbeddingNoise, Mitigation, NeMo, RandomTokens, WandaPruning
from nemo_kit.mitigation.audit import Searched, image_latents, search_embedding
from nemo_kit.models import DiffusionModel
from nemo_kit.neurons import NeuronSet

FOUND = NeuronSet({1: range(8), 4: range(16)})
IMAGE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def error(model: DiffusionModel, embedding: torch.Tensor, way: NeMo) -> float:
    """Mean squared error of the predicted noise for the image, on draws of our own."""
    generator, clean = torch.Generator().manual_seed(5), image_latents(model, IMAGE)
    noise = torch.randn(8, *model.latent_shape, generator=generator)
    times = torch.arange(50, 1000, 120)
    kept = model.scheduler.alphas_cumprod[times].reshape(-1, 1, 1, 1)
    noised = kept.sqrt() * clean + (1 - kept).sqrt() * noise
    text = embedding.expand(8, -1, -1)
    neurons = [way.chosen(model, "a b")] * 8
    with torch.no_grad(), scale_neurons(model.denoiser, model.value_layers, neurons):
        found = model.predict_noise(noised, times, text)
    return (found - noise).square().mean().item()


@pytest.mark.parametrize("which", ["toy_model", "sd2_model"])
def test_the_search_lowers_the_error(which: str, request: Any) -> None:
    model, way = request.getfixturevalue(which), NeMo(FOUND)
    found = search_embedding(model, "a b", IMAGE, way, steps=4, batch_size=2)
    assert found.embedding.shape == model.embed("a b").shape
    assert error(model, found.embedding, way) < error(model, model.embed("a b"), way)
    assert count_hooks(model.denoiser) == 0
    assert all(p.grad is None for p in model.denoiser.parameters())


def test_timesteps_may_differ_by_sample(sd2_model: DiffusionModel) -> None:
    noise, text = sd2_model.noise([1, 2]), sd2_model.embed(["a", "b"])
    with torch.no_grad():
        both = sd2_model.predict_noise(noise, torch.tensor([801, 21]), text)
        for place, timestep in enumerate((801, 21)):
            row = slice(place, place + 1)
            alone = sd2_model.predict_noise(noise[row], timestep, text[row])
            assert torch.allclose(both[row], alone, atol=1e-3)


def test_no_steps_leave_the_prompts_embedding(toy_model: DiffusionModel) -> None:
    found = search_embedding(toy_model, "a b", IMAGE, steps=0)
    assert torch.equal(found.embedding, toy_model.embed("a b"))
    shots = generate(toy_model, "a b", [1, 2], steps=2, mitigation=replace(found, way=NeMo(FOUND)))
    expected = generate(toy_model, "a b", [1, 2], FOUND, steps=2)
    assert np.abs(shots.astype(int) - expected).max() <= 1
    other = search_embedding(toy_model, "a b", IMAGE, steps=0, start="noise")
    own = toy_model.embed("a b")
    assert other.embedding.mean().item() == pytest.approx(own.mean().item(), abs=0.3)
    assert not torch.equal(other.embedding, own)


def test_the_embedding_is_the_attackers(toy_model: DiffusionModel) -> None:
    found = Searched(EmbeddingNoise(5.0), toy_model.embed("a b"))
    noisy = generate(toy_model, "a b", [1], steps=2, mitigation=found)
    assert np.array_equal(noisy, generate(toy_model, "a b", [1], steps=2))
    other = replace(found, embedding=toy_model.embed("c"))
    found = generate(toy_model, "a b", [1], steps=2, mitigation=other)
    assert np.array_equal(found, generate(toy_model, "c", [1], steps=2))


def test_what_is_found_is_measured_as_any_mitigation(toy_model: DiffusionModel) -> None:
    look = metrics.lab_descriptor()
    ways = [Mitigation(), NeMo(FOUND)]
    ways += [search_embedding(toy_model, "a b", IMAGE, way, 1, 1) for way in ways]
    shots = [generate(toy_model, "a b", [101, 102], steps=1, mitigation=way) for way in ways]
    cosines = np.stack([metrics.copy_similarities(made, IMAGE, look) for made in shots])
    assert cosines.shape == (4, 2)
    assert (np.abs(cosines) <= 1).all()
    assert len({made.tobytes() for made in shots}) == 4


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda m: search_embedding(m, "", IMAGE), ValueError, "prompts must not be empty"),
        (lambda m: search_embedding(m, "a", IMAGE[0]), ValueError, r"image must be uint8 \[H, W"),
        (lambda m: search_embedding(m, "a", IMAGE / 2), ValueError, "image must be uint8"),
        (lambda m: search_embedding(m, "a", "x.png"), ValueError, "image must be uint8"),
        (lambda m: search_embedding(m, "a", IMAGE, FOUND), TypeError, "mitigation must be a Mit"),
        (lambda m: search_embedding(m, "a", IMAGE, steps=-1), ValueError, "steps must be an integ"),
        (lambda m: search_embedding(m, "a", IMAGE, batch_size=0), ValueError, "batch_size must be"),
        (lambda m: search_embedding(m, "a", IMAGE, start="here"), ValueError, "start must be one "),
    ],
)
def test_bad_arguments(
    toy_model: DiffusionModel, call: Any, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        call(toy_model)


def test_search_and_pictures_see_the_same_pruned_weights(
    toy_model: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the prompt, under the pruning's own guidance."""
    way = WandaPruning(steps=1, trajectory=1, seeds=(1,))
    seen, masks = [], WandaPruning.masks

    def noted(self: WandaPruning, model: Any, prompts: Any) -> Any:
        seen.append(prompts)
        return masks(self, model, prompts)

    monkeypatch.setattr(WandaPruning, "masks", noted)
    found = search_embedding(toy_model, "a", IMAGE, way, steps=1, batch_size=1)
    generate(toy_model, "a", [1], steps=1, mitigation=found)
    assert seen == [("a",)] * 2


def test_rewritten_prompts_are_searched_from(toy_model: DiffusionModel) -> None:
    way = RandomTokens(1)
    found = search_embedding(toy_model, "a b", IMAGE, way, steps=0)
    assert torch.equal(found.embedding, toy_model.embed(way.rewrite(toy_model, "a b", 0)))
