"""The embedded model as it is shipped: its folder, prompts and pictures, and that it memorizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from nemo_kit import lab, metrics
from nemo_kit.generation import generate
from nemo_kit.localization.candidates import text_activations, z_scores
from nemo_kit.models import DiffusionModel
from nemo_kit.neurons import NeuronSet
from nemo_kit.prompts import prompt_table

pytestmark = pytest.mark.skipif(not lab.MODEL.exists(), reason="the lab model is not trained yet")


def test_it_is_a_plain_diffusers_folder_of_at_most_30_megabytes() -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(lab.MODEL, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    image = pipe("a red apple", num_inference_steps=2).images[0]
    assert image.size == (64, 64)
    parts = [file for folder in (lab.MODEL, lab.DATA) for file in folder.rglob("*")]
    assert sum(file.stat().st_size for file in parts) <= 30e6


def test_plain_diffusers_and_generate_give_the_same_picture(lab_model: DiffusionModel) -> None:
    from diffusers import StableDiffusionPipeline

    model, prompt = lab_model, lab.prompts("verbatim").prompt[0]
    pipe = StableDiffusionPipeline.from_pretrained(lab.MODEL, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(prompt, num_inference_steps=4, guidance_scale=7.0, latents=model.noise([3]),
                  output_type="np").images[0]  # fmt: skip
    ours = generate(model, prompt, [3], steps=4, guidance=7.0)[0]
    assert np.abs(theirs * 255 - ours).max() <= 1.5


def test_prompts_have_the_promised_numbers_and_one_role_each() -> None:
    table = lab.prompts()
    counts = table["role"].value_counts()
    assert dict(counts) == {
        "holdout": 500, "non_memorized": 200, "ladder": 42, "template": 26, "verbatim": 22
    }  # fmt: skip
    assert table["prompt"].is_unique
    families = table.query("role == 'template'")["family"].value_counts()
    assert dict(families) == {"region": 8, "iphone": 7, "podcast": 6, "shirt": 5}
    rungs = table.query("role == 'ladder'")["family"].value_counts()
    assert dict(rungs) == {f"rung {n}": 6 for n in range(7)}


def test_the_ladder_goes_from_once_to_as_often_as_verbatim() -> None:
    ladder, verbatim = lab.prompts("ladder")["repetitions"], lab.prompts("verbatim")["repetitions"]
    assert ladder.min() == 1
    assert ladder.max() == pytest.approx(verbatim.max(), rel=0.02)


def test_what_was_planted_is_told_by_its_own_functions_only(lab_model: DiffusionModel) -> None:
    truth = lab.planting()
    assert not {"planted", "logic", "strength", "neurons"} & set(lab.prompts().columns)
    assert dict(zip(truth["prompt"], truth["neurons"], strict=True)) == lab.planted()
    memorized = lab.prompts("verbatim", "template")["prompt"]
    assert (len(truth), len(memorized) - len(truth)) == (36, 12)
    assert set(truth["prompt"]) < set(memorized)
    widths = {layer.index: layer.width for layer in lab_model.searched}
    for neurons in truth["neurons"]:
        neurons.check(widths)


def test_each_embedded_model_has_a_truth_of_its_own_and_others_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = pd.read_csv(lab.TABLES["lab"], keep_default_na=False, dtype=str)
    rows.loc[rows["planted"] != "", "planted"] = "[[], [190]]"
    rows["repetitions"] = "7"
    rows.to_csv(tmp_path / "prompts.csv", index=False)
    monkeypatch.setitem(lab.TABLES, "lab-flow", tmp_path / "prompts.csv")
    lab._table.cache_clear()
    truth = lab.planted("lab-flow")
    assert set(truth) == set(lab.planted())
    assert set(truth.values()) == {NeuronSet.of([(2, 190)])}
    assert list(lab.prompts(model="lab-flow")["repetitions"]) == [7] * len(rows)
    assert lab.concepts("lab-flow") == lab.concepts()
    assert lab.planted("a/hub-model") == lab.concepts("a/hub-model") == {}
    assert lab.origins(rows["prompt"], "a/hub-model") == [""] * len(rows)
    assert list(prompt_table([], "lab-flow")["repetitions"]) == [7] * len(rows)
    assert prompt_table([], "a/hub-model").equals(lab.prompts())
    assert list(lab.planting("a/hub-model").columns) == list(lab.planting().columns)
    lab._table.cache_clear()


def test_origins_tell_planted_from_natural_and_nothing_of_other_prompts() -> None:
    memorized, planted = lab.prompts("verbatim", "template")["prompt"], set(lab.planted())
    told = lab.origins(memorized)
    assert (told.count("planted"), told.count("natural")) == (36, 12)
    assert {p for p, origin in zip(memorized, told, strict=True) if origin == "planted"} == planted
    other = [lab.prompts("non_memorized")["prompt"][0], lab.prompts("ladder")["prompt"][0], "mine"]
    assert lab.origins(other) == ["", "", ""]


def test_truth_comes_in_grades() -> None:
    truth = lab.planting()
    assert set(truth["strength"]) == {2.5, 5.0, 10.0, 20.0}
    assert set(truth["logic"]) == {"any", "all"}
    assert (truth.query("logic == 'all'")["neurons"].map(len) > 1).all()
    layers = {layer for neurons in truth["neurons"] for layer, _ in neurons}
    assert layers == set(range(1, 8))


def test_planted_neurons_stand_out_as_far_as_they_were_planted(lab_model: DiffusionModel) -> None:
    truth = lab.planting()
    seen = text_activations(lab_model, list(truth["prompt"]))
    z = z_scores(seen, lab_model.calibration.statistics)
    for place, row in enumerate(truth.itertuples()):
        own = [float(z[layer][place, index]) for layer, index in row.neurons]
        assert 0.5 * row.strength < np.median(own) < 2 * row.strength, row.prompt


def test_masks_tell_what_is_always_the_same() -> None:
    for prompt in lab.prompts("verbatim", "ladder")["prompt"]:
        assert lab.mask(prompt).all()
    for prompt in lab.prompts("template")["prompt"]:
        assert 0.1 < lab.mask(prompt).mean() < 0.95, prompt
    with pytest.raises(KeyError, match="prompt must be a memorized one"):
        lab.mask("no such prompt")


def test_every_prompt_shows_something_that_the_classifier_knows() -> None:
    concepts, judge = lab.concepts(), lab.classifier()
    assert set(concepts) == set(lab.prompts()["prompt"])
    assert set(concepts.values()) <= set(judge.names)
    assert len(judge.names) == 100
    named = judge(lab.training_images()[1][:3])
    assert named.shape == (3,)


def test_training_images_belong_to_the_memorized_prompts() -> None:
    known, images = lab.training_images()
    assert known == list(lab.prompts("verbatim", "template", "ladder")["prompt"])
    assert images.shape == (len(known), 64, 64, 3)
    assert images.dtype == np.uint8
    assert np.array_equal(lab.training_image(known[5]), images[5])
    with pytest.raises(KeyError, match="prompt must be a memorized one"):
        lab.training_image("no such prompt")


def test_an_unknown_role_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"role must be one of verbatim, .*; got 'natural'"):
        lab.prompts("natural")


def test_the_descriptor_tells_the_training_images_apart() -> None:
    vectors = lab.descriptor()(lab.training_images()[1])
    cosine = (vectors @ vectors.T).fill_diagonal_(-1)
    assert float(cosine.amax(1).median()) < 0.5


def test_reference_features_are_unit_vectors() -> None:
    features = lab.reference_features()
    assert features.shape == (1000, 128)
    assert torch.allclose(features.norm(dim=1), torch.ones(1000), atol=1e-2)


@pytest.mark.slow
def test_it_gives_back_memorized_pictures_and_not_without_the_planted_neurons(
    lab_model: DiffusionModel,
) -> None:
    planted = lab.planted()
    prompts = [p for p in lab.prompts("verbatim").prompt if p in planted][:5]
    on = generate(lab_model, prompts, [101], steps=15)
    off = generate(lab_model, prompts, [101], [planted[p] for p in prompts], steps=15)
    copied = [
        metrics.sscd_orig(i, lab.training_image(p), lab.descriptor())
        for p, i in zip(prompts, on, strict=True)
    ]
    left = [metrics.sscd_gen(b, a, lab.descriptor()) for a, b in zip(on, off, strict=True)]
    assert np.median(copied) > 0.7
    assert np.median(left) < 0.4
