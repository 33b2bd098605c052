"""A removal as one page and one JSON file: for whoever has to say what was taken out of a model.

Scope: the page needs nothing but itself, its pictures are in it; prompts are escaped. What it shows
is measured in `nemo_kit.removal`.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nemo_kit.files import write_atomically, write_json
from nemo_kit.removal import Removal

PAGE, DATA = "removal.html", "removal.json"
_MOST_SHOWN = 20  # prompts with pictures; the tables hold all
_MOST_PICTURES = 4  # of each prompt and side
_WORDS = {
    "flagged_before": "flagged before", "flagged_after": "flagged after",
    "score_before": "score before", "score_after": "score after",
    "orig_before": "to training image before", "orig_after": "to training image after",
    "above_before": "copies before", "above_after": "copies after", "gen": "same seed",
    "diversity_before": "between seeds before", "diversity_after": "between seeds after",
    "alignment_before": "alignment before", "alignment_after": "alignment after",
}  # fmt: skip
_QUALITY = (
    "Quality of their pictures; the extractor names the distance, the deviation is that of the "
    "kernel distance over subsets."
)
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem;
  color: #222; background: #fff }
.wide { overflow-x: auto; margin: 0 0 1.5rem }
.caption { margin: 1.2rem 0 .3rem; color: #555; max-width: 56rem }
table { border-collapse: collapse }
td:first-child { min-width: 11rem }
th, td { border-bottom: 1px solid #ddd; padding: .3rem .6rem; text-align: left;
  vertical-align: top }
td { font-variant-numeric: tabular-nums }
figure { margin: 1rem 0; border-top: 1px solid #ddd; padding-top: .5rem }
figure div { display: flex; flex-wrap: wrap; gap: 4px; align-items: flex-end }
figure span { min-width: 5.5rem; align-self: center }
img { width: 96px; height: 96px; image-rendering: pixelated }
"""


def write_report(removal: Removal, record: Mapping[str, Any], folder: str | Path) -> Path:
    """Write `removal.html` and `removal.json` into a folder.

    Returns the page's path.
    Parameters: `removal`, from `removal.measure`; `record`, `nemo/export.json` of the exported
    folder: model, revision, mitigation, digests.
    Raises OSError where the folder can't be written.
    """
    target = Path(folder)
    about = {**record, **removal.settings, "versions": _versions()}
    write_json(target / DATA, {"about": about} | as_records(removal))
    text = page(removal, about)
    write_atomically(target / PAGE, lambda part: part.write_text(text, encoding="utf-8"))
    return target / PAGE


def as_records(removal: Removal) -> dict[str, list[dict[str, Any]]]:
    """The tables as plain values for JSON, what is not known as null."""
    names = ("memorized", "others", "medians", "quality", "layers")
    return {n: json.loads(getattr(removal, n).to_json(orient="records")) for n in names}


def page(removal: Removal, about: Mapping[str, Any]) -> str:
    """The page as HTML, complete in itself."""
    title = f"What was removed from {about['model']}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        _summary(removal, about),
        "<h2>Prompts it was made for</h2>",
        _frame(_named(removal.memorized), _similarities(about)),
        *[_pictures(prompt, *shots) for prompt, shots in _shown(removal)],
        "<h2>Other prompts</h2>",
        _frame(_named(removal.others), "Prompts that are not memorized: what else changed."),
        _frame(removal.quality, _QUALITY),
        _frame(removal.layers, "Cosine of cross-attention outputs with and without the neurons."),
        "<h2>Medians over prompts</h2>",
        _frame(_measured(removal.medians), "With median absolute deviation and 95 % interval."),
        "<h2>Exactly what and how</h2>",
        _facts(about),
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}'
        '</title><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _summary(removal: Removal, about: Mapping[str, Any]) -> str:
    own = removal.memorized
    changed = ", ".join(f"{count} in {name}" for name, count in about["changed"].items())
    flags = [int(own[f"flagged_{s}"].fillna(False).sum()) for s in ("before", "after")]
    told = [
        f"Written into the weights: {about['mitigation']['name']} ({changed}).",
        f"Of {len(own)} prompts it was made for, detection flagged {flags[0]} before and "
        f"{flags[1]} after; {_copies(own)}",
        "Weights hold for every prompt, and for the empty one. That a prompt no longer brings a "
        "picture back is no proof of forgetting: other inputs may.",
    ]
    return "".join(f"<p>{escape(line)}</p>" for line in told)


def _similarities(about: Mapping[str, Any]) -> str:
    return (
        "A row a prompt, medians over its pictures: cosine to the training image (SSCD_orig), to "
        "the picture of the same seed before (SSCD_gen) and between seeds (D_SSCD), by "
        f"{about['embedder']} ({about['protocol']}); alignment with the prompt by {about['clip']}."
    )


def _copies(own: pd.DataFrame) -> str:
    known = own[own["orig_before"].notna()]
    if known.empty:
        return "whether they copied is not known, as no training image was given."
    before, after = (known[f"above_{side}"].mean() for side in ("before", "after"))
    return (
        f"of the pictures of the {len(known)} with a training image, {before:.0%} were copies "
        f"before and {after:.0%} after."
    )


def _named(frame: pd.DataFrame) -> pd.DataFrame:
    """Before and after of a measure side by side, in words, without what is not known."""
    first = [name for name in frame if name not in _WORDS]
    ordered = frame[[*first, *(name for name in _WORDS if name in frame)]]
    return ordered.rename(columns=_WORDS).dropna(axis="columns", how="all")


def _measured(medians: pd.DataFrame) -> pd.DataFrame:
    return medians.assign(measure=medians["measure"].replace(_WORDS))


def _frame(frame: pd.DataFrame, caption: str) -> str:
    if frame.empty:
        return ""
    table = frame.to_html(index=False, border=0, na_rep="–", float_format="{:.3f}".format)
    return f'<p class="caption">{escape(caption)}</p><div class="wide">{table}</div>'


def _shown(removal: Removal) -> list[tuple[str, Any]]:
    return list(removal.pictures.items())[:_MOST_SHOWN]


def _pictures(
    prompt: str, training: np.ndarray | None, before: np.ndarray, after: np.ndarray
) -> str:
    rows = [("training", [] if training is None else [training])]
    rows += [("before", list(before[:_MOST_PICTURES])), ("after", list(after[:_MOST_PICTURES]))]
    lines = [
        f"<div><span>{name}</span>{''.join(_image(i, f'{name}: {prompt}') for i in images)}</div>"
        for name, images in rows
        if images
    ]
    return f"<figure>{''.join(lines)}<figcaption>{escape(prompt)}</figcaption></figure>"


def _image(image: np.ndarray, words: str) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img alt="{escape(words)}" src="data:image/png;base64,{data}">'


def _facts(about: Mapping[str, Any]) -> str:
    rows = [
        f'<tr><th scope="row">{escape(str(name).replace("_", " "))}</th>'
        f"<td>{escape(_plain(value))}</td></tr>"
        for name, value in about.items()
    ]
    return f"<table>{''.join(rows)}</table>"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _versions() -> dict[str, str]:
    from nemo_kit.figures.output import git_commit, versions

    commit = git_commit()
    return versions() | ({"commit": commit} if commit else {})
