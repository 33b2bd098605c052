"""Networks that look at pictures, behind one interface: pictures in, vectors out, and their name.

Scope: the lab's copy descriptor, SSCD and Inception from a TorchScript file, any function. Every
number made from an embedder carries its name and protocol, as numbers of two protocols can't be
compared. TorchScript is code: a file is opened only where its SHA-256 is known or given.
Source: Pizzi et al., "A Self-Supervised Descriptor for Image Copy Detection", CVPR 2022 (SSCD);
Heusel et al. 2017 (Inception features).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from nemo_kit import lab
from nemo_kit.checks import check_choice
from nemo_kit.files import file_digest
from nemo_kit.metrics._checks import array, check_images, unit

VERSION = 2  # raised where results change (see nemo_kit.keys)
KNOWN_FILES = {  # SHA-256 of the files as their authors publish them
    "9f26bd4c848cc19b73d2ae92eea6e04886f61a7b764ceb7a13aeee62e6a6db56": "sscd_disc_mixup",
    "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4": "inception-2015-12-05",
}
_AT_ONCE = 32  # pictures a call


@dataclass(frozen=True)
class Embedder:
    """A network with the name and protocol that its numbers carry.

    Called with pictures, uint8 [N, H, W, 3], it returns unit vectors, float64 [N, D].
    Parameters: `name`, of the network; `protocol`, how it gets its pictures, in words; `network`,
    pictures -> vectors [N, D]; `family`, "CLIP" or "Inception", which names distances after it;
    `sha256`, of its file where it has one.
    """

    name: str
    protocol: str
    network: Callable[[np.ndarray], Any]
    family: str = ""
    sha256: str = ""

    def features(self, images: np.ndarray) -> np.ndarray:
        """What the network gives, not scaled: float64 [N, D].

        Raises ValueError for pictures that are no uint8 [N, H, W, 3], and where the network gives
        another shape or NaN.
        """
        images = check_images("images", images)
        parts = np.split(images, range(_AT_ONCE, len(images), _AT_ONCE))
        vectors = np.concatenate([array(self.network(part)) for part in parts])
        if vectors.shape[0] != len(images) or vectors.ndim != 2 or not np.isfinite(vectors).all():
            raise ValueError(
                f"embedder {self.name!r} must give finite [N, D] for N = {len(images)} pictures, "
                f"got shape {list(vectors.shape)}"
            )
        return vectors

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return unit(self.features(images))

    @property
    def labels(self) -> dict[str, str]:
        """`embedder` and `protocol`, for every row of a result."""
        return {"embedder": self.name, "protocol": self.protocol}


def as_embedder(network: Callable[[np.ndarray], Any]) -> Embedder:
    """An `Embedder` from any function pictures -> vectors; one that is an `Embedder` stays it.

    Its name is the function's, its protocol "as given". Raises TypeError for what can't be called.
    """
    if isinstance(network, Embedder):
        return network
    if not callable(network):
        raise TypeError(f"embedder must be a function of pictures, got {type(network).__name__}")
    name = getattr(network, "name", None) or getattr(network, "__name__", type(network).__name__)
    return Embedder(str(name), "as given", network)


def lab_descriptor() -> Embedder:
    """The embedded model's copy descriptor; its numbers are its own, never SSCD's."""
    descriptor = lab.descriptor()
    protocol = "64 square, bicubic"
    return Embedder(descriptor.name, protocol, lambda images: descriptor(squares(images, 64)))


def squares(images: np.ndarray, side: int) -> np.ndarray:
    """Pictures resized to a square by bicubic interpolation, uint8 [N, side, side, 3]."""
    if images.shape[1:3] == (side, side):
        return images
    resized = [Image.fromarray(i).resize((side, side), Image.Resampling.BICUBIC) for i in images]
    return np.stack([np.asarray(i) for i in resized])


# protocol -> its words for results, and the image processor's options; both bilinear
SSCD_PROTOCOLS: dict[str, tuple[str, dict[str, Any]]] = {
    "320": ("320 square, ImageNet statistics", {
        "size": {"height": 320, "width": 320}, "do_center_crop": False,
        "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
    }),
    "224": ("256, centre 224, statistics 0.5", {
        "size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224},
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
    }),
}  # fmt: skip


def sscd(
    path: str | Path, protocol: str = "320", sha256: str | None = None, device: str = "cpu"
) -> Embedder:
    """SSCD from its TorchScript file.

    Returns an `Embedder` named after the file, with its protocol and SHA-256.

    Parameters: `path`, e.g. of `sscd_disc_mixup.torchscript.pt`; `protocol`, "320" (square,
    ImageNet statistics: this method's) or "224" (256, centre 224, mean and deviation 0.5: DCR's
    with `sscd_disc_mixup`, Wen et al.'s and SAIL's with `sscd_disc_large`); `sha256`, of a file
    that `KNOWN_FILES` doesn't have; `device`.
    Raises ValueError for another protocol or SHA-256, FileNotFoundError where there is no file.
    Source: paper, section 4; the two protocols' numbers can't be compared.
    """
    check_choice("protocol", protocol, SSCD_PROTOCOLS)
    words, options = SSCD_PROTOCOLS[protocol]
    return _scripted(path, sha256, device, words, processor(resample=2, **options))


def inception(path: str | Path, sha256: str | None = None, device: str = "cpu") -> Embedder:
    """Inception from a TorchScript file, whose features alone may be called FID and KID.

    Returns an `Embedder` of the family "Inception".

    Pictures are resized to 299 square before: bicubic by Pillow, channel by channel in float, as
    in clean-fid. The network's own resizing is then none.
    Parameters: `path`, of a script [N, 3, 299, 299] in 0 … 255 -> features, such as the published
    `inception-2015-12-05.pt` (asked for `return_features` where it has that option); `sha256` and
    `device` as in `sscd`.
    Raises as `sscd`.
    Source: Heusel et al. 2017; Parmar et al., CVPR 2022 (clean-fid).
    """

    def resized(channel: np.ndarray) -> np.ndarray:
        whole = Image.fromarray(channel.astype(np.float32))
        return np.asarray(whole.resize((299, 299), Image.Resampling.BICUBIC)).clip(0, 255)

    def prepare(images: np.ndarray) -> torch.Tensor:
        channels = [[resized(image[..., c]) for c in range(3)] for image in images]
        return torch.from_numpy(np.stack(channels))

    words = "299 square, bicubic by Pillow in float"
    return _scripted(path, sha256, device, words, prepare, "Inception")


def _scripted(
    path: str | Path, sha256: str | None, device: str, protocol: str,
    prepare: Callable[[np.ndarray], Any], family: str = "",
) -> Embedder:  # fmt: skip
    """An embedder from a TorchScript file whose SHA-256 is known or given.

    Raises ValueError, before anything of the file runs, where its SHA-256 is another, or unknown
    and not given; and where it holds no TorchScript. FileNotFoundError where there is no file.
    """
    digest = file_digest(Path(path))
    if sha256 is None and digest not in KNOWN_FILES:
        raise ValueError(
            f"{path} has the SHA-256 {digest}, which is not a published one; TorchScript is code: "
            "give that of a file you trust as sha256=… (of SSCD: --set sscd_sha256=… "
            "in nemo-kit export and nemo-kit figures)"
        )
    if sha256 is not None and digest != sha256.strip().lower():
        raise ValueError(f"sha256 of {path} must be {sha256}, got {digest}")
    try:
        script = torch.jit.load(str(path), map_location=device).eval()
    except RuntimeError as error:
        raise ValueError(f"{path} holds no TorchScript: {error}") from error
    known = {one.name for one in script.forward.schema.arguments}
    options = {"return_features": True} if "return_features" in known else {}

    @torch.inference_mode()
    def look(images: np.ndarray) -> Any:
        return script(prepare(images).to(device), **options)

    name = KNOWN_FILES.get(digest, Path(path).name.split(".")[0])
    return Embedder(name, protocol, look, family, digest)


def processor(**options: Any) -> Callable[[np.ndarray], Any]:
    """Pictures -> pixel values, float32 [N, 3, H, W], by transformers' image processor (Pillow)."""
    from transformers import CLIPImageProcessorPil

    prepare = CLIPImageProcessorPil(do_convert_rgb=False, **options)
    known = {"input_data_format": "channels_last", "return_tensors": "pt"}
    return lambda images: prepare(images=list(images), **known).pixel_values
