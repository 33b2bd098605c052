"""Near-duplicate prompts: one rule, by the letters that two captions share.

Source: Hintersdorf et al., "Finding NeMo", NeurIPS 2024: of the 500 memorized prompts 304 remain
after de-duplication. The paper doesn't print its rule; this one is ours.
"""

import html
import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from nemo_kit.checks import check_columns, check_number, check_texts

VERSION = 1  # raised where results change (see nemo_kit.keys)
SAME = 0.38  # set so that 304 of the 500 released prompts remain, the paper's number
_TAG = re.compile(r"<[^>]+>")


def near_duplicates(prompts: Sequence[str], threshold: float = SAME) -> np.ndarray:
    """Which prompts repeat an earlier one: bool [N], False for the first of each kind.

    Two prompts are near duplicates where the Jaccard index of their sets of character trigrams
    (within words and their bounds, lower case, without HTML) reaches the threshold. Prompts are
    looked at in their order; one is dropped that is a near duplicate of one already kept.

    Parameters: `prompts`, at least one; `threshold`, in (0, 1]; 1 drops only equal sets.
    Raises TypeError or ValueError for bad prompts or another threshold.
    Source: an addition; the threshold fits the paper's count, not its unknown list.
    """
    texts = check_texts(prompts)
    check_number("threshold", threshold, 0)
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must lie in (0, 1], got {threshold}")
    alike = _jaccard([_plain(text) for text in texts]) >= threshold
    kept: list[int] = []
    for place in range(len(texts)):
        if not alike[place, kept].any():
            kept.append(place)
    return ~np.isin(np.arange(len(texts)), kept)


def distinct(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows whose prompt is no near duplicate of an earlier prompt of the frame.

    Parameters: `frame`, with `prompt`, of which several rows may be the same.
    Raises ValueError without a column `prompt`.
    """
    check_columns("frame", frame, "prompt")
    texts = frame["prompt"].unique()
    return frame[frame["prompt"].isin(texts[~near_duplicates(texts)])]


def _plain(text: str) -> str:
    return _TAG.sub(" ", html.unescape(text)).strip().lower() or text


def _jaccard(texts: list[str]) -> np.ndarray:
    """[N, N]: trigrams that two texts share, by all they have."""
    from sklearn.feature_extraction.text import CountVectorizer

    count = CountVectorizer(binary=True, analyzer="char_wb", ngram_range=(3, 3), dtype=np.float64)
    has = count.fit_transform(texts)  # [N, trigrams]
    shared = (has @ has.T).toarray()
    sizes = shared.diagonal()
    return shared / (sizes[:, None] + sizes[None] - shared)
