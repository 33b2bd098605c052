"""Single-file checkpoints (.safetensors, as trainers and web interfaces share them).

Scope: the weights of Stable Diffusion 1.x and 2.x, converted by diffusers. Such a file holds no
settings and no vocabulary: they come from a diffusers folder or hub model of the same kind, of
which no weights are read. Pickles (.ckpt) run code when opened, and are refused.
"""

import warnings
from pathlib import Path
from typing import Any

from nemo_kit.models import schedulers
from nemo_kit.models.parts import check_complete, check_settings, read_json, readable, shapes_in
from nemo_kit.models.stable_diffusion import StableDiffusion

_V2 = "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"
_UNET = "model.diffusion_model.input_blocks.0.0.weight"
_V1_CONFIG = "stable-diffusion-v1-5/stable-diffusion-v1-5"
_V2_CONFIGS = "stabilityai/stable-diffusion-2-1 (v-prediction, 768 pixels) or " \
    "stabilityai/stable-diffusion-2-1-base (ε, 512 pixels)"  # fmt: skip
_OTHERS = {  # what the names of other families' tensors hold
    "conditioner.embedders.": "Stable Diffusion XL", "joint_blocks.": "Stable Diffusion 3",
    "double_blocks.": "FLUX", "cross_attn.kv_linear": "PixArt or Sana",
    "attn2.kv_proj": "HunyuanDiT",
}  # fmt: skip


def check_kind(file: Path) -> None:
    """Raise ValueError for a checkpoint of another family, by its name where it is known."""
    shapes = shapes_in(file)
    for mark, kind in _OTHERS.items():
        if any(mark in name for name in shapes):
            raise ValueError(
                f"{file} is a checkpoint of {kind}, which is opened from a diffusers folder or a "
                "hub id, not from one file"
            )
    if _UNET not in shapes:
        raise ValueError(f"{file} is no checkpoint of Stable Diffusion: it has no {_UNET}")


def default_config(file: Path) -> str:
    """The hub model whose settings a checkpoint has, where its tensors leave no doubt.

    Raises ValueError for 2.x: two kinds of it have the same tensors and predict different things.
    """
    shapes = shapes_in(file)
    if shapes.get(_V2, [0])[-1] == 1024:
        raise ValueError(
            f"config: {file} is a Stable Diffusion 2.x, whose file doesn't say what it predicts; "
            f"give config={_V2_CONFIGS}, or a folder of that kind"
        )
    if "v_pred" in shapes:
        raise ValueError(f"config: {file} says v_pred; give config=… of a model that predicts v")
    return _V1_CONFIG


def open_file(file: Path, settings: Path) -> dict[str, Any]:
    """The parts of a checkpoint, in its number type; settings and vocabulary of the folder.

    Raises ValueError where the file lacks a part or tensors, or says that it predicts something
    else than the settings do.
    """
    from diffusers import StableDiffusionPipeline
    from safetensors import safe_open

    shapes = shapes_in(file)
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata() or {}
    config = read_json(settings / "scheduler" / "scheduler_config.json")
    scheduler = schedulers.read(config)
    expected = scheduler.config.prediction_type
    said = metadata.get("modelspec.prediction_type") or ("v" if "v_pred" in shapes else None)
    if said is not None and said[:1].lower() != expected[0]:  # eps, epsilon, v or v_prediction
        raise ValueError(f"config: {file} says that it predicts {said}, the settings {expected}")
    for part, foreign in StableDiffusion.foreign.items():
        kind, told = StableDiffusion.parts()[part], read_json(settings / part / "config.json")
        check_settings(part, told, kind, foreign)
    _check_tensors(file, settings, shapes)
    if any(name.startswith("model_ema.") for name in shapes):
        told = f"{file.name} holds its weights and their moving average; the weights are taken"
        warnings.warn(told, RuntimeWarning, stacklevel=2)
    with readable(str(file)):
        pipeline = StableDiffusionPipeline.from_single_file(
            str(file),
            config=str(settings),
            local_files_only=True,
            scheduler=scheduler,
            requires_safety_checker=False,
            **dict.fromkeys(StableDiffusionPipeline._optional_components),
        )
    parts = {name: getattr(pipeline, name) for name in StableDiffusion.parts()}
    check_complete("text_encoder", parts["text_encoder"], {}, file)
    return parts


def _check_tensors(file: Path, settings: Path, shapes: dict[str, list[int]]) -> None:
    """Raise ValueError that names tensors of U-Net and VAE which the file lacks.

    Diffusers' own conversion is asked with tensors that have a shape and no content.
    """
    import torch
    from accelerate import init_empty_weights
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    held = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    for part, kind in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL)):
        config = dict(kind.load_config(settings / part, local_files_only=True))
        convert = SINGLE_FILE_LOADABLE_CLASSES[kind.__name__]["checkpoint_mapping_fn"]
        with init_empty_weights():
            wanted = kind.from_config(config).state_dict()
        found = convert(checkpoint=dict(held), config=config)
        wrong = [(n,) for n in wanted.keys() & found.keys() if wanted[n].shape != found[n].shape]
        info = {"missing_keys": wanted.keys() - found.keys(), "mismatched_keys": wrong}
        check_complete(part, torch.nn.Module(), info, file)
