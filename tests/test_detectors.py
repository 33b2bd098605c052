"""Detection scores against plain readings, their cost, and the table that compares them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor
from toys import count_hooks

from nemo_kit import detect, detectors
from nemo_kit.detector_scores import detector_scores, usual
from nemo_kit.mitigation import NoiseOptimisation
from nemo_kit.models import DiffusionModel

PROMPT, SEEDS = "red cup 1", [3, 8]


@pytest.fixture(params=["epsilon", "v"])
def model(request: pytest.FixtureRequest) -> DiffusionModel:
    """The toy model, and the one that predicts v."""
    name = "toy_model" if request.param == "epsilon" else "sd2_model"
    found = request.getfixturevalue(name)
    found.samples_evaluated = 0
    return found


def gap(model: DiffusionModel, x: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
    """(Δε, ε_∅) from two separate calls."""
    text, empty = (model.embed(p).expand(len(x), -1, -1) for p in (PROMPT, ""))
    with torch.no_grad():
        without = model.predict_noise(x, timestep, empty)
        return model.predict_noise(x, timestep, text) - without, without


# ----------------------------------------------------------------------------- each score


def test_noise_magnitude_at_the_first_step(model: DiffusionModel) -> None:
    got = detectors.noise_magnitude(model, PROMPT, SEEDS, steps=10, first=1)
    assert (got.samples, model.samples_evaluated) == (4, 4)
    delta, _ = gap(model, model.noise(SEEDS), model.timesteps(10)[0])
    assert got.by_seed == pytest.approx([d.norm().item() for d in delta], rel=1e-3)
    assert got.score == pytest.approx(sum(got.by_seed) / 2)
    assert got.detector == "noise magnitude, 1 of 10 steps"


@torch.no_grad()
def test_noise_magnitude_follows_the_guided_trajectory(model: DiffusionModel) -> None:
    """Step by step in the model's own kind of prediction, with its own scheduler."""
    got = detectors.noise_magnitude(model, PROMPT, SEEDS, steps=3, guidance=2.0)
    assert got.samples == 2 * 2 * 3
    x, norms = model.noise(SEEDS), []
    text, empty = (model.embed(p).expand(2, -1, -1) for p in (PROMPT, ""))
    for timestep in model.timesteps(3):
        norms.append(gap(model, x, timestep)[0].flatten(1).norm(dim=1))
        with_text, without = (model.predict(x, timestep, e) for e in (text, empty))
        guided = without + 2.0 * (with_text - without)
        x = model.scheduler.step(guided, timestep, x, return_dict=False)[0]
    assert got.by_seed == pytest.approx(torch.stack(norms).mean(dim=0).tolist(), rel=1e-3)


class Recorder:
    """An attention processor that keeps the probabilities, as the library computes them."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []  # a call each, in order: [samples, tokens]

    def __call__(
        self, attn: Attention, hidden: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Tensor:
        text = hidden if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            attn.head_to_batch_dim(project(x))
            for project, x in ((attn.to_q, hidden), (attn.to_k, text), (attn.to_v, text))
        )
        p = attn.get_attention_scores(query, key)  # [samples · heads, pixels, tokens]
        if encoder_hidden_states is not None:
            heads = p.unflatten(0, (len(hidden), attn.heads))
            self.seen.append(heads.mean(dim=(1, 2)))
        return attn.to_out[0](attn.batch_to_head_dim(p @ value))


@pytest.fixture
def recorder(model: DiffusionModel) -> Any:
    before, recorder = dict(model.denoiser.attn_processors), Recorder()
    model.denoiser.set_attn_processor(recorder)
    yield recorder
    model.denoiser.set_attn_processor(before)


def entropy(p: Tensor) -> float:
    return -sum(x * math.log(x) for x in p.tolist() if x > 0)


def test_attention_entropy_against_the_library(model: DiffusionModel, recorder: Recorder) -> None:
    got = detectors.attention_entropy(model, PROMPT, SEEDS, layer=4)
    assert got.samples == 2
    assert len(recorder.seen) == 16
    assert got.by_seed == pytest.approx([entropy(p) for p in recorder.seen[3]], abs=1e-4)
    assert count_hooks(model.denoiser) == 0


def test_late_attention_entropy_against_the_library(
    model: DiffusionModel, recorder: Recorder
) -> None:
    got = detectors.attention_entropy_late(model, "cat", SEEDS, steps=5)
    assert got.samples == 2 * 2 * 5
    first, last = recorder.seen[:16], recorder.seen[-16:]  # of five steps one is late
    early, late = (torch.stack(maps).mean(dim=0) for maps in (first, last))  # over layers first
    padding = 1 + len("cat")  # BOS, a token a letter, then EOS and padding
    wanted = [
        entropy(late[seed]) + entropy(late[seed, padding:]) - entropy(early[seed, padding:])
        for seed in range(2)
    ]
    assert got.by_seed == pytest.approx(wanted, abs=1e-4)
    assert got.protocol == "2 images, layers averaged first, steps 4 to 4 of 5, guidance 7.5"


def test_late_entropy_by_hand() -> None:
    """Entropies in multiples of ln 2; the padding is the last two of four tokens."""
    first = torch.tensor([[0.5, 0.25, 0.125, 0.125]])  # padding: 2 · 1/8 · 3
    late = torch.tensor([[[0.25, 0.25, 0.25, 0.25]], [[0.5, 0.5, 0.0, 0.0]]])  # 2 + 1 and 1 + 0
    found = detectors.late_entropy(first, late, slice(2, None))
    assert found.tolist() == pytest.approx([(2.0 - 0.75) * math.log(2)])
    # averaging p over two layers first is not the mean of their entropies
    one_hot = torch.eye(4)[:2, None]  # two layers, one seed
    joined = detectors.late_entropy(first, one_hot.mean(dim=0)[None], slice(2, None))
    apart = detectors.late_entropy(first, one_hot, slice(2, None))
    assert (joined - apart).tolist() == pytest.approx([math.log(2)])


def test_attention_entropy_detects_from_one_image(toy_model: DiffusionModel) -> None:
    for detector in (detectors.attention_entropy, detectors.attention_entropy_late):
        got = detector(toy_model, PROMPT)
        assert len(got.by_seed) == 1
        assert got.protocol.startswith("1 image, ")


def test_sharpness_against_finite_differences(model: DiffusionModel) -> None:
    got = detectors.sharpness(model, PROMPT, SEEDS, batch_size=2)
    assert (got.samples, model.samples_evaluated) == (12, 12)  # values 2 × 4, tangents 4
    timestep = model.timesteps(50)[0]
    spread = 1 - model.scheduler.alphas_cumprod[int(timestep)].item()
    x = model.noise(SEEDS)
    along = gap(model, x, timestep)[0]
    step = 0.3 / along.flatten(1).norm(dim=1).max()
    ends = [gap(model, x + sign * step * along, timestep)[0] for sign in (1, -1)]
    wanted = ((ends[0] - ends[1]) / (2 * step) / spread).flatten(1).norm(dim=1)
    assert got.by_seed == pytest.approx(wanted.tolist(), rel=0.03)


def test_anisotropy_by_hand(model: DiffusionModel) -> None:
    got = detectors.anisotropy(model, PROMPT, SEEDS, weights=(0.5, 3.0), steps=10)
    assert got.samples == 8
    timesteps, x = model.timesteps(10).clone(), model.noise(SEEDS)
    norm = gap(model, x, timesteps[0])[0].flatten(1).norm(dim=1)
    predicts_v = model.scheduler.config.prediction_type == "v_prediction"
    if predicts_v:
        norm = norm / (1 - model.scheduler.alphas_cumprod[int(timesteps[0])])
    with torch.no_grad():  # the raw outputs, two separate calls
        text, empty = (
            model.predict(x, timesteps[7], model.embed(p).expand(2, -1, -1)) for p in (PROMPT, "")
        )
    delta = text - empty
    dots = (delta * empty).sum(dim=1) / (delta.norm(dim=1) * empty.norm(dim=1))
    wanted = 0.5 * norm + 3.0 * dots.mean(dim=(1, 2))
    assert got.by_seed == pytest.approx(wanted.tolist(), rel=1e-3)
    assert got.protocol == f"2 images, γ = (0.5, 3), cosine of {'v' if predicts_v else 'ε'}"


def test_anisotropy_has_the_published_weights_for_each_kind_of_prediction(
    model: DiffusionModel,
) -> None:
    """γ = (1, 2) for ε, (1, 0.1) for v, on latents of 4×64×64; here they are 4×16×16."""
    first = detectors.anisotropy(model, PROMPT, [3], steps=3).score
    weight = 0.1 if model.scheduler.config.prediction_type == "v_prediction" else 2.0
    assert first == detectors.anisotropy(model, PROMPT, [3], (4.0, weight), 3).score


def test_noise_optimisation_weighs_sd_2_otherwise(
    toy_model: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nemo_kit.mitigation.gap.SD2_WIDTH", 16)  # the toy's
    assert NoiseOptimisation()._weight(toy_model) == 0.01


def test_nemo_s_score_is_detection_s(toy_model: DiffusionModel) -> None:
    got = detectors.nemo_score(toy_model, PROMPT, range(1, 5))
    wanted = detect(toy_model, [PROMPT], range(1, 5)).iloc[0]
    assert got.score == pytest.approx(wanted.score)
    assert (got.samples, len(got.by_seed), max(got.by_seed)) == (4, 4, got.score)


EVERY = [
    detectors.nemo_score, detectors.noise_magnitude, detectors.attention_entropy,
    detectors.attention_entropy_late, detectors.sharpness, detectors.anisotropy,
]  # fmt: skip


@pytest.mark.parametrize("detector", EVERY)
def test_every_detector_refuses_bad_prompts_and_seeds(
    toy_model: DiffusionModel, detector: Any
) -> None:
    with pytest.raises(ValueError, match="prompts must not be empty"):
        detector(toy_model, " ")
    with pytest.raises(TypeError, match="prompt must be one text"):
        detector(toy_model, ["a", "b"])
    with pytest.raises(ValueError, match="seeds must differ"):
        detector(toy_model, "a", [1, 1])
    assert toy_model.samples_evaluated == 0


@pytest.mark.parametrize(
    ("detector", "options", "text"),
    [
        (detectors.nemo_score, {"seeds": [1]}, "seeds must hold at least 2"),
        (detectors.noise_magnitude, {"steps": 0}, "steps must be an integer of at least 1"),
        (detectors.noise_magnitude, {"first": 0}, "first must be an integer of at least 1"),
        (detectors.noise_magnitude, {"guidance": -1}, "guidance must be a finite number"),
        (detectors.attention_entropy, {"layer": 17}, "layer must be one of 1 to 16, got 17"),
        (detectors.attention_entropy_late, {"steps": 4}, "steps must be an integer of at least 5"),
        (detectors.sharpness, {"batch_size": 0}, "batch_size"),
        (detectors.anisotropy, {"steps": 2}, "steps must be an integer of at least 3"),
        (detectors.anisotropy, {"weights": (1, math.inf)}, "weights must be a finite number"),
        (detectors.anisotropy, {"weights": (1,)}, r"weights must be two numbers, got \(1,\)"),
    ],
)
def test_bad_options(toy_model: DiffusionModel, detector: Any, options: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        detector(toy_model, "a", **options)


def test_numbers_that_overflow_are_refused(toy_model: DiffusionModel) -> None:
    with pytest.raises(FloatingPointError, match="noise magnitude became NaN or infinite"):
        detectors.noise_magnitude(toy_model, "a", [1], steps=3, guidance=1e38)


# ------------------------------------------------------------------------- the comparison


def fake(model: Any, prompt: str, seeds: list[int], gain: float = 1.0) -> detectors.PromptScore:
    model.samples_evaluated += len(seeds)
    if prompt == "broken":
        raise ArithmeticError("no number")
    values = tuple(gain * len(prompt) for _ in seeds)
    return detectors.PromptScore("fake", values[0], values, len(seeds), 0.5, f"times {gain:g}")


PROMPTS = pd.DataFrame({"prompt": ["long one", "a", "bb"], "group": ["VM", "TM", "non-memorized"]})


def test_scores_are_kept(toy_model: DiffusionModel, tmp_path: Path) -> None:
    chosen = {"one": (fake, {"seeds": [1, 2]}), "two": (fake, {"seeds": [1], "gain": 3.0})}
    first = detector_scores(toy_model, PROMPTS, chosen, store=tmp_path, progress=False)
    assert toy_model.samples_evaluated == 3 * 2 + 3
    again = detector_scores(toy_model, PROMPTS, chosen, store=tmp_path, progress=False)
    assert toy_model.samples_evaluated == 9
    pd.testing.assert_frame_equal(first, again)
    rows = first.set_index(["detector", "prompt"])
    assert rows.loc[("two", "long one"), "score"] == 24
    assert rows.loc[("one", "bb"), "group"] == "non-memorized"
    assert list(first.columns) == [
        "prompt", "group", "detector", "score", "samples", "seconds", "seeds", "protocol"
    ]  # fmt: skip
    assert rows.loc[("two", "a"), "protocol"] == "times 3"
    other = {"two": (fake, {"seeds": [1], "gain": 4.0})}
    detector_scores(toy_model, PROMPTS, other, store=tmp_path, progress=False)
    assert toy_model.samples_evaluated == 12, "other options are computed anew"


def test_a_failure_does_not_stop_the_rest(toy_model: DiffusionModel, tmp_path: Path) -> None:
    more = pd.concat([PROMPTS, pd.DataFrame({"prompt": ["broken"], "group": ["VM"]})])
    chosen = {"one": (fake, {"seeds": [1]})}
    with pytest.warns(UserWarning, match="1 scores failed .*'broken'.*no number"):
        found = detector_scores(toy_model, more, chosen, store=tmp_path, progress=False)
    assert set(found["prompt"]) == set(PROMPTS["prompt"])


def test_the_usual_detectors_run(toy_model: DiffusionModel, tmp_path: Path) -> None:
    chosen = usual(seeds=[1, 2], own=[1, 2, 3], steps=5)
    found = detector_scores(toy_model, PROMPTS[:1], chosen, store=tmp_path, progress=False)
    assert dict(zip(found["detector"], found["samples"], strict=True)) == {
        "NeMo": 3, "noise magnitude, first step": 4, "noise magnitude": 20,
        "attention entropy E": 1, "attention entropy D": 10, "sharpness": 12, "anisotropy": 8,
    }  # fmt: skip
    assert found["score"].notna().all()
    told = dict(zip(found["detector"], found["protocol"], strict=True))
    assert told["noise magnitude, first step"] == "2 images, mean over 1 of 5 steps, guidance 7.5"
    assert told["attention entropy E"] == "1 image, layer 4, first step"
    assert told["NeMo"] == "3 images, largest pair, ms_ssim, timesteps[1]"


def test_the_comparison_refuses(toy_model: DiffusionModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="prompts lacks group"):
        detector_scores(toy_model, PROMPTS[["prompt"]], store=tmp_path)
    with pytest.raises(ValueError, match="at least one detector"):
        detector_scores(toy_model, PROMPTS, {}, store=tmp_path)
    with pytest.raises(ValueError, match="steps must be an integer of at least 5"):
        usual(steps=2)
