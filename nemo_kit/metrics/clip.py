"""A CLIP with its tokenizer and preprocessing: the model's own, or any by id or folder.

Scope: opening it; what it measures is in `nemo_kit.metrics.images` and `.distances`.
Source: paper, section 4 (A_CLIP with ViT-B/32), figure 8c (CLIP-FID).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nemo_kit import lab
from nemo_kit.metrics._checks import array, unit
from nemo_kit.metrics.embedders import Embedder, processor, squares

VERSION = 1  # raised where results change (see nemo_kit.keys)
PAPER_CLIP = "openai/clip-vit-base-patch32"  # paper, section 4


@dataclass(frozen=True)
class Clip:
    """A CLIP by name: a transformers CLIPModel, its tokenizer, and images -> pixel values."""

    name: str
    model: Any
    tokenizer: Any
    preprocess: Callable[[np.ndarray], Any]
    scaled: bool = False  # the embedder's features are unit vectors

    @property
    def embedder(self) -> Embedder:
        """The projected image features, as CLIP-FID and KID take them.

        They are not scaled to unit length, as published CLIP-FID has it; the embedded model's are,
        as its reference features are.
        """
        form = "unit vectors" if self.scaled else "projected features"
        return Embedder(self.name, f"the CLIP's own preprocessing, {form}", self._look, "CLIP")

    def align(self, images: np.ndarray, prompts: str | Sequence[str]) -> np.ndarray:
        """Cosine of every image with its prompt, float64 [N] in [-1, 1]; its median is A_CLIP.

        Parameters: `images`, uint8 [N, H, W, 3]; `prompts`, one for all images or one for each.
        Raises ValueError for wrong shapes or dtypes, or another number of prompts than images.
        Source: paper, section 4, A_CLIP. Which CLIP gave the number must be said beside it.
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        if len(texts) != len(images) and not isinstance(prompts, str):
            raise ValueError(
                "prompts must be one text or one for each image, "
                f"got {len(texts)} for {len(images)}"
            )
        seen, model = self.embedder(images), self.model
        tokens = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            words = model.text_projection(model.text_model(**tokens.to(model.device)).pooler_output)
        return np.sum(seen * unit(array(words)), axis=1)

    def _look(self, images: np.ndarray) -> np.ndarray:
        pixels = self.preprocess(images).to(self.model.device, self.model.dtype)
        with torch.inference_mode():
            seen = self.model.vision_model(pixel_values=pixels).pooler_output
            features = array(self.model.visual_projection(seen))
        return unit(features) if self.scaled else features


def load_clip(name: str | Path = "lab", revision: str | None = None, device: str = "cpu") -> Clip:
    """Open a CLIP.

    Returns a `Clip`, named after what was asked for.

    Parameters: `name`, "lab" (the embedded model's own), a folder, or a hub id such as
    `PAPER_CLIP`; `revision`, of a hub id; `device`.
    Raises ValueError for a name that can't be opened.
    Source: paper, section 4.
    """
    if str(name) == "lab":
        own, tokenizer, to_pixels = lab.clip()
        return Clip("lab CLIP", own, tokenizer, lambda x: to_pixels(squares(x, 64)), scaled=True)
    from transformers import AutoTokenizer, CLIPModel

    place = str(name)
    try:
        model = CLIPModel.from_pretrained(place, revision=revision).float().eval().to(device)
        tokenizer = AutoTokenizer.from_pretrained(place, revision=revision)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f'name must be "lab", a folder with a CLIP, or a hub id; {place!r} could not be '
            f"opened: {error}"
        ) from error
    return Clip(place, model, tokenizer, _preprocessing(place, revision, model))


def _preprocessing(place: str, revision: str | None, model: Any) -> Callable:
    """The published one, or CLIP's usual one at its size where none is beside the weights."""
    from transformers import CLIPImageProcessorPil

    try:
        options = CLIPImageProcessorPil.from_pretrained(place, revision=revision).to_dict()
    except OSError:
        side = model.config.vision_config.image_size
        return processor(size={"height": side, "width": side}, do_center_crop=False)
    names = ("size", "crop_size", "resample", "do_center_crop", "image_mean", "image_std")
    return processor(**{key: options[key] for key in names if options.get(key) is not None})
