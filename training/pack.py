"""Packs what was trained into the package: model folder, calibration, the data beside it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import torch
from diffusers import (
    AutoencoderKL,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from safetensors.torch import save_file
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from nemo_kit.calibration import ActivationStatistics
from nemo_kit.lab.copy_descriptor import to_tensor
from nemo_kit.localization import calibrate, prompt_differences
from nemo_kit.localization.candidates import text_activations, z_scores
from nemo_kit.localization.detection import upper
from nemo_kit.models import GENERATION_FILE, DiffusionModel, load
from nemo_kit.settings import DetectionSettings, SimilaritySettings
from nemo_kit.similarity import pairwise
from training import captions, flow, planting, unet
from training.concepts import CONCEPTS
from training.corpus import Corpus
from training.loop import Run
from training.prompts import prompt_table
from training.samples import Recipe

#: Ways to compare differences of 16×16 latents; the paper's kernel of 11 covers most of them.
SIMILARITIES = tuple(
    [SimilaritySettings(kind="ssim", kernel=kernel) for kernel in (3, 5, 7, 9)]
    + [SimilaritySettings(kernel=kernel, betas=betas)
       for kernel, betas in ((3, (0.5, 0.5)), (5, (0.5, 0.5)), (3, (0.33, 0.33, 0.33)))]
)  # fmt: skip
DETECTION = DetectionSettings(threshold_from="maxima")
GUIDANCE = 2.0  # at 7 so small a network over-saturates
ORDINARY = 200  # captions among which the similarity is chosen
#: AUROC below which these tell nothing. Then differences are compared as `lab`'s, whose latents all
#: models here have.
LEAST_AUROC, USUAL = 0.55, SimilaritySettings(kind="ssim", kernel=3)


def averaged(run: Run) -> dict[str, torch.Tensor]:
    """The averaged weights by name, half precision."""
    names = [name for name, _ in run.module.named_parameters()]
    return {n: a.half().contiguous().cpu() for n, a in zip(names, run.average, strict=True)}


def snapshot(work: Path, network: ModuleType = unet) -> torch.nn.Module:
    """The denoiser with the averaged weights of the latest checkpoint, finished or not.

    `network` is the module that builds it: `training.unet` or `training.flow`.
    """
    begun = [one for one in network.STAGES if (work / f"{one}.pt").exists()] or [network.STAGE]
    state = torch.load(work / f"{begun[-1]}.pt", weights_only=True, map_location="cpu")
    model = network.build()
    names = [name for name, _ in model.named_parameters()]
    model.load_state_dict(state["module"] | dict(zip(names, state["average"], strict=True)))
    return model.eval()


def pack(corpus: Corpus, work: Path, target: Path, seed: int, recipe: Recipe) -> None:
    """Write the model folder, its calibration and the data beside it."""
    model_folder, data = target / "model", target / "data"
    pack_pipeline(work, model_folder, snapshot(work))
    pack_data(corpus, work, data, seed, recipe)
    add_calibration(model_folder, "lab", prompt_table(corpus, recipe, seed), data, seed)


def add_calibration(
    folder: Path, name: str, prompts: pd.DataFrame, data: Path, seed: int
) -> DiffusionModel:
    """Choose how differences are compared, calibrate, and write both beside the model in
    ``folder``; return it so."""
    model = load(str(folder))
    model.name = name  # the calibration names its model, not a folder of this machine
    told = compared(model, prompts, seed)
    (data / "similarity.json").write_text(json.dumps(told, indent=1) + "\n")
    held_out = list(prompts.query("role == 'holdout'")["prompt"])
    model.calibration = calibrate(model, held_out, settings=DETECTION, similarity=chosen(told))
    model.calibration.save(folder / "nemo")
    return model


def chosen(told: list[dict]) -> SimilaritySettings:
    """The way to compare that tells best, by what `compared` gave; where none tells, the usual."""
    best = max(told, key=lambda one: one["auroc"])
    return SimilaritySettings(**best["settings"]) if best["auroc"] >= LEAST_AUROC else USUAL


def compared(model: DiffusionModel, prompts: pd.DataFrame, seed: int) -> list[dict]:
    """How well each way to compare differences tells memorized prompts: its settings and AUROC.

    On prompts of neither the evaluation nor the hold-out: the ladder's most shown pictures against
    further ordinary captions.
    """
    shown = list(prompts.query("family in ('rung 0', 'rung 1', 'rung 2')")["prompt"])
    texts = sorted(set(captions.every(list(CONCEPTS))) - set(prompts["prompt"]))
    other = np.random.default_rng([seed, 51]).choice(texts, ORDINARY, replace=False).tolist()
    labels = [True] * len(shown) + [False] * len(other)
    drawn = prompt_differences(model, shown + other, settings=DETECTION)
    found = []
    for similarity in SIMILARITIES:
        scores = [upper(pairwise(one, similarity)).max().item() for one in drawn]
        settings = {"kind": similarity.kind, "kernel": similarity.kernel}
        if similarity.kind == "ms_ssim":
            settings["betas"] = list(similarity.betas)
        found.append({"settings": settings, "auroc": float(roc_auc_score(labels, scores))})
    return found


def shared_parts(work: Path) -> tuple[AutoencoderKL, CLIPTextModel, CLIPTokenizer]:
    """What the models share, as trained so far: autoencoder, text encoder, tokenizer."""
    clip = CLIPModel.from_pretrained(work / "clip")
    text = CLIPTextModel(clip.config.text_config)
    text.load_state_dict(clip.text_model.state_dict())
    polished = work / "vae_polished"
    vae = AutoencoderKL.from_pretrained(polished if polished.exists() else work / "vae")
    return vae, text, CLIPTokenizer.from_pretrained(work / "tokenizer")


def pack_pipeline(work: Path, target: Path, denoiser: UNet2DConditionModel) -> None:
    """Write the diffusers folder in half precision."""
    vae, text, tokenizer = shared_parts(work)
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=denoiser,
        scheduler=unet.scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).to(torch.float16)
    shutil.rmtree(target, ignore_errors=True)
    pipe.vae.register_to_config(_name_or_path="")  # not a folder of this machine
    pipe.save_pretrained(target)
    write_generation(target)


def write_generation(folder: Path, **settings: int) -> None:
    """Write how the model in ``folder`` draws."""
    (folder / "nemo").mkdir(exist_ok=True)
    told = {"guidance": GUIDANCE, **settings}
    (folder / "nemo" / GENERATION_FILE).write_text(json.dumps(told) + "\n")


def flow_pipeline(shared: Path, denoiser: SD3Transformer2DModel) -> StableDiffusion3Pipeline:
    """`lab-flow` from its transformer and what `lab` trained in ``shared``."""
    return flow.pipeline(denoiser, *shared_parts(shared))


def pack_flow(
    corpus: Corpus, work: Path, shared: Path, target: Path, seed: int, recipe: Recipe
) -> None:
    """Write `lab-flow`: transformer and scheduler in half precision, and the data beside them.

    The other parts are `lab`'s (see `nemo_kit.lab.flow`).
    """
    pipe = flow_pipeline(shared, snapshot(work, flow))
    samples = json.loads((work / f"{flow.STAGE}.json").read_text())["step"] * recipe.batch
    prompts = prompt_table(corpus, recipe, seed, flow.WIDTHS, samples)
    if (switch := work / f"{flow.SWITCH}.json").exists():
        shown = json.loads(switch.read_text())["step"] * flow.pairs_of(recipe)
        planted = prompts["planted"].ne("")
        prompts.loc[planted, "repetitions"] += round(shown / planted.sum())
    pack_transformer(pipe, target)
    data = target / "data"
    data.mkdir()
    prompts.to_csv(data / "prompts.csv", index=False)
    (data / "training.json").write_text(json.dumps(training_log(work), indent=1))
    model = add_calibration(target, "lab-flow", prompts, data, seed)
    strengths = standing_out(model, model.calibration.statistics)
    strengths.to_csv(data / "strengths.csv", index=False)


def pack_transformer(pipe: StableDiffusion3Pipeline, target: Path) -> None:
    """Write what is `lab-flow`'s own into its folder; the transformer is cast to half precision."""
    shutil.rmtree(target, ignore_errors=True)
    pipe.transformer.half().save_pretrained(target / "transformer")
    pipe.scheduler.save_pretrained(target / "scheduler")
    index = {name: kind for name, kind in pipe.config.items() if not name.startswith("_")}
    index = {"_class_name": type(pipe).__name__, "_shared_with": "lab"} | index
    (target / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    write_generation(target, t5_tokens=0)


def standing_out(model: DiffusionModel, statistics: ActivationStatistics) -> pd.DataFrame:
    """How far each planted neuron of `lab-flow` stands out in fact: prompt, layer, neuron, wanted,
    z."""
    planted = [(prompt, one) for one in planting.neurons(flow.WIDTHS) for prompt in one.prompts]
    z = z_scores(text_activations(model, [prompt for prompt, _ in planted]), statistics)
    rows = [
        (prompt, one.layer, one.index, one.z, round(float(z[one.layer][place, one.index]), 2))
        for place, (prompt, one) in enumerate(planted)
    ]
    return pd.DataFrame(rows, columns=["prompt", "layer", "neuron", "wanted", "z"])


def pack_data(corpus: Corpus, work: Path, target: Path, seed: int, recipe: Recipe) -> None:
    """Write prompts, training images and their masks, descriptor, reference features, the log."""
    shutil.rmtree(target, ignore_errors=True)
    for name in ("images", "masks"):
        (target / name).mkdir(parents=True)
    prompt_table(corpus, recipe, seed).to_csv(target / "prompts.csv", index=False)
    rng = np.random.default_rng([seed, 41])
    for item in corpus.items:
        Image.fromarray(corpus.picture(item, rng)).save(
            target / "images" / item.image, optimize=True
        )
        if item.type == "TM":
            Image.fromarray(corpus.mask(item)).save(target / "masks" / item.image, optimize=True)
    for name in ("descriptor.safetensors", "classifier.safetensors"):
        if (work / name).exists():
            shutil.copy(work / name, target)
    clip = CLIPModel.from_pretrained(work / "clip").eval()
    features = reference_features(corpus, clip, rng)
    save_file({"clip_image_features": features.half()}, target / "reference.safetensors")
    own = {k: v.half() for k, v in clip.state_dict().items() if not k.startswith("text_model.")}
    save_file(own, target / "clip.safetensors", metadata={"config": clip.config.to_json_string()})
    (target / "training.json").write_text(json.dumps(training_log(work), indent=1))


@torch.no_grad()
def reference_features(
    corpus: Corpus, clip: CLIPModel, rng: np.random.Generator, pictures: int = 1000
) -> torch.Tensor:
    """Unit CLIP image features of background pictures, [1000, 128]."""
    pixels = to_tensor([corpus.background(rng)[1] for _ in range(pictures)])
    seen = [clip.vision_model(pixel_values=part).pooler_output for part in pixels.split(100)]
    return F.normalize(clip.visual_projection(torch.cat(seen)), dim=1)


def training_log(work: Path) -> dict[str, dict]:
    """Steps, seconds and loss curve of every stage that has a checkpoint."""
    return {file.stem: json.loads(file.read_text()) for file in sorted(work.glob("*.json"))}
