"""The embedded model: its folder, its prompts, its training images, and what judges its pictures.

Everything here reads files that come with the package; how they were made is in the repository's
folder `training/`.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from PIL import Image

from nemo_kit.checks import check_choice
from nemo_kit.neurons import NeuronSet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import torch
    from transformers import CLIPModel, CLIPTokenizer

    from nemo_kit.lab.copy_descriptor import Descriptor
    from nemo_kit.lab.recognition import Classifier

HERE = Path(__file__).parent
MODEL = HERE / "model"
DATA = HERE / "data"
ROLES = ("verbatim", "template", "ladder", "non_memorized", "holdout")
_TRUTH = ["planted", "logic", "strength"]

#: Where the prompts of each embedded model lie: the same ones, with what was planted in it.
TABLES = {"lab": DATA / "prompts.csv", "lab-flow": HERE / "flow" / "data" / "prompts.csv"}


@cache
def _table(model: str = "lab") -> pd.DataFrame:
    texts = pd.read_csv(TABLES[model], keep_default_na=False, dtype=str)
    return texts.astype({"repetitions": int})


def _known(model: str) -> pd.DataFrame:
    """An embedded model's table; of any other model no row."""
    return _table(model) if model in TABLES else _table().head(0)


def prompts(*roles: str, model: str = "lab") -> pd.DataFrame:
    """Prompts of the given roles (all without one): prompt, type, role, family, image, repetitions.

    ``type`` is "VM", "TM" or "" (not memorized); ``family`` tells template prompts apart: of one
    composition, or "region", a photograph of which only a part is memorized; ``repetitions`` counts
    presentations in that model's training, 0 where one caption has many pictures. What was planted
    is not among the columns: only `planted` and `planting` tell it.
    Parameters: `model`, "lab" or "lab-flow".
    Raises ValueError for another role.
    """
    for role in roles:
        check_choice("role", role, ROLES)
    table = _table(model).drop(columns=["concept", *_TRUTH])
    return table[table["role"].isin(roles or ROLES)].reset_index(drop=True)


def concepts(model: str = "lab") -> dict[str, str]:
    """What the pictures of each prompt show, one of the corpus's hundred things.

    Parameters: as in `planting`.
    """
    rows = _known(model)
    return dict(zip(rows["prompt"], rows["concept"], strict=True))


def planted(model: str = "lab") -> dict[str, NeuronSet]:
    """The planted neurons of each planted prompt; parameters and use as of `planting`."""
    table = planting(model)
    return dict(zip(table["prompt"], table["neurons"], strict=True))


def planting(model: str = "lab") -> pd.DataFrame:
    """What was planted, a row a prompt: prompt, neurons, logic, strength.

    For evaluation only: the method never reads it.
    Parameters: `model`, "lab" or "lab-flow"; of any other nothing is known, and there are no rows.
    ``logic`` is "any" (each neuron alone is enough for the copy: all must be off) or "all" (each is
    needed: one off is enough); ``strength`` is the |z| that its neurons were planted with.
    """
    rows = _known(model).query("planted != ''").reset_index(drop=True)
    rows["neurons"] = rows["planted"].map(NeuronSet.from_text)
    return rows[["prompt", "neurons", "logic", "strength"]].astype({"strength": float})


def origins(prompts: Iterable[str], model: str = "lab") -> list[str]:
    """Where the memorization of each prompt comes from, for evaluation only.

    "planted": in neurons that were told to carry it; "natural": by repetition alone; "": the prompt
    is not one of those that are memorized.
    Parameters: `model`, as in `planting`.
    """
    rows = _known(model).query("role in ('verbatim', 'template')")
    kinds = rows["planted"].map(lambda text: "planted" if text else "natural")
    known = dict(zip(rows["prompt"], kinds, strict=True))
    return [known.get(prompt, "") for prompt in prompts]


def training_images() -> tuple[list[str], np.ndarray]:
    """Prompts with a training image, and the images in their order: uint8 [prompts, 64, 64, 3]."""
    rows = _table().query("image != ''")
    return list(rows["prompt"]), np.stack([_picture("images", name) for name in rows["image"]])


def training_image(prompt: str) -> np.ndarray:
    """The training image of a memorized prompt (of a template, one), uint8 [64, 64, 3]; else
    KeyError."""
    return _picture("images", _file(prompt))


def mask(prompt: str) -> np.ndarray:
    """Where the training images of a memorized prompt are all the same, bool [64, 64]; else
    KeyError."""
    name = _file(prompt)
    whole = not (DATA / "masks" / name).exists()
    return np.ones((64, 64), bool) if whole else _picture("masks", name) > 0


def _picture(folder: str, name: str) -> np.ndarray:
    return np.asarray(Image.open(DATA / folder / name))


def _file(prompt: str) -> str:
    """Name of the training image of a memorized prompt; else KeyError."""
    known = _table().query("image != ''").set_index("prompt")["image"]
    if prompt not in known:
        raise KeyError(f"prompt must be a memorized one of the lab model; got {prompt!r}")
    return known[prompt]


@cache
def descriptor() -> Descriptor:
    """The stand-in for SSCD: uint8 [N, 64, 64, 3] -> unit vectors [N, 128]."""
    from nemo_kit.lab.copy_descriptor import Descriptor

    return Descriptor.load(DATA / "descriptor.safetensors")


@cache
def classifier() -> Classifier:
    """The judge of recognition: uint8 [N, 64, 64, 3] -> names of concepts [N]."""
    from nemo_kit.lab.recognition import Classifier

    return Classifier(DATA / "classifier.safetensors")


@cache
def clip() -> tuple[CLIPModel, CLIPTokenizer, Callable[[np.ndarray], torch.Tensor]]:
    """The lab's CLIP, its tokenizer and its preprocessing, as `metrics.Clip` takes them."""
    from safetensors import safe_open
    from safetensors.torch import load_file
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    from nemo_kit.lab.copy_descriptor import to_tensor

    text = load_file(MODEL / "text_encoder" / "model.safetensors")  # the half that conditions
    with safe_open(DATA / "clip.safetensors", framework="pt") as opened:
        model = CLIPModel(CLIPConfig.from_dict(json.loads(opened.metadata()["config"])))
        seen = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    model.load_state_dict(seen | {f"text_model.{name}": value for name, value in text.items()})
    return model.eval(), CLIPTokenizer.from_pretrained(MODEL / "tokenizer"), to_tensor


def emergence() -> pd.DataFrame:
    """What was memorized along the training, a row a memorized prompt and copy of the weights.

    Columns: samples (seen by then), prompt, seen (presentations of its picture by then), score,
    flagged (above a threshold of that copy's own), similarity (to the training image, median over
    pictures), neurons (refined ones; missing where it is not flagged).
    """
    return pd.read_parquet(DATA / "emergence.parquet")


def reference_features() -> torch.Tensor:
    """CLIP image features of 1,000 background pictures, [1000, 128]: the real side of CLIP-FID."""
    from safetensors.torch import load_file

    return load_file(DATA / "reference.safetensors")["clip_image_features"].float()
