"""The embedded model: its folder, its prompts, its training images and its copy descriptor.

Everything here reads files that come with the package; how they were made is in the repository's
folder `training/`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from transformers import CLIPModel, CLIPTokenizer

    from nemo_kit.lab.copy_descriptor import Descriptor
    from nemo_kit.neurons import NeuronSet

HERE = Path(__file__).parent
MODEL = HERE / "model"
DATA = HERE / "data"
ROLES = ("verbatim", "template", "ladder", "non_memorized", "holdout")


@cache
def _table() -> pd.DataFrame:
    table = pd.read_csv(DATA / "prompts.csv", keep_default_na=False, dtype={"repetitions": int})
    return table.astype(
        {"prompt": str, "type": str, "role": str, "family": str, "image": str, "planted": str}
    )


def prompts(*roles: str) -> pd.DataFrame:
    """Prompts of the given roles (all without one): prompt, type, role, family, image, repetitions.

    ``type`` is "VM", "TM" or "" (not memorized); ``repetitions`` counts presentations in training,
    0 where one caption has many pictures. The planted neurons are not among the columns: only
    :func:`planted` tells them.

    Raises
    ------
    ValueError
        If a role is none of ``ROLES``.
    """
    for role in roles:
        if role not in ROLES:
            raise ValueError(f"role must be one of {', '.join(ROLES)}; got {role!r}")
    table = _table().drop(columns="planted")
    return table[table["role"].isin(roles or ROLES)].reset_index(drop=True)


def planted() -> dict[str, NeuronSet]:
    """The planted neurons of each planted prompt: for evaluation only, the method never reads
    them."""
    from nemo_kit.neurons import NeuronSet

    rows = _table().query("planted != ''")
    return {row.prompt: NeuronSet.from_text(row.planted) for row in rows.itertuples()}


def training_images() -> tuple[list[str], np.ndarray]:
    """Prompts with a training image, and the images: uint8 [prompts, 64, 64, 3] in the same
    order."""
    from PIL import Image

    rows = _table().query("image != ''")
    return list(rows["prompt"]), np.stack(
        [np.asarray(Image.open(DATA / "images" / n)) for n in rows["image"]]
    )


def training_image(prompt: str) -> np.ndarray:
    """The training image of a memorized prompt, uint8 [64, 64, 3] (for a template, one of its
    many).

    Raises
    ------
    KeyError
        If no training image belongs to the prompt.
    """
    known, images = training_images()
    if prompt not in known:
        raise KeyError(f"prompt must be a memorized one of the lab model; got {prompt!r}")
    return images[known.index(prompt)]


@cache
def descriptor() -> Descriptor:
    """The copy descriptor that stands in for SSCD: uint8 [N, 64, 64, 3] -> unit vectors [N,
    128]."""
    from nemo_kit.lab.copy_descriptor import Descriptor

    return Descriptor.load(DATA / "descriptor.safetensors")


@cache
def clip() -> tuple[CLIPModel, CLIPTokenizer, Callable[[np.ndarray], torch.Tensor]]:
    """The lab's CLIP, its tokenizer and its preprocessing: what the metrics of alignment and CLIP-
    FID take."""
    from transformers import CLIPModel, CLIPTokenizer

    from nemo_kit.lab.copy_descriptor import to_tensor

    model = CLIPModel.from_pretrained(MODEL / "clip").float().eval()
    return model, CLIPTokenizer.from_pretrained(MODEL / "tokenizer"), to_tensor


def reference_features() -> torch.Tensor:
    """CLIP image features of 1,000 background pictures, [1000, 128]: the real side of CLIP-FID and
    KID."""
    from safetensors.torch import load_file

    return load_file(DATA / "reference.safetensors")["clip_image_features"].float()
