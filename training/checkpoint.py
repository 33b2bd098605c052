"""A training under way, small enough to be carried: averaged weights in half precision.

``python -m training.checkpoint save`` writes what a later ``restore`` needs beside the code, and
``restore`` puts it below the working folder, where `training.build` goes on from there. The
optimizer's state is not kept: its first steps find it again.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from transformers import CLIPModel

from training import build, pack, unet
from training.loop import Run
from training.samples import Recipe

HERE = Path(__file__).parent / "checkpoint"
FACTS = "unet.json"


def save(work: Path, target: Path) -> None:
    """Write text encoder, autoencoder and U-Net of a training below ``target``."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    shutil.copytree(work / "tokenizer", target / "tokenizer")
    CLIPModel.from_pretrained(work / "clip").half().save_pretrained(target / "clip")
    AutoencoderKL.from_pretrained(work / "vae").half().save_pretrained(target / "vae")
    weights = {n: w.half().contiguous() for n, w in pack.snapshot(work).state_dict().items()}
    save_file(weights, target / "unet.safetensors")
    known = json.loads((work / "unet.json").read_text(encoding="utf-8"))
    (target / FACTS).write_text(json.dumps({k: known[k] for k in ("step", "seconds")}))


def restore(target: Path, work: Path, recipe: Recipe, seed: int) -> None:
    """Put a saved training below ``work``; what is there already stays."""
    for name in ("tokenizer", "clip", "vae"):
        if not (work / name).exists():
            shutil.copytree(target / name, work / name)
    for kind, name in ((CLIPModel, "clip"), (AutoencoderKL, "vae")):
        kind.from_pretrained(work / name, torch_dtype=torch.float32).save_pretrained(work / name)
    if (work / "unet.pt").exists():
        return
    model = unet.build()
    model.load_state_dict({n: w.float() for n, w in load_file(target / "unet.safetensors").items()})
    run = Run("unet", model, recipe.schedule, work, seed)
    known = json.loads((target / FACTS).read_text(encoding="utf-8"))
    run.step, run.seconds = known["step"], known["seconds"]
    run.save()


def main() -> None:
    """Save or restore."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("save", "restore"))
    parser.add_argument("--work", type=Path, default=Path("runs/lab"))
    parser.add_argument("--recipe", choices=list(unet.RECIPES), default="cpu")
    chosen = parser.parse_args()
    if chosen.what == "save":
        save(chosen.work, HERE)
    else:
        chosen.work.mkdir(parents=True, exist_ok=True)
        restore(HERE, chosen.work, unet.RECIPES[chosen.recipe], build.SEED)


if __name__ == "__main__":
    main()
