"""The embedded model's prompts: memorized ones, non-memorized ones for evaluation, a hold-out for
calibration."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from training import captions, planting
from training.corpus import Corpus, Item
from training.samples import OFF_SHARE, Recipe, presented

NON_MEMORIZED, HOLD_OUT = 200, 500


def _told(item: Item) -> tuple[str, str]:
    """Role and family, as users know them."""
    return ("template", "region") if item.role == "region" else (item.role, item.family)


def prompt_table(
    corpus: Corpus,
    recipe: Recipe,
    seed: int,
    widths: Mapping[int, int] = planting.WIDTHS,
    samples: int | None = None,
) -> pd.DataFrame:
    """One row a prompt: prompt, type, role, family, concept, image, repetitions, planted, logic,
    strength.

    ``repetitions`` is how often the picture was presented in training: exact for the ladder,
    expected for the others; 0 where one caption has many pictures. ``planted`` is the text form of
    a NeuronSet; ``logic`` is "any" (each planted neuron alone is enough for the copy) or "all"
    (each is needed); ``strength`` is the |z| that its neurons were planted with. A photograph of
    which only a region is memorized is a template prompt of the family "region".

    Parameters: `widths`, value layer -> neurons; `samples`, how many of the recipe's were seen, by
    default all.
    """
    planted, plans = planting.planted(widths), planting.plans()
    seen = presented(corpus.items, recipe, seed, samples)
    rows = []
    for number, item in enumerate(corpus.items):
        own, plan = planted.get(item.prompt), plans.get(item.prompt)
        on = 1.0 - OFF_SHARE if own else 1.0
        rows.append(
            (
                *(item.prompt, item.type, *_told(item), item.concept, item.image),
                round(seen[number] * on),
                *((own.to_text(), plan.logic, plan.z) if plan else ("", "", "")),
            )
        )
    texts = {text: name for name in corpus.names for text in captions.every([name])}
    drawn = np.random.default_rng([seed, 31]).choice(
        sorted(texts), NON_MEMORIZED + HOLD_OUT, replace=False
    )
    for place, text in enumerate(drawn.tolist()):
        role = "non_memorized" if place < NON_MEMORIZED else "holdout"
        rows.append((text, "", role, "emoji", texts[text], "", 0, "", "", ""))
    columns = ["prompt", "type", "role", "family", "concept", "image", "repetitions"]
    return pd.DataFrame(rows, columns=[*columns, "planted", "logic", "strength"])
