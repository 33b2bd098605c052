"""Models in the shape of Stable Diffusion 1.4 and 2.1, opened and used as a user would.

The real widths are checked without weights. Then narrower pipelines with the same modules and
random weights, of smaller latents since self-attention grows with the fourth power of their side,
are saved, opened by `load`, calibrated by `calibrate`, and the notebooks' cells run on two prompts
and few steps: 1.4 through all of them on a prompt file of our own with all roles, 2.1 through those
that take seconds, on files in the released format. Training images come from a folder in which one
is missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
import pytest
import torch
import toys
from books import run_cells
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from test_notebooks import FEWER, TINY
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from nemo_kit import calibrate, detect, figures, load
from nemo_kit.figures import runner
from nemo_kit.layers import searched, value_layers
from nemo_kit.settings import SimilaritySettings

mpl.use("Agg")
BOOKS = figures.read_all(runner.root() / "notebooks")
TOKENS, TEXT_WIDTH = 77, 16
VERSIONS: dict[str, dict[str, Any]] = {
    "1.4": {},
    "2.1": {"use_linear_projection": True, "attention_head_dim": [1, 2, 2, 2]},
}
REAL: dict[str, dict[str, Any]] = {
    "1.4": {"cross_attention_dim": 768, "attention_head_dim": 8},
    "2.1": {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20]},
}
WORDS = [
    "a podcast cover",
    "an iphone case",
    "a rocket",
    "red cup",
    "Öl",
    "cat 7",
    "the sea",
    "tea",
]
LONG = {"05_mitigation", "07_quality", "08_ablation", "09_thresholds", "10_layers",
        "12_who_finds_them"}  # 1.4 alone  # fmt: skip
FEW = {**TINY, "seeds": 3, "images": 2, "steps": 2, "first_seed": 101}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_real_shapes_have_the_papers_value_layers(version: str) -> None:
    with torch.device("meta"):  # shapes without numbers: 860 million of them otherwise
        denoiser = UNet2DConditionModel(
            sample_size=64 if version == "1.4" else 96,
            use_linear_projection=version == "2.1",
            **REAL[version],
        )
    layers = value_layers(denoiser)
    assert len(layers) == 16
    assert [one.width for one in searched(layers)] == [320, 320, 640, 640, 1280, 1280, 1280]
    assert layers[0].name == "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v"
    assert layers[6].name == "mid_block.attentions.0.transformer_blocks.0.attn2.to_v"
    narrow = toys.unet(**VERSIONS[version])
    assert [one.name for one in value_layers(narrow)] == [one.name for one in layers]


def text_encoder(size: int) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=size, hidden_size=TEXT_WIDTH, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=TOKENS, projection_dim=TEXT_WIDTH,
            bos_token_id=size - 2, eos_token_id=size - 1, pad_token_id=size - 1,
        )
    )  # fmt: skip


def save(folder: Path, version: str) -> Path:
    """A pipeline of this version's modules with random weights, as a diffusers folder."""
    torch.manual_seed(0)
    vocabulary = toys.tokenizer().get_vocab()
    denoiser = toys.unet(**{"sample_size": 16, "attention_head_dim": 1} | VERSIONS[version])
    toys.amplify(denoiser)
    vae = AutoencoderKL(
        block_out_channels=(4, 4, 4, 4), norm_num_groups=2, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    kind = "epsilon" if version == "1.4" else "v_prediction"
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder(len(vocabulary)),
        tokenizer=CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=TOKENS),
        unet=denoiser,
        scheduler=toys.scheduler(prediction_type=kind),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


@dataclass
class Setup:
    """What a user has: a calibrated model, prompt files, and a folder of training images."""

    model: Path
    prompts: list[Path]
    images: Path


def own_files(
    folder: Path, memorized: list[str], other: list[str],
    ladder: tuple[str, str] = ("step one", "step two"),
) -> list[Path]:  # fmt: skip
    """One CSV of our own with all roles; the images of the VM and the ladder prompts are there."""
    rows = [
        (memorized[0], "VM", "verbatim", "1", 0),
        (memorized[1], "TM", "template", "2", 0),
        (ladder[0], "VM", "ladder", "3", 1),
        (ladder[1], "VM", "ladder", "4", 8),
        *((text, "", "non_memorized", "", 0) for text in other[:3]),
        *((text, "", "holdout", "", 0) for text in other[3:]),
    ]
    names = ["prompt", "type", "role", "image", "repetitions"]
    pd.DataFrame(rows, columns=names).to_csv(folder / "own.csv", index=False)
    return [folder / "own.csv"]


def released_files(folder: Path, memorized: list[str], other: list[str]) -> list[Path]:
    """Two files in the released code's format, which names no hold-out and no ladder."""
    kinds = {"memorized": (memorized, ["VM", "TM"]), "unmemorized": (other, None)}
    paths = []
    for name, (texts, types) in kinds.items():
        first = 1 if types else 11
        frame = pd.DataFrame({"Caption": texts, "URL": "http://x/y.jpg"})
        frame = frame.assign(**({"type": types} if types else {}))
        frame = frame.assign(Index=range(first, first + len(texts)))
        paths.append(folder / f"{name}_laion_prompts.csv")
        frame.to_csv(paths[-1], sep=";")
    return paths


@pytest.fixture(scope="module", params=list(VERSIONS))
def setup(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Setup:
    """The steps of docs/stable-diffusion.md, up to the figures."""
    folder = tmp_path_factory.mktemp("sd")
    path = save(folder / "model", request.param)
    model = load(str(path), device="cpu")
    known = calibrate(model, WORDS, range(1, 4), similarity=SimilaritySettings(kernel=3))
    known.save(path / "nemo")
    model = load(str(path), device="cpu")
    assert model.calibration.threshold == known.threshold
    found = detect(model, WORDS, range(1, 4)).sort_values("score", ascending=False)
    assert found["flagged"].sum() >= 2
    texts = found["prompt"].to_list()
    write = own_files if request.param == "1.4" else released_files
    files = write(folder, texts[:2], texts[2:])
    images = folder / "images"
    images.mkdir()
    for name in ("1", "3", "4"):  # 2, the TM prompt's, is missing
        Image.effect_noise((80, 60), 90).save(images / f"{name}.jpg")
    return Setup(path, files, images)


@pytest.mark.slow
@pytest.mark.parametrize("name", BOOKS)
def test_a_notebook_draws_its_figures(setup: Setup, name: str) -> None:
    common = {
        "model": str(setup.model), "device": "cpu", "training_images": str(setup.images),
        "prompt_files": [str(path) for path in setup.prompts],
    }  # fmt: skip
    out = setup.model.parent / "figs"
    if name in LONG and len(setup.prompts) == 2:
        pytest.skip("takes long, and runs on the shape of 1.4")
    fewer = FEW | (FEWER[name] if name == "12_who_finds_them" else {})
    few = {key: fewer[key] for key in fewer if key in set(BOOKS[name].kinds) - set(common)}
    [job] = runner.plan(BOOKS, figures.select(BOOKS, [name]), "quick", out, **common, **few)
    assert bool(job.lacks) == (name == "04_dose_response" and len(setup.prompts) == 2)
    if job.lacks:
        return
    run_cells(name, **job.values | {"store": str(setup.model.parent / "store")})
    drawn = runner.read_manifest(out, name)["files"]
    assert {row.name for row in job.book.figures} <= set(drawn)
    assert all((out / file).is_file() for files in drawn.values() for file in files)
    manifest = runner.read_manifest(out, name)
    assert (manifest["model"]["name"], manifest["model"]["dtype"]) == (
        str(setup.model),
        "torch.float32",
    )
    if name == "03_localization":  # the TM prompt has no training image
        effect = pd.read_csv(out / "effect.csv")
        counts = effect[effect["measure"] == "orig_before"].set_index("group")["prompts"]
        assert counts.to_dict() == {"VM": 1}
