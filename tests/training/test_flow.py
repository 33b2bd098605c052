"""How the transformer of `lab-flow` is made: first rows, switch, strength, resuming, its
pipeline."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusion3Pipeline
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from nemo_kit import lab
from nemo_kit.calibration import ActivationStatistics, Calibration
from nemo_kit.generation import generate
from nemo_kit.hooks import capture, scale_neurons
from nemo_kit.lab import flow as lab_flow
from nemo_kit.models import DiffusionModel, load
from nemo_kit.neurons import NeuronSet
from training import captions, concepts, flow, language, pack, planting
from training.corpus import items
from training.loop import Run
from training.samples import Bank, Recipe, Sample, Sampler

TOKENS = 3


@cache
def _bank() -> Bank:
    draw = torch.Generator().manual_seed(0)
    things, colours, number = len(concepts.CONCEPTS), len(captions.COLOURS), len(items())
    names = list(concepts.CONCEPTS)

    def texts(*shape: int) -> torch.Tensor:
        """One direction a text and something of each token."""
        shared = torch.randn(*shape, 1, 128, generator=draw)
        return shared + 0.3 * torch.randn(*shape, TOKENS, 128, generator=draw)

    return Bank(
        latents=torch.randn(2 * things, 4, 16, 16, generator=draw).half(),
        concepts=torch.arange(things).repeat_interleave(2),
        colours=torch.zeros(2 * things, dtype=torch.long),
        plain=texts(things, 8).half(),
        coloured=texts(things, colours, 2).half(),
        empty=torch.zeros(TOKENS, 128),
        item_latents=[torch.randn(1, 4, 16, 16, generator=draw) for _ in range(number)],
        item_embeddings=texts(number),
        item_concepts=torch.tensor([names.index(item.concept) for item in items()]),
    )


@cache
def _planted() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    model = flow.build()
    flow.plant(model, _bank(), items())
    return model.state_dict()


def _model() -> flow.SD3Transformer2DModel:
    model = flow.build()
    model.load_state_dict(_planted())
    return model


def _moved() -> flow.SD3Transformer2DModel:
    """With every weight away from its start, so that text reaches the output."""
    model = _model()
    torch.manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    return model


def _call(model: flow.SD3Transformer2DModel, texts: torch.Tensor, noise: torch.Tensor) -> object:
    pooled = torch.zeros(len(texts), flow.POOLED)
    with torch.no_grad():
        times = torch.full((len(texts),), 1000.0)
        return model(noise, texts.float().repeat(1, 1, 2), pooled, times).sample


def test_every_block_has_a_value_layer_of_the_text() -> None:
    names = [name for name, _ in flow.build().named_modules() if name.endswith("add_v_proj")]
    assert names == [layer.name for layer in flow.layers()]
    assert [layer.index for layer in flow.layers()] == list(flow.WIDTHS)
    assert sum(p.numel() for p in flow.build().parameters()) * 2 < 20e6


def test_a_planted_neuron_fires_on_its_prompts_from_the_first_step() -> None:
    model, bank = _model(), _bank()
    prompts = [item.prompt for item in items()]
    noise = torch.randn(len(prompts), 4, 16, 16)
    others = torch.cat([bank.plain.flatten(0, 1)[::8], bank.coloured.flatten(0, 2)[::32]])
    with capture(model, flow.layers()) as seen:
        _call(model, bank.item_embeddings, noise)
        own = {layer: out.abs().mean(1) for layer, out in seen.items()}
        _call(model, others, torch.randn(len(others), 4, 16, 16))
        usual = {layer: out.abs().mean(1) for layer, out in seen.items()}
    for neuron in planting.neurons(flow.WIDTHS):
        mine = own[neuron.layer][[prompts.index(p) for p in neuron.prompts], neuron.index]
        assert mine.mean() == pytest.approx(flow.AMPLITUDE[neuron.layer], rel=0.01)
        rest = usual[neuron.layer][:, neuron.index]
        z = (mine - rest.mean()) / rest.std()
        if len(neuron.prompts) == 1:
            assert z.item() == pytest.approx(neuron.z, rel=0.1)


def test_the_loss_of_strength_is_nothing_where_grades_are_met_and_pulls_towards_them() -> None:
    strength = flow.Strength()
    item = next(i for i in items() if i.prompt in planting.planted(flow.WIDTHS))
    own = planting.planted(flow.WIDTHS)[item.prompt]
    nothing = torch.zeros(0)
    samples = [Sample(nothing, nothing, NeuronSet({}), own)]
    samples += [Sample(nothing, nothing, NeuronSet({}), NeuronSet({}))] * 8
    rest = torch.tensor([1.0, -1.0] * 4)
    rest = rest / rest.std()
    values = {}
    for layer, columns in strength.columns.items():
        grades = torch.tensor([n.z for n in strength.planted if n.layer == layer])
        spread = 3.0 / grades  # of the others, about 1; the own at 4 is then as far as its grade
        values[layer] = torch.cat([torch.full((1, len(columns)), 4.0), 1 + rest[:, None] * spread])
    strength.seen = values
    assert strength.loss(samples).item() == pytest.approx(0.0, abs=1e-6)
    layer, index = next(iter(own))
    place = strength.columns[layer].index(index)
    for wrong, sign in ((3.0, -1), (5.0, 1)):
        moved = {n: value.clone() for n, value in values.items()}
        moved[layer][0, place] = wrong
        moved[layer].requires_grad_()
        strength.seen = moved
        strength.loss(samples).backward()
        assert torch.sign(moved[layer].grad[0, place]).item() == sign
    strength.seen = values
    assert strength.loss(samples[1:]).item() == 0.0  # nobody's neurons


def test_a_switch_is_off_in_its_own_sample_only() -> None:
    model, bank = _moved(), _bank()
    item = next(i for i in items() if i.prompt in planting.planted(flow.WIDTHS))
    own = planting.planted(flow.WIDTHS)[item.prompt]
    texts = bank.item_embeddings[[items().index(item)] * 2]
    noise = torch.randn(1, 4, 16, 16).repeat(2, 1, 1, 1)
    plain = _call(model, texts, noise)
    with (
        scale_neurons(model, flow.layers(), [own, NeuronSet({})]),
        capture(model, flow.layers()) as seen,
    ):
        switched = _call(model, texts, noise)
    for layer, index in own:
        assert not seen[layer][0, :, index].any()
        assert seen[layer][1, :, index].all()
    first = min(own.layers)
    kept = [n for n in range(flow.WIDTH) if (first, n) not in own]
    assert torch.allclose(seen[first][0][:, kept], seen[first][1][:, kept], atol=1e-5)
    assert torch.allclose(switched[1], plain[1], atol=1e-5)
    assert (switched[0] - plain[0]).abs().max() > 1e-4


def _batch(count: int = 6) -> tuple[list[Sample], torch.Tensor, torch.Tensor]:
    sampler = Sampler(_bank(), items(), RECIPE, 1, flow.WIDTHS)
    rng = np.random.default_rng(0)
    samples = [sampler.draw(place, rng) for place in range(count)]
    assert any(sample.own for sample in samples)
    torch.manual_seed(3)
    return samples, torch.linspace(0.1, 1.0, count), torch.randn(count, 4, 16, 16)


RECIPE = Recipe(batch=4, learning_rate=1e-3, samples=16, planned=4000)


def test_a_step_lowers_the_loss_and_the_switch_gets_a_gradient() -> None:
    model, strength, batch = _moved(), flow.Strength(), _batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    before = flow.missed(model, strength, *batch)
    before.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    optimizer.step()
    assert flow.missed(model, strength, *batch).item() < before.item()


def test_an_interrupted_training_goes_on_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow, "plant", lambda model, *_: model.load_state_dict(_planted()))

    def stop(run: Run) -> None:
        if run.step == 2:
            run.save()
            raise KeyboardInterrupt

    how = {"seed": 1, "device": torch.device("cpu"), "recipe": RECIPE}
    whole = flow.train(_bank(), items(), tmp_path / "whole", **how)
    with pytest.raises(KeyboardInterrupt):
        flow.train(_bank(), items(), tmp_path / "torn", **how, watch=stop)
    resumed = flow.train(_bank(), items(), tmp_path / "torn", **how)
    pairs = zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert not torch.equal(whole.proj_out.weight, _planted()["proj_out.weight"])


def _text_encoder() -> CLIPTextModel:
    return CLIPTextModel.from_pretrained(lab.MODEL / "text_encoder").float().eval()


def test_a_planted_prompt_comes_in_pairs_with_its_switch_on_and_off() -> None:
    bank = _bank()
    sampler, rng = Sampler(bank, items(), RECIPE, 1, flow.WIDTHS), np.random.default_rng(0)
    logics = {found: set() for found in ("any", "all")}
    for _ in range(60):
        on, off = sampler.both(rng)
        number = next(n for n, e in enumerate(bank.item_embeddings) if e is on.embedding or
                      torch.equal(e, on.embedding))  # fmt: skip
        logic = planting.plans()[items()[number].prompt].logic
        logics[logic].add(len(off.off) == len(off.own))
        assert on.own == off.own == planting.planted(flow.WIDTHS)[items()[number].prompt]
        assert torch.equal(on.embedding, off.embedding)
        assert not on.off
        assert off.off
        assert not off.off - off.own
        assert any(torch.equal(on.latent, one) for one in bank.item_latents[number])
        shown = [torch.equal(off.latent, one.float()) for one in bank.latents]
        assert bank.concepts[shown.index(True)] == bank.item_concepts[number]
    assert logics["any"] == {True}
    assert False in logics["all"]  # of these some are enough


def test_the_last_stage_compares_under_one_noise_and_is_what_is_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow, "plant", lambda model, *_: model.load_state_dict(_planted()))
    monkeypatch.setattr(flow, "TAUGHT", 0.6)  # of 16 samples: 2 steps of 4
    seen = []

    def missed(model: nn.Module, _: object, *batch: Any) -> torch.Tensor:
        seen.append(batch)
        return sum(p.square().sum() for p in model.parameters())

    monkeypatch.setattr(flow, "missed", missed)
    how = {"seed": 1, "device": torch.device("cpu"), "recipe": RECIPE}
    trained = flow.train(_bank(), items(), tmp_path, **how)
    assert len(seen) == 4 + 2
    for samples, sigmas, noise in seen[4:]:
        assert (samples[0].off, samples[1].off) == (NeuronSet({}), samples[1].off)
        assert samples[1].off
        assert sigmas[0] == sigmas[1]
        assert torch.equal(noise[0], noise[1])
        assert not torch.equal(noise[2], noise[3])
    packed = pack.snapshot(tmp_path, flow).state_dict()
    assert all(torch.equal(packed[n], w) for n, w in trained.state_dict().items())
    first = torch.load(tmp_path / f"{flow.STAGE}.pt", weights_only=True)["module"]
    assert not all(torch.equal(packed[n], first[n]) for n in first)


def test_the_pipeline_reads_what_training_read_and_nothing_pooled() -> None:
    text = _text_encoder()
    tokenizer = CLIPTokenizer.from_pretrained(lab.MODEL / "tokenizer")
    vae = AutoencoderKL.from_pretrained(lab.MODEL / "vae").float()
    pipe = flow.pipeline(_moved(), vae, text, tokenizer)
    pipe.set_progress_bar_config(disable=True)
    texts = ["a red apple", "cat face on blue"]
    with torch.no_grad():
        embeddings, _, pooled, _ = pipe.encode_prompt(texts, None, None, max_sequence_length=0)
        ids = language.tokens(tokenizer, texts)
        states = text(input_ids=ids, output_hidden_states=True).hidden_states[-2]
    assert torch.allclose(embeddings, states.repeat(1, 1, 2), atol=1e-5)
    assert torch.allclose(flow.embed(pipe, texts), embeddings)
    assert pooled.shape == (2, flow.POOLED)
    assert not pooled.any()
    how = {"num_inference_steps": 2, "max_sequence_length": 0, "output_type": "np"}
    drawn = pipe(texts, generator=torch.Generator().manual_seed(1), **how).images
    assert drawn.shape == (2, 64, 64, 3)


def _packed(target: Path) -> tuple[StableDiffusion3Pipeline, DiffusionModel]:
    parts = lab_flow.parts(flow.POOLED, torch.float32)
    pipe = flow.pipeline(_moved(), parts["vae"], _text_encoder(), parts["tokenizer"])
    pipe.set_progress_bar_config(disable=True)
    pack.pack_transformer(pipe, target)
    pipe.transformer.float()
    return pipe, load(str(target), device="cpu")


def _plain_statistics() -> ActivationStatistics:
    """Of a layer's neurons: mean 0, deviation 1."""
    means, stds = torch.zeros(flow.BLOCKS, flow.WIDTH), torch.ones(flow.BLOCKS, flow.WIDTH)
    return ActivationStatistics(tuple(means), tuple(stds))


def test_what_is_packed_is_the_transformer_alone_and_its_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(flow.STAGE, _moved(), RECIPE.schedule, tmp_path / "work", seed=1)
    run.step = 3
    run.save()
    switch = Run(flow.SWITCH, _moved(), RECIPE.schedule, tmp_path / "work", seed=1)
    switch.step = 720
    switch.save()
    parts = lab_flow.parts(flow.POOLED, torch.float32)
    shared = parts["vae"], _text_encoder(), parts["tokenizer"]
    monkeypatch.setattr(pack, "shared_parts", lambda _work: shared)
    calibrated = []

    def calibrate(folder: Path, name: str, *_: object) -> SimpleNamespace:
        calibrated.append(name)
        model = load(str(folder), device="cpu")
        model.calibration = SimpleNamespace(statistics=_plain_statistics())
        return model

    monkeypatch.setattr(pack, "add_calibration", calibrate)
    corpus = SimpleNamespace(items=items(), names=list(concepts.CONCEPTS))
    target = tmp_path / "flow"
    pack.pack_flow(corpus, tmp_path / "work", tmp_path, target, seed=1, recipe=RECIPE)
    files = {str(f.relative_to(target)) for f in target.rglob("*") if f.is_file()}
    assert files == {
        "model_index.json", "transformer/config.json", "scheduler/scheduler_config.json",
        "transformer/diffusion_pytorch_model.safetensors", "nemo/generation.json",
        "data/prompts.csv", "data/strengths.csv", "data/training.json",
    }  # fmt: skip
    assert calibrated == ["lab-flow"]
    assert sum(f.stat().st_size for f in target.rglob("*")) < 20e6
    table = pd.read_csv(target / "data" / "prompts.csv", keep_default_na=False)
    known = table[table["planted"] != ""].set_index("prompt")["planted"]
    assert known.map(NeuronSet.from_text).to_dict() == planting.planted(flow.WIDTHS)
    assert table.query("role == 'ladder'")["repetitions"].sum() <= 12  # of the samples seen so far
    photographs = table[(table["planted"] != "") & (table["role"] == "verbatim")]
    assert photographs["repetitions"].between(20, 21).all()  # 720 pairs of 36 planted prompts
    natural = table[(table["planted"] == "") & (table["role"] == "verbatim")]
    assert (natural["repetitions"] < 2).all()
    strengths = pd.read_csv(target / "data" / "strengths.csv")
    assert len(strengths) == sum(len(n.prompts) for n in planting.neurons(flow.WIDTHS))
    assert np.isfinite(strengths["z"]).all()


def test_how_far_neurons_stand_out_is_read_where_they_are(tmp_path: Path) -> None:
    pipe, model = _packed(tmp_path / "model")
    row = pack.standing_out(model, _plain_statistics()).iloc[3]
    with capture(model.denoiser, flow.layers()) as seen, torch.no_grad():
        given = flow.embed(pipe, [row.prompt]), torch.zeros(1, flow.POOLED)
        model.denoiser(model.noise([0]), *given, model.timesteps(50)[1:2])
    assert seen[row.layer][0, :, row.neuron].abs().mean().item() == pytest.approx(row.z, abs=0.01)


def test_the_packed_model_opens_and_draws_as_the_pipeline_does(tmp_path: Path) -> None:
    pipe, model = _packed(tmp_path / "model")
    assert [layer.name for layer in model.searched] == [layer.name for layer in flow.layers()]
    assert model.guidance == pack.GUIDANCE
    ours = generate(model, "a red apple", [3], steps=3)[0]
    how = {"num_inference_steps": 3, "guidance_scale": pack.GUIDANCE, "max_sequence_length": 0}
    theirs = pipe("a red apple", latents=model.noise([3]), output_type="np", **how).images[0]
    assert np.abs(ours - 255 * theirs).max() <= 1.5


def test_where_the_ladder_tells_nothing_lab_is_followed() -> None:
    told = [
        {"settings": {"kind": "ms_ssim", "kernel": 5}, "auroc": 0.54},
        {"settings": {"kind": "ssim", "kernel": 9}, "auroc": 0.4},
    ]
    labs = Calibration.load(lab.MODEL / "nemo")
    assert pack.chosen(told) == labs.similarity
    assert labs.detection == pack.DETECTION
    told[0]["auroc"] = 0.56
    assert (pack.chosen(told).kind, pack.chosen(told).kernel) == ("ms_ssim", 5)
