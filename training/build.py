"""Trains the embedded model from its corpus and packs it: ``python -m training.build`` (``make
lab``).

Stages, each resumed from its checkpoint: tokenizer and CLIP, autoencoder, classifier, U-Net, the
autoencoder's decoder once more, copy descriptor; then packing into ``nemo_kit/lab/model`` (a
diffusers folder), prompts, training images,
calibration. On a CPU the U-Net trains in as many processes of one thread as are asked for, their
gradients averaged; on a GPU in one.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from transformers import CLIPModel, CLIPTokenizer

from nemo_kit import lab
from nemo_kit.lab.copy_descriptor import to_tensor
from training import autoencoder, captions, classifier, descriptor, language, looks, unet
from training.corpus import Corpus
from training.emoji import fetch
from training.loop import Run
from training.pack import averaged, pack

SEED = 1
PICTURES_A_CONCEPT = 200
VARIANTS = 48  # drawn pictures of each template and region prompt
SNAPSHOTS = 20  # copies of the weights along the way, for "when memorization begins"


@torch.no_grad()
def encode_bank(
    corpus: Corpus, clip: CLIPModel, tokenizer: CLIPTokenizer, vae: AutoencoderKL, seed: int
) -> unet.Bank:
    """Draw the training pictures once and encode them and all captions."""
    rng = np.random.default_rng([seed, 21])
    colours = list(captions.COLOURS)

    def latents(pictures: list[np.ndarray]) -> torch.Tensor:
        parts = [vae.encode(p).latent_dist.mean for p in to_tensor(pictures).split(50)]
        return torch.cat(parts) * vae.config.scaling_factor

    def embeddings(texts: list[str]) -> torch.Tensor:
        ids = language.tokens(tokenizer, texts)
        return torch.cat(
            [clip.text_model(input_ids=part).last_hidden_state for part in ids.split(500)]
        )

    shown = rng.integers(len(colours), size=(len(corpus.names), PICTURES_A_CONCEPT))
    ordinary = [
        latents([corpus.render(name, colours[c], rng) for c in row]).half()
        for name, row in zip(corpus.names, shown, strict=True)
    ]
    told = [[captions.of(name, colour) for colour in colours] for name in corpus.names]
    return unet.Bank(
        latents=torch.cat(ordinary),
        concepts=torch.arange(len(corpus.names)).repeat_interleave(PICTURES_A_CONCEPT),
        colours=torch.from_numpy(shown.flatten()),
        plain=torch.stack([embeddings(row[0][0]).half() for row in told]),
        coloured=torch.stack(
            [torch.stack([embeddings(both[1]).half() for both in row]) for row in told]
        ),
        empty=embeddings([""])[0],
        item_latents=[
            latents([corpus.picture(i, rng) for _ in range(VARIANTS if i.type == "TM" else 1)])
            for i in corpus.items
        ],
        item_embeddings=embeddings([i.prompt for i in corpus.items]),
        item_concepts=torch.tensor([corpus.names.index(i.concept) for i in corpus.items]),
    )


def train_all(corpus: Corpus, work: Path, seed: int, processes: int, minutes: float) -> None:
    """Train every network, writing each below ``work`` when it is done; what is done is not done
    again."""
    if not (work / "clip").exists():
        tokenizer = language.build_tokenizer(corpus, work / "tokenizer")
        language.train(corpus, tokenizer, work, seed).save_pretrained(work / "clip")
    if not (work / "vae").exists():
        autoencoder.train(corpus, work, seed).save_pretrained(work / "vae")
    vae = AutoencoderKL.from_pretrained(work / "vae").eval()
    if not (work / "classifier.safetensors").exists():
        classifier.train(corpus, vae, work, seed).save(work / "classifier.safetensors")
    if not (work / "bank.pt").exists():
        clip = CLIPModel.from_pretrained(work / "clip").eval()
        tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
        torch.save(vars(encode_bank(corpus, clip, tokenizer, vae, seed)), work / "bank.pt")
    if not (work / "unet").exists():
        train_unet(work, seed, processes, minutes)
    if not (work / "vae_polished").exists():
        autoencoder.polish(vae, corpus, work, seed).save_pretrained(work / "vae_polished")
    if not (work / "descriptor.safetensors").exists():
        descriptor.train(corpus, work, seed).save(work / "descriptor.safetensors")


def train_unet(work: Path, seed: int, processes: int, minutes: float) -> None:
    """Train the U-Net on the encoded bank, on the GPU or in processes of one thread each."""
    if torch.cuda.is_available() or processes == 1:
        _unet_process(0, 1, work, seed, minutes)
    else:
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", "29531")
        torch.multiprocessing.spawn(
            _unet_process, (processes, work, seed, minutes), nprocs=processes
        )


def _unet_process(rank: int, world: int, work: Path, seed: int, minutes: float) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", rank=rank, world_size=world)
    corpus = Corpus(work / "emoji" / "package")
    bank = unet.Bank(**torch.load(work / "bank.pt", weights_only=True))
    recipe = unet.RECIPES[device.type]
    watch = _watcher(corpus, work, recipe, minutes) if rank == 0 else lambda _run: None
    trained = unet.train(bank, corpus.items, work, seed, device, recipe, watch)
    if rank == 0:
        trained.save_pretrained(work / "unet")
    if world > 1:
        dist.destroy_process_group()


def _watcher(
    corpus: Corpus, work: Path, recipe: unet.Recipe, minutes: float
) -> Callable[[Run], None]:
    """Keeps copies of the averaged weights along the way, and every so many minutes a grid of
    pictures with what a classifier makes of them."""
    steps = recipe.schedule.steps
    keep = set(np.geomspace(steps / 200, steps, SNAPSHOTS).round().astype(int).tolist())
    looked = time.monotonic()

    def watch(run: Run) -> None:
        nonlocal looked
        if run.step in keep:
            (work / "snapshots").mkdir(exist_ok=True)
            save_file(
                averaged(run), work / "snapshots" / f"{run.step * recipe.batch:07d}.safetensors"
            )
        if time.monotonic() - looked > 60 * minutes:
            run.save()
            told = looks.look(corpus, work, run.step * recipe.batch)
            run.history.append((run.step, told))
            print(f"\n{run.step * recipe.batch:,} samples: {told}", flush=True)
            looked = time.monotonic()

    return watch


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
    parser.add_argument("--processes", type=int, default=1, help="of the U-Net's training on CPUs")
    parser.add_argument(
        "--look", type=float, default=30, metavar="MINUTES", help="between grids of pictures"
    )
    parser.add_argument(
        "--pack-only", action="store_true", help="pack the latest checkpoints, finished or not"
    )
    chosen = parser.parse_args()
    corpus = Corpus(fetch(chosen.work / "emoji"))
    if not chosen.pack_only:
        train_all(corpus, chosen.work, chosen.seed, chosen.processes, chosen.look)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pack(corpus, chosen.work, chosen.target, chosen.seed, unet.RECIPES[device])


if __name__ == "__main__":
    main()
