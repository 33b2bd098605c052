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

from nemo_kit.generation import generate
from nemo_kit.hooks import capture
from nemo_kit.keys import value_digest
from nemo_kit.mitigation import (
    MITIGATIONS,
    AttentionMasking,
    AttentionMaskingAndScaling,
    AttentionScaling,
    EmbeddingAdjustment,
    EmbeddingNoise,
    Mitigation,
    NeMo,
    NoiseOptimisation,
    RandomNeurons,
    RandomNumbers,
    RandomTokens,
    WandaPruning,
    WordRepetition,
)
from nemo_kit.mitigation.attention import kept_tokens
from nemo_kit.mitigation.gap import norms, predicted_gap, relative_size
from nemo_kit.mitigation.wanda import feed_forward_layers, unit_squares, wanda_mask
from nemo_kit.models import DiffusionModel, load
from nemo_kit.neurons import NeuronSet
from nemo_kit.sampling import Run

FOUND = NeuronSet({1: [0, 3], 4: range(6)})
WANDA = WandaPruning(share=0.05, steps=1, trajectory=2, seeds=(7,))
EVERY: list[Mitigation] = [
    Mitigation(), NeMo({"a b": FOUND}), RandomNeurons({"a b": FOUND}),
    RandomTokens(1), RandomNumbers(1), WordRepetition(1), EmbeddingNoise(), AttentionScaling(),
    AttentionMasking(), AttentionMaskingAndScaling(), EmbeddingAdjustment(0.0, 2),
    NoiseOptimisation(0.0, None, 2, 2, rounds=1), WANDA,
]  # fmt: skip

HOOKED = [
    way
    for way in EVERY
    if type(way) is NeMo or isinstance(way, AttentionScaling | AttentionMasking | WandaPruning)
]
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


@pytest.mark.parametrize("way", EVERY, ids=lambda way: way.name)
def test_each_image_is_its_own_and_nothing_stays(
    toy_model: DiffusionModel, way: Mitigation
) -> None:
    before = value_digest(dict(toy_model.denoiser.state_dict()))
    processors = dict(toy_model.denoiser.attn_processors)
    together = generate(toy_model, ["a b", "Öl"], [1, 2], steps=2, mitigation=way)
    shared = isinstance(way, EmbeddingAdjustment)  # one embedding for all seeds of a prompt
    seeds = [1, 2] if shared else [2]
    alone = generate(toy_model, "Öl", seeds, steps=2, mitigation=way)
    assert close(together[1, 1:], alone[-1:])
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
def explicit_attention(
    model: DiffusionModel, factor: float, rows: slice = slice(None), keep: Any = None
) -> Iterator[None]:
    """Cross-attention written out: the first token's logit times a factor in some samples, and
    only tokens of `keep`, bool [samples, tokens], looked at."""

    def process(attn: Any, hidden: torch.Tensor, text: torch.Tensor | None = None, **_: Any) -> Any:
        cross, text = text is not None, hidden if text is None else text
        q, k, v = (attn.head_to_batch_dim(x) for x in (attn.to_q(hidden), attn.to_k(text),
                                                         attn.to_v(text)))  # fmt: skip
        logits = q @ k.transpose(1, 2) * attn.scale
        if cross:
            logits = logits.unflatten(0, (len(hidden), attn.heads))
            logits[rows, ..., 0] *= factor
            if keep is not None:
                logits = logits.masked_fill(~keep[:, None, None, :], -torch.inf)
            logits = logits.flatten(0, 1)
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


def test_mask_and_scaling_together_as_released(toy_model: DiffusionModel) -> None:
    """The mask on both halves, the scaling on the prompt's."""
    run = a_run(toy_model)
    keep = torch.stack([kept_tokens(toy_model, text, 12) for text in run.texts]).repeat(2, 1)
    with explicit_attention(toy_model, 1.25, slice(0, 2), keep):
        expected = predicted(run)
    with AttentionMaskingAndScaling().apply(run):
        found = predicted(run)
    assert torch.allclose(found, expected, atol=1e-2)
    with AttentionScaling().apply(run):
        assert not torch.allclose(predicted(run)[2:], expected[2:], atol=1e-1)
    with AttentionMasking().apply(run):
        assert not torch.allclose(predicted(run)[:2], expected[:2], atol=1e-1)


# -- embedding and noise --


@pytest.mark.parametrize("which", ["toy_model", "sd2_model"])
def test_adjustment_lowers_the_gap_and_leaves_bos(which: str, request: Any) -> None:
    run = a_run(request.getfixturevalue(which))
    before = gaps(run, run.embeddings)
    with EmbeddingAdjustment(target=0.0, steps=4).apply(run) as changed:
        assert torch.equal(changed.noise, run.noise)
    after = gaps(run, changed.embeddings)
    assert (after < 0.95 * before).all(), (before, after)
    decayed = (1 - 0.05 * 0.01) ** 4  # AdamW's own decay, four steps; the gradient is zeroed
    assert torch.allclose(changed.embeddings[:, 0], decayed * run.embeddings[:, 0], atol=1e-5)
    assert not torch.allclose(changed.embeddings[:, 1:], run.embeddings[:, 1:], atol=1e-2)


def test_adjustment_stops_prompt_by_prompt(toy_model: DiffusionModel) -> None:
    run = a_run(toy_model)
    before = gaps(run, run.embeddings)
    between = before.mean().item()
    with EmbeddingAdjustment(target=between, steps=3).apply(run) as changed:
        pass
    easy, hard = before.argmin().item(), before.argmax().item()
    assert torch.equal(changed.embeddings[easy], run.embeddings[easy])
    assert not torch.equal(changed.embeddings[hard], run.embeddings[hard])


def test_one_embedding_for_all_images_of_a_prompt(toy_model: DiffusionModel) -> None:
    """A plain reading: one norm over the images' whole batch, its target times √n."""
    run = a_run(toy_model, ("a b",) * 5)
    text = toy_model.embed("a b").clone().requires_grad_()
    optimizer = torch.optim.AdamW([text], lr=0.05)
    first, empty = toy_model.timesteps(2)[0], toy_model.embed("")
    for _ in range(2):
        gap = predicted_gap(toy_model, run.noise, first, text.expand(5, -1, -1), empty)
        (text.grad,) = torch.autograd.grad(gap.norm(), text)
        text.grad[:, 0] = 0
        optimizer.step()
    with EmbeddingAdjustment(target=0.0, steps=2).apply(run) as changed:
        assert torch.equal(changed.embeddings[0], changed.embeddings[4])
    assert torch.allclose(changed.embeddings[:1], text, atol=1e-4)
    whole = gap.norm().item() / 5**0.5
    for target, steps in ((whole * 1.01, 1), (whole * 0.99, 2)):  # looked at before the second step
        with EmbeddingAdjustment(target=target, steps=2).apply(run) as stopped:
            pass
        with EmbeddingAdjustment(target=0.0, steps=steps).apply(run) as wanted:
            pass
        assert torch.equal(stopped.embeddings, wanted.embeddings)


def test_published_bounds_scale_with_the_latent(toy_model: DiffusionModel) -> None:
    assert relative_size(toy_model) == pytest.approx((4 * 16 * 16 / 16384) ** 0.5) == 0.25
    run = a_run(toy_model, ("a b",))
    assert EmbeddingAdjustment()._target(run) == 1.5 / 4
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
    empty = changed.empty - run.empty  # the other half has a draw of its own for each image
    assert empty.shape == added.shape
    assert empty.std().item() == pytest.approx(0.5, rel=0.15)
    assert not torch.allclose(empty, added)
    assert not torch.allclose(empty[0], empty[1])
    with EmbeddingNoise(0.5).apply(replace(run, empty=None)) as unguided:
        assert unguided.empty is None


def test_noise_optimisation_lowers_the_loss(toy_model: DiffusionModel) -> None:
    run = a_run(toy_model)
    way = NoiseOptimisation(accept=0.0, steps=2, candidates=1, form="paper")
    with way.apply(run) as changed:
        assert torch.equal(changed.embeddings, run.embeddings)
    with torch.no_grad():
        before, after = (
            way._loss(run, x, run.embeddings, None) for x in (run.noise, changed.noise)
        )
    assert (after < before).all()
    more = replace(way, candidates=2, steps=1)
    with more.apply(run) as best, torch.no_grad():
        assert (way._loss(run, best.noise, run.embeddings, None) < before).all()


def test_the_released_noise_optimisation_step_by_step(toy_model: DiffusionModel) -> None:
    """A plain reading: the step's value is that at the start, its gradient counts; three losses
    are three, the noise after the last update is not looked at."""
    run = a_run(toy_model, ("a b",))
    first, empty = toy_model.timesteps(2)[0], toy_model.embed("")
    x = run.noise.clone().requires_grad_()
    optimizer, losses, seen = torch.optim.Adam([x], lr=0.05), [], []
    for _ in range(3):
        start = run.noise + (x - x.detach())
        gap = predicted_gap(toy_model, start, first, run.embeddings, empty)
        ahead = x + gap / gap.norm()
        gap = predicted_gap(toy_model, ahead, first, run.embeddings, empty)
        loss = gap.norm() + 0.05 * x.norm()
        seen.append(x.detach().clone())
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    way = NoiseOptimisation(accept=0.0, steps=3, candidates=1, rounds=1)
    toy_model.samples_evaluated = 0
    with way.apply(run) as changed:
        pass
    assert toy_model.samples_evaluated == 2 * (1 + 3)  # both halves: the step once, three losses
    best = losses.index(min(losses))
    assert best > 0
    assert torch.allclose(changed.noise, seen[best], atol=1e-3)
    assert not torch.allclose(changed.noise, seen[best - 1], atol=1e-3)
    with replace(way, form="paper").apply(run) as text:
        assert not torch.allclose(text.noise, changed.noise, atol=1e-3)
    assert (way.protocol, replace(way, form="paper").protocol) == (
        "the code's form", "the paper's form"
    )  # fmt: skip


def test_the_accepted_loss_rises_with_each_round(
    toy_model: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0.1 at Stable Diffusion's size is 0.025 here; a loss that no longer counts is not taken."""
    run, losses, bounds = a_run(toy_model, ("a b",)), [2.06, 2.5, 2.9, 2.07], []

    def optimised(
        self: Any, run: Run, start: torch.Tensor, text: torch.Tensor, accept: float
    ) -> Any:
        bounds.append(accept)
        return start + len(bounds), torch.tensor([losses[len(bounds) - 1]])

    monkeypatch.setattr(NoiseOptimisation, "_optimised", optimised)
    with NoiseOptimisation(candidates=2, rounds=3).apply(run) as changed:
        pass
    assert bounds == pytest.approx([2.05, 2.05, 2.075, 2.075])
    drawn = changed.noise - 4  # the fourth, accepted, though the first's loss was lower
    assert not torch.allclose(drawn, run.noise, atol=1e-3)
    bounds.clear()
    with NoiseOptimisation(candidates=2, form="paper").apply(run) as changed:
        pass
    assert bounds == pytest.approx([2.05, 2.05])
    assert torch.allclose(changed.noise, run.noise + 1)


@pytest.mark.parametrize("form", ["code", "paper"])
def test_noise_that_is_accepted_stays(toy_model: DiffusionModel, form: Any) -> None:
    run = a_run(toy_model)
    toy_model.samples_evaluated = 0
    with NoiseOptimisation(accept=1e9, form=form).apply(run) as changed:
        assert torch.equal(changed.noise, run.noise)
    assert toy_model.samples_evaluated == 2 * 2 * 2  # images, halves, x and x ahead


def test_the_loss_by_hand(toy_model: DiffusionModel) -> None:
    run = a_run(toy_model, ("a b",))
    first, empty = toy_model.timesteps(2)[0], toy_model.embed("")
    with torch.no_grad():
        gap = predicted_gap(toy_model, run.noise, first, run.embeddings, empty)
        ahead = run.noise + gap / gap.norm()
        gap = predicted_gap(toy_model, ahead, first, run.embeddings, empty)
        found = NoiseOptimisation()._loss(run, run.noise, run.embeddings, None)
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


def test_wanda_scales_rows_to_unit_length_before_the_norm() -> None:
    rows = torch.tensor([[[3.0, 4.0], [0.0, 2.0]], [[-5.0, 0.0], [0.0, 0.0]]])
    # unit rows (.6, .8), (0, 1), (−1, 0) and (0, 0): squares of the columns
    assert unit_squares(rows).tolist() == pytest.approx([1.36, 1.64])


def test_wanda_pools_a_group_s_prompts_and_both_halves(toy_model: DiffusionModel) -> None:
    """A plain reading of the first step: inputs of each layer, rows of unit length, one matrix."""
    layers, seen = feed_forward_layers(toy_model.denoiser), {}
    noise, first = toy_model.noise([7]), toy_model.timesteps(2)[0]

    def norms_of(*prompts: str) -> dict[str, torch.Tensor]:
        rows: dict[str, list] = {name: [] for name in layers}
        for prompt in prompts:
            handles = [
                layer.register_forward_pre_hook(
                    lambda _m, inputs, name=name: rows[name].append(inputs[0].flatten(0, -2))
                )
                for name, layer in layers.items()
            ]
            with torch.no_grad():
                toy_model.predict(noise.repeat(2, 1, 1, 1), first, toy_model.embed([prompt, ""]))
            for handle in handles:
                handle.remove()
        whole = {name: torch.cat(one) for name, one in rows.items()}
        return {n: (r / r.norm(dim=1, keepdim=True)).norm(dim=0) for n, r in whole.items()}

    group = ("a b", "Öl")
    target, base = norms_of(*group), norms_of("", "")
    found = replace(WANDA, group=group).masks(toy_model, group)
    for name, layer in layers.items():
        seen[name] = wanda_mask(layer.weight, target[name][None], base[name][None], 0.05)
        assert (found[name] == seen[name]).float().mean() > 0.999
    alone = WANDA.masks(toy_model, ["a b"])
    assert any((alone[name] != found[name]).any() for name in layers)
    gains = replace(WANDA, group=group).gains(toy_model, [])
    assert all(((gains[name] == 0) == found[name]).all() for name in layers)
    run = a_run(toy_model, ("a b", "x"))
    with replace(WANDA, group=group).apply(run):
        pooled = predicted(run)
    with WANDA.apply(run):
        assert not torch.allclose(predicted(run)[:1], pooled[:1], atol=1e-3)


def test_wanda_is_the_pruned_model(toy_model: DiffusionModel) -> None:
    masks = WANDA.masks(toy_model, ["a b"])
    assert len(masks) == 16
    assert sum(bool(mask.any()) for mask in masks.values()) > 8
    run = a_run(toy_model, ("a b",))
    with WANDA.apply(run):
        found = predicted(run)
    layers = feed_forward_layers(toy_model.denoiser)
    kept = {name: layer.weight.clone() for name, layer in layers.items()}
    try:
        for name, layer in layers.items():
            assert masks[name].float().mean() <= 0.05
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
        (lambda: NoiseOptimisation(rounds=0), "rounds must be an integer of at least 1"),
        (lambda: NoiseOptimisation(form="text"), "form must be one of code, paper; got 'text'"),
        (lambda: WandaPruning(share=0), r"share must lie in \(0, 1\], got 0"),
        (lambda: WandaPruning(share=1.5), r"share must lie in \(0, 1\], got 1.5"),
        (lambda: WandaPruning(steps=10, trajectory=5), "trajectory must be an integer of at least"),
        (lambda: WandaPruning(seeds=()), "seeds must hold at least 1"),
        (lambda: WandaPruning(guidance=-1), "guidance must be a finite number of at least 0"),
        (lambda: WandaPruning(group=("a", " ")), "prompts must not be empty"),
    ],
)
def test_bad_parameters(make: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()


def test_wanda_needs_feed_forward_layers() -> None:
    with pytest.raises(ValueError, match="no feed-forward layer found in Linear"):
        feed_forward_layers(torch.nn.Linear(2, 2))
