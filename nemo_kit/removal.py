"""What a permanent removal did: to the prompts it was made for, and to all others.

Scope: the same prompts and seeds drawn by the model before and after, measured side by side; how
it is shown is in `nemo_kit.removal_page`.
Source: "Finding NeMo" (arXiv 2406.02366), section 4: SSCD_orig, SSCD_gen, diversity and alignment
(table 1), quality on prompts that are not memorized (figure 8), disentanglement (table 3).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from nemo_kit import effects, metrics
from nemo_kit.checks import check_seeds_apart, check_texts
from nemo_kit.experiments import Keyed, detect_all, generate_all
from nemo_kit.mitigation.nemo import NeMo, union
from nemo_kit.originals import TrainingImages

if TYPE_CHECKING:
    from nemo_kit.metrics import Clip, Embedder
    from nemo_kit.mitigation import Mitigation
    from nemo_kit.models import DiffusionModel

MEASURES = ("orig", "above", "gen", "diversity", "alignment")
DETECTION_SEEDS = range(1, 11)
_SIDES = ("before", "after")


@dataclass(frozen=True)
class Removal:
    """A removal as measured.

    `memorized`, `others`: a row a prompt, each measure `_before` and `_after`, with `score` and
    `flagged` of the detection; `medians`: of each measure by group, with a bootstrap interval;
    `quality`: distances of the other prompts' pictures; `layers`: disentanglement by layer, empty
    where weights other than neurons were changed; `pictures`: prompt -> (training image or None,
    before, after); `settings`: seeds, steps, networks.
    """

    memorized: pd.DataFrame
    others: pd.DataFrame
    medians: pd.DataFrame
    quality: pd.DataFrame
    layers: pd.DataFrame
    pictures: dict[str, tuple[np.ndarray | None, np.ndarray, np.ndarray]]
    settings: dict[str, Any]


def measure(
    before: DiffusionModel,
    after: DiffusionModel,
    mitigation: Mitigation,
    memorized: Sequence[str],
    others: Sequence[str],
    *,
    store: str | Path,
    seeds: Iterable[int] = range(101, 105),
    steps: int = 50,
    embedder: Embedder | None = None,
    clip: Clip | None = None,
    reference: Any = None,
    training: TrainingImages | None = None,
) -> Removal:
    """Measure a model before and after a permanent removal.

    Returns a `Removal`.
    Parameters: `mitigation`, what was written into `after`; `memorized`, prompts it was made for;
    `others`, at least two more that are not memorized; `store`, where pictures and scores are
    kept, so that a call that was ended goes on; `seeds`, other than detection's 1 to 10;
    `steps`, of DDIM; `embedder`, a copy descriptor, by default the embedded model's; `clip`, by
    default the embedded model's; `reference`, real pictures for the quality (see
    `metrics.real_features`), by default those of the embedded model for it, else none;
    `training`, by default the embedded model's training images.
    Raises TypeError or ValueError for bad prompts or seeds.
    Source: paper, section 4.
    """
    texts, rest = check_texts(memorized), check_texts(others)
    numbers = check_seeds_apart(seeds, DETECTION_SEEDS)
    rest = [one for one in dict.fromkeys(rest) if one not in texts]
    if len(rest) < 2:
        raise ValueError(
            f"others must hold at least 2 prompts that are not memorized to measure quality, got "
            f"{len(rest)}"
        )
    look, words = embedder or metrics.lab_descriptor(), clip or metrics.load_clip("lab")
    models = dict(zip(_SIDES, map(Keyed.of, (before, after)), strict=True))
    shots = {
        side: _pictures(model, [*texts, *rest], numbers, steps, store)
        for side, model in models.items()
    }
    flags = {side: _scores(before, model, [*texts, *rest], store) for side, model in models.items()}
    known = training or TrainingImages()
    originals = {name: known.one(name) for name in [*texts, *rest]}
    table = _table([*texts, *rest], len(texts), shots, flags, look, words, originals)
    table.insert(2, "neurons", [_neurons(mitigation, before, prompt) for prompt in table["prompt"]])
    own = table["group"] == "memorized"
    plain = before.name == "lab" and words.name == "lab CLIP"
    real = "lab" if reference is None and plain else reference
    return Removal(
        memorized=table[own].drop(columns="group").reset_index(drop=True),
        others=table[~own].drop(columns=["group", "neurons"]).reset_index(drop=True),
        medians=_medians(table),
        quality=_quality(rest, shots, words, real),
        layers=_layers(before, mitigation, texts, rest),
        pictures={p: (originals[p], shots["before"][p], shots["after"][p])
                  for p in texts},
        settings={"seeds": numbers, "steps": steps, "guidance": before.guidance,
                  "dtype": str(before.dtype), **look.labels, "clip": words.name},
    )  # fmt: skip


def _pictures(
    model: Keyed, prompts: list[str], seeds: list[int], steps: int, store: str | Path
) -> dict[str, np.ndarray]:
    """prompt -> uint8 [seeds, H, W, 3]."""
    made = generate_all(model, prompts, seeds, store=store, steps=steps)
    names = list(dict.fromkeys(prompts))
    return dict(zip(names, effects.pictures(made, names), strict=True))


def _scores(
    before: DiffusionModel, model: Keyed, prompts: list[str], store: str | Path
) -> pd.DataFrame:
    """The memorization score of each prompt, held against the threshold of the model before."""
    known = before.calibration
    if known is None:
        return pd.DataFrame({"prompt": prompts, "score": np.nan, "memorized": pd.NA})
    options = {"settings": known.detection, "similarity": known.similarity}
    seeds, threshold = DETECTION_SEEDS, known.threshold
    return detect_all(model, prompts, seeds, store=store, threshold=threshold, **options)


def _table(
    prompts: list[str],
    memorized: int,
    shots: Any,
    flags: Any,
    look: Embedder,
    clip: Clip,
    originals: dict[str, Any],
) -> pd.DataFrame:
    """A row a prompt."""
    names = list(dict.fromkeys(prompts))
    own = set(prompts[:memorized])
    rows = pd.DataFrame({"prompt": names})
    rows["group"] = ["memorized" if name in own else "others" for name in names]
    known = [originals[name] for name in names]
    plain = [shots["before"][name] for name in names]
    for side in _SIDES:
        found = metrics.copying_table(
            rows[["prompt"]], [shots[side][n] for n in names], look, known, plain, clip
        )
        for name in MEASURES:
            if (name, side) != ("gen", "before"):
                rows[name if name == "gen" else f"{name}_{side}"] = found[name]
        score = flags[side].drop_duplicates("prompt").set_index("prompt").reindex(names)
        rows[f"score_{side}"] = score["score"].to_numpy()
        rows[f"flagged_{side}"] = score["memorized"].to_numpy()
    return rows


def _neurons(mitigation: Mitigation, model: DiffusionModel, prompt: str) -> str:
    """The neurons that the mitigation scales for a prompt, as JSON; empty for other weights."""
    if not isinstance(mitigation, NeMo):
        return ""
    return mitigation.chosen(model, prompt).to_json()


def _medians(table: pd.DataFrame) -> pd.DataFrame:
    """Median, deviation and interval of each measure, by group: measures before beside after."""
    rows = []
    numbers = [n for n in table.select_dtypes("number").columns if table[n].notna().any()]
    for group, part in table.groupby("group", sort=False):
        for name in numbers:
            values = part[name].dropna()
            if len(values):
                told = metrics.summarize(values).to_row()
                rows.append({"group": group, "measure": name} | told)
    return pd.DataFrame(rows)


def _quality(others: list[str], shots: Any, clip: Clip, reference: Any) -> pd.DataFrame:
    """Distances between the other prompts' pictures and real ones, and between before and after."""
    sides = {s: np.concatenate([shots[s][name] for name in others]) for s in _SIDES}
    pairs = [("after", "pictures before", sides["before"])]
    if reference is not None:
        pairs += [(side, "real pictures", reference) for side in _SIDES]
    rows = []
    for side, name, against in pairs:
        for one in metrics.image_distances(sides[side], against, clip.embedder):
            told = {"distance": one.name, "value": one.value, "extractor": one.extractor}
            counts = {"images": one.images, "references": one.references}
            told |= {"deviation": one.deviation, **counts}
            rows.append({"pictures": side, "against": name, **told})
    return pd.DataFrame(rows)


def _layers(
    model: DiffusionModel, mitigation: Mitigation, prompts: list[str], others: list[str]
) -> pd.DataFrame:
    """Cosine of cross-attention outputs with and without the neurons, by layer."""
    from nemo_kit.disentanglement import disentanglement

    names = ["layer", "block", "cosine", "deviation", "samples"]
    if not isinstance(mitigation, NeMo):
        return pd.DataFrame(columns=names)
    neurons = union({prompt: mitigation.chosen(model, prompt) for prompt in prompts})
    return disentanglement(model, others, neurons, factor=mitigation.factor)[names]
