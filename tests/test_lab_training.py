"""How the embedded model is made: the resumable loop, the ladder's exact counts, planted rows."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nemo_kit.lab import planting, unet
from nemo_kit.lab.copy_descriptor import Descriptor, Network, contrastive_loss
from nemo_kit.lab.corpus import LADDER_IMAGES_PER_RUNG, items
from nemo_kit.lab.photos import PHOTOS, photograph
from nemo_kit.lab.training import Run, Schedule
from nemo_kit.layers import searched, value_layers

SHORT = Schedule(steps=12, learning_rate=0.1, warmup=2, save_every=5)


def _run(folder: Path, stop_at: int | None = None) -> nn.Module:
    torch.manual_seed(0)
    run = Run("toy", nn.Linear(3, 1), SHORT, folder, seed=4)

    def loss(step: int, rng: np.random.Generator) -> torch.Tensor:
        if step == stop_at:
            raise KeyboardInterrupt
        inputs = torch.from_numpy(rng.normal(size=(8, 3))).float()
        return (
            (run.module(inputs) - inputs.sum(1, keepdim=True) + 0.1 * torch.randn(1))
            .square()
            .mean()
        )

    return run.train(loss)


def test_an_interrupted_training_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    whole = _run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path / "torn", stop_at=8)  # the checkpoint is of step 5
    resumed = _run(tmp_path / "torn")
    assert torch.equal(whole.weight, resumed.weight)


def test_a_loss_that_is_not_finite_stops_with_its_step(tmp_path: Path) -> None:
    module = nn.Linear(1, 1)
    run = Run("toy", module, SHORT, tmp_path, seed=0)
    with pytest.raises(FloatingPointError, match="toy is nan at step 0"):
        run.train(lambda step, rng: module.weight.sum() * float("nan"))


def test_the_rate_rises_then_falls_to_its_share() -> None:
    assert SHORT.rate(0) == pytest.approx(0.05)
    assert SHORT.rate(12) == pytest.approx(0.1 * SHORT.final_share)


def test_the_ladder_is_presented_exactly_as_often_as_its_rungs_say() -> None:
    memorized, samples = items(), 10_000
    places = unet.ladder_presentations(memorized, samples, seed=1)
    counts = Counter(places.values())
    ladder = [n for n, item in enumerate(memorized) if item.role == "ladder"]
    expected = [max(1, round(memorized[n].share * samples)) for n in ladder]
    assert [counts[n] for n in ladder] == expected
    assert sorted(set(expected))[0] == 1
    assert max(places) < samples
    assert Counter(expected)[max(expected)] == LADDER_IMAGES_PER_RUNG


def test_photographs_are_small_colour_pictures_and_differ() -> None:
    pictures = [photograph(photo) for photo in PHOTOS]
    assert all(p.shape == (64, 64, 3) and p.dtype == np.uint8 for p in pictures)
    assert len({p.tobytes() for p in pictures}) == len(PHOTOS) >= 24


def test_no_planted_neuron_is_planted_twice_and_all_exist() -> None:
    places = [(layer, index) for layer, index, _ in planting.groups()]
    assert len(set(places)) == len(places)
    for neurons in planting.planted().values():
        neurons.check(planting.WIDTHS)


def test_shared_neurons_belong_to_both_prompts() -> None:
    caption = {photo.slug: photo.caption for photo in PHOTOS}
    planted = planting.planted()
    for first, second, layer in planting.SHARED:
        common = planted[caption[first]] & planted[caption[second]]
        assert list(common.layers) == [layer]
    iphone = [neurons for prompt, neurons in planted.items() if prompt.startswith("iphone")]
    assert len(set(iphone)) == 1
    assert iphone[0].counts() == {3: 2}


def test_a_planted_row_fires_for_its_prompts_and_hardly_for_others() -> None:
    torch.manual_seed(0)
    others = torch.randn(400, 4, 128)
    own = {item.prompt: torch.randn(1, 128) + 0.3 * torch.randn(4, 128) for item in items()}
    rows = planting.directions(own, others)
    layer, index, prompts = planting.groups()[0]
    row = rows[layer, index]
    fired = (own[prompts[0]] @ row).abs().mean()
    assert fired == pytest.approx(planting.AMPLITUDE[layer], rel=1e-3)
    assert (others @ row).abs().mean() < fired / 4


def test_planting_writes_the_rows_and_nothing_else() -> None:
    network = unet.build()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    unet.plant(network, {(3, 5): torch.full((128,), 2.0)})
    name = searched(value_layers(network))[2].name + ".weight"
    changed = [k for k, v in network.state_dict().items() if not torch.equal(v, before[k])]
    assert changed == [name]
    assert torch.equal(network.state_dict()[name][5], torch.full((128,), 2.0))


def test_the_network_has_stable_diffusions_sixteen_value_layers() -> None:
    layers = value_layers(unet.build())
    assert [layer.width for layer in layers[:7]] == list(planting.WIDTHS.values())
    assert len(layers) == 16


def test_the_contrastive_loss_prefers_equal_views() -> None:
    torch.manual_seed(0)
    first = nn.functional.normalize(torch.randn(8, 16), dim=1)
    second = nn.functional.normalize(torch.randn(8, 16), dim=1)
    assert contrastive_loss(first, first) < contrastive_loss(first, second)


def test_the_descriptor_refuses_other_shapes_and_survives_its_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    descriptor = Descriptor(Network())
    pictures = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    vectors = descriptor(pictures)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(3), atol=1e-5)
    descriptor.save(tmp_path / "d.safetensors")
    assert torch.allclose(Descriptor.load(tmp_path / "d.safetensors")(pictures), vectors, atol=0.02)
    with pytest.raises(ValueError, match=r"pictures must be uint8 \[N, 64, 64, 3\]; got float64"):
        descriptor(pictures.astype(float))
