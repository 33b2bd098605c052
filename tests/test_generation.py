"""Generation: against diffusers' own pipeline, per-prompt interventions, and clean-up."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from toys import count_hooks

from nemo_kit import generation, memory
from nemo_kit.generation import generate
from nemo_kit.models import DiffusionModel
from nemo_kit.neurons import NeuronSet

NEURONS = NeuronSet({1: range(8), 2: range(8), 3: range(16), 4: range(16)})


@pytest.mark.parametrize("guidance", [0, 1, 7.0])
def test_images_are_the_pipelines(
    toy_model: DiffusionModel, toy_folder: Path, guidance: float
) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(toy_folder, safety_checker=None)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        ["a cat"] * 2, latents=toy_model.noise([3, 4]), num_inference_steps=6,
        guidance_scale=guidance, output_type="np",
    ).images  # fmt: skip
    found = generate(toy_model, "a cat", [3, 4], guidance=guidance, steps=6)
    assert np.abs(found - expected * 255).max() <= 1


def test_v_prediction_images_are_the_pipelines(sd2_model: DiffusionModel) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(sd2_model.name, safety_checker=None)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        "a cat", latents=sd2_model.noise([3]), num_inference_steps=6, guidance_scale=7,
        output_type="np",
    ).images  # fmt: skip
    assert np.abs(generate(sd2_model, "a cat", [3], steps=6) - expected * 255).max() <= 1


def test_shapes_and_counts(toy_model: DiffusionModel) -> None:
    images = generate(toy_model, ["a", "b", "c"], [1, 2], steps=2)
    assert images.shape == (3, 2, 32, 32, 3)
    assert images.dtype == np.uint8
    assert toy_model.samples_evaluated == 3 * 2 * 2 * 2  # prompts, seeds, halves, steps
    assert generate(toy_model, "a", range(2), steps=2).shape == (2, 32, 32, 3)
    assert generate(toy_model, ["a"], 1, steps=2).shape == (1, 1, 32, 32, 3)


def close(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.abs(a.astype(int) - b.astype(int)).max() <= 1)


def test_batches_change_nothing_and_are_halved_where_memory_runs_out(
    toy_model: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = generate(toy_model, ["a", "b", "c"], [1, 2], NEURONS, steps=3)
    original, told = toy_model.predict, []

    def small(latents: torch.Tensor, *rest: Any) -> torch.Tensor:
        if len(latents) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(latents, *rest)

    monkeypatch.setattr(toy_model, "predict", small)
    with pytest.warns(RuntimeWarning, match="with 12 denoiser samples a call; going on with 6"):
        parts = generate(
            toy_model, ["a", "b", "c"], [1, 2], NEURONS, steps=3, progress=lambda *c: told.append(c)
        )
    assert close(whole, parts)
    assert told == [("generate", done, 18) for done in range(1, 19)]


def test_what_a_failed_call_held_is_freed_before_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    held, left = [], []

    def call(part: slice) -> int:
        large = torch.zeros(part.stop - part.start)
        held.append(weakref.ref(large))
        if len(large) > 1:
            raise MemoryError
        return len(large)

    monkeypatch.setattr(memory.gc, "collect", lambda: left.append(held[-1]()))
    with pytest.warns(RuntimeWarning, match="with 2 denoiser samples a call; going on with 1"):
        assert memory.BatchSize(8).run(call, 2) == [1, 1]
    assert left == [None]


def test_each_prompt_has_its_own_neurons(toy_model: DiffusionModel) -> None:
    sets = [NeuronSet(), NEURONS, NeuronSet({7: [1]})]
    together = generate(toy_model, ["a", "a", "a"], [1, 2], sets, steps=3)
    alone = [generate(toy_model, "a", [1, 2], one, steps=3) for one in sets]
    assert close(together, np.stack(alone))
    assert not close(alone[0], alone[1])
    assert close(alone[0], generate(toy_model, "a", [1, 2], steps=3))


def test_neurons_of_different_prompts_share_a_batch(toy_model: DiffusionModel) -> None:
    prompts, sets = ["a", "b"], [NEURONS, NeuronSet()]
    together = generate(toy_model, prompts, [1], sets, steps=2)
    for images, prompt, one in zip(together, prompts, sets, strict=True):
        assert close(images, generate(toy_model, prompt, [1], one, steps=2))


def test_factor_1_changes_nothing(toy_model: DiffusionModel) -> None:
    plain = generate(toy_model, "a", [1], steps=3)
    assert close(plain, generate(toy_model, "a", [1], NEURONS, factor=1.0, steps=3))
    assert not close(plain, generate(toy_model, "a", [1], NEURONS, factor=-1.0, steps=3))


def test_halves_differ_only_under_guidance(toy_model: DiffusionModel) -> None:
    def images(halves: Any, guidance: float) -> np.ndarray:
        return generate(toy_model, "a", [1], NEURONS, guidance=guidance, steps=2, halves=halves)

    assert not close(images("conditional", 7), images("both", 7))
    assert close(images("conditional", 0), images("both", 0))


def test_both_halves_by_hand(toy_model: DiffusionModel) -> None:
    """One step, worked out with a hook of our own on each half."""
    name = toy_model.value_layers[2].name
    neurons = NeuronSet({3: range(16)})

    def predict(text: str, block: bool) -> torch.Tensor:
        module = toy_model.denoiser.get_submodule(name)
        handle = module.register_forward_hook(lambda *args: args[-1] * (0.0 if block else 1.0))
        try:
            return toy_model.predict(toy_model.noise([1]), step, toy_model.embed(text))
        finally:
            handle.remove()

    step = toy_model.timesteps(1)[0]
    for halves in ("conditional", "both"):
        text, empty = predict("a", True), predict("", halves == "both")
        guided = empty + 7 * (text - empty)
        final = toy_model.scheduler.step(guided, step, toy_model.noise([1])).prev_sample
        found = generate(toy_model, "a", [1], neurons, steps=1, halves=halves)
        assert close(found, toy_model.decode(final))


def test_progress_may_cancel_and_no_hook_stays(
    toy_model: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "_AT_ONCE", 1)
    calls: list[tuple] = []

    def progress(*call: Any) -> None:
        calls.append((*call, count_hooks(toy_model.denoiser)))
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(toy_model, ["a", "b"], [1], NEURONS, steps=2, progress=progress)
    assert calls == [("generate", 1, 4, 6), ("generate", 2, 4, 6), ("generate", 3, 4, 6)]
    assert count_hooks(toy_model.denoiser) == 0


def test_overflow_is_reported(toy_model: DiffusionModel, monkeypatch: Any) -> None:
    original = toy_model.predict
    monkeypatch.setattr(toy_model, "predict", lambda *a: original(*a) * float("inf"))
    with pytest.raises(FloatingPointError, match="latents became NaN or infinite"):
        generate(toy_model, "a", [1], NEURONS, steps=2)
    assert count_hooks(toy_model.denoiser) == 0


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"prompts": ""}, ValueError, "prompts must not be empty"),
        ({"prompts": [3]}, TypeError, "prompts must be texts, got 3"),
        ({"seeds": []}, ValueError, "seeds must hold at least 1"),
        ({"seeds": [-1]}, ValueError, "seeds must be integers from 0"),
        ({"neurons": NeuronSet({1: [8]})}, ValueError, "index 8 in layer 1 is out of range"),
        ({"neurons": NeuronSet({17: [0]})}, ValueError, "layer 17 does not exist here"),
        (
            {"neurons": [NeuronSet()] * 2},
            ValueError,
            "neurons holds 2, but there are 1 prompts",
        ),
        ({"neurons": {1: [0]}}, TypeError, "neurons must be a NeuronSet or one for each prompt"),
        ({"neurons": 5}, TypeError, "neurons must be a NeuronSet or one for each prompt"),
        (
            {"neurons": NEURONS, "factor": float("nan")},
            ValueError,
            "factor must be a finite number",
        ),
        ({"guidance": -1}, ValueError, "guidance must be a finite number of at least 0, got -1"),
        ({"steps": 0}, ValueError, "steps must be an integer of at least 1, got 0"),
        ({"halves": "left"}, ValueError, "halves must be one of conditional, both; got 'left'"),
    ],
)
def test_bad_arguments(
    toy_model: DiffusionModel, arguments: dict, error: type[Exception], text: str
) -> None:
    options = {"prompts": "a", "seeds": [1], "steps": 1} | arguments
    with pytest.raises(error, match=text):
        generate(toy_model, **options)
    assert count_hooks(toy_model.denoiser) == 0
