"""Cosines of cross-attention outputs with and without blocked neurons."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from toys import count_hooks

from nemo_kit.hooks import capture, scale_neurons
from nemo_kit.metrics.attention import disentanglement
from nemo_kit.models import DiffusionModel
from nemo_kit.neurons import NeuronSet

PROMPTS = ["a cat", "a red cup", "Öl"]


def test_a_blocked_neuron_leaves_the_layers_before_it_alone(toy_model: DiffusionModel) -> None:
    got = disentanglement(toy_model, PROMPTS, NeuronSet({3: [0, 5]}), seeds=[1, 2])
    assert list(got["layer"]) == list(range(1, 17))
    assert list(got["block"]) == [layer.block for layer in toy_model.value_layers]
    assert got["cosine"][:2].to_numpy() == pytest.approx(1, abs=1e-6)
    assert got["cosine"][2] < 0.9999
    assert set(got["samples"]) == {6}
    assert set(got["neurons"]) == {2}
    assert toy_model.samples_evaluated == 12  # each prompt and seed, with and without
    assert count_hooks(toy_model.denoiser) == 0


@torch.no_grad()
def test_against_a_plain_reading(toy_model: DiffusionModel) -> None:
    """Layer 1's output is cosine by cosine what the block's own projection gives."""
    neurons = NeuronSet({1: [0, 3], 2: [1]})
    got = disentanglement(toy_model, PROMPTS[:1], neurons, seeds=[4], factor=-1.0)
    settings = toy_model.calibration.detection
    timestep = toy_model.timesteps(settings.steps)[settings.timestep_index]
    places = [replace(p, name=p.name.replace(".to_v", "")) for p in toy_model.value_layers]
    outs = []
    for sets in (NeuronSet(), neurons):
        with (
            scale_neurons(toy_model.denoiser, toy_model.value_layers, sets, -1.0),
            capture(toy_model.denoiser, places) as seen,
        ):
            toy_model.predict(toy_model.noise([4]), timestep, toy_model.embed(PROMPTS[:1]))
            outs.append(dict(seen))
    for layer in (1, 2, 9):
        a, b = outs[0][layer][0], outs[1][layer][0]  # [pixels, width]
        mean = sum(float(x @ y / (x.norm() * y.norm())) for x, y in zip(a, b, strict=True)) / len(a)
        assert got["cosine"][layer - 1] == pytest.approx(mean, abs=1e-5)


def test_several_sets_share_the_undisturbed_outputs(toy_model: DiffusionModel) -> None:
    sets = {"none": NeuronSet(), "two": NeuronSet({1: [0, 1]}), "one": NeuronSet({1: [0]})}
    got = disentanglement(toy_model, PROMPTS, sets, seeds=[1])
    assert toy_model.samples_evaluated == 4 * 3
    wide = got.pivot(index="layer", columns="setting", values="cosine")
    assert wide["none"].to_numpy() == pytest.approx(1, abs=1e-6)
    alone = disentanglement(toy_model, PROMPTS, NeuronSet({1: [0]}), seeds=[1])
    assert wide["one"].to_numpy() == pytest.approx(alone["cosine"].to_numpy(), abs=1e-5)
    assert wide["two"][1] != pytest.approx(wide["one"][1], abs=1e-5)


@pytest.mark.parametrize(
    ("change", "kind", "text"),
    [
        ({"prompts": []}, ValueError, "prompts must hold at least one"),
        ({"seeds": [1, 1]}, ValueError, "seeds must differ"),
        ({"neurons": {}}, ValueError, "at least one set"),
        ({"neurons": [1]}, TypeError, "NeuronSet or name -> NeuronSet"),
        ({"neurons": NeuronSet({99: [0]})}, ValueError, "99"),
        ({"factor": float("nan")}, ValueError, "factor must be a finite number"),
    ],
)
def test_bad_input(toy_model: DiffusionModel, change: dict, kind: type, text: str) -> None:
    good = {"prompts": PROMPTS, "neurons": NeuronSet({1: [0]}), "seeds": [1]}
    with pytest.raises(kind, match=text):
        disentanglement(toy_model, **(good | change))
