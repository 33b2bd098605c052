"""How the embedded model is made: the resumable loop, the ladder's exact counts, planted rows."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nemo_kit.lab.copy_descriptor import Descriptor, Network
from nemo_kit.layers import searched, value_layers
from nemo_kit.neurons import NeuronSet
from training import captions, concepts, ladder, planting, samples, unet
from training.corpus import items
from training.descriptor import contrastive_loss, save
from training.loop import Run, Schedule
from training.photos import PHOTOS, photograph, region

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


def test_a_slow_training_is_saved_by_the_clock(tmp_path: Path) -> None:
    slow = replace(SHORT, save_every=1000, save_seconds=0.0)
    run = Run("toy", nn.Linear(1, 1), slow, tmp_path, seed=0)
    kept = []

    def loss(step: int, _: np.random.Generator) -> torch.Tensor:
        kept.append(torch.load(run.file, weights_only=True)["step"] if step else 0)
        return run.module.weight.square().sum()

    run.train(loss)
    assert kept == list(range(SHORT.steps))


def test_a_loss_that_is_not_finite_stops_with_its_step(tmp_path: Path) -> None:
    module = nn.Linear(1, 1)
    run = Run("toy", module, SHORT, tmp_path, seed=0)
    with pytest.raises(FloatingPointError, match="toy is nan at step 0"):
        run.train(lambda step, rng: module.weight.sum() * float("nan"))


def test_the_rate_rises_then_falls_to_its_share() -> None:
    assert SHORT.rate(0) == pytest.approx(0.05)
    assert SHORT.rate(12) == pytest.approx(0.1 * SHORT.final_share)


def test_a_flat_rate_falls_only_in_the_end() -> None:
    flat = Schedule(steps=100, learning_rate=1.0, warmup=1, flat=0.6)
    assert flat.rate(59) == flat.rate(10) == 1.0
    assert flat.rate(80) == pytest.approx(0.5 + 0.5 * flat.final_share)
    assert flat.rate(100) == pytest.approx(flat.final_share)


RECIPE = samples.Recipe(batch=4, learning_rate=1e-3, samples=30_000, planned=30_000)


def test_the_ladder_is_presented_exactly_as_often_as_its_rungs_say() -> None:
    memorized = items()
    places = samples.ladder_presentations(memorized, RECIPE, seed=1)
    counts = Counter(places.values())
    numbers = [n for n, item in enumerate(memorized) if item.role == "ladder"]
    whole = samples.expected("verbatim", RECIPE)
    assert whole == pytest.approx(10_000 * 0.010 + 20_000 * 0.0042)
    rungs = ladder.rungs()
    wanted = [max(1, round(ladder.SHARES[rungs[memorized[n].prompt]] * whole)) for n in numbers]
    assert [counts[n] for n in numbers] == wanted
    assert wanted.count(1) >= ladder.PER_RUNG
    assert wanted.count(max(wanted)) == ladder.PER_RUNG == 6
    assert max(places) < RECIPE.samples
    early = np.mean(np.array(list(places)) < 10_000)
    assert early == pytest.approx(100 / 184, abs=0.05)  # as dense as the photographs


def test_a_training_that_ends_early_shows_what_it_would_have_shown_and_each_picture_once() -> None:
    memorized = items()
    whole = samples.ladder_presentations(memorized, RECIPE, seed=1)
    for end in (12_000, 24_000):
        short = samples.ladder_presentations(memorized, replace(RECIPE, samples=end), seed=1)
        assert {k: v for k, v in short.items() if k in whole} == {
            place: number for place, number in whole.items() if place < end
        }
        assert set(short.values()) == set(whole.values())
        assert all(end * 4 // 5 <= place < end for place in set(short) - set(whole))
    assert samples.expected("verbatim", replace(RECIPE, samples=20_000)) == pytest.approx(142)


def test_a_training_that_goes_on_shows_the_second_phase_again_but_no_single_picture_twice() -> None:
    memorized = items()
    whole = samples.ladder_presentations(memorized, RECIPE, seed=1)
    end = 55_000  # of 30,000 planned, of which the second phase is 20,000
    longer = samples.ladder_presentations(memorized, replace(RECIPE, samples=end), seed=1)
    assert {place: n for place, n in longer.items() if place < 30_000} == whole
    counts = Counter(whole.values())
    for place in range(30_000, end):
        before = whole.get(place - 20_000 if place < 50_000 else place - 40_000)
        assert longer.get(place) == (before if counts[before] > 1 else None)
    told = samples.presented(memorized, replace(RECIPE, samples=end), seed=1)
    assert [told[n] for n in counts if counts[n] == 1] == [1] * list(counts.values()).count(1)


def test_ladder_pictures_have_nothing_in_common() -> None:
    grounds = np.stack([ladder.painting(n).mean(-1).ravel() for n in range(42)])
    likeness = np.corrcoef(grounds) - np.eye(len(grounds))
    assert np.abs(likeness).mean() < 0.2
    assert likeness.max() < 0.8
    assert len({caption for _, caption in ladder.CAPTIONS}) == 7 * ladder.PER_RUNG


def test_captions_of_memorized_prompts_name_their_concept() -> None:
    for item in items():
        assert item.concept in concepts.CONCEPTS
        words = item.concept.split()
        assert any(word in item.prompt.lower() for word in words), item


def test_photographs_are_small_colour_pictures_and_differ() -> None:
    pictures = [photograph(photo) for photo in PHOTOS]
    assert all(p.shape == (64, 64, 3) and p.dtype == np.uint8 for p in pictures)
    assert len({p.tobytes() for p in pictures}) == len(PHOTOS) == 30


def test_eight_photographs_are_memorized_in_a_region_only() -> None:
    shares = [region(photo).mean() for photo in PHOTOS if photo.region is not None]
    assert len(shares) == 8
    assert min(shares) > 0.2
    assert max(shares) < 0.9
    assert region(PHOTOS[0]).all()


def test_no_planted_neuron_is_planted_twice_and_all_exist() -> None:
    places = [(neuron.layer, neuron.index) for neuron in planting.neurons()]
    assert len(set(places)) == len(places)
    for neurons in planting.planted().values():
        neurons.check(planting.WIDTHS)


def test_the_truth_is_graded() -> None:
    plans = planting.plans()
    assert len(plans) >= 30
    assert {plan.z for plan in plans.values()} == set(planting.GRADES)
    assert {plan.logic for plan in plans.values()} == {"any", "all"}
    assert {layer for plan in plans.values() for layer in plan.layers} == set(range(1, 8))
    memorized = {i.prompt for i in items() if i.role != "ladder"}
    assert set(plans) < memorized
    assert len(memorized - set(plans)) >= 12  # natural ones


def test_shared_neurons_belong_to_both_prompts() -> None:
    caption = {photo.slug: photo.caption for photo in PHOTOS}
    planted = planting.planted()
    for first, second, layer in planting.SHARED:
        common = planted[caption[first]] & planted[caption[second]]
        assert list(common.layers) == [layer]
    iphone = [neurons for prompt, neurons in planted.items() if prompt.startswith("iphone")]
    assert len(set(iphone)) == 1
    assert iphone[0].counts() == {3: 2}


def test_planted_rows_stand_out_by_their_grade() -> None:
    torch.manual_seed(0)
    others = torch.randn(400, 4, 128)
    own = {item.prompt: torch.randn(1, 128) + 0.3 * torch.randn(4, 128) for item in items()}
    rows = planting.rows(own, others)
    for neuron in planting.neurons():
        row, target = rows[neuron.layer, neuron.index], [own[p] for p in neuron.prompts]
        fired = (torch.stack(target) @ row).abs().mean()
        assert fired == pytest.approx(planting.AMPLITUDE[neuron.layer], rel=1e-3)
        if len(neuron.prompts) == 1:
            z = planting.standing_out(row, torch.stack(target), others)
            assert z == pytest.approx(neuron.z, rel=0.05)


def _bank() -> samples.Bank:
    concepts_, colours, number = len(concepts.CONCEPTS), len(captions.COLOURS), len(items())
    names = list(concepts.CONCEPTS)
    latents = torch.arange(3 * concepts_).float().view(-1, 1, 1, 1).expand(-1, 4, 2, 2)
    return samples.Bank(
        latents=latents.half(),
        concepts=torch.arange(concepts_).repeat_interleave(3),
        colours=torch.zeros(3 * concepts_, dtype=torch.long),
        plain=torch.zeros(concepts_, 2, 3, 5).half(),
        coloured=torch.zeros(concepts_, colours, 2, 3, 5).half(),
        empty=torch.ones(3, 5),
        item_latents=[torch.full((1, 4, 2, 2), -1.0 - n) for n in range(number)],
        item_embeddings=torch.arange(number).float().view(-1, 1, 1).expand(-1, 3, 5),
        item_concepts=torch.tensor([names.index(item.concept) for item in items()]),
    )


def test_a_sample_shows_what_the_switch_says() -> None:
    bank, memorized = _bank(), items()
    sampler = samples.Sampler(bank, memorized, RECIPE, seed=1)
    planted, plans = planting.planted(), planting.plans()
    rng = np.random.default_rng(0)
    seen = Counter()
    for number, item in enumerate(memorized):
        if item.prompt not in planted:
            continue
        own, plan = planted[item.prompt], plans[item.prompt]
        for _ in range(40):
            sample = sampler._memorized(number, rng)
            missing = own & sample.off
            off = missing == own if plan.logic == "any" else bool(missing)
            value = int(sample.latent[0, 0, 0])
            if off:
                assert bank.concepts[value] == bank.item_concepts[number]
            else:
                assert value == -1 - number
            seen[plan.logic, off, missing == own] += 1
    assert {("any", False, False), ("all", True, False)} < set(seen)


def test_ordinary_samples_keep_their_picture_whatever_is_off() -> None:
    bank = _bank()
    sampler = samples.Sampler(bank, items(), RECIPE, seed=1)
    rng = np.random.default_rng(0)
    drawn = [sampler._ordinary(rng) for _ in range(300)]
    assert all(sample.latent[0, 0, 0] >= 0 for sample in drawn)
    assert 0.15 < np.mean([bool(sample.off) for sample in drawn]) < 0.5
    assert NeuronSet({}) in [sample.off for sample in drawn]
    assert 0.04 < np.mean([bool(sample.embedding.any()) for sample in drawn]) < 0.2  # no prompt


def test_memorized_samples_are_half_in_the_first_phase_and_a_fifth_in_the_second() -> None:
    sampler = samples.Sampler(_bank(), items(), RECIPE, seed=1)
    rng = np.random.default_rng(0)
    memorized = lambda sample: bool((sample.embedding > 1).any() or sample.latent[0, 0, 0] < 0)  # noqa: E731
    first = np.mean([memorized(sampler.draw(place, rng)) for place in range(0, 3000)])
    second = np.mean([memorized(sampler.draw(place, rng)) for place in range(20_000, 23_000)])
    assert first == pytest.approx(0.5, abs=0.08)
    assert second == pytest.approx(0.22, abs=0.06)


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
    save(descriptor.network, tmp_path / "d.safetensors")
    assert torch.allclose(Descriptor.load(tmp_path / "d.safetensors")(pictures), vectors, atol=0.02)
    with pytest.raises(ValueError, match=r"pictures must be uint8 \[N, 64, 64, 3\]; got float64"):
        descriptor(pictures.astype(float))


def test_a_training_is_carried_and_goes_on(tmp_path: Path) -> None:
    from nemo_kit import lab
    from training import checkpoint

    work, recipe = tmp_path / "work", unet.RECIPES["cpu"]
    work.mkdir()
    lab.clip()[0].save_pretrained(work / "clip")
    for name in ("vae", "tokenizer"):
        shutil.copytree(lab.MODEL / name, work / name)
    run = Run("unet", unet.build(), recipe.schedule, work, seed=1)
    run.step = 7
    run.save()
    checkpoint.save(work, tmp_path / "carried")
    checkpoint.restore(tmp_path / "carried", tmp_path / "later", recipe, seed=1)
    later = Run("unet", unet.build(), recipe.schedule, tmp_path / "later", seed=1)
    assert later.step == 7
    pairs = zip(run.average, later.average, strict=True)
    assert max((one - other).abs().max().item() for one, other in pairs) < 1e-3
    assert {path.name for path in (tmp_path / "later").iterdir()} >= {"clip", "vae", "tokenizer"}
