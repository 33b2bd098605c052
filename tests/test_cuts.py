"""Whole layers and halves of convolutions switched off: hooks, pictures."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from toys import count_hooks, unet

from nemo_kit.generation import generate
from nemo_kit.hooks import scale_neurons
from nemo_kit.layers import down_convolutions
from nemo_kit.mitigation import Cut, cuts
from nemo_kit.models import DiffusionModel
from nemo_kit.neurons import NeuronSet
from nemo_kit.store import model_key
from nemo_kit.study import study

SEEDS = [101, 102]


def test_convolutions_of_the_down_blocks_in_forward_order() -> None:
    denoiser = unet()
    order: list[str] = []
    names = {module: name for name, module in denoiser.named_modules()}
    found = down_convolutions(denoiser)
    for place in found:
        module = denoiser.get_submodule(place.name)
        module.register_forward_hook(lambda m, *_: order.append(names[m]))
    text = torch.zeros(1, 4, 16)
    denoiser(torch.zeros(1, 4, 16, 16), 1, encoder_hidden_states=text)
    assert order == [place.name for place in found]
    assert [place.index for place in found] == list(range(1, 20))
    assert (found[0].width, found[0].block) == (8, "down.0")
    assert found[0].title == "down 0 resnet 0 conv 1"
    assert found[4].title == "down 0 downsampler"
    with pytest.raises(ValueError, match="no convolution in the down_blocks of Linear"):
        down_convolutions(nn.Linear(1, 1))
    with pytest.warns(UserWarning, match="nothing is cut: denoiser: no convolution .* of Linear"):
        assert cuts(Mock(denoiser=nn.Linear(1, 1)), "convolution") == []


def test_channels_are_scaled_inside_the_block_alone() -> None:
    model = nn.Module()
    model.down_blocks = nn.ModuleList([nn.Conv2d(2, 3, 3, padding=1)])
    [place] = down_convolutions(model)
    convolution, image = model.down_blocks[0], torch.randn(2, 2, 4, 4)
    plain = convolution(image)
    with scale_neurons(model, [place], NeuronSet({1: [0, 2]}), 0.5):
        scaled = convolution(image)
    factors = torch.tensor([0.5, 1, 0.5])[:, None, None]
    assert torch.equal(scaled, plain * factors)
    assert count_hooks(model) == 0
    assert torch.equal(convolution(image), plain)
    with scale_neurons(model, [place], [NeuronSet({1: [1]}), NeuronSet()]):  # a set a sample
        scaled = convolution(image)
    assert torch.equal(scaled[1], plain[1])
    assert scaled[0, 1].count_nonzero() == 0
    assert torch.equal(scaled[0, ::2], plain[0, ::2])
    with pytest.raises(ValueError, match="index 3 in layer 1 is out of range"):
        scale_neurons(model, [place], NeuronSet({1: [3]})).__enter__()
    with pytest.raises(ValueError, match="factor must be a finite number"):
        scale_neurons(model, [place], NeuronSet(), float("nan")).__enter__()


def test_a_cut_is_a_whole_layer_or_a_share(toy_model: DiffusionModel) -> None:
    assert len(cuts(toy_model, "value")) == len(cuts(toy_model, "key")) == 16
    assert Cut("key", 2).outputs(toy_model) == NeuronSet({2: range(8)})
    halves = cuts(toy_model, "convolution", 0.5, draw=1)
    assert len(halves) == 19
    assert len(halves[0].outputs(toy_model)) == 4
    assert halves[0].outputs(toy_model) == Cut("convolution", 1, 0.5, 1).outputs(toy_model)
    drawn = {Cut("convolution", 1, 0.5, draw).outputs(toy_model) for draw in range(5)}
    assert len(drawn) > 1
    with pytest.raises(ValueError, match=r"layer must be 1 to 16 \(value\), got 17"):
        Cut("value", 17).outputs(toy_model)


def test_a_cut_refuses() -> None:
    with pytest.raises(
        ValueError, match="kind must be one of value, key, convolution; got 'query'"
    ):
        Cut("query", 1)
    with pytest.raises(ValueError, match="layer must be an integer of at least 1"):
        Cut("key", 0)
    with pytest.raises(ValueError, match="share must be above 0 and at most 1, got 0"):
        Cut("key", 1, 0)
    with pytest.raises(ValueError, match="draw must be an integer"):
        Cut("key", 1, 1.0, -1)


def test_pictures_change_and_nothing_stays(toy_model: DiffusionModel) -> None:
    plain = generate(toy_model, "cat", SEEDS, steps=2)
    for cut in (Cut("value", 1), Cut("convolution", 1, 0.5)):
        changed = generate(toy_model, "cat", SEEDS, steps=2, mitigation=cut)
        assert not np.array_equal(changed, plain), cut
        assert count_hooks(toy_model.denoiser) == 0
    assert np.array_equal(generate(toy_model, "cat", SEEDS, steps=2), plain)


def test_a_study_of_cuts_reads_the_weights_once(
    toy_model: DiffusionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {cut.title(toy_model): cut for cut in (Cut("value", 1), Cut("convolution", 5, 0.5))}
    assert list(parts) == ["value 1 (down 0)", "down 0 downsampler"]
    options = {"store": tmp_path, "steps": 1, "progress": False}
    counted = Mock(side_effect=model_key)
    for room in ("method", "work"):
        monkeypatch.setattr(f"nemo_kit.store.{room}.model_key", counted)
    rows = pd.DataFrame({"prompt": ["cat"]})
    got = study(toy_model, rows, {"none": None, **parts}, [101], ["gen"], **options)
    assert counted.call_count == 1, "the weights are read once, not for each part"
    assert got["setting"].tolist() == ["none", *parts]
    assert got["gen"][0] == pytest.approx(1)
    assert (got["gen"][1:] < 1).all()
