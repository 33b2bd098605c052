"""Copying and diversity of every prompt's pictures, and over prompts with and without repeats.

Scope: a row a prompt, with the name and protocol of the embedder in it; medians over prompts of
each group by itself, over all prompts and over those without near duplicates.
Source: Hintersdorf et al., "Finding NeMo", NeurIPS 2024, section 4 and table 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from nemo_kit.metrics._checks import check_images
from nemo_kit.metrics.clip import Clip
from nemo_kit.metrics.duplicates import SAME, distinct
from nemo_kit.metrics.embedders import as_embedder
from nemo_kit.metrics.images import Median, between_seeds, median, same_seed
from nemo_kit.metrics.scores import COPY_THRESHOLD, share_above, summarize

VERSION = 1  # raised where results change (see nemo_kit.keys)
ALL, DISTINCT = "all", "without near duplicates"
_TOLD = ("kept", "group", "measure", "prompts", "median", "mad", "low", "high")
LABELS = ("embedder", "protocol", "clip_model")  # columns that name what measured


def copying_table(
    rows: pd.DataFrame,
    images: Sequence[np.ndarray],
    embedder: Callable[[np.ndarray], Any],
    training: Sequence[np.ndarray | None] | None = None,
    unmitigated: Sequence[np.ndarray] | None = None,
    clip: Clip | None = None,
    threshold: float = COPY_THRESHOLD,
    kind: Median = "middle two",
) -> pd.DataFrame:
    """SSCD_orig, SSCD_gen, D_SSCD, share of copies and A_CLIP of each prompt.

    Returns a frame with the columns of `rows`, `images` (how many), `orig` (median cosine to the
    training image), `orig_max`, `above` (share of pictures above the threshold), `gen` (median
    cosine to the undisturbed picture of the same seed), `diversity` (median over pairs),
    `alignment`, `threshold`, `seed_median` (which median of an even number), `embedder`,
    `protocol`, `clip_model`; NaN or empty where what it needs is not there.

    Parameters: `rows`, with `prompt`; `images`, for each row uint8 [N, H, W, 3]; `embedder`, see
    `as_embedder`; `training`, for each row uint8 [H, W, 3] or None; `unmitigated`, pictures of the
    same seeds; `clip`, see `load_clip`; `threshold`, of a copy: 0.7 in the paper, others 0.5 or
    0.75; `kind` of `median`, "lower middle" as in the released metrics.
    Raises ValueError for wrong shapes, or other numbers of pictures than rows.
    Source: paper, section 4 and table 1.
    """
    look = as_embedder(embedder)
    given = {"images": images, "training": training, "unmitigated": unmitigated}
    for name, values in given.items():
        if values is not None and len(values) != len(rows):
            raise ValueError(f"{name} must be one for each of {len(rows)} rows, got {len(values)}")
    found = []
    for place, prompt in enumerate(rows["prompt"]):
        pictures = check_images("images", images[place])
        vectors = look(pictures)
        one: dict[str, Any] = {"images": len(pictures)}
        known = None if training is None else training[place]
        one |= _original(vectors, known, look, threshold, kind)
        before = None if unmitigated is None else look(unmitigated[place])
        one["gen"] = np.nan if before is None else same_seed(vectors, before, kind)
        one["diversity"] = between_seeds(vectors, kind) if len(vectors) > 1 else np.nan
        one["alignment"] = np.nan if clip is None else median(clip.align(pictures, prompt), kind)
        found.append(one)
    names = look.labels | {"clip_model": "" if clip is None else clip.name}
    table = pd.DataFrame(found, index=rows.index)
    table = table.assign(threshold=threshold, seed_median=kind, **names)
    return pd.concat([rows, table], axis=1)


def _original(
    vectors: np.ndarray, training: np.ndarray | None, look: Callable, threshold: float, kind: Median
) -> dict[str, float]:
    if training is None:
        return dict.fromkeys(("orig", "orig_max", "above"), np.nan)
    cosines = vectors @ look(check_images("training", np.asarray(training)[None]))[0]
    above = share_above(cosines, threshold)
    return {"orig": median(cosines, kind), "orig_max": float(cosines.max()), "above": above}


def over_groups(
    measured: pd.DataFrame,
    measures: Sequence[str] = ("orig", "above", "gen", "diversity", "alignment"),
    level: float = 0.95,
    duplicates: float = SAME,
) -> pd.DataFrame:
    """Median ± median absolute deviation of each measure, each group by itself, both ways.

    Returns a frame with `kept` ("all", "without near duplicates"), `group`, `measure`, `prompts`,
    `median`, `mad`, `low`, `high` (bootstrap interval of the median) and the names of what
    measured. A number that is NaN for a prompt leaves the prompt out.

    Parameters: `measured`, from `copying_table`, with `prompt` and `group`; `measures`, its columns
    to tell; `level`, of the interval; `duplicates`, threshold of `near_duplicates`.
    Raises ValueError for a missing column or an impossible level or threshold.
    Source: paper, table 1; 304 of its 500 prompts remain without near duplicates.
    """
    if missing := {"prompt", "group", *measures} - set(measured):
        raise ValueError(f"measured lacks {', '.join(sorted(missing))}; it has {list(measured)}")
    ways = {ALL: measured, DISTINCT: distinct(measured, duplicates)}
    parts = [
        {"kept": kept, "group": group, "measure": name} | _told(part, name, level)
        for kept, frame in ways.items()
        for group, part in frame.groupby("group", sort=False)
        for name in measures
        if part[name].notna().any()
    ]
    return pd.DataFrame(parts) if parts else pd.DataFrame(columns=[*_TOLD, *LABELS])


def _told(part: pd.DataFrame, name: str, level: float) -> dict[str, Any]:
    known = part[part[name].notna()]
    names = {key: ", ".join(dict.fromkeys(known[key])) for key in LABELS if key in known}
    return summarize(known[name], level).to_row() | names
