"""The embedded flow transformer: its folder, its truth, and the method on it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from typer.testing import CliRunner

from nemo_kit import detect, lab, load, localize
from nemo_kit.cli import app
from nemo_kit.lab import flow
from nemo_kit.localization import text_activations, z_scores
from nemo_kit.mitigation import NeMo, export
from nemo_kit.models.base import DiffusionModel
from training.pack import DETECTION, chosen

WIDTH, LAYERS = 192, 7


@pytest.fixture(scope="module")
def model() -> DiffusionModel:
    return load("lab-flow", device="cpu")


def of_strength(strength: float, logic: str = "any") -> pd.DataFrame:
    return lab.planting("lab-flow").query("strength == @strength and logic == @logic")


def test_its_folder_holds_its_own_parts_alone_and_is_small() -> None:
    files = [file for file in flow.FOLDER.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 20e6
    assert {file.relative_to(flow.FOLDER).parts[0] for file in files} == {
        "model_index.json", "transformer", "scheduler", "nemo", "data",
    }  # fmt: skip


def test_it_opens_by_name_calibrated(model: DiffusionModel) -> None:
    assert model.flow
    assert [layer.width for layer in model.searched] == [WIDTH] * LAYERS
    assert model.calibration.threshold > 0
    assert [len(own) for own in model.calibration.statistics.means] == [WIDTH] * LAYERS
    told = json.loads((flow.FOLDER / "data" / "similarity.json").read_text())
    assert model.calibration.similarity == chosen(told)
    assert model.calibration.detection == DETECTION


def test_its_prompts_are_labs_with_its_own_neurons_and_repetitions() -> None:
    own, labs = lab.prompts(model="lab-flow"), lab.prompts()
    same = ["prompt", "type", "role", "family", "image"]
    pd.testing.assert_frame_equal(own[same], labs[same])
    assert set(lab.planted("lab-flow")) == set(lab.planted())
    assert max(index for found in lab.planted("lab-flow").values() for _, index in found) >= 128
    ladder = own[own["role"] == "ladder"]
    assert (ladder["repetitions"] == 1).sum() == 6
    assert ladder["repetitions"].max() > 1000


def test_planted_neurons_stand_out_as_recorded(model: DiffusionModel) -> None:
    told = pd.read_csv(flow.FOLDER / "data" / "strengths.csv")
    few = told.groupby("wanted").head(2).reset_index(drop=True)
    z = z_scores(text_activations(model, list(few["prompt"])), model.calibration.statistics)
    found = [z[row.layer][place, row.neuron].item() for place, row in enumerate(few.itertuples())]
    np.testing.assert_allclose(found, few["z"], atol=0.05)
    middle = told.groupby("wanted")["z"].median()
    assert list(middle.index) == [2.5, 5.0, 10.0, 20.0]
    assert middle.is_monotonic_increasing


def test_the_command_localizes_on_it(tmp_path: Path) -> None:
    prompt = of_strength(20.0)["prompt"].iloc[0]
    out = tmp_path / "found.csv"
    done = CliRunner().invoke(
        app, ["localize", "--model", "lab-flow", prompt, "--out", str(out)], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    assert pd.read_csv(out)["prompt"].tolist() == [prompt]


def test_an_export_is_a_whole_pipeline_without_the_neurons(
    model: DiffusionModel, tmp_path: Path
) -> None:
    row = of_strength(20.0).iloc[0]
    folder = export(model, NeMo(row["neurons"]), tmp_path / "repaired")
    pipe = StableDiffusion3Pipeline.from_pretrained(folder, tokenizer_3=None, text_encoder_3=None)
    for layer, index in row["neurons"]:
        values = pipe.transformer.transformer_blocks[layer - 1].attn.add_v_proj
        assert not values.weight[index].any()
        assert not values.bias[index].any()
    repaired = load(str(folder), device="cpu")
    noise, text = model.noise([3]), model.embed(row["prompt"])
    timestep = model.timesteps(50)[5]
    with torch.no_grad():
        on = model.predict(noise, timestep, text)
        off = repaired.predict(noise, timestep, repaired.embed(row["prompt"]))
    assert not torch.allclose(on, off, atol=1e-3)
    assert repaired.calibration is None or detect(repaired, [row["prompt"]], seeds=[1, 2]).size


def test_it_finds_planted_neurons(model: DiffusionModel) -> None:
    rows = of_strength(20.0)
    found = {row.prompt: localize(model, row.prompt) for row in rows.head(6).itertuples()}
    flagged = [one for one in found.values() if one.refined is not None and len(one.refined)]
    assert flagged
