"""Mitigations that act on embedding, noise, attention and weights: effects known exactly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from toys import count_hooks

from nemo_kit.generation import Run, generate
from nemo_kit.hooks import capture
from nemo_kit.keys import value_digest
from nemo_kit.mitigation import (
    MITIGATIONS,
    AttentionMasking,
    AttentionScaling,
    EmbeddingAdjustment,
    EmbeddingNoise,
    InitialCandidates,
    Mitigation,
    NeMo,
    NoiseOptimisation,
    NoMitigation,
    RandomNeurons,
    RandomNumbers,
    RandomTokens,
    WandaPruning,
    WordRepetition,
    further_rows,
)
from nemo_kit.mitigation.attention import kept_tokens
from nemo_kit.mitigation.gap import norms, predicted_gap, relative_size
from nemo_kit.mitigation.tokens import mask_tokens, scale_tokens
from nemo_kit.mitigation.wanda import feed_forward_layers, wanda_mask
from nemo_kit.models import DiffusionModel, load
from nemo_kit.neurons import NeuronSet

FOUND = NeuronSet({1: [0, 3], 4: range(6)})
WANDA = WandaPruning(share=0.05, steps=1, trajectory=2, seeds=(7,))
EVERY: list[Mitigation] = [
    NoMitigation(), NeMo({"a b": FOUND}), InitialCandidates(FOUND), RandomNeurons({"a b": FOUND}),
    RandomTokens(1), RandomNumbers(1), WordRepetition(1), EmbeddingNoise(), AttentionScaling(),
    AttentionMasking(), EmbeddingAdjustment(0.0, 2), NoiseOptimisation(0.0, None, 1, 2), WANDA,
]  # fmt: skip

HOOKED = [way for way in EVERY if type(way) in (NeMo, AttentionScaling, AttentionMasking,
                                                WandaPruning)]  # fmt: skip
SEARCHING = [way for way in EVERY if type(way) in (EmbeddingAdjustment, NoiseOptimisation)]


def a_run(model: DiffusionModel, prompts: tuple[str, ...] = ("a b", "Öl"), **changes: Any) -> Run:
    """Two images, guided, two steps."""
    seeds = tuple(range(1, len(prompts) + 1))
    run = Run(
        model=model, prompts=prompts, texts=prompts, seeds=seeds, noise=model.noise(seeds),
        embeddings=model.embed(prompts), empty=model.embed(""), guidance=7.0, steps=2,
        halves="conditional",
    )  # fmt: skip
    return replace(run, **changes)


def predicted(run: Run, embeddings: torch.Tensor | None = None) -> torch.Tensor:
    """The denoiser's output for the texts, then for the empty prompt."""
    text = run.embeddings if embeddings is None else embeddings
    both = torch.cat([text, run.model.embed("").expand_as(text)])
    with torch.no_grad():
        return run.model.predict(torch.cat([run.noise] * 2), run.model.timesteps(2)[0], both)


def gaps(run: Run, embeddings: torch.Tensor) -> torch.Tensor:
    """‖Δε‖ of each sample at the first timestep."""
    first, empty = run.model.timesteps(run.steps)[0], run.model.embed("")
    with torch.no_grad():
        return norms(predicted_gap(run.model, run.noise, first, embeddings, empty))


def close(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.abs(a.astype(int) - b.astype(int)).max() <= 1)


def test_all_are_tested_here_and_offered() -> None:
    assert {type(way) for way in EVERY} == set(MITIGATIONS.values())
    assert {way.name for way in further_rows(FOUND).values()} == set(further_rows(FOUND))
    assert "initial candidates" not in further_rows()


@pytest.mark.parametrize("way", EVERY, ids=lambda way: way.name)
def test_each_image_is_its_own_and_nothing_stays(
    toy_model: DiffusionModel, way: Mitigation
) -> None:
    before = value_digest(dict(toy_model.denoiser.state_dict()))
    processors = dict(toy_model.denoiser.attn_processors)
    together = generate(toy_model, ["a b", "Öl"], [1, 2], steps=2, mitigation=way)
    alone = generate(toy_model, "Öl", [2], steps=2, mitigation=way)
    assert close(together[1, 1:], alone)
    assert value_digest(dict(toy_model.denoiser.state_dict())) == before
    assert dict(toy_model.denoiser.attn_processors) == processors
    assert all(p.grad is None and not p.requires_grad for p in toy_model.denoiser.parameters())
    assert count_hooks(toy_model.denoiser) == 0


@pytest.mark.parametrize("way", HOOKED, ids=lambda way: way.name)
def test_nothing_stays_where_something_raises(toy_model: DiffusionModel, way: Mitigation) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(toy_model, "a b", [1], steps=1, mitigation=way, progress=stop)
    assert count_hooks(toy_model.denoiser) == 0


@pytest.fixture(scope="module")
def half_model(toy_folder: Any) -> DiffusionModel:
    return load(str(toy_folder), device="cpu", dtype=torch.float16)


@pytest.mark.parametrize("way", EVERY, ids=lambda way: way.name)
def test_half_precision(half_model: DiffusionModel, way: Mitigation) -> None:
    images = generate(half_model, ["a b"], [1], steps=1, mitigation=way)
    assert images.shape == (1, 1, 32, 32, 3)
    assert count_hooks(half_model.denoiser) == 0


@pytest.mark.parametrize("way", HOOKED + SEARCHING, ids=lambda way: way.name)
def test_models_that_predict_v(sd2_model: DiffusionModel, way: Mitigation) -> None:
    """Without guidance, where the empty prompt is no part of the batch."""
    images = generate(sd2_model, "a b", [1], steps=1, mitigation=way, guidance=0)
    assert images.shape == (1, 32, 32, 3)


# -- attention --


@contextmanager
def explicit_attention(model: DiffusionModel, factor: float) -> Iterator[None]:
    """Cross-attention written out, the logit of the first token times a factor in all rows."""

    def process(attn: Any, hidden: torch.Tensor, text: torch.Tensor | None = None, **_: Any) -> Any:
        cross, text = text is not None, hidden if text is None else text
        q, k, v = (attn.head_to_batch_dim(x) for x in (attn.to_q(hidden), attn.to_k(text),
                                                         attn.to_v(text)))  # fmt: skip
        logits = q @ k.transpose(1, 2) * attn.scale
        if cross:
            logits[..., 0] *= factor
        mixed = attn.batch_to_head_dim(logits.softmax(dim=-1) @ v)
        return attn.to_out[0](mixed)

    def processor(attn: Any, hidden: Any, encoder_hidden_states: Any = None, **_: Any) -> Any:
        return process(attn, hidden, encoder_hidden_states)

    kept = dict(model.denoiser.attn_processors)
    model.denoiser.set_attn_processor(processor)
    try:
        yield
    finally:
        model.denoiser.set_attn_processor(dict(kept))


def test_scaling_multiplies_the_first_logit_alone(toy_model: DiffusionModel) -> None:
    run = a_run(toy_model, halves="both")
    with explicit_attention(toy_model, 1.0):
        plain = predicted(run)
    assert torch.allclose(predicted(run), plain, atol=1e-2)  # of values near 100
    with explicit_attention(toy_model, 1.25):
        expected = predicted(run)
    with AttentionScaling().apply(run):
        found = predicted(run)
    assert torch.allclose(found, expected, atol=1e-2)
    assert not torch.allclose(found, plain, atol=1)


def test_scaling_leaves_all_other_keys_and_the_empty_prompt(toy_model: DiffusionModel) -> None:
    run = a_run(toy_model)
    with capture(toy_model.denoiser, toy_model.key_layers) as plain:
        predicted(run)
    with (
        AttentionScaling(2.0).apply(run),
        capture(toy_model.denoiser, toy_model.key_layers) as keys,
    ):
        predicted(run)
    assert len(plain) == 16
    for layer, before in plain.items():
        assert torch.equal(keys[layer][:2, 0], 2 * before[:2, 0])
        assert torch.equal(keys[layer][:, 1:], before[:, 1:])
        assert torch.equal(keys[layer][2:], before[2:]), "the empty prompt's half"


def test_masked_tokens_have_no_weight(toy_model: DiffusionModel) -> None:
    run = a_run(toy_model)
    keep = torch.stack([kept_tokens(toy_model, text, 12) for text in run.texts])
    assert keep.sum(dim=1).tolist() == [4, 5]  # BOS, EOS and a b; Öl has three bytes
    other = torch.where(keep[:, :, None], run.embeddings, run.embeddings * -50 + 9)
    with AttentionMasking().apply(run):
        assert torch.equal(predicted(run), predicted(run, other))
    plain = predicted(run)
    assert not torch.allclose(plain[:2], predicted(run, other)[:2], atol=1e-3)
    with AttentionMasking().apply(run):
        masked = predicted(run)
    assert torch.allclose(masked[2:], plain[2:], atol=1e-5), "the empty prompt keeps all"
    assert not torch.allclose(masked[:2], plain[:2], atol=1e-4)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda m, k: scale_tokens(m, k, torch.ones(3, 12)), r"gains must be .* = \[4, 12\], got"),
        (lambda m, _: mask_tokens(m, torch.ones(3, 12) > 0), "keep holds 3 rows, but the batch ha"),
        (lambda m, _: mask_tokens(m, torch.zeros(4, 12) > 0), "with a token in each row"),
    ],
)
def test_token_hooks_refuse_other_batches(
    toy_model: DiffusionModel, change: Any, text: str
) -> None:
    names = [toy_model.key_layers[0].name]
    with pytest.raises(ValueError, match=text), change(toy_model.denoiser, names):
        predicted(a_run(toy_model))
    assert count_hooks(toy_model.denoiser) == 0


# -- embedding and noise --


@pytest.mark.parametrize("which", ["toy_model", "sd2_model"])
def test_adjustment_lowers_the_gap_and_leaves_bos(which: str, request: Any) -> None:
    run = a_run(request.getfixturevalue(which))
    before = gaps(run, run.embeddings)
    with EmbeddingAdjustment(target=0.0, steps=4).apply(run) as changed:
        assert torch.equal(changed.noise, run.noise)
    after = gaps(run, changed.embeddings)
    assert (after < 0.95 * before).all(), (before, after)
    assert torch.equal(changed.embeddings[:, 0], run.embeddings[:, 0])
    assert not torch.equal(changed.embeddings[:, 1:], run.embeddings[:, 1:])


def test_adjustment_stops_image_by_image(toy_model: DiffusionModel) -> None:
    run = a_run(toy_model)
    before = gaps(run, run.embeddings)
    between = before.mean().item()
    with EmbeddingAdjustment(target=between, steps=3).apply(run) as changed:
        pass
    easy, hard = before.argmin().item(), before.argmax().item()
    assert torch.equal(changed.embeddings[easy], run.embeddings[easy])
    assert not torch.equal(changed.embeddings[hard], run.embeddings[hard])


def test_published_bounds_scale_with_the_latent(toy_model: DiffusionModel) -> None:
    assert relative_size(toy_model) == pytest.approx((4 * 16 * 16 / 16384) ** 0.5) == 0.25
    run = a_run(toy_model, ("a b",))
    assert EmbeddingAdjustment()._target(run) == 1.5 / 4
    assert NoiseOptimisation()._accepted(toy_model) == 8.2 / 4
    assert NoiseOptimisation()._weight(toy_model) == 0.05


def test_embedding_noise_is_what_it_says(toy_model: DiffusionModel) -> None:
    run = a_run(toy_model)
    with EmbeddingNoise(0.5).apply(run) as changed, EmbeddingNoise(0.25).apply(run) as less:
        added = changed.embeddings - run.embeddings
        assert torch.allclose(added, 2 * (less.embeddings - run.embeddings), atol=1e-5)
    assert added.std().item() == pytest.approx(0.5, rel=0.15)
    assert not torch.allclose(added[0], added[1])
    with EmbeddingNoise(0.5, seed=1).apply(run) as other:
        assert not torch.equal(other.embeddings, changed.embeddings)


def test_noise_optimisation_lowers_the_loss(toy_model: DiffusionModel) -> None:
    run = a_run(toy_model)
    way = NoiseOptimisation(accept=0.0, steps=2, candidates=1)
    with way.apply(run) as changed:
        assert torch.equal(changed.embeddings, run.embeddings)
    with torch.no_grad():
        before, after = (way._loss(run, x, run.embeddings) for x in (run.noise, changed.noise))
    assert (after < before).all()
    more = replace(way, candidates=2, steps=1)
    with more.apply(run) as best, torch.no_grad():
        assert (way._loss(run, best.noise, run.embeddings) < before).all()


def test_noise_that_is_accepted_stays(toy_model: DiffusionModel) -> None:
    run = a_run(toy_model)
    toy_model.samples_evaluated = 0
    with NoiseOptimisation(accept=1e9).apply(run) as changed:
        assert torch.equal(changed.noise, run.noise)
    assert toy_model.samples_evaluated == 2 * 2 * 2  # images, halves, x and x ahead


def test_the_loss_by_hand(toy_model: DiffusionModel) -> None:
    run = a_run(toy_model, ("a b",))
    first, empty = toy_model.timesteps(2)[0], toy_model.embed("")
    with torch.no_grad():
        gap = predicted_gap(toy_model, run.noise, first, run.embeddings, empty)
        ahead = run.noise + gap / gap.norm()
        gap = predicted_gap(toy_model, ahead, first, run.embeddings, empty)
        found = NoiseOptimisation()._loss(run, run.noise, run.embeddings)
    assert found.item() == pytest.approx((gap.norm() + 0.05 * run.noise.norm()).item(), rel=1e-5)


# -- pruning --


def test_wanda_prunes_exactly_the_largest_of_each_row() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 200, generator=generator)
    norm = torch.rand(1, 200, generator=generator)
    mask = wanda_mask(weight, norm, torch.zeros(1, 200), 0.01)
    assert mask.sum(dim=1).tolist() == [2] * 5  # 1 % of 200
    score = weight.abs() * norm
    for row in range(5):
        assert score[row][mask[row]].min() > score[row][~mask[row]].max()


def test_wanda_by_hand() -> None:
    weight = torch.tensor([[1.0, -3.0, 2.0], [4.0, 1.0, 1.0]])
    target = torch.tensor([[3.0, 0.9, 1.0], [0.5, 0.1, 9.0]])
    base = torch.tensor([[1.0, 2.0, 1.0], [1.0, 1.0, 9.0]])
    # step 1: scores 3 2.7 2 and 12 .9 1: the first of each; step 2: .5 .3 18 and 2 .1 9: the last,
    # but under the empty prompt these score as high, so they stay
    expected = [[True, False, False], [True, False, False]]
    assert wanda_mask(weight, target, base, 0.01).tolist() == expected
    base[1, 2] = 8.9
    assert wanda_mask(weight, target, base, 0.01)[:, 2].tolist() == [True, True]


def test_wanda_is_the_pruned_model(toy_model: DiffusionModel) -> None:
    masks = WANDA.masks(toy_model, "a b")
    assert len(masks) == 16
    run = a_run(toy_model, ("a b",))
    with WANDA.apply(run):
        found = predicted(run)
    layers = feed_forward_layers(toy_model.denoiser)
    kept = {name: layer.weight.clone() for name, layer in layers.items()}
    try:
        for name, layer in layers.items():
            assert 0 < masks[name].float().mean() <= 0.05
            layer.weight.masked_fill_(masks[name], 0)
        expected = predicted(run)
    finally:
        for name, layer in layers.items():
            layer.weight.copy_(kept[name])
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, predicted(run), atol=1e-3)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: AttentionScaling(float("inf")), "factor must be a finite number"),
        (lambda: EmbeddingAdjustment(target=-1), "target must be a finite number of at least 0"),
        (lambda: EmbeddingAdjustment(steps=0), "steps must be an integer of at least 1"),
        (lambda: EmbeddingAdjustment(rate="x"), "rate must be a finite number"),
        (lambda: EmbeddingNoise(-0.1), "scale must be a finite number of at least 0"),
        (lambda: EmbeddingNoise(seed=-1), "seed must be an integer"),
        (lambda: NoiseOptimisation(accept=-1), "accept must be a finite number"),
        (lambda: NoiseOptimisation(weight=-1), "weight must be a finite number"),
        (lambda: NoiseOptimisation(candidates=0), "candidates must be an integer of at least 1"),
        (lambda: WandaPruning(share=0), r"share must lie in \(0, 1\], got 0"),
        (lambda: WandaPruning(share=1.5), r"share must lie in \(0, 1\], got 1.5"),
        (lambda: WandaPruning(steps=10, trajectory=5), "trajectory must be an integer of at least"),
        (lambda: WandaPruning(seeds=()), "seeds must hold at least 1"),
    ],
)
def test_bad_parameters(make: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()


def test_wanda_needs_feed_forward_layers() -> None:
    with pytest.raises(ValueError, match="no feed-forward layer found in Linear"):
        feed_forward_layers(torch.nn.Linear(2, 2))
