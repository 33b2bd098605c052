"""How good each way's neurons are: against known ones, and by the pictures left without them.

Scope: columns added to the frame of `measure`. The size of a set is in that frame already.
Source: "Finding NeMo" (arXiv 2406.02366), section 4 (SSCD_gen); known neurons are an addition.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from nemo_kit.neurons import NeuronSet

if TYPE_CHECKING:
    from nemo_kit.models import DiffusionModel


def with_known(frame: pd.DataFrame, truth: Mapping[str, NeuronSet]) -> pd.DataFrame:
    """The frame with `precision` and `recall`, in [0, 1], against known neurons.

    NaN where nothing is known of a prompt or detection does not flag it.
    Parameters: `frame`, from `measure`; `truth`, prompt -> the neurons that memorize it.
    """
    from nemo_kit.metrics import localization_quality

    judged = frame["flagged"] & frame["prompt"].isin(list(truth))
    scores = pd.DataFrame(
        [
            localization_quality(NeuronSet.from_json(row.refined), truth[row.prompt])
            for row in frame[judged].itertuples()
        ],
        index=frame.index[judged],
        columns=["precision", "recall"],
    )
    return frame.join(scores)


def with_pictures(
    model: DiffusionModel,
    frame: pd.DataFrame,
    pictures: int,
    detection: Iterable[int],
    *,
    store: str | Path,
) -> pd.DataFrame:
    """The frame with `sscd_gen`: how alike pictures are with and without each way's neurons.

    It is the median cosine over pictures of the same seed, 1 where nothing changes, NaN where
    detection does not flag the prompt.
    Parameters: `frame`, from `measure`; `pictures` a prompt and way, at least 1; `detection`, its
    seeds, which the pictures do not share; `store`, which keeps them.
    Raises ValueError for less than one picture, and what `study` raises.
    Source: section 4, SSCD_gen, by the embedded model's copy descriptor.
    """
    from nemo_kit.checks import check_whole
    from nemo_kit.study import study

    check_whole("pictures", pictures, 1)
    used, flagged = list(detection), frame[frame["flagged"]]
    rows = flagged[["prompt", "group"]].drop_duplicates(ignore_index=True)
    settings = {str(way): _sets(part) for way, part in flagged.groupby("way")}
    seeds = range(max(used) + 1, max(used) + 1 + pictures)
    found = study(model, rows, settings, seeds, ["gen"], detection_seeds=used, store=store)
    columns = {"setting": "way", "gen": "sscd_gen"}
    gen = found.rename(columns=columns)[["prompt", "way", "sscd_gen"]]
    return frame.merge(gen, how="left", on=["prompt", "way"])


def _sets(part: pd.DataFrame) -> dict[str, NeuronSet]:
    pairs = zip(part["prompt"], part["refined"], strict=True)
    return {prompt: NeuronSet.from_json(text) for prompt, text in pairs}
