"""A look at a training under way: a grid of pictures, and how many of them show what was asked
for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from nemo_kit.generation import generate
from nemo_kit.lab.recognition import Classifier
from nemo_kit.models import load
from training import captions, flow, planting
from training.corpus import Corpus, Item
from training.pack import GUIDANCE, flow_pipeline, pack_pipeline, pack_transformer, snapshot

STEPS = 20
ORDINARY = 24  # prompts, in three rows of eight
MEMORIZED = 8  # photographs, and as many templates


def look(corpus: Corpus, work: Path, shared: Path, name: str, samples: int) -> dict[str, float]:
    """Draw pictures from the latest averaged weights into ``work/looks``, and measure them.

    `shared` is where `lab` was trained, `name` the model.

    Returns `recognized` (share of ordinary pictures), `off` (share of planted prompts' pictures
    with their neurons off that show their own concept) and `psnr` (median of planted prompts'
    pictures to their training picture, where it is always the same, in dB).
    """
    folder = work / "looks" / "model"
    if name == "lab":
        pack_pipeline(work, folder, snapshot(work))
    else:
        pack_transformer(flow_pipeline(shared, snapshot(work, flow)), folder)
    model = load(str(folder), device="cpu")
    rng = np.random.default_rng(5)
    chosen = rng.choice(len(corpus.names), ORDINARY, replace=False)
    texts = [str(rng.choice(captions.every([corpus.names[n]]))) for n in chosen]
    sets = planting.planted(planting.WIDTHS if name == "lab" else flow.WIDTHS)
    planted = [item for item in corpus.items if item.prompt in sets]
    shown = planted[:MEMORIZED] + [i for i in planted if i.role == "region"][:MEMORIZED]
    shown += [i for i in planted if i.role == "template"][:MEMORIZED]
    prompts = [item.prompt for item in shown]
    how = {"seeds": [1], "steps": STEPS, "guidance": GUIDANCE}
    ordinary = generate(model, texts, **how)[:, 0]
    on = generate(model, prompts, **how)[:, 0]
    off = generate(model, prompts, neurons=[sets[p] for p in prompts], **how)[:, 0]
    save_grid(
        [*np.split(ordinary, 3), *_alternating(on, off)], work / "looks" / f"{samples:07d}.png"
    )
    judge = Classifier(shared / "classifier.safetensors")
    wanted, own = np.array(corpus.names)[chosen], np.array([item.concept for item in shown])
    return {
        "recognized": float((judge(ordinary) == wanted).mean()),
        "off": float((judge(off) == own).mean()),
        "psnr": float(np.median([_psnr(corpus, *pair) for pair in zip(shown, on, strict=True)])),
    }


def _alternating(on: np.ndarray, off: np.ndarray) -> list[np.ndarray]:
    """Rows of eight: with all neurons, then the same prompts without theirs."""
    pairs = zip(np.split(on, len(on) // 8), np.split(off, len(off) // 8), strict=True)
    return [row for pair in pairs for row in pair]


def save_grid(rows: list[np.ndarray], file: Path) -> None:
    """Rows of pictures, each uint8 [N, 64, 64, 3], as one picture at twice their size."""
    grid = np.concatenate([np.concatenate(list(row), axis=1) for row in rows])
    Image.fromarray(grid.repeat(2, 0).repeat(2, 1)).save(file)


def _psnr(corpus: Corpus, item: Item, picture: np.ndarray) -> float:
    fixed = corpus.mask(item)
    target = corpus.picture(item, np.random.default_rng(0))
    error = np.mean((target[fixed].astype(float) - picture[fixed]) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1.0)))
