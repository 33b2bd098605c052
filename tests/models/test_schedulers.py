"""Schedulers are read by what they mean: the same noise process, whatever class walks it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from nemo_kit import generate, lab
from nemo_kit.models import DiffusionModel, load, schedulers

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SD14 = {**BETAS, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}


def fresh(kind: str, **changes: Any) -> dict[str, Any]:
    """The config that this class writes of itself."""
    return dict(getattr(diffusers, kind)(**(BETAS | changes)).config)


@pytest.mark.parametrize("kind", sorted(schedulers.SAME_PROCESS - {"DPMSolverSDEScheduler"}))
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_every_class_of_the_process_becomes_stable_diffusions_ddim(
    kind: str, prediction: str
) -> None:
    found = schedulers.read(fresh(kind, prediction_type=prediction), kind)
    expected = DDIMScheduler(**SD14, prediction_type=prediction)
    assert torch.equal(found.alphas_cumprod, expected.alphas_cumprod)
    assert found.final_alpha_cumprod == (
        1 if kind.startswith("DDIM") else expected.alphas_cumprod[0]
    )
    assert (found.config.clip_sample, found.config.steps_offset) == (False, 1)
    assert found.config.prediction_type == prediction
    assert found.init_noise_sigma == 1


def test_what_an_old_config_leaves_out_is_what_stable_diffusion_has() -> None:
    found = schedulers.read({"_class_name": "PNDMScheduler", **BETAS})
    for name, value in DDIMScheduler(**SD14).config.items():
        assert name.startswith("_") or found.config[name] == value


def test_settings_that_mean_the_same_are_kept() -> None:
    config = {"_class_name": "DDIMScheduler", **SD14, "timestep_spacing": "trailing",
              "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}  # fmt: skip
    found = schedulers.read(config)
    assert found.alphas_cumprod[-1] == 0
    found.set_timesteps(50)
    assert found.timesteps[0] == 999
    betas = torch.linspace(0.001, 0.02, 1000).tolist()
    learned = schedulers.read({"_class_name": "DDPMScheduler", "trained_betas": betas})
    assert torch.allclose(learned.alphas_cumprod, torch.cumprod(1 - torch.tensor(betas), 0))
    assert schedulers.read(fresh("EulerDiscreteScheduler", use_karras_sigmas=True))


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "FlowMatchEulerDiscreteScheduler"),
        ({"_class_name": "EDMEulerScheduler"}, "EDMEulerScheduler"),
        ({"_class_name": "EDMDPMSolverMultistepScheduler"}, "EDMDPMSolverMultistepScheduler"),
        ({"_class_name": "LCMScheduler", **BETAS}, "LCMScheduler belongs to a consistency"),
        ({"_class_name": "TCDScheduler", **BETAS}, "TCDScheduler"),
        ({"_class_name": "DDIMInverseScheduler", **BETAS}, "DDIMInverseScheduler"),
        ({"_class_name": "MineScheduler", **BETAS}, "MineScheduler"),
        ({**BETAS, "prediction_type": "flow_prediction"}, "prediction_type.*'flow_prediction'"),
        ({**BETAS, "prediction_type": None}, "prediction_type.*None"),
        ({**BETAS, "use_flow_sigmas": True}, "use_flow_sigmas"),
        ({**BETAS, "timestep_type": "continuous"}, "timestep_type = 'continuous'"),
        ({"beta_start": 0.00085}, "doesn't say beta_end, beta_schedule"),
        ({**BETAS, "beta_schedule": "sigmoid"}, "schedule is not one of DDIM's"),
        ({"trained_betas": [0.1] * 10}, "10 trained_betas for 1000 timesteps"),
        ({**BETAS, "rescale_betas_zero_snr": True}, "rescale_betas_zero_snr needs"),
    ],
)
def test_another_process_is_refused_by_name(config: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=f"scheduler: .*{named}"):
        schedulers.read({"_class_name": "DDIMScheduler"} | config)


def test_the_class_that_the_index_names_counts_too() -> None:
    with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler"):
        schedulers.read(
            {"_class_name": "DDIMScheduler", **BETAS}, "FlowMatchEulerDiscreteScheduler"
        )


def with_scheduler(folder: Path, kind: str, **changes: Any) -> str:
    """The embedded model, as if it had been saved with this scheduler."""
    shutil.copytree(lab.MODEL, folder, ignore=shutil.ignore_patterns("nemo"))
    config = fresh(kind, prediction_type="v_prediction", **changes) | {"_class_name": kind}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", kind]
    (folder / "model_index.json").write_text(json.dumps(index))
    return str(folder)


@pytest.mark.parametrize("kind", ["EulerDiscreteScheduler", "UniPCMultistepScheduler"])
def test_pictures_are_those_of_the_pipelines_own_scheduler(kind: str, tmp_path: Path) -> None:
    """Clipped latents differ by 11 of 255; another solver of the same process by less than 2."""
    name, prompt = with_scheduler(tmp_path / "m", kind), lab.prompts("verbatim").prompt[0]
    model = load(name, device="cpu")
    found = generate(model, prompt, [1], guidance=3, steps=50)[0]
    pipeline = StableDiffusionPipeline.from_pretrained(
        name, safety_checker=None, torch_dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    start = model.noise([1]) * 1.0
    drawn = pipeline(prompt, latents=start, guidance_scale=3, output_type="np").images[0]
    difference = np.abs(found.squeeze() / 255 - drawn).mean() * 255
    assert difference < 2.5, difference


def test_the_embedded_model_reads_as_before(lab_model: DiffusionModel) -> None:
    assert lab_model.scheduler.config.prediction_type == "v_prediction"
    assert lab_model.timesteps(50)[0] == 981
