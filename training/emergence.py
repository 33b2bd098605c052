"""When memorization begins: score, copying and neurons of each memorized prompt, along the
training.

From the copies of the weights that the training kept, each with a threshold of its own from
hold-out prompts; resumes where it was stopped. ``python -m training.emergence`` writes
``nemo_kit/lab/data/emergence.parquet``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.torch import load_file
from tqdm import tqdm

from nemo_kit import lab
from nemo_kit.generation import generate
from nemo_kit.lab.copy_descriptor import Descriptor
from nemo_kit.localization import calibrate, detect, localize
from nemo_kit.models import DiffusionModel, load
from nemo_kit.settings import SimilaritySettings
from training import build, pack, unet
from training.corpus import Corpus
from training.prompts import prompt_table
from training.samples import presented

HOLD_OUT = 60
SEEDS = range(101, 103)  # of the pictures; detection uses 1 to 10
STEPS = 15


def opened(work: Path, weights: Path) -> DiffusionModel:
    """The model with the U-Net of one copy."""
    denoiser = unet.build()
    denoiser.load_state_dict({k: v.float() for k, v in load_file(weights).items()})
    folder = work / "emergence" / "model"
    pack.pack_pipeline(work, folder, denoiser)
    return load(str(folder))


def measured(
    model: DiffusionModel,
    table: pd.DataFrame,
    held_out: list[str],
    look: Descriptor,
    similarity: SimilaritySettings,
) -> pd.DataFrame:
    """One row a memorized prompt: score, flagged, similarity (median over pictures), neurons.

    `table` has `prompt` and `target` (uint8 [64, 64, 3]); `neurons` is missing where the prompt is
    not flagged.
    """
    model.calibration = calibrate(model, held_out, settings=pack.DETECTION, similarity=similarity)
    found = detect(model, list(table["prompt"]))
    pictures = generate(model, list(table["prompt"]), SEEDS, steps=STEPS, guidance=pack.GUIDANCE)
    rows = []
    for row, drawn, score in zip(table.itertuples(), pictures, found["score"], strict=True):
        flagged = bool(score > model.calibration.threshold)
        count = len(localize(model, row.prompt, search="attributed").refined) if flagged else np.nan
        cosine = (look(drawn) @ look(row.target[None]).T).numpy()
        rows.append((row.prompt, float(score), flagged, float(np.median(cosine)), count))
    return pd.DataFrame(rows, columns=["prompt", "score", "flagged", "similarity", "neurons"])


def main() -> None:
    """Measure every copy that is not measured yet, then write them together."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/lab"))
    parser.add_argument("--out", type=Path, default=lab.DATA / "emergence.parquet")
    parser.add_argument("--seed", type=int, default=build.SEED)
    parser.add_argument("--recipe", choices=list(unet.RECIPES), default="cpu")
    chosen = parser.parse_args()
    corpus, recipe = Corpus(chosen.work / "emoji" / "package"), unet.RECIPES[chosen.recipe]
    rng = np.random.default_rng(chosen.seed)
    prompts = prompt_table(corpus, recipe, chosen.seed)
    table = prompts[prompts["type"] != ""].reset_index(drop=True)
    table["target"] = [corpus.picture(item, rng) for item in corpus.items]
    held_out = list(prompts.query("role == 'holdout'")["prompt"][:HOLD_OUT])
    look = Descriptor.load(chosen.work / "descriptor.safetensors")
    similarity = load("lab").calibration.similarity  # the same for all copies
    parts = chosen.work / "emergence"
    parts.mkdir(exist_ok=True)
    for weights in tqdm(sorted((chosen.work / "snapshots").glob("*.safetensors"))):
        if not (parts / f"{weights.stem}.parquet").exists():
            samples = int(weights.stem)
            rows = measured(opened(chosen.work, weights), table, held_out, look, similarity)
            rows.insert(0, "samples", samples)
            shown = presented(corpus.items, recipe, chosen.seed, samples)
            rows["seen"] = [round(count) for count in shown]
            rows.to_parquet(parts / f"{weights.stem}.parquet")
    whole = pd.concat([pd.read_parquet(part) for part in sorted(parts.glob("*.parquet"))])
    whole.to_parquet(chosen.out, index=False)


if __name__ == "__main__":
    main()
