"""Measures of pictures by name: what a study tells of each prompt, and how to add one.

Scope: `MEASURES`, filled by the decorator `measure`; a measure is a function of what was drawn of
one prompt (`Seen`), one number a picture or one of them all. `measured` makes a row a prompt.
Source: Hintersdorf et al., "Finding NeMo", NeurIPS 2024, section 4 and table 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd

from nemo_kit.checks import check_choice
from nemo_kit.metrics._checks import check_images
from nemo_kit.metrics.clip import Clip
from nemo_kit.metrics.embedders import Embedder, as_embedder
from nemo_kit.metrics.images import Median, between_seeds, median, same_seed
from nemo_kit.metrics.scores import COPY_THRESHOLD
from nemo_kit.registry import find

VERSION = 1  # raised where results change (see nemo_kit.keys)
LABELS = ("embedder", "protocol", "clip_model")  # columns that name what measured
Better = Literal["lower", "higher", ""]
Over = Callable[[np.ndarray], Any]


@dataclass(frozen=True)
class Seen:
    """What was drawn of one prompt under one setting, and what it is compared with.

    `images`, uint8 [S, H, W, 3]; `look`, the copy descriptor, kept as an `Embedder` whatever
    function of pictures it is; `clip`, None: not at hand; `before`, the undisturbed pictures of the
    same seeds; `training`, uint8 [H, W, 3], None: not known; `median`, which one of an even number.
    """

    prompt: str
    images: np.ndarray
    look: Embedder
    clip: Clip | None = None
    before: Seen | None = None
    training: np.ndarray | None = None
    median: Median = "middle two"

    def __post_init__(self) -> None:
        check_images("images", self.images)
        object.__setattr__(self, "look", as_embedder(self.look))

    @cached_property
    def vectors(self) -> np.ndarray:
        """The descriptor's unit vectors of the pictures, [S, D]."""
        return self.look(self.images)

    @cached_property
    def original(self) -> np.ndarray | None:
        """That of the training image, [D], or None."""
        if self.training is None:
            return None
        if self.before is not None and self.before.training is self.training:
            return self.before.original
        return self.look(check_images("training", np.asarray(self.training)[None]))[0]


@dataclass(frozen=True)
class Measure:
    """A function of `Seen` with what tables need to know of it.

    `heading`, by default the name; `better`, which way is less memorization or more quality;
    `over`, how a prompt's numbers become one, by default their median; `listed`, whether tables
    tell it unasked.
    """

    name: str
    function: Callable[[Seen], Any]
    heading: str = ""
    better: Better = ""
    over: Over | None = None
    listed: bool = True

    def __call__(self, seen: Seen) -> float:
        """The prompt's number; NaN where it isn't known.

        Raises ValueError where the function gives neither one number nor one a picture.
        """
        values = np.atleast_1d(np.asarray(self.function(seen), dtype=float))
        if values.ndim != 1 or len(values) not in (1, len(seen.images)):
            raise ValueError(
                f"measure {self.name!r} must give one number, or one for each of "
                f"{len(seen.images)} pictures, got shape {list(values.shape)}"
            )
        if np.isnan(values).any():
            return float("nan")
        return float(self.over(values) if self.over else median(values, seen.median))


MEASURES: dict[str, Measure] = {}


def measure(
    name: str,
    heading: str = "",
    better: Better = "",
    over: Over | None = None,
    listed: bool = True,
) -> Callable[[Callable[[Seen], Any]], Callable[[Seen], Any]]:
    """Register a function of `Seen` as a measure, by decorator; a name that is taken is replaced.

    Parameters as in `Measure`.
    Raises ValueError for another direction.
    """
    check_choice("better", better, ("lower", "higher", ""))

    def register(function: Callable[[Seen], Any]) -> Callable[[Seen], Any]:
        MEASURES[name] = Measure(name, function, heading, better, over, listed)
        return function

    return register


def listed() -> list[str]:
    """Names of the measures that tables tell unasked, in their order."""
    return [name for name, one in MEASURES.items() if one.listed]


def chosen(measures: Iterable[Any] | None) -> list[Measure]:
    """Measures by name, or of one's own: a `Measure`, or a function of `Seen`, named after itself.

    Returns all of `MEASURES` for None. Raises ValueError that lists the names there are, TypeError
    for what is no name or function.
    """
    asked = MEASURES if measures is None else measures
    return [find("measures", Measure, MEASURES, one) for one in asked]


def measured(
    rows: pd.DataFrame, seen: Sequence[Seen], measures: Iterable[Any] | None = None
) -> pd.DataFrame:
    """Measures of each prompt's pictures: SSCD_orig, SSCD_gen, D_SSCD, A_CLIP, … (`MEASURES`).

    Returns the columns of `rows`, `images` (how many), one for each measure, `threshold` (of a
    copy), `seed_median` (which median of an even number), `embedder`, `protocol`, `clip_model`; NaN
    or empty where what it needs is not there.

    Parameters: `rows`, with `prompt`; `seen`, what was drawn for each row, or for none: that is 0
    images and no numbers; `measures`, as in `chosen`.
    Raises ValueError for unknown measures, another number of `seen` than rows, and as the measures
    do.
    Source: paper, section 4 and table 1.
    """
    asked = chosen(measures)
    if len(seen) not in (0, len(rows)):
        raise ValueError(f"seen must be one for each of {len(rows)} rows, got {len(seen)}")
    if not seen:
        return rows.assign(images=0, **{one.name: np.nan for one in asked})
    found = [{"images": len(one.images)} | {m.name: m(one) for m in asked} for one in seen]
    one, told = seen[0], {"threshold": COPY_THRESHOLD, "seed_median": seen[0].median}
    clip = {"clip_model": "" if one.clip is None else one.clip.name}
    table = pd.DataFrame(found, index=rows.index).assign(**told, **one.look.labels, **clip)
    return pd.concat([rows, table], axis=1)


@measure("orig", better="lower")
def orig(seen: Seen) -> np.ndarray:
    """SSCD_orig: cosine of each picture to the training image."""
    unknown = np.full(len(seen.images), np.nan)
    return unknown if seen.original is None else seen.vectors @ seen.original


@measure("orig_max", better="lower", over=np.max, listed=False)
def orig_max(seen: Seen) -> np.ndarray:
    """The same; a prompt's is the largest (figure 6)."""
    return orig(seen)


@measure("above", "copies", "lower", over=np.mean, listed=False)
def above(seen: Seen) -> np.ndarray:
    """Whether each picture is a copy (orig above 0.7); a prompt's is the share of copies."""
    cosines = orig(seen)
    return np.where(np.isnan(cosines), np.nan, cosines > COPY_THRESHOLD)


@measure("gen", better="lower")
def gen(seen: Seen) -> np.ndarray:
    """SSCD_gen: cosine of each picture to the undisturbed one of the same seed."""
    if seen.before is None:
        return np.full(len(seen.images), np.nan)
    return same_seed(seen.vectors, seen.before.vectors)


@measure("diversity", "div", "lower")
def diversity(seen: Seen) -> float:
    """D_SSCD: median cosine over pairs of a prompt's pictures; NaN for a single one."""
    return between_seeds(seen.vectors, seen.median) if len(seen.images) > 1 else float("nan")


@measure("alignment", "align", "higher")
def alignment(seen: Seen) -> Any:
    """A_CLIP: cosine of each picture with its prompt; NaN without a CLIP."""
    return np.nan if seen.clip is None else seen.clip.align(seen.images, seen.prompt)
