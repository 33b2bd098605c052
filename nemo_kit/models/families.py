"""Which family a diffusers folder belongs to: asked before a download and when it is opened."""

from collections.abc import Mapping
from typing import Any

from nemo_kit.models.base import DiffusionModel
from nemo_kit.models.flux import Flux
from nemo_kit.models.hub import INDEX
from nemo_kit.models.hunyuan import HunyuanDiT
from nemo_kit.models.parts import plain
from nemo_kit.models.pixart import PixArtAlpha, PixArtSigma
from nemo_kit.models.sana import Sana
from nemo_kit.models.sd3 import StableDiffusion3
from nemo_kit.models.sdxl import StableDiffusionXL
from nemo_kit.models.stable_diffusion import StableDiffusion

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
    family = next((one for one in FAMILIES if kind in one.pipelines), None)
    if family is None:
        known = ", ".join(name for family in FAMILIES for name in family.pipelines)
        raise ValueError(f"{INDEX}: the pipeline {kind} is not supported; supported are {known}")
    for part in family.parts_in(index):
        wanted, entry = family.parts()[part], index.get(part)
        named = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
        if named is None:
            raise ValueError(f"{INDEX}: the part {part!r} is missing")
        if part != "scheduler" and plain(named) != wanted:  # its own check says more
            raise ValueError(f"{INDEX}: {part} must be a {wanted}, got {named}")
    return family
