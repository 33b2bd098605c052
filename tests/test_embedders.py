"""Embedders: scripted networks with known outputs, the two protocols by another hand, the lab's."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nemo_kit import lab, metrics
from nemo_kit.metrics import embedders


class Corner(torch.nn.Module):
    """Gives the first pixel and the picture's size, so that preparation shows in its output."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = torch.tensor([x.shape[2], x.shape[3]], dtype=torch.float32)
        return torch.cat([x[:, :, 0, 0].float(), size.expand(len(x), 2)], dim=1)


class Features(torch.nn.Module):
    """Answers only when asked for features, as the published Inception does."""

    def forward(self, img: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        means = img.float().mean(dim=(2, 3))
        return means if return_features else torch.zeros(len(img), 1)


def scripted(module: torch.nn.Module, path: Path) -> tuple[Path, str]:
    torch.jit.save(torch.jit.script(module), str(path))
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def corner(tmp_path: Path) -> tuple[Path, str]:
    return scripted(Corner(), tmp_path / "corner.torchscript.pt")


def pictures(height: int = 30, width: int = 40, count: int = 3) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8)


# ------------------------------------------------------------------------------------ SSCD


def test_the_square_protocol_by_hand(corner: tuple[Path, str]) -> None:
    path, digest = corner
    embedder = metrics.sscd(path, "320", digest)
    assert embedder.labels == {
        "embedder": "corner", "protocol": "320 square, ImageNet statistics"
    }  # fmt: skip
    assert embedder.sha256 == digest
    got = embedder.features(pictures())
    assert got[:, 3:] == pytest.approx(320)
    for vector, image in zip(got, pictures(), strict=True):
        resized = np.asarray(Image.fromarray(image).resize((320, 320), Image.Resampling.BILINEAR))
        wanted = (resized[0, 0] / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        assert vector[:3] == pytest.approx(wanted, abs=1e-5)


def test_the_cropped_protocol_by_hand(corner: tuple[Path, str]) -> None:
    path, digest = corner
    embedder = metrics.sscd(path, "224", digest)
    assert embedder.protocol == "256, centre 224, statistics 0.5"
    got = embedder.features(pictures())
    assert got[:, 3:] == pytest.approx(224)
    for vector, image in zip(got, pictures(), strict=True):
        resized = Image.fromarray(image).resize((341, 256), Image.Resampling.BILINEAR)
        top, left = (256 - 224) // 2, (341 - 224) // 2
        wanted = (np.asarray(resized)[top, left] / 255 - 0.5) / 0.5
        assert vector[:3] == pytest.approx(wanted, abs=1e-5)


def test_a_file_is_opened_only_when_it_is_known(
    corner: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, digest = corner
    opened = []
    load = torch.jit.load
    monkeypatch.setattr(torch.jit, "load", lambda *a, **k: opened.append(a) or load(*a, **k))
    with pytest.raises(ValueError, match=f"{digest}, which is not a published one"):
        metrics.sscd(path)
    with pytest.raises(ValueError, match=f"sha256 of .* must be {'0' * 64}, got {digest}"):
        metrics.sscd(path, sha256="0" * 64)
    assert not opened, "nothing of the file may run before its SHA-256 is checked"
    metrics.sscd(path, sha256=digest.upper())
    monkeypatch.setitem(embedders.KNOWN_FILES, digest, "sscd_disc_mixup")
    assert metrics.sscd(path).name == "sscd_disc_mixup"
    assert len(opened) == 2


def test_known_digests_are_digests() -> None:
    assert all(len(bytes.fromhex(digest)) == 32 for digest in embedders.KNOWN_FILES)
    assert "sscd_disc_mixup" in embedders.KNOWN_FILES.values()


def test_bad_files(tmp_path: Path, corner: tuple[Path, str]) -> None:
    with pytest.raises(ValueError, match="protocol must be one of 320, 224; got '288'"):
        metrics.sscd(corner[0], "288", corner[1])
    with pytest.raises(FileNotFoundError):
        metrics.sscd(tmp_path / "none.pt")
    text = tmp_path / "text.pt"
    text.write_text("no script")
    digest = hashlib.sha256(b"no script").hexdigest()
    with pytest.raises(ValueError, match="holds no TorchScript"):
        metrics.inception(text, digest)


# ------------------------------------------------------------------------------- Inception


def test_inception_is_asked_for_features(tmp_path: Path) -> None:
    path, digest = scripted(Features(), tmp_path / "features.pt")
    embedder = metrics.inception(path, digest)
    assert (embedder.name, embedder.family) == ("features", "Inception")
    images = pictures()
    assert embedder.features(images) == pytest.approx(images.mean(axis=(1, 2)), rel=0.02)


def test_inception_gets_299_square_by_pillow_in_float(tmp_path: Path) -> None:
    embedder = metrics.inception(*scripted(Corner(), tmp_path / "plain.pt"))
    assert embedder.protocol == "299 square, bicubic by Pillow in float"
    images = np.zeros((2, 2, 2, 3), np.uint8)
    images[1, 0, 0] = [255, 100, 7]  # the corner overshoots where nothing clips it
    got = embedder.features(images)
    assert got[:, 3:] == pytest.approx(299)
    for vector, image in zip(got, images, strict=True):
        channels = [Image.fromarray(image[..., c].astype(np.float32)) for c in range(3)]
        sized = [one.resize((299, 299), Image.Resampling.BICUBIC) for one in channels]
        wanted = [min(max(one.getpixel((0, 0)), 0), 255) for one in sized]
        assert vector[:3] == pytest.approx(wanted)
    assert got[1, 0] == 255
    assert got[1, 1] != round(got[1, 1])  # not rounded to whole numbers


# -------------------------------------------------------------------------------- any other


def mean_colour(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1, 3).mean(axis=1)


def test_any_function_is_an_embedder() -> None:
    embedder = metrics.as_embedder(mean_colour)
    assert embedder.labels == {"embedder": "mean_colour", "protocol": "as given"}
    assert metrics.as_embedder(embedder) is embedder
    images = pictures(count=70)  # more than one call's worth
    assert embedder.features(images) == pytest.approx(mean_colour(images))
    assert np.linalg.norm(embedder(images), axis=1) == pytest.approx(1)
    with pytest.raises(TypeError, match="embedder must be a function of pictures, got str"):
        metrics.as_embedder("SSCD")


@pytest.mark.parametrize(
    "network",
    [lambda x: x[0], lambda x: np.zeros((1, 4)), lambda x: np.full((len(x), 2), np.nan)],
)
def test_a_network_that_gives_something_else(network: object) -> None:
    with pytest.raises(ValueError, match=r"must give finite \[N, D\] for N = 3 pictures"):
        metrics.as_embedder(network)(pictures())


def test_the_lab_descriptor_takes_any_size() -> None:
    embedder = metrics.lab_descriptor()
    image = lab.training_images()[1][:1]
    assert embedder(image) == pytest.approx(lab.descriptor()(image).numpy(), abs=1e-5)
    double = np.asarray(Image.fromarray(image[0]).resize((128, 128), Image.Resampling.BICUBIC))
    assert (embedder(double[None]) @ embedder(image).T).item() > 0.95
    assert embedder.labels == {"embedder": "lab descriptor", "protocol": "64 square, bicubic"}


# ------------------------------------------------------------------------------------ CLIP


def test_the_lab_s_own_clip() -> None:
    clip = metrics.load_clip()
    prompts, images = lab.training_images()
    wanted = metrics.Clip("own", *lab.clip()).align(images[:2], prompts[:2])
    assert clip.align(images[:2], prompts[:2]) == pytest.approx(wanted)
    features = clip.embedder.features(images[:2])
    assert np.linalg.norm(features, axis=1) == pytest.approx(1)
    assert "unit vectors" in clip.embedder.protocol


def test_a_clip_from_a_folder(tmp_path: Path) -> None:
    """With a published preprocessing beside it, or CLIP's usual one; features not scaled."""
    from transformers import CLIPImageProcessorPil

    model, tokenizer, _ = lab.clip()
    folder = tmp_path / "clip"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    clip = metrics.load_clip(folder)
    images = pictures(64, 64)
    assert clip.name == str(folder)
    usual = embedders.processor(size={"height": 64, "width": 64}, do_center_crop=False)
    wanted = metrics.Clip("own", model, tokenizer, usual).align(images, "a cat")
    assert clip.align(images, "a cat") == pytest.approx(wanted, abs=1e-5)
    features = clip.embedder.features(images)
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    assert (abs(norms - 1) > 0.01).any()
    mean, deviation = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    pixels = (images / 255 - mean) / deviation  # as CLIP is published
    assert clip.preprocess(images).numpy() == pytest.approx(pixels.transpose(0, 3, 1, 2), abs=1e-5)
    CLIPImageProcessorPil(
        size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64},
        image_mean=[0.5] * 3, image_std=[0.5] * 3,
    ).save_pretrained(folder)  # fmt: skip
    own = metrics.load_clip(folder)
    pixels = own.preprocess(images)
    assert pixels.numpy() == pytest.approx(images.transpose(0, 3, 1, 2) / 127.5 - 1, abs=1e-5)


def test_a_clip_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='name must be "lab", a folder with a CLIP, or a hub id'):
        metrics.load_clip(tmp_path)
