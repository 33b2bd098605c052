"""Notebook 10's cuts, whole layers and halves of convolutions switched off: hooks, pictures."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch
from books import cell, cutting, run
from canary import glance
from torch import nn
from toys import count_hooks, unet

from nemo_kit import lab, load
from nemo_kit.generation import generate
from nemo_kit.hooks import capture, scale_neurons
from nemo_kit.mitigation import MITIGATIONS
from nemo_kit.models import DiffusionModel
from nemo_kit.neurons import NeuronSet
from nemo_kit.store import model_key
from nemo_kit.study import study

SEEDS = [101, 102]
NAMES = cutting()
Cut, places = NAMES["Cut"], NAMES["places"]
title = run([cell("10_layers", "def title").split("\n\n\n")[0]], NAMES)["title"]


def test_convolutions_of_the_down_blocks_in_forward_order() -> None:
    denoiser = unet()
    order: list[str] = []
    names = {module: name for name, module in denoiser.named_modules()}
    found = places(Mock(denoiser=denoiser), "convolution")
    for place in found:
        module = denoiser.get_submodule(place.name)
        module.register_forward_hook(lambda m, *_: order.append(names[m]))
    text = torch.zeros(1, 4, 16)
    denoiser(torch.zeros(1, 4, 16, 16), 1, encoder_hidden_states=text)
    assert order == [place.name for place in found]
    assert [place.index for place in found] == list(range(1, 20))
    assert (found[0].width, found[0].block) == (8, "down.0")
    assert title(found[0]) == "down 0 resnet 0 conv 1"
    assert title(found[4]) == "down 0 downsampler"
    with pytest.warns(UserWarning, match="no convolution in the down_blocks of Linear"):
        assert places(Mock(denoiser=nn.Linear(1, 1)), "convolution") == []


def test_a_cut_is_a_whole_layer_or_a_share(toy_model: DiffusionModel) -> None:
    assert len(places(toy_model, "value")) == len(places(toy_model, "key")) == 16
    assert Cut("key", 2).mask(8).tolist() == [0] * 8
    half = Cut("convolution", 1, 0.5, 1).mask(8)
    assert half.sum() == 4
    assert torch.equal(half, Cut("convolution", 1, 0.5, 1).mask(8))
    assert len({tuple(Cut("convolution", 1, 0.5, draw).mask(8).tolist()) for draw in range(5)}) > 1
    assert Cut("convolution", 1, 0.01).mask(8).sum() == 7, "at least one"
    for share in (0, 1.5):
        with pytest.raises(ValueError, match=r"share must be above 0 and at most 1, got"):
            Cut("key", 1, share)
    for layer in (0, -1):  # which a list would take for its last
        with pytest.raises(ValueError, match="layer must be an integer of at least 1"):
            Cut("key", layer)
    with pytest.raises(KeyError, match="query"):
        places(toy_model, "query")


def test_outputs_are_zero_inside_the_block_alone(toy_model: DiffusionModel) -> None:
    model = nn.Module()
    model.down_blocks = nn.ModuleList([nn.Conv2d(2, 4, 3, padding=1)])
    convolution, image = model.down_blocks[0], torch.randn(2, 2, 4, 4)
    plain, cut = convolution(image), Cut("convolution", 1, 0.5)
    with cut.apply(SimpleNamespace(model=Mock(denoiser=model))):
        assert torch.equal(convolution(image), plain * cut.mask(4)[:, None, None])
    assert count_hooks(model) == 0
    assert torch.equal(convolution(image), plain)

    layers, words = toy_model.value_layers, toy_model.embed(["cat", "red cup"])
    whole, seen = NeuronSet({3: range(layers[2].width)}), []
    run_of = SimpleNamespace(model=toy_model)
    for block in (scale_neurons(toy_model.denoiser, layers, whole), Cut("value", 3).apply(run_of)):
        with block, capture(toy_model.denoiser, layers) as outputs:
            predicted = toy_model.predict(toy_model.noise([1, 2]), 900, words)
        seen.append([predicted, *outputs.values()])
    assert all(torch.equal(one, two) for one, two in zip(*seen, strict=True))


def test_a_cut_is_no_row_of_any_table() -> None:
    assert Cut("value", 1).name == "part switched off"
    assert Cut not in MITIGATIONS.values()
    assert "part switched off" not in MITIGATIONS


def test_pictures_change_and_nothing_stays(toy_model: DiffusionModel) -> None:
    plain = generate(toy_model, "cat", SEEDS, steps=2)
    for cut in (Cut("value", 1), Cut("convolution", 1, 0.5)):
        changed = generate(toy_model, "cat", SEEDS, steps=2, mitigation=cut)
        assert not np.array_equal(changed, plain), cut
        assert count_hooks(toy_model.denoiser) == 0
    assert np.array_equal(generate(toy_model, "cat", SEEDS, steps=2), plain)


@pytest.mark.parametrize(
    ("cut", "squares"),
    [
        (Cut("value", 1), [169.01, 175.46, 162.89, 144.05, 140.45, 113.86]),
        (Cut("convolution", 1, 0.5), [166.74, 172.41, 159.27, 144.45, 142.05, 116.11]),
    ],
)
def test_pictures_of_the_embedded_model(cut: object, squares: list[float]) -> None:
    text = lab.prompts("verbatim")["prompt"].iloc[0]
    drawn = generate(load("lab", device="cpu"), text, [101], mitigation=cut, steps=3)
    assert glance(drawn)[:6] == pytest.approx(squares, abs=0.6)


def test_a_study_of_cuts_reads_the_weights_once(
    toy_model: DiffusionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {"value 1": Cut("value", 1), "downsampler": Cut("convolution", 5, 0.5)}
    options = {"store": tmp_path, "steps": 1, "progress": False}
    counted = Mock(side_effect=model_key)
    monkeypatch.setattr("nemo_kit.store.work.model_key", counted)
    rows = pd.DataFrame({"prompt": ["cat"]})
    got = study(toy_model, rows, {"none": None, **parts}, [101], ["gen"], **options)
    assert counted.call_count == 1, "the weights are read once, not for each part"
    assert got["setting"].tolist() == ["none", *parts]
    assert got["gen"][0] == pytest.approx(1)
    assert (got["gen"][1:] < 1).all()
