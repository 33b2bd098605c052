"""Text-to-image models behind the few operations the method needs: one file a model family.

Scope: opening diffusers folders, hub ids and single-file checkpoints, with or without a LoRA.
Weights and configuration alone are read: never custom pipelines or remote code. Names are imported
only when asked for, so that what asks the hub's cache stays quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nemo_kit.models.base import DiffusionModel
    from nemo_kit.models.opening import load

_OPENING = ("DTYPES", "GENERATION_FILE", "default_device", "default_dtype", "load",
            "on_this_machine", "resolve")  # fmt: skip
_HOMES = {"DiffusionModel": "base", "StableDiffusion": "stable_diffusion", "notes_folder": "hub"}
_HOMES |= dict.fromkeys(_OPENING, "opening")


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"nemo_kit.models has no {name!r}; it has {', '.join(sorted(_HOMES))}")
    return getattr(import_module(f"nemo_kit.models.{_HOMES[name]}"), name)
