"""Which family a diffusers folder belongs to: asked before a download and when it is opened."""

from collections.abc import Mapping
from typing import Any

from nemo_kit.models.base import DiffusionModel
from nemo_kit.models.flux import Flux
from nemo_kit.models.hunyuan import HunyuanDiT
from nemo_kit.models.pixart import PixArtAlpha, PixArtSigma
from nemo_kit.models.sana import Sana
from nemo_kit.models.sd3 import StableDiffusion3
from nemo_kit.models.sdxl import StableDiffusionXL
from nemo_kit.models.stable_diffusion import StableDiffusion

INDEX = "model_index.json"
FAMILIES: tuple[type[DiffusionModel], ...] = (
    StableDiffusion,
    StableDiffusionXL,
    PixArtAlpha,
    PixArtSigma,
    Sana,
    HunyuanDiT,
    StableDiffusion3,
    Flux,
)


def family_of(index: Mapping[str, Any]) -> type[DiffusionModel]:
    """The family of a pipeline, whose `parts` are all that is fetched and opened of it.

    Parameters: `index`, the content of model_index.json.
    Raises ValueError that names the class of a pipeline, or of a part, that no family has.
    """
    kind = index.get("_class_name")
    for family in FAMILIES:
        if kind in family.pipelines:
            _check_parts(family, index)
            return family
    known = ", ".join(name for family in FAMILIES for name in family.pipelines)
    raise ValueError(f"{INDEX}: the pipeline {kind} is not supported yet; supported are {known}")


def _check_parts(family: type[DiffusionModel], index: Mapping[str, Any]) -> None:
    for part in family.parts_in(index):
        allowed, entry = family.parts[part], index.get(part)
        named = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
        if named is None:
            raise ValueError(f"{INDEX}: the part {part!r} is missing")
        if part != "scheduler" and named not in allowed:  # its own check says more
            raise ValueError(f"{INDEX}: {part} must be a {' or '.join(allowed)}, got {named}")
