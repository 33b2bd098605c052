"""What deactivating neurons does to pictures: copying, diversity and alignment by prompt.

Scope: measures generated pictures that `nemo_kit.store` made, with the copy descriptor and
the CLIP of the embedded model; training images are a `TrainingImages`.
Source: Hintersdorf et al., "Finding NeMo", NeurIPS 2024, section 4, table 1 and figure 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from nemo_kit import lab, metrics
from nemo_kit.originals import TrainingImages

FIRST_SEED = 101  # pictures are judged on other seeds than detection's 1, 2, …
SIDE = 64  # what the lab's descriptor and CLIP look at


def picture_seeds(count: int) -> list[int]:
    """Seeds of generated pictures, none of which detection uses.

    Source: paper, section 4 (detection and evaluation seeds differ).
    """
    return list(range(FIRST_SEED, FIRST_SEED + count))


def pictures(
    generated: pd.DataFrame, prompts: Sequence[str], most: int | None = None
) -> np.ndarray:
    """Generated pictures of these prompts as one array.

    Returns uint8 [prompts, seeds, H, W, 3], seeds in their order.

    Parameters: `generated`, from `generate_all`; `prompts`, each with the same number of seeds;
    `most`, only the first so many seeds.
    Raises ValueError for a prompt without pictures.
    """
    parts = [generated.loc[generated["prompt"] == p, "image"][:most].to_list() for p in prompts]
    empty = [prompt for prompt, part in zip(prompts, parts, strict=True) if not part]
    if empty:
        raise ValueError(f"generated has no pictures of {len(empty)} prompts, e.g. {empty[0]!r}")
    return np.stack([np.stack(part) for part in parts])


def with_pictures(rows: pd.DataFrame, *generated: pd.DataFrame) -> pd.DataFrame:
    """The rows whose prompts have pictures in all frames; others failed and are left out.

    Returns rows in their order, numbered anew; none where there were none.

    Parameters: `rows`, with `prompt`; `generated`, frames with `prompt` that are to be compared,
    from `generate_all`, which names the prompts that failed in a warning.
    Raises ValueError where no prompt is left.
    """
    there = [rows["prompt"].isin(frame["prompt"]) for frame in generated]
    kept = rows[np.logical_and.reduce(there)].reset_index(drop=True)
    if kept.empty and len(rows):
        raise ValueError(
            f"generated must hold pictures of one prompt at least in all {len(generated)} frames, "
            f"of {len(rows)} prompts none has them, e.g. {rows['prompt'].iloc[0]!r}"
        )
    return kept


def look(images: np.ndarray) -> np.ndarray:
    """The lab's copy descriptor on pictures of any size, resized to its 64 pixels.

    Returns unit vectors [N, D]. The numbers are the descriptor's, never SSCD's.
    """
    return np.asarray(lab.descriptor()(small(images)))


def align(images: np.ndarray, prompt: str) -> np.ndarray:
    """Cosine of the lab's CLIP between pictures of any size and their prompt, [N] in [-1, 1]."""
    return metrics.alignment(small(images), prompt, *lab.clip())


def small(images: np.ndarray) -> np.ndarray:
    """Pictures at the 64 pixels of the lab's networks, uint8 [N, 64, 64, 3]."""
    from PIL import Image

    if images.shape[1:3] == (SIDE, SIDE):
        return images
    resized = [Image.fromarray(i).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for i in images]
    return np.stack([np.asarray(i) for i in resized])


def by_seed(
    prompt: str,
    before: np.ndarray,
    after: np.ndarray,
    seeds: Sequence[int],
    training: TrainingImages | None = None,
) -> pd.DataFrame:
    """Copy similarities of one prompt's pictures, seed by seed.

    Returns a frame with `seed`, `copy_before`, `copy_after` (cosine to the training image, NaN
    where none is known) and `same_seed` (cosine between before and after).

    Parameters: `before`, `after`, uint8 [S, H, W, 3] of these seeds; `training`, by default the
    lab's.
    """
    first, second = look(before), look(after)
    known = (training or TrainingImages()).of([prompt])
    original = np.full_like(first, np.nan) if known is None else look(known)
    return pd.DataFrame(
        {
            "seed": list(seeds),
            "copy_before": (first * original).sum(axis=1),
            "copy_after": (second * original).sum(axis=1),
            "same_seed": (first * second).sum(axis=1),
        }
    )


def copying(
    rows: pd.DataFrame,
    before: np.ndarray,
    after: np.ndarray,
    training: TrainingImages | None = None,
    embedder: Callable[[np.ndarray], Any] | None = None,
    clip: metrics.Clip | None = None,
) -> pd.DataFrame:
    """SSCD_orig, SSCD_gen, diversity and alignment of each prompt, before and after.

    Returns a frame with `prompt`, `group`, and `orig`, `above` (share of copies), `diversity`,
    `alignment` with the endings `_before` and `_after`, `gen`, and the names of what measured:
    `embedder`, `protocol`, `clip_model`. Medians over seeds; `orig` and `above` are NaN for a
    prompt without a training image.

    Parameters: `rows`, with `prompt` and `group`; `before`, `after`, uint8 [prompts, seeds, H, W,
    3]; `training`, by default the lab's; `embedder`, see `metrics.as_embedder`, and `clip`, by
    default the lab's.
    Source: paper, section 4 and table 1.
    """
    known = [(training or TrainingImages()).one(prompt) for prompt in rows["prompt"]]
    network = embedder or metrics.Embedder("lab descriptor", "64 square, bicubic", look)
    names = rows[["prompt", "group"]].reset_index(drop=True)
    shared = (network, known, before, clip or metrics.load_clip())
    first, second = (metrics.copying_table(names, shots, *shared) for shots in (before, after))
    ends = [first[list(_TWICE)].add_suffix("_before"), second[list(_TWICE)].add_suffix("_after")]
    return pd.concat([names, second["gen"], *ends, second[list(_NAMES)]], axis=1)


_TWICE = ("orig", "above", "diversity", "alignment")
_NAMES = ("embedder", "protocol", "clip_model")


def summary(measured: pd.DataFrame, both_ways: bool = False) -> pd.DataFrame:
    """Median ± median absolute deviation over prompts of each number, by group (in T1's manner).

    Returns a frame with `group`, `measure`, `prompts`, `median`, `mad`, `low`, `high` (95 %
    bootstrap interval of the median), and the names of what measured where `measured` has them.
    Parameters: `measured`, from `copying`, whose NaN leave a prompt out; `both_ways`, also without
    near-duplicate prompts, told apart by the column `kept`.
    Source: paper, table 1.
    """
    numbers = measured.select_dtypes("number").columns
    found = metrics.over_groups(measured, list(numbers))
    return found if both_ways else found[found["kept"] == "all"].drop(columns="kept")
