"""Each family beside Stable Diffusion 1 and 2: a small folder of it, opened as users do.

What is compared with goes through diffusers' pipelines and plain hooks alone.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pipelines
import pytest
import torch
from conftest import TOY_PROMPTS, TOY_SIMILARITY
from diffusers import DiffusionPipeline
from test_cli import call
from test_reading import Reading, compare
from torch import Tensor

from nemo_kit.calibration import Calibration
from nemo_kit.detectors import DETECTORS
from nemo_kit.generation import generate
from nemo_kit.hooks import capture, scale_neurons
from nemo_kit.localization import calibrate, detect, localize
from nemo_kit.localization.detection import upper
from nemo_kit.localization.methods import rank
from nemo_kit.localization.methods.base import by_layer
from nemo_kit.localization.methods.memory import Memory
from nemo_kit.metrics.attention import disentanglement
from nemo_kit.mitigation import MITIGATIONS, Found, NeMo, export
from nemo_kit.models import DiffusionModel, load, opening
from nemo_kit.models.conditioning import Conditioning
from nemo_kit.neurons import NeuronSet
from nemo_kit.similarity import noise_differences, pairwise, similarity
from nemo_kit.store.work import model_key

PROMPT = "a red cup"
SEEDS = [1, 2, 3]
JOINT = ("sd3", "flux")  # values that have seen the image
FLOWS = ("sd3", "flux", "sana")
ATTENTION = {"attention scaling", "attention masking", "attention masking and scaling"}
PRUNING = {"Wanda pruning"}
REFUSED = {"sdxl": set(), "sana": ATTENTION | PRUNING, "hunyuan": ATTENTION | PRUNING}


@dataclass
class Case:
    """A family's folder, the model as users open it, and the pipeline as diffusers does."""

    name: str
    folder: Path
    model: DiffusionModel
    pipe: Any

    @property
    def denoiser(self) -> Any:
        return getattr(self.pipe, self.model.denoising)

    @property
    def timestep(self) -> float:
        return float(self.model.timesteps(50)[1])

    def raw(self, noise: Tensor, prompt: str = PROMPT) -> Tensor:
        return pipelines.raw(self.name, self.pipe, noise, prompt, self.timestep)


@pytest.fixture(scope="module", params=list(pipelines.FAMILIES))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = pipelines.save(tmp_path_factory.mktemp("models") / request.param, request.param)
    model = load(str(folder), device="cpu")
    model.calibration = calibrate(model, TOY_PROMPTS[:5], SEEDS, similarity=TOY_SIMILARITY)
    model.calibration.save(folder / "nemo")
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    pipe.encode_prompt = remembering(pipe.encode_prompt)
    return Case(request.param, folder, model, pipe)


def remembering(function: Any) -> Any:
    """The same function, which takes no text twice: Sana's comes with a long instruction."""
    known: dict[str, Any] = {}

    def call(*given: Any, **named: Any) -> Any:
        key = repr((given, named))
        if key not in known:
            known[key] = function(*given, **named)
        return known[key]

    return call


def some(model: DiffusionModel) -> NeuronSet:
    """Two neurons of each value layer."""
    return NeuronSet({layer.index: [1, layer.width - 2] for layer in model.value_layers})


def noise_of(seed: int) -> Tensor:
    return torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(seed))


def test_predictions_are_the_pipelines(case: Case) -> None:
    model, noise = case.model, noise_of(1)
    found = model.predict_compared(model.noise([1]), case.timestep, model.embed(PROMPT))
    torch.testing.assert_close(found, case.raw(noise), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, case.raw(noise, "a dog"), atol=1e-3)
    both = model.predict_compared(model.noise([1, 1]), case.timestep, model.embed(["x", PROMPT]))
    torch.testing.assert_close(both[1:], found, rtol=1e-3, atol=1e-4)


def test_pictures_are_the_pipelines(case: Case) -> None:
    told = pipelines.options(case.name) | {"num_inference_steps": 4}
    if case.name == "pixart_alpha":  # the pipeline tells transformers of this size alone theirs
        case.pipe.transformer.register_to_config(sample_size=128)
    guided = {"true_cfg_scale": 3.0, "negative_prompt": ""} if case.name == "flux" else {}
    guided = guided or {"guidance_scale": 3.0}
    single = {} if case.name == "flux" else {"guidance_scale": 1.0}
    for guidance, given in ((3.0, guided), (1.0, single)):
        drawn = case.pipe(PROMPT, generator=torch.Generator().manual_seed(4), **told, **given)
        [found] = generate(
            case.model, PROMPT, [4], some(case.model), 1.0, guidance=guidance, steps=4
        )
        assert np.abs(found / 255.0 - drawn.images[0]).mean() < 1 / 255
    [changed] = generate(case.model, PROMPT, [4], some(case.model), 0.0, guidance=1.0, steps=4)
    assert not np.array_equal(changed, found)


def blocked_by_hand(case: Case, neurons: NeuronSet, factor: float) -> Tensor:
    """Rows of the weights scaled; where text and image share them, the text's outputs."""
    denoiser, pipe = copy.deepcopy(case.denoiser), copy.copy(case.pipe)
    for layer in case.model.value_layers:
        module = denoiser.get_submodule(layer.name)
        rows = list(neurons.layers.get(layer.index, ()))
        if layer.name.startswith("single"):

            def first(_m: Any, _i: Any, output: Tensor, rows: list[int] = rows) -> Tensor:
                output = output.clone()
                output[:, : pipelines.T5_TOKENS, rows] *= factor
                return output

            module.register_forward_hook(first)
            continue
        with torch.no_grad():
            module.weight[rows] *= factor
            if module.bias is not None:
                module.bias[rows] *= factor
    setattr(pipe, case.model.denoising, denoiser)
    return pipelines.raw(case.name, pipe, noise_of(2), PROMPT, case.timestep)


@pytest.mark.parametrize("factor", [0.0, -1.5])
def test_interventions_are_those_by_hand(case: Case, factor: float) -> None:
    model, neurons = case.model, some(case.model)
    given = model.noise([1, 2]), case.timestep, model.embed(["a dog", PROMPT])
    sets = [NeuronSet(), neurons]
    with scale_neurons(model.denoiser, model.value_layers, sets, factor):
        found = model.predict_compared(*given)
    by_hand = blocked_by_hand(case, neurons, factor)
    torch.testing.assert_close(found[1:], by_hand, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(by_hand, case.raw(noise_of(2)), atol=1e-3)
    plain = model.predict_compared(*given)
    torch.testing.assert_close(found[:1], plain[:1])


def seen_by_hooks(case: Case, prompt: str) -> dict[int, Tensor]:
    """What plain hooks see of the value layers in the pipeline's own call."""
    seen, handles = {}, []
    for layer in case.model.value_layers:

        def keep(_m: Any, _i: Any, output: Tensor, number: int = layer.index) -> None:
            seen[number] = output

        handles.append(case.denoiser.get_submodule(layer.name).register_forward_hook(keep))
    case.raw(noise_of(0), prompt)
    for handle in handles:
        handle.remove()
    shared = [one.index for one in case.model.value_layers if one.name.startswith("single")]
    return {n: v[:, : pipelines.T5_TOKENS] if n in shared else v for n, v in seen.items()}


def test_activations_are_what_hooks_see(case: Case) -> None:
    model = case.model
    model.samples_evaluated = 0
    found = model.value_activations(model.embed(["a dog", PROMPT]))
    assert model.samples_evaluated == (2 if case.name in JOINT else 0)
    seen = seen_by_hooks(case, PROMPT)
    assert found.keys() == seen.keys() == set(range(1, len(model.value_layers) + 1))
    for layer, values in seen.items():
        torch.testing.assert_close(found[layer][1:], values, rtol=1e-3, atol=1e-4)
    with capture(model.denoiser, model.value_layers) as captured, torch.no_grad():
        model.predict(model.noise([0]), case.timestep, model.embed(PROMPT))
    for layer, values in seen.items():
        torch.testing.assert_close(captured[layer], values, rtol=1e-3, atol=1e-4)


def attended(case: Case, prompt: str) -> int | None:
    """How many leading tokens are no padding; None where attention sees all."""
    if not (case.name.startswith("pixart") or case.name == "sana"):
        return None
    before = 2 if case.name == "sana" else 0  # the instruction's first and last
    return before + len(case.pipe.tokenizer(prompt).input_ids)


class FamilyReading(Reading):
    """The plain reading, of a pipeline: a prompt stands for its embedding."""

    case: Case

    def value_layer(self, number: int) -> Any:
        return self.case.denoiser.get_submodule(self.case.model.searched[number].name)

    def embed(self, prompt: str) -> Any:
        return prompt

    def call(self, noise: Tensor, text: Any) -> Tensor:
        return self.case.raw(noise, text)

    def noise(self, seed: int) -> Tensor:
        return noise_of(seed)

    def activations(self, text: Any, number: int) -> list[float]:
        values = seen_by_hooks(self.case, text)[number + 1][0]
        return values[: attended(self.case, text)].abs().mean(dim=0).tolist()


@pytest.mark.parametrize("quantile", [0.5, 1.5])
def test_localize_reads_as_the_plain_reading(case: Case, quantile: float) -> None:
    model = case.model
    own = model.calibration
    best = detect(model, PROMPT, SEEDS)["score"].iloc[0]
    plain = FamilyReading(
        None, None, None, None, own.similarity.kind, own.similarity.kernel, own.similarity.betas,
        list(own.statistics.means), list(own.statistics.stds), best * quantile,
    )  # fmt: skip
    plain.case = case
    found = compare(model, PROMPT, SEEDS, best * quantile, plain)
    assert bool(found.kept_seeds) == (quantile < 1)


def test_an_attributed_search_sends_gradients_through_the_family(case: Case) -> None:
    best = detect(case.model, PROMPT, SEEDS)["score"].iloc[0]
    found = localize(case.model, PROMPT, SEEDS, "attributed", threshold=best / 2)
    assert found.refined
    assert {layer for layer, _ in found.refined} <= {one.index for one in case.model.searched}


def test_neurons_are_written_into_the_weights(case: Case, tmp_path: Path) -> None:
    model = case.model
    neurons = NeuronSet({layer.index: [0, 3] for layer in model.searched})
    folder = export(model, NeMo(neurons, -0.5), tmp_path / "out")
    other = load(str(folder), device="cpu")
    given = model.noise([1]), case.timestep, model.embed(PROMPT)
    with scale_neurons(model.denoiser, model.value_layers, neurons, -0.5):
        expected = model.predict(*given)
    torch.testing.assert_close(other.predict(*given), expected, rtol=1e-3, atol=1e-4)
    assert (other.calibration.statistics is None) == (case.name in JOINT)
    assert DiffusionPipeline.from_pretrained(folder)
    shared = [layer.index for layer in model.value_layers if layer.name.startswith("single")]
    for layer in shared:
        with pytest.raises(ValueError, match="serves the image's tokens too"):
            export(model, NeMo(NeuronSet({layer: [0]})), tmp_path / "other")


def test_the_commands_calibrate_and_localize(
    case: Case, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A folder of which nothing is known, as on Stable Diffusion: refused, calibrated, searched."""
    monkeypatch.chdir(tmp_path)
    folder = pipelines.save(tmp_path / "model", case.name)
    (tmp_path / "held.txt").write_text("\n".join(TOY_PROMPTS[:5]), "utf-8")
    (tmp_path / "own.txt").write_text(PROMPT, "utf-8")
    told = ["--model", str(folder), "--seeds", "3"]
    capsys.readouterr()
    assert call(monkeypatch, "localize", *told, PROMPT) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "has no threshold; give --threshold, or --hold-out" in line
    held = ["--hold-out", "held.txt", "--kernel", "3"]
    assert call(monkeypatch, "calibrate", *told, *held) == 0, capsys.readouterr().err
    made, known = Calibration.load(folder / "nemo"), case.model.calibration
    assert made.threshold == pytest.approx(known.threshold, abs=1e-5)
    made.statistics.check({layer.index: layer.width for layer in case.model.searched})
    for means, wanted in zip(made.statistics.means, known.statistics.means, strict=True):
        torch.testing.assert_close(means, wanted)

    found = localize(case.model, PROMPT, SEEDS, threshold=0.0)
    command = ["localize", *told, "--threshold"]
    assert call(monkeypatch, *command, "0", "--prompts", "own.txt", "--out", "found.csv") == 0
    [row] = pd.read_csv("found.csv").to_dict("records")
    assert (row["prompt"], row["flagged"], row["n_refined"]) == (PROMPT, True, len(found.refined))
    assert NeuronSet.from_json(row["initial"]) == found.initial
    assert NeuronSet.from_json(row["refined"]) == found.refined
    assert row["samples_evaluated"] == found.samples_evaluated >= len(SEEDS)
    widths = {layer.index: layer.width for layer in case.model.searched}
    assert all(index < widths[layer] for layer, index in found.initial)

    capsys.readouterr()
    assert call(monkeypatch, *command, "1", "--json", PROMPT) == 0
    other = json.loads(capsys.readouterr().out)
    assert (other["flagged"], other["kept_seeds"], other["refined"]) == (False, [], {})
    assert other["samples_evaluated"] == len(SEEDS)


def test_what_is_left_of_memory_is_told_by_what_is_compared(case: Case) -> None:
    """Of a rectified flow by its velocities, as in detection."""
    model = case.model
    off = NeuronSet({layer.index: range(0, layer.width, 2) for layer in model.searched})
    score, gap = (Memory(model, PROMPT, SEEDS, kind) for kind in ("score", "gap"))
    pairs = upper(pairwise(score.open, TOY_SIMILARITY)).tolist()
    assert pairs == pytest.approx(detect(model, PROMPT, SEEDS)["pairwise"].iloc[0], abs=1e-5)
    gates = by_layer(torch.ones(score.neurons), model.searched)
    for layer, index in off:
        gates[layer][index] = 0
    given = torch.cat(list(gates.values()))[None], [SEEDS.index(2)]
    noise, blocked, plain = noise_of(2), blocked_by_hand(case, off, 0.0), case.raw(noise_of(2))
    wanted = similarity(
        *(noise_differences(one, noise) for one in (plain, blocked)), TOY_SIMILARITY
    )
    assert score(*given).item() == pytest.approx(wanted.item(), abs=1e-3)
    assert score(*given).item() < 1 - 1e-4
    empty = model.predict_compared(model.noise([2]), case.timestep, model.embed(""))
    wanted = (blocked - empty).norm() / (plain - empty).norm()
    assert gap(*given).item() == pytest.approx(wanted.item(), rel=1e-2)


def test_wanda_reads_what_the_layers_read(case: Case) -> None:
    """Two prompts' scores differ by the norms of their inputs; the empty prompt's cancel."""
    found = [rank("Wanda", case.model, text).scores for text in (PROMPT, "a dog on a hill")]
    norms = [inputs_seen(case, text) for text in (PROMPT, "a dog on a hill")]
    for layer in case.model.searched:
        weight = case.denoiser.get_submodule(layer.name).weight.abs()
        wanted = weight @ (norms[0][layer.index] - norms[1][layer.index])
        change = found[0][layer.index] - found[1][layer.index]
        torch.testing.assert_close(change, wanted, rtol=1e-3, atol=1e-4)


def inputs_seen(case: Case, prompt: str) -> dict[int, Tensor]:
    """Norm over tokens of what plain hooks see go into the searched layers; padding is left out."""
    seen, handles, tokens = {}, [], attended(case, prompt)
    for layer in case.model.searched:

        def keep(_m: Any, inputs: tuple, number: int = layer.index) -> None:
            seen[number] = inputs[0][0, :tokens].norm(dim=0)

        module = case.denoiser.get_submodule(layer.name)
        handles.append(module.register_forward_pre_hook(keep))
    case.raw(noise_of(0), prompt)
    for handle in handles:
        handle.remove()
    return seen


def test_detectors_compare_what_the_method_does(case: Case) -> None:
    model, first = case.model, case.model.timesteps(50)[0]
    found = DETECTORS["noise magnitude, first step"].function(model, PROMPT, [2], first=1)
    empty = model.predict_compared(model.noise([2]), first, model.embed(""))
    plain = pipelines.raw(case.name, case.pipe, noise_of(2), PROMPT, float(first))
    assert found.item() == pytest.approx((plain - empty).norm().item(), rel=1e-3)
    for name in ("attention entropy E", "attention entropy D"):
        if model.clip_attention:
            assert torch.isfinite(DETECTORS[name].function(model, PROMPT, [1])).all()
            continue
        with pytest.raises(ValueError, match=f"is not defined for {type(model).__name__}"):
            DETECTORS[name].function(model, PROMPT, [1])
    if case.name in FLOWS:
        with pytest.raises(ValueError, match="a rectified flow's, which has no ᾱ"):
            DETECTORS["sharpness"].function(model, PROMPT, [1])


def test_mitigations_act_or_refuse_by_name(case: Case) -> None:
    neurons = NeuronSet({1: [0, 1]})
    refused = set()
    for name, kind in MITIGATIONS.items():
        for way in kind.rows(Found(neurons, neurons), 0).values():
            try:
                drawn = generate(case.model, PROMPT, [1], mitigation=way, guidance=2.0, steps=2)
            except ValueError as error:
                told = str(error)
                assert type(case.model).__name__ in told or "no feed-forward" in told
                refused.add(name)
                continue
            assert drawn.shape == (1, *case.model.image_size, 3)
    assert refused == REFUSED.get(case.name, ATTENTION)


def test_outputs_of_attention_are_compared(case: Case) -> None:
    found = disentanglement(case.model, [PROMPT], some(case.model), [1])
    assert len(found) == len(case.model.value_layers)
    assert (found["cosine"] < 1).any()


def test_layers_stay_intact_where_weights_are_offloaded(case: Case) -> None:
    """The denoiser's weights lie in main memory and come to the device layer by layer."""
    if not case.model.offloads:
        with pytest.raises(ValueError, match='"offload" is not supported for HunyuanDiT'):
            load(str(case.folder), device="offload")
        return
    other = load(str(case.folder), device="offload")
    other.calibration = case.model.calibration
    assert all(one.is_meta for one in other.denoiser.parameters())
    assert model_key(other) == model_key(case.model)
    sets, given = [some(case.model)], (noise_of(1), case.timestep, case.model.embed(PROMPT))
    found = []
    for model in (case.model, other):
        with scale_neurons(model.denoiser, model.value_layers, sets):
            found.append(model.predict(*given))
    torch.testing.assert_close(*found)
    activations = [m.value_activations(m.embed(PROMPT))[1] for m in (case.model, other)]
    torch.testing.assert_close(*activations)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(case: Case, dtype: str) -> None:
    model = load(str(case.folder), device="cpu", dtype=dtype)
    found = model.predict_compared(model.noise([1]), case.timestep, model.embed(PROMPT))
    expected = case.raw(noise_of(1))
    assert (found - expected).abs().mean() < 0.1 * expected.abs().mean()
    drawn = generate(model, PROMPT, [1], some(model), steps=2, guidance=2.0)
    assert drawn.shape == (1, *model.image_size, 3)


def test_what_a_model_takes_is_said_first(
    case: Case, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(opening, "LARGE", 0)
    load(str(case.folder), device="cpu", dtype="bfloat16")
    told = capsys.readouterr().err
    assert told.startswith(f"opening {case.folder}: 0.0 GB of weights in bfloat16 (")
    assert ("only while it embeds" in told) == bool(case.model.kept_off)


def test_bare_tensors_are_refused(case: Case) -> None:
    model = case.model
    given = model.noise([1]), case.timestep
    with pytest.raises(ValueError, match=rf"{type(model).__name__} needs .* besides the tokens"):
        model.predict(*given, model.embed(PROMPT).tokens)
    noised = model.embed(PROMPT) + 0.1
    assert not torch.allclose(model.predict(*given, noised), model.predict(*given, noised - 0.1))


def test_quantized_weights_are_refused(case: Case, tmp_path: Path) -> None:
    folder = pipelines.save(tmp_path / "model", case.name)
    file = folder / case.model.denoising / "config.json"
    config = json.loads(file.read_text()) | {"quantization_config": {"quant_method": "gguf"}}
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"quantization_config \(gguf\)"):
        load(str(folder), device="cpu")


def test_parts_of_different_models_are_refused(case: Case) -> None:
    family, parts = type(case.model), case.pipe.components
    family.check(parts)
    for name in ("in_channels", *family.fits):
        other = SimpleNamespace(**{**case.denoiser.config, name: 7})
        told = rf"{family.denoising}: {name} = 7, the others have \d+: are they parts of one model"
        with pytest.raises(ValueError, match=told):
            family.check({**parts, family.denoising: SimpleNamespace(config=other)})


def test_searched_layers_are_a_setting(case: Case) -> None:
    model = load(str(case.folder), device="cpu")
    before, usual = model_key(model), model.searched
    model.searched = model.value_layers[:2]
    assert [layer.index for layer in model.searched] == [1, 2]
    assert model_key(model) != before
    with pytest.raises(ValueError, match="searched must be the first of the"):
        model.searched = model.value_layers[1:]
    file = case.folder / "nemo" / "generation.json"
    text = file.read_text() if file.exists() else "{}"
    file.write_text(json.dumps(json.loads(text) | {"searched": 1}))
    assert [layer.index for layer in load(str(case.folder), device="cpu").searched] == [1]
    file.write_text(text.replace("{", '{"depth": 3, ', 1) if text != "{}" else '{"depth": 3}')
    with pytest.raises(ValueError, match="a setting must be one of"):
        load(str(case.folder), device="cpu")
    file.write_text(text)
    assert load(str(case.folder), device="cpu").searched == usual


def test_a_flow_noises_and_denoises(case: Case) -> None:
    """Its noise is that of the levels; x_0 and ε of a velocity are on one line with x."""
    if case.name not in FLOWS:
        pytest.skip(f"{case.name} is no rectified flow")
    schedule, clean, noise = case.model.scheduler, noise_of(1), noise_of(2)
    noised = schedule.add_noise(clean, noise, torch.tensor([250]))
    torch.testing.assert_close(noised, 0.75 * clean + 0.25 * noise)
    torch.testing.assert_close(case.model.as_noise(noise - clean, noised, 250), noise)
    first = case.model.timesteps(50)[0]
    assert first == 1000
    told = case.model.predict_noise(noise, first, case.model.embed(PROMPT))
    torch.testing.assert_close(told, noise)  # whatever the prompt: so velocities are compared
    with pytest.raises(ValueError, match="a rectified flow's, which has no ᾱ"):
        _ = schedule.alphas_cumprod


def test_what_a_flow_compares_is_what_others_do() -> None:
    """For a model that predicts ε or v, ε − x_T is −x_0, up to scale and a rest of the noise."""
    try:
        model = load("lab", device="cpu")
    except (ValueError, OSError) as error:
        pytest.skip(f"the embedded model is not here yet: {error}")
    x, timestep = model.noise([1]), model.timesteps(50)[0]
    noise = model.predict_compared(x, timestep, model.embed("a photo of a cat"))
    kept = model.scheduler.alphas_cumprod[int(timestep)]
    clean = (x - (1 - kept) ** 0.5 * noise) / kept**0.5
    velocity = noise - clean
    pairs = zip((noise - x)[0], (velocity - x)[0], strict=True)
    alike = [torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] for a, b in pairs]
    assert min(alike) > 0.9
    assert sum(alike) / len(alike) > 0.95


def test_what_lies_beside_the_tokens_follows_them() -> None:
    tokens, pooled = torch.arange(6.0).reshape(3, 1, 2), torch.arange(3.0)[:, None]
    given = Conditioning.of(tokens, pooled=pooled)

    def held(found: Any) -> list[float]:
        assert isinstance(found, Conditioning)
        assert len(found) == len(found.beside["pooled"])
        assert found[:, 0, 0].tolist() == (2 * found.beside["pooled"][:, 0]).tolist()
        return found.beside["pooled"].flatten().tolist()

    assert held(given[1:]) == [1, 2]
    assert held(given[[2, 0]]) == [2, 0]
    assert held(given[torch.tensor([False, True, False])]) == [1]
    assert held(given[:1].expand(2, -1, -1)) == [0, 0]
    assert held(given[:1].expand_as(given)) == [0, 0, 0]
    assert held(given.repeat(2, 1, 1)) == [0, 1, 2, 0, 1, 2]
    assert held(given.repeat_interleave(2, dim=0)) == [0, 0, 1, 1, 2, 2]
    assert held(torch.cat([given, given[:1]])) == [0, 1, 2, 0]
    assert [held(one) for one in given.split(2)] == [[0, 1], [2]]
    assert [held(one) for one in given.chunk(3)] == [[0], [1], [2]]
    assert held(given.to(torch.float64).clone().detach()) == [0, 1, 2]
    leaf = given.float().clone().requires_grad_()
    assert held(leaf.detach()) == [0, 1, 2]
    (leaf.repeat(2, 1, 1) ** 2).sum().backward()
    torch.testing.assert_close(leaf.grad, 4 * tokens)
    for lost in (given.flip(0), given.mT, torch.stack([given]), torch.cat([given, tokens]),
                 given[0], given * 2):  # fmt: skip
        assert not isinstance(lost, Conditioning)
