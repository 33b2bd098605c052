"""Detection scores against plain readings, their cost, and the table that compares them."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from books import detector_table
from diffusers.models.attention_processor import Attention
from torch import Tensor
from toys import count_hooks

from nemo_kit import detect, detectors, progress
from nemo_kit.checks import UnsupportedError
from nemo_kit.detectors import DETECTORS, score
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
    assert model.samples_evaluated == 4
    delta, _ = gap(model, model.noise(SEEDS), model.timesteps(10)[0])
    assert got.tolist() == pytest.approx([d.norm().item() for d in delta], rel=1e-3)
    one = score("noise magnitude, first step", model, PROMPT, SEEDS, steps=10)
    assert one.score == pytest.approx(got.mean().item())
    assert (one.samples, one.seeds) == (4, 2)
    assert one.protocol == "2 images, mean over 1 of 10 steps, guidance 7.5"


@torch.no_grad()
def test_noise_magnitude_follows_the_guided_trajectory(model: DiffusionModel) -> None:
    """Step by step in the model's own kind of prediction, with its own scheduler."""
    got = detectors.noise_magnitude(model, PROMPT, SEEDS, steps=3, guidance=2.0)
    assert model.samples_evaluated == 2 * 2 * 3
    x, norms = model.noise(SEEDS), []
    text, empty = (model.embed(p).expand(2, -1, -1) for p in (PROMPT, ""))
    for timestep in model.timesteps(3):
        norms.append(gap(model, x, timestep)[0].flatten(1).norm(dim=1))
        with_text, without = (model.predict(x, timestep, e) for e in (text, empty))
        guided = without + 2.0 * (with_text - without)
        x = model.scheduler.step(guided, timestep, x, return_dict=False)[0]
    assert got.tolist() == pytest.approx(torch.stack(norms).mean(dim=0).tolist(), rel=1e-3)


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
    assert model.samples_evaluated == 2
    assert len(recorder.seen) == 16
    assert got.tolist() == pytest.approx([entropy(p) for p in recorder.seen[3]], abs=1e-4)
    assert count_hooks(model.denoiser) == 0


def test_late_attention_entropy_against_the_library(
    model: DiffusionModel, recorder: Recorder
) -> None:
    got = detectors.attention_entropy_late(model, "cat", SEEDS, steps=5)
    assert model.samples_evaluated == 2 * 2 * 5
    first, last = recorder.seen[:16], recorder.seen[-16:]  # of five steps one is late
    early, late = (torch.stack(maps).mean(dim=0) for maps in (first, last))  # over layers first
    padding = 1 + len("cat")  # BOS, a token a letter, then EOS and padding
    wanted = [
        entropy(late[seed]) + entropy(late[seed, padding:]) - entropy(early[seed, padding:])
        for seed in range(2)
    ]
    assert got.tolist() == pytest.approx(wanted, abs=1e-4)


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
    for name in ("attention entropy E", "attention entropy D"):
        got = score(name, toy_model, PROMPT)
        assert got.seeds == 1
        assert got.protocol.startswith("1 image, ")


def test_sharpness_against_finite_differences(model: DiffusionModel) -> None:
    got = detectors.sharpness(model, PROMPT, SEEDS)
    assert model.samples_evaluated == 12  # values 2 × 4, tangents 4
    timestep = model.timesteps(50)[0]
    spread = 1 - model.scheduler.alphas_cumprod[int(timestep)].item()
    x = model.noise(SEEDS)
    along = gap(model, x, timestep)[0]
    step = 0.3 / along.flatten(1).norm(dim=1).max()
    ends = [gap(model, x + sign * step * along, timestep)[0] for sign in (1, -1)]
    wanted = ((ends[0] - ends[1]) / (2 * step) / spread).flatten(1).norm(dim=1)
    assert got.tolist() == pytest.approx(wanted.tolist(), rel=0.03)


def test_anisotropy_by_hand(model: DiffusionModel) -> None:
    got = detectors.anisotropy(model, PROMPT, SEEDS, weights=(0.5, 3.0), steps=10)
    assert model.samples_evaluated == 8
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
    assert got.tolist() == pytest.approx(wanted.tolist(), rel=1e-3)


def test_anisotropy_has_the_published_weights_for_each_kind_of_prediction(
    model: DiffusionModel,
) -> None:
    """γ = (1, 2) for ε, (1, 0.1) for v, on latents of 4×64×64; here they are 4×16×16."""
    first = detectors.anisotropy(model, PROMPT, [3], steps=3)
    weight = 0.1 if model.scheduler.config.prediction_type == "v_prediction" else 2.0
    assert first == detectors.anisotropy(model, PROMPT, [3], (4.0, weight), 3)


def test_noise_optimisation_weighs_sd_2_otherwise(
    toy_model: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nemo_kit.mitigation.noise.SD2_WIDTH", 16)  # the toy's
    assert NoiseOptimisation()._weight(toy_model) == 0.01


def test_nemo_s_score_is_detection_s(toy_model: DiffusionModel) -> None:
    got = score("NeMo", toy_model, PROMPT, range(1, 5))
    wanted = detect(toy_model, [PROMPT], range(1, 5)).iloc[0]
    assert got.score == pytest.approx(wanted.score)
    assert (got.samples, got.seeds) == (4, 4)


EVERY = {one.function for one in DETECTORS.values()}


@pytest.mark.parametrize("detector", [*DETECTORS, *sorted(EVERY, key=lambda one: one.__name__)])
def test_every_detector_refuses_bad_prompts_and_seeds(
    toy_model: DiffusionModel, detector: Any
) -> None:
    call = partial(score, detector) if isinstance(detector, str) else detector
    with pytest.raises(ValueError, match="prompts must not be empty"):
        call(toy_model, " ", [1, 2])
    with pytest.raises(TypeError, match="prompt must be one text"):
        call(toy_model, ["a", "b"], [1, 2])
    with pytest.raises(ValueError, match="seeds must differ"):
        call(toy_model, "a", [1, 1])
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
        (detectors.anisotropy, {"steps": 2}, "steps must be an integer of at least 3"),
        (detectors.anisotropy, {"weights": (1, math.inf)}, "weights must be a finite number"),
        (detectors.anisotropy, {"weights": (1,)}, r"weights must be two numbers or .*, got \(1,\)"),
    ],
)
def test_bad_options(toy_model: DiffusionModel, detector: Any, options: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        detector(toy_model, "a", **options)


def test_numbers_that_overflow_are_refused(toy_model: DiffusionModel) -> None:
    with pytest.raises(FloatingPointError, match="became NaN or infinite"):
        detectors.noise_magnitude(toy_model, "a", [1], steps=3, guidance=1e38)


# ------------------------------------------------------------------------- the comparison


def fake(model: Any, prompt: str, seeds: list[int], gain: float = 1.0) -> list[float]:
    model.samples_evaluated += len(seeds)
    if prompt == "broken":
        raise ArithmeticError("no number")
    return [gain * len(prompt)] * len(seeds)


PROMPTS = pd.DataFrame({"prompt": ["long one", "a", "bb"], "group": ["VM", "TM", "non-memorized"]})


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The registry, as it was before afterwards."""
    monkeypatch.setattr(detectors, "DETECTORS", dict(DETECTORS))
    return detectors.DETECTORS


def test_a_function_becomes_a_detector(toy_model: DiffusionModel, registered: dict) -> None:
    """What it returns is its score; samples, seconds and images are counted for it."""

    @detectors.detector("its length", "times {gain:g}", gain=2.0)
    def length(model: DiffusionModel, prompt: str, seeds: list[int], gain: float = 1.0) -> float:
        model.predict(model.noise(seeds), 1, model.embed([prompt] * len(seeds)))
        return gain * len(prompt)

    assert list(registered)[-1] == "its length"
    assert length(toy_model, "abc", [1]) == 3, "the function stays what it was"
    got = score("its length", toy_model, "abc", [1, 2, 3])
    assert (got.score, got.samples, got.seeds) == (6.0, 3, 3)
    assert got.protocol == "3 images, times 2"
    assert got.seconds > 0
    other = score(length, toy_model, "abc", [1], gain=5)
    assert (other.detector, other.score, other.protocol) == ("length", 15.0, "1 image")


@pytest.mark.parametrize(
    ("made", "error", "text"),
    [
        (lambda *_: "much", TypeError, "'x' must return a number, or one for each of 2 seeds; got"),
        (lambda *_: None, TypeError, "must return a number.* got None"),
        (lambda *_: torch.zeros(3), TypeError, "one for each of 2 seeds"),
        (lambda *_: [1.0, math.nan], FloatingPointError, "x became NaN or infinite"),
    ],
)
def test_what_is_no_score_is_refused(
    toy_model: DiffusionModel, registered: dict, made: Any, error: type, text: str
) -> None:
    detectors.detector("x")(lambda model, prompt, seeds: made(model, prompt, seeds))
    with pytest.raises(error, match=text):
        score("x", toy_model, "a", [1, 2])


def test_what_is_no_detector_is_refused(toy_model: DiffusionModel, registered: dict) -> None:
    with pytest.raises(TypeError, match=r"'x' must take \(model, prompt, seeds\): missing"):
        detectors.detector("x")(lambda model, prompt, seeds, extra: 0.0)
    with pytest.raises(TypeError, match=r"'x' must take .*unexpected keyword argument 'gain'"):
        detectors.detector("x", gain=1)(lambda model, prompt, seeds: 0.0)
    with pytest.raises(ValueError, match=r"detector must be one of NeMo, .*; got 'nemo'; did you"):
        score("nemo", toy_model, "a")
    with pytest.raises(TypeError, match="detector must be a name or a function, got 3"):
        score(3, toy_model, "a")  # type: ignore[arg-type]
    assert "x" not in registered


def test_an_edited_detector_is_computed_anew(
    toy_model: DiffusionModel, tmp_path: Path, registered: dict
) -> None:
    """As a cell does that is run again after an edit; what it was asked for counts too."""
    registered.clear()
    found = []
    for place, (text, seeds) in enumerate([("2.0", 2), ("2.0  # why", 2), ("3.0", 2), ("3.0", 1)]):
        file = tmp_path / f"cell{place}.py"
        file.write_text(
            'from nemo_kit.detectors import detector\n\n\n@detector("mine")\n'
            "def mine(model, prompt, seeds):\n    model.samples_evaluated += 1\n"
            f"    return {text}\n"
        )
        exec(compile(file.read_text(), str(file), "exec"), {"__name__": "__main__"})
        got = detector_table(toy_model, PROMPTS, tmp_path, seeds)
        found.append((got["score"].tolist(), toy_model.samples_evaluated))
        assert set(got["seeds"]) == {seeds}
        assert got[["prompt", "group"]].equals(PROMPTS)
    assert found == [([2.0] * 3, 3), ([2.0] * 3, 3), ([3.0] * 3, 6), ([3.0] * 3, 9)]


def test_what_a_kind_of_model_refuses_has_not_failed(
    toy_model: DiffusionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registered: dict
) -> None:
    def refused(model: DiffusionModel, prompt: str, seeds: list[int]) -> float:
        raise UnsupportedError("model: this one is not defined for it; not supported")

    registered.clear()
    for one in (fake, refused):
        detectors.detector(one.__name__)(one)
    monkeypatch.setattr(progress.followed, "folder", tmp_path)
    monkeypatch.setattr(progress.followed, "retry_failed", False)
    more = pd.concat([PROMPTS, pd.DataFrame({"prompt": ["broken"], "group": ["VM"]})])
    told = r"4 results have no row: model: this one is not defined"
    failed = "1 prompts failed .*broken.*no number"
    with pytest.warns(UserWarning, match=told), pytest.warns(UserWarning, match=failed):
        found = detector_table(toy_model, more, tmp_path)
    assert list(found["detector"].unique()) == ["fake"]
    assert set(found["prompt"]) == set(PROMPTS["prompt"]), "a failure does not stop the rest"
    assert (tmp_path / progress.FAILED).read_text() == '"broken"\n'


def test_every_registered_detector_is_compared(toy_model: DiffusionModel, tmp_path: Path) -> None:
    found = detector_table(toy_model, PROMPTS[:1], tmp_path)
    assert dict(zip(found["detector"], found["samples"], strict=True)) == {
        "NeMo": 3, "noise magnitude, first step": 4, "noise magnitude": 20,
        "attention entropy E": 1, "attention entropy D": 10, "sharpness": 12, "anisotropy": 8,
    }  # fmt: skip
    assert found["score"].notna().all()
    told = dict(zip(found["detector"], found["protocol"], strict=True))
    assert told == {
        "NeMo": "3 images, largest pair, ms_ssim, timesteps[1]",
        "noise magnitude, first step": "2 images, mean over 1 of 5 steps, guidance 7.5",
        "noise magnitude": "2 images, mean over 5 steps, guidance 7.5",
        "attention entropy E": "1 image, layer 4, first step",
        "attention entropy D": "1 image, layers averaged first, last fifth of 5 steps, "
        "guidance 7.5",
        "sharpness": "2 images, first step",
        "anisotropy": "2 images, raw outputs' cosine, γ published",
    }
    assert all(len(one.source) > 20 for one in DETECTORS.values())
