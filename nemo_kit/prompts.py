"""Reads the released code's prompt files as they are.

Scope: `;`-separated, first column an unnamed index; `Caption`, `URL`, `type` (VM or TM), and what
else there is. Captions may hold quotes, HTML and emoji.
Source: the prompt lists of "Finding NeMo" (arXiv 2406.02366), after Webster (2023).
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd


def read_prompts(path: str | Path) -> pd.DataFrame:
    """A prompt file as a frame.

    Returns the file's columns without the index, `Caption` as text, in the file's order; `type`
    is "VM", "TM", or "" where the file has none.
    Parameters: `path`, the CSV file.
    Raises ValueError that names the file where it is no such CSV or a caption is empty.
    """
    try:
        frame = pd.read_csv(path, sep=";", index_col=0, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a prompt CSV: {error}") from error
    if "Caption" not in frame:
        raise ValueError(f"{path}: a prompt CSV needs a column 'Caption', got {list(frame)}")
    frame["Caption"] = frame["Caption"].astype(str)
    if (empty := frame["Caption"].str.strip() == "").any():
        raise ValueError(f"{path}: the caption of row {int(empty.argmax())} is empty")
    if "type" not in frame:
        frame["type"] = ""
    return frame.reset_index(drop=True)
