"""Trains the embedded models from their corpus and packs them: ``python -m training.build`` (``make
lab``).

Stages of `lab`, each resumed from its checkpoint: tokenizer and CLIP, autoencoder, classifier,
U-Net, the autoencoder's decoder once more, copy descriptor; then packing into
``nemo_kit/lab/model`` (a diffusers folder), prompts, training images, calibration. With
``--model lab-flow`` a transformer instead of the U-Net; it takes the rest from what `lab` trained.
On a CPU a denoiser trains in as many processes of one thread as are asked for, their gradients
averaged; on a GPU in one.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from transformers import CLIPModel, CLIPTokenizer

from nemo_kit import lab
from nemo_kit.lab.copy_descriptor import to_tensor
from training import autoencoder, captions, classifier, descriptor, flow, language, looks, unet
from training.corpus import Corpus
from training.emoji import fetch
from training.loop import Run
from training.pack import averaged, flow_pipeline, pack, pack_flow
from training.samples import Bank, Recipe

SEED = 1
NETWORKS = {"lab": unet, "lab-flow": flow}
PICTURES_A_CONCEPT = 200
VARIANTS = 48  # drawn pictures of each template and region prompt
SNAPSHOTS = 20  # copies of the weights along the way, for "when memorization begins"


@torch.no_grad()
def encode_bank(
    corpus: Corpus, clip: CLIPModel, tokenizer: CLIPTokenizer, vae: AutoencoderKL, seed: int
) -> Bank:
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
    return Bank(
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
        named = {"names": json.dumps(list(corpus.names))}
        judge = classifier.train(corpus, vae, work, seed)
        descriptor.save(judge, work / "classifier.safetensors", **named)
    if not (work / "bank.pt").exists():
        clip = CLIPModel.from_pretrained(work / "clip").eval()
        tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
        torch.save(vars(encode_bank(corpus, clip, tokenizer, vae, seed)), work / "bank.pt")
    if not (work / "unet").exists():
        train_denoiser("lab", work, work, seed, processes, minutes)
    if not (work / "vae_polished").exists():
        autoencoder.polish(vae, corpus, work, seed).save_pretrained(work / "vae_polished")
    if not (work / "descriptor.safetensors").exists():
        descriptor.save(descriptor.train(corpus, work, seed), work / "descriptor.safetensors")


@torch.no_grad()
def encode_texts(corpus: Corpus, bank: Bank, shared: Path) -> dict[str, torch.Tensor]:
    """All captions as `lab-flow` reads them: those fields of the bank that hold texts."""
    pipe = flow_pipeline(shared, flow.build())
    colours = list(captions.COLOURS)

    def embeddings(texts: list[str]) -> torch.Tensor:
        parts = [texts[n : n + 500] for n in range(0, len(texts), 500)]
        told = [flow.embed(pipe, part)[..., : language.WIDTH] for part in parts]
        return torch.cat(told)  # its second half is the same

    told = [[captions.of(name, colour) for colour in colours] for name in corpus.names]
    plain = [text for row in told for text in row[0][0]]
    coloured = [text for row in told for both in row for text in both[1]]
    return {
        "plain": embeddings(plain).view(bank.plain.shape).half(),
        "coloured": embeddings(coloured).view(bank.coloured.shape).half(),
        "empty": embeddings([""])[0],
        "item_embeddings": embeddings([item.prompt for item in corpus.items]),
    }


def train_flow(
    corpus: Corpus, work: Path, shared: Path, seed: int, processes: int, minutes: float
) -> None:
    """Train the transformer of `lab-flow` below ``work``, on what `lab` trained in ``shared``.

    Raises
    ------
    FileNotFoundError
        If `lab` has not come that far.
    """
    for name in ("clip", "tokenizer", "vae", "bank.pt", "classifier.safetensors"):
        if not (shared / name).exists():
            raise FileNotFoundError(
                f"lab-flow needs {shared / name}: train lab first (python -m training.build)"
            )
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "texts.pt").exists():
        bank = Bank(**torch.load(shared / "bank.pt", weights_only=True))
        torch.save(encode_texts(corpus, bank, shared), work / "texts.pt")
    if not (work / flow.STAGE).exists():
        train_denoiser("lab-flow", work, shared, seed, processes, minutes)


def train_denoiser(
    name: str, work: Path, shared: Path, seed: int, processes: int, minutes: float
) -> None:
    """Train a model's denoiser on the encoded bank, on the GPU or in processes of one thread
    each."""
    if torch.cuda.is_available() or processes == 1:
        _process(0, 1, name, work, shared, seed, minutes)
    else:
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", "29531")
        torch.multiprocessing.spawn(
            _process, (processes, name, work, shared, seed, minutes), nprocs=processes
        )


def _process(
    rank: int, world: int, name: str, work: Path, shared: Path, seed: int, minutes: float
) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", rank=rank, world_size=world)
    corpus = Corpus(shared / "emoji" / "package")
    fields = torch.load(shared / "bank.pt", weights_only=True)
    if (work / "texts.pt").exists():
        fields |= torch.load(work / "texts.pt", weights_only=True)
    network = NETWORKS[name]
    recipe = network.RECIPES[device.type]
    look = partial(looks.look, corpus, work, shared, name)
    watch = _watcher(work, recipe, minutes, look) if rank == 0 else lambda _run: None
    trained = network.train(Bank(**fields), corpus.items, work, seed, device, recipe, watch)
    if rank == 0:
        trained.save_pretrained(work / network.STAGE)
    if world > 1:
        dist.destroy_process_group()


def _watcher(
    work: Path, recipe: Recipe, minutes: float, look: Callable[[int], dict[str, float]]
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
            told = look(run.step * recipe.batch)
            run.history.append((run.step, told))
            print(f"\n{run.step * recipe.batch:,} samples: {told}", flush=True)
            looked = time.monotonic()

    return watch


def main() -> None:
    """Train what is missing, then pack."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=list(NETWORKS), default="lab")
    parser.add_argument("--work", type=Path, help="checkpoints; default: runs/ and the model")
    parser.add_argument(
        "--shared", type=Path, default=Path("runs/lab"), help="lab's checkpoints, for lab-flow"
    )
    parser.add_argument(
        "--target", type=Path, default=lab.HERE, help="where model/ and data/ are written"
    )
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--processes", type=int, default=1, help="of a denoiser's training on CPUs")
    parser.add_argument(
        "--look", type=float, default=30, metavar="MINUTES", help="between grids of pictures"
    )
    parser.add_argument(
        "--pack-only", action="store_true", help="pack the latest checkpoints, finished or not"
    )
    chosen = parser.parse_args()
    work = chosen.work or Path("runs") / chosen.model
    how = (chosen.seed, chosen.processes, chosen.look)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    recipe = NETWORKS[chosen.model].RECIPES[device]
    if chosen.model == "lab":
        corpus = Corpus(fetch(work / "emoji"))
        if not chosen.pack_only:
            train_all(corpus, work, *how)
        pack(corpus, work, chosen.target, chosen.seed, recipe)
    else:
        corpus = Corpus(fetch(chosen.shared / "emoji"))
        if not chosen.pack_only:
            train_flow(corpus, work, chosen.shared, *how)
        where = chosen.target / "flow"
        pack_flow(corpus, work, chosen.shared, where, chosen.seed, recipe)


if __name__ == "__main__":
    main()
