"""Scheduler folders read by what they mean: the noise schedule that a denoiser was trained with.

Scope: what is read here is run as DDIM, which the method needs (section 4 of the paper). Most of
diffusers' schedulers only walk the same noise levels in another way, so that a denoiser saved with
one of them is the same under DDIM; a denoiser of another noise process is not, and is refused.
"""

import inspect
from collections.abc import Mapping
from typing import Any

# Solvers of the same process as DDIM: x_t = √ᾱ_t·x_0 + √(1−ᾱ_t)·ε at discrete timesteps.
SAME_PROCESS = frozenset(
    f"{name}Scheduler"
    for name in (
        "DDIM", "DDIMParallel", "DDPM", "DDPMParallel", "PNDM", "LMSDiscrete", "EulerDiscrete",
        "EulerAncestralDiscrete", "HeunDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete",
        "DPMSolverMultistep", "DPMSolverSinglestep", "DPMSolverSDE", "DEISMultistep",
        "UniPCMultistep", "SASolver",
    )
)  # fmt: skip
_FEW_STEPS = ("LCMScheduler", "TCDScheduler")
_PREDICTIONS = ("epsilon", "v_prediction", "sample")
_BETAS = ("beta_start", "beta_end", "beta_schedule")
# What Stable Diffusion's own DDIM has where a config is silent; DDIM's class has other defaults.
_LEFT_OUT = {"set_alpha_to_one": False, "timestep_spacing": "leading", "prediction_type": "epsilon"}
_FIXED = {"clip_sample": False, "steps_offset": 1}  # StableDiffusionPipeline sets them whatever
# Settings under which a solver's noise levels are no longer those of the betas.
_OTHER_PROCESS = {"use_flow_sigmas": (None, False), "timestep_type": (None, "discrete")}


def read(config: Mapping[str, Any], named: str | None = None) -> Any:
    """A DDIMScheduler of the noise schedule that the config of any such scheduler describes.

    Parameters: `config`, the content of scheduler_config.json; `named`, the class that
    model_index.json says.
    Which noise levels a solver visits (Karras' and others) doesn't count: DDIM visits its own.
    Raises ValueError for another noise process or class, an unknown kind of prediction, and where
    the betas are not said.
    """
    for kind in {named, config.get("_class_name")} - {None}:
        if kind in _FEW_STEPS:
            raise ValueError(
                f"scheduler: {kind} belongs to a consistency model, which draws in few steps and "
                "not with DDIM and guidance; not supported"
            )
        if kind not in SAME_PROCESS:
            raise ValueError(
                f"scheduler: {kind} is not known to be of Stable Diffusion's noise process (flow "
                f"matching and EDM are others); supported are {', '.join(sorted(SAME_PROCESS))}"
            )
    _check_process(config)
    from diffusers import DDIMScheduler

    known = inspect.signature(DDIMScheduler.__init__).parameters.keys() - {"self"}
    given = {name: value for name, value in config.items() if name in known and value is not None}
    try:
        return DDIMScheduler(**(_LEFT_OUT | given | _FIXED))
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(f"scheduler: its noise schedule is not one of DDIM's ({error})") from error


def _check_process(config: Mapping[str, Any]) -> None:
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in _PREDICTIONS:
        raise ValueError(
            f"scheduler: prediction_type must be one of {', '.join(_PREDICTIONS)}, "
            f"got {prediction!r}"
        )
    for name, usual in _OTHER_PROCESS.items():
        if config.get(name) not in usual:
            raise ValueError(f"scheduler: {name} = {config[name]!r} is another noise process")
    trained, count = config.get("trained_betas"), config.get("num_train_timesteps", 1000)
    missing = [name for name in _BETAS if config.get(name) is None]
    if trained is None and missing:
        raise ValueError(f"scheduler: its config doesn't say {', '.join(missing)}")
    if trained is not None and len(trained) != count:
        raise ValueError(f"scheduler: {len(trained)} trained_betas for {count} timesteps")
    if config.get("rescale_betas_zero_snr") and prediction == "epsilon":
        raise ValueError(
            "scheduler: rescale_betas_zero_snr needs prediction_type v_prediction or sample: where "
            "nothing but noise is left, noise predicted says nothing of the image"
        )
