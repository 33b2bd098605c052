"""Trains the embedded model from its corpus and packs it: ``python -m nemo_kit.lab.build`` (``make
lab``).

Stages, each resumed from its checkpoint: tokenizer and CLIP, autoencoder, U-Net, copy descriptor;
then packing into ``nemo_kit/lab/model`` (a diffusers folder), prompts, training images, calibration
and the card's numbers.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from nemo_kit import lab
from nemo_kit.calibration import Calibration
from nemo_kit.lab import autoencoder, copy_descriptor, language, unet
from nemo_kit.lab.corpus import Corpus
from nemo_kit.lab.emoji import fetch
from nemo_kit.lab.prompt_list import prompt_table
from nemo_kit.localization import calibrate
from nemo_kit.models import GENERATION_FILE, DiffusionModel, load
from nemo_kit.settings import DetectionSettings
from nemo_kit.similarity import SimilaritySettings

SEED = 1
SIMILARITY = SimilaritySettings(kind="ssim", kernel=3)
GUIDANCE = 2.0  # at 7 so small a network over-saturates


@torch.no_grad()
def encode_bank(
    corpus: Corpus, clip: CLIPModel, tokenizer: CLIPTokenizer, vae: AutoencoderKL, seed: int
) -> unet.Bank:
    """Draw the training pictures once and encode them and their captions."""
    rng = np.random.default_rng([seed, 21])
    drawn = [corpus.background(rng) for _ in range(unet.BACKGROUND_PICTURES)]
    known = sorted({caption for caption, _ in drawn})
    place = {caption: n for n, caption in enumerate(known)}

    def latents(pictures: list[np.ndarray]) -> torch.Tensor:
        parts = [vae.encode(p).latent_dist.mean for p in autoencoder.to_tensor(pictures).split(100)]
        return torch.cat(parts) * vae.config.scaling_factor

    def embeddings(texts: list[str]) -> torch.Tensor:
        ids = language.tokens(tokenizer, texts)
        return torch.cat(
            [clip.text_model(input_ids=part).last_hidden_state for part in ids.split(500)]
        )

    many = {"template": unet.TEMPLATE_PICTURES}
    return unet.Bank(
        background_latents=latents([picture for _, picture in drawn]),
        background_caption=torch.tensor([place[caption] for caption, _ in drawn]),
        caption_embeddings=embeddings(known),
        empty=embeddings([""])[0],
        item_latents=[
            latents([corpus.picture(i, rng) for _ in range(many.get(i.role, 1))])
            for i in corpus.items
        ],
        item_embeddings=embeddings([i.prompt for i in corpus.items]),
    )


def train_all(corpus: Corpus, work: Path, seed: int = SEED) -> None:
    """Train every network, writing each below ``work`` when it is done; what is done is not done
    again."""
    if not (work / "clip").exists():
        tokenizer = language.build_tokenizer(corpus, work / "tokenizer")
        language.train(corpus, tokenizer, work, seed).save_pretrained(work / "clip")
    if not (work / "vae").exists():
        autoencoder.train(corpus, work, seed).save_pretrained(work / "vae")
    if not (work / "unet").exists():
        train_unet(corpus, work, seed)
    if not (work / "descriptor.safetensors").exists():
        copy_descriptor.train(corpus, work, seed).save(work / "descriptor.safetensors")


def train_unet(corpus: Corpus, work: Path, seed: int = SEED) -> None:
    """Train the U-Net on the finished CLIP and autoencoder."""
    file = work / "bank.pt"
    if not file.exists():
        parts = (
            CLIPModel.from_pretrained(work / "clip").eval(),
            CLIPTokenizer.from_pretrained(work / "tokenizer"),
            AutoencoderKL.from_pretrained(work / "vae").eval(),
        )
        torch.save(vars(encode_bank(corpus, *parts, seed)), file)
    bank = unet.Bank(**torch.load(file, weights_only=True))
    unet.train(bank, corpus, work, seed).save_pretrained(work / "unet")


def snapshot(work: Path) -> UNet2DConditionModel:
    """The U-Net with the averaged weights of the latest checkpoint, finished or not."""
    state = torch.load(work / "unet.pt", weights_only=True)
    model = unet.build()
    names = [name for name, _ in model.named_parameters()]
    model.load_state_dict(dict(zip(names, state["average"], strict=True)))
    return model.eval()


def pack(corpus: Corpus, work: Path, target: Path, seed: int = SEED) -> None:
    """Write the model folder, its calibration and the data beside it."""
    model_folder, data = target / "model", target / "data"
    pack_pipeline(work, model_folder)
    pack_data(corpus, work, data, seed)
    model = load(str(model_folder))
    model.name = "lab"  # the calibration names its model, not a folder of this machine
    held_out = list(prompt_table(corpus, seed).query("role == 'holdout'")["prompt"])
    calibrate_lab(model, held_out).save(model_folder / "nemo")
    (model_folder / "nemo" / GENERATION_FILE).write_text(json.dumps({"guidance": GUIDANCE}) + "\n")


def pack_pipeline(work: Path, target: Path) -> None:
    """Write the diffusers folder in half precision, with the full CLIP beside the pipeline's
    parts."""
    clip = CLIPModel.from_pretrained(work / "clip")
    text = CLIPTextModel(clip.config.text_config)
    text.load_state_dict(clip.text_model.state_dict())
    denoiser = snapshot(work)
    vae = AutoencoderKL.from_pretrained(work / "vae")
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=CLIPTokenizer.from_pretrained(work / "tokenizer"),
        unet=denoiser,
        scheduler=unet.scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).to(torch.float16)
    shutil.rmtree(target, ignore_errors=True)
    pipe.vae.register_to_config(_name_or_path="")  # not a folder of this machine
    pipe.save_pretrained(target)
    clip.half().save_pretrained(target / "clip")


def pack_data(corpus: Corpus, work: Path, target: Path, seed: int) -> None:
    """Write prompts, training images, descriptor, reference features and the training log."""
    shutil.rmtree(target, ignore_errors=True)
    (target / "images").mkdir(parents=True)
    prompt_table(corpus, seed).to_csv(target / "prompts.csv", index=False)
    rng = np.random.default_rng([seed, 41])
    for item in corpus.items:
        Image.fromarray(corpus.picture(item, rng)).save(
            target / "images" / item.image, optimize=True
        )
    if (work / "descriptor.safetensors").exists():
        shutil.copy(work / "descriptor.safetensors", target)
    features = reference_features(corpus, CLIPModel.from_pretrained(work / "clip").eval(), rng)
    save_file({"clip_image_features": features.half()}, target / "reference.safetensors")
    (target / "training.json").write_text(json.dumps(training_log(work), indent=1))


@torch.no_grad()
def reference_features(
    corpus: Corpus, clip: CLIPModel, rng: np.random.Generator, pictures: int = 1000
) -> torch.Tensor:
    """Unit CLIP image features of background pictures, [1000, 128]."""
    pixels = autoencoder.to_tensor([corpus.background(rng)[1] for _ in range(pictures)])
    seen = [clip.vision_model(pixel_values=part).pooler_output for part in pixels.split(100)]
    return F.normalize(clip.visual_projection(torch.cat(seen)), dim=1)


def training_log(work: Path) -> dict[str, dict]:
    """Steps, seconds and loss curve of every stage that has a checkpoint."""
    return {file.stem: json.loads(file.read_text()) for file in sorted(work.glob("*.json"))}


def calibrate_lab(model: DiffusionModel, prompts: list[str]) -> Calibration:
    """Threshold and statistics from the hold-out prompts.

    Plain SSIM (equation 4 of the paper): at the coarser scales of MS-SSIM the 16×16 differences of
    non-memorized prompts agree too, a blob in the middle. The threshold is the mean of each
    prompt's largest pairwise score plus one deviation (section 3.1), the prediction that at
    timesteps[1] on the unchanged noise.
    """
    return calibrate(
        model, prompts, settings=DetectionSettings(threshold_from="maxima"), similarity=SIMILARITY
    )


def main() -> None:
    """Train what is missing, then pack."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--work", type=Path, default=Path("runs/lab"), help="checkpoints and the emoji package"
    )
    parser.add_argument(
        "--target", type=Path, default=lab.HERE, help="where model/ and data/ are written"
    )
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument(
        "--pack-only", action="store_true", help="pack the latest checkpoints, finished or not"
    )
    chosen = parser.parse_args()
    corpus = Corpus(fetch(chosen.work / "emoji"))
    if not chosen.pack_only:
        train_all(corpus, chosen.work, chosen.seed)
    pack(corpus, chosen.work, chosen.target, chosen.seed)


if __name__ == "__main__":
    main()
