"""Text-to-image models behind the few operations the method needs: one file a model family.

Scope: opening diffusers folders, hub ids and single-file checkpoints, with or without a LoRA.
Weights and configuration alone are read: never custom pipelines or remote code. Names are imported
only when asked for, so that what asks the hub's cache stays quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nemo_kit.models.base import DiffusionModel as DiffusionModel
    from nemo_kit.models.opening import load as load

__all__ = [
    "DTYPES",
    "GENERATION_FILE",
    "DiffusionModel",
    "StableDiffusion",
    "default_device",
    "default_dtype",
    "load",
    "notes_folder",
    "on_this_machine",
    "resolve",
]

_HOMES = {"DiffusionModel": "base", "StableDiffusion": "stable_diffusion", "notes_folder": "hub"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"nemo_kit.models has no {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"nemo_kit.models.{_HOMES.get(name, 'opening')}"), name)
