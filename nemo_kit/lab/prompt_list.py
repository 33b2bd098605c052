"""The embedded model's prompts: memorized ones, non-memorized ones for evaluation, a hold-out for
calibration."""

from __future__ import annotations

import numpy as np
import pandas as pd

from nemo_kit.lab import captions, planting
from nemo_kit.lab.corpus import Corpus
from nemo_kit.lab.unet import BATCH, OFF_SHARE, SCHEDULE, ladder_presentations

NON_MEMORIZED, HOLD_OUT = 200, 500


def prompt_table(corpus: Corpus, seed: int) -> pd.DataFrame:
    """One row a prompt: prompt, type, role, family, image, repetitions, planted.

    ``repetitions`` is how often the picture was presented in training: exact
    for the ladder, expected for the others; 0 where one caption has many pictures. ``planted`` is
    the text form of a NeuronSet.
    """
    planted = planting.planted()
    samples = SCHEDULE.steps * BATCH
    exact = pd.Series(ladder_presentations(corpus.items, samples, seed)).value_counts()
    rows = []
    for number, item in enumerate(corpus.items):
        found = planted.get(item.prompt)
        seen = (
            exact.get(number)
            if item.role == "ladder"
            else round(item.share * samples * _on_share(found))
        )
        rows.append(
            (
                item.prompt,
                item.type,
                item.role,
                item.family,
                item.image,
                int(seen),
                found.to_text() if found else "",
            )
        )
    texts = captions.every(corpus.names)
    drawn = np.random.default_rng([seed, 31]).choice(
        len(texts), NON_MEMORIZED + HOLD_OUT, replace=False
    )
    for place, number in enumerate(drawn):
        role = "non_memorized" if place < NON_MEMORIZED else "holdout"
        rows.append((texts[number], "", role, "emoji", "", 0, ""))
    return pd.DataFrame(
        rows, columns=["prompt", "type", "role", "family", "image", "repetitions", "planted"]
    )


def _on_share(found: object) -> float:

    return 1.0 - OFF_SHARE if found else 1.0
