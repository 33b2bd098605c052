"""Pictures under interventions, measured prompt by prompt: what tables 1 and 4 and figure 5b need.

Scope: seeds of the pictures, the pictures of each setting through the store, their measures, and
medians over prompts. A setting is a name with what `generate_all` takes for it.
Source: Hintersdorf et al., "Finding NeMo", NeurIPS 2024, section 4, tables 1 and 4.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from nemo_kit import effects, metrics
from nemo_kit.checks import check_seeds_apart, check_whole
from nemo_kit.originals import TrainingImages
from nemo_kit.store import Keyed, generate_all

if TYPE_CHECKING:
    from nemo_kit.models import DiffusionModel

MEASURES = ("orig", "gen", "diversity", "alignment")  # columns of `measured`, order of table 1
Looks = tuple[metrics.Embedder, metrics.Clip]  # what pictures are compared by
Setting = tuple[str, Mapping[str, Any]]


def evaluation_seeds(count: int, first: int, detection: Iterable[int]) -> list[int]:
    """Seeds of the pictures a mitigation is judged on, none of which detection used.

    Returns `count` consecutive seeds from `first` on.

    Parameters: `count`, at least 1; `first`, at least 0; `detection`, the seeds that detection and
    localization used.
    Raises ValueError where a seed is in both: neurons found on a seed suit that seed's noise.
    Source: paper, section 4 (detection and evaluation seeds differ).
    """
    check_whole("count", count, 1)
    check_whole("first", first, 0)
    return check_seeds_apart(range(first, first + count), detection)


def networks(
    sscd: str | Path | None = None,
    clip: str = "lab",
    device: str = "cpu",
    sha256: str | None = None,
) -> Looks:
    """The copy descriptor and the CLIP that pictures are measured with.

    Parameters: `sscd`, the TorchScript file of SSCD (320 pixels square, as in the paper), None: the
    embedded model's descriptor; `clip`, "lab", a folder, or a hub id; `device`; `sha256`, of an
    SSCD file that is none of the published ones.
    Raises ValueError or FileNotFoundError where one can't be opened.
    Source: paper, section 4.
    """
    if sscd is None:
        return metrics.lab_descriptor(), metrics.load_clip(clip, device=device)
    descriptor = metrics.sscd(sscd, sha256=sha256, device=device)
    return descriptor, metrics.load_clip(clip, device=device)


def note(looks: Looks) -> str:
    """A table's note: what its numbers are, and which networks gave them."""
    embedder, clip = looks
    return (
        "Median ± MAD over prompts, below it the 95 % bootstrap interval. orig, gen, div: cosines "
        f"of {embedder.name}; align: of {clip.name}."
    )


def measured(
    model: DiffusionModel,
    rows: pd.DataFrame,
    settings: Iterable[Setting],
    *,
    seeds: Sequence[int],
    detection_seeds: Iterable[int],
    store: str | Path,
    looks: Looks | None = None,
    training: TrainingImages | None = None,
    median: metrics.Median = "middle two",
    **options: Any,
) -> pd.DataFrame:
    """Pictures of every prompt under every setting, from the store or new, and their measures.

    Returns a frame with `setting`, `repeat` (0, 1, … where a name comes more than once), the
    columns of `rows`, and those of `metrics.copying_table`: `orig`, `gen`, `diversity`,
    `alignment`, … of each prompt, and the names of what measured; `gen` is against the undisturbed
    pictures of the same seeds; `mitigation_protocol`, that of the setting's mitigation.

    Parameters: `rows`, with `prompt` and `group`; `settings`, pairs of a name and what
    `generate_all` takes for it (`neurons`, `factor`, `mitigation`; nothing: undisturbed); `seeds`
    of the pictures; `detection_seeds`, which they must not meet; `looks`, from `networks`, by
    default the embedded model's, as is `training`; `median` over seeds, "lower middle" as in the
    released metrics; `options`, for all pictures (`steps`, `guidance`).
    Raises ValueError for shared seeds, and what `generate_all` raises.
    Source: paper, section 4 and table 1.
    """
    check_seeds_apart(seeds, detection_seeds)
    prompts, looks, keyed = list(rows["prompt"]), looks or networks(), Keyed.of(model)

    def draw(**how: Any) -> pd.DataFrame:
        return generate_all(keyed, prompts, seeds, store=store, **options, **how)

    before, parts, repeats = draw(), [], Counter[str]()
    for name, how in settings:
        after = draw(**how) if how else before
        part = _measures(rows, before, after, looks, training or TrainingImages(), median)
        part.insert(0, "setting", name)
        part.insert(1, "repeat", repeats[name])
        part["mitigation_protocol"] = getattr(how.get("mitigation"), "protocol", "")
        repeats[name] += 1
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def _measures(
    rows: pd.DataFrame,
    before: pd.DataFrame,
    after: pd.DataFrame,
    looks: Looks,
    training: TrainingImages,
    median: metrics.Median,
) -> pd.DataFrame:
    """Of the prompts that have both pictures: one that failed was named in a warning."""
    kept = effects.with_pictures(rows, before, after)
    first, second = (effects.pictures(made, kept["prompt"]) for made in (before, after))
    known = [training.one(prompt) for prompt in kept["prompt"]]
    embedder, clip = looks
    return metrics.copying_table(kept, second, embedder, known, first, clip, kind=median)


def over_prompts(frame: pd.DataFrame, measures: Sequence[str] = MEASURES) -> pd.DataFrame:
    """Median ± median absolute deviation over prompts for every setting, group and measure.

    Returns a frame with `setting`, `group`, `measure`, `prompts`, `median`, `mad`, `low`, `high`
    (95 % bootstrap interval of the median), settings in their order. Repeats of a setting count as
    one value a prompt, their mean. A number that is NaN for a prompt leaves the prompt out.

    Parameters: `frame`, from `measured`; `measures`, its columns to tell.
    Raises ValueError for a missing column.
    Source: paper, table 1 (median ± MAD); the intervals are an addition.
    """
    missing = {"setting", "prompt", "group", *measures} - set(frame.columns)
    if missing:
        raise ValueError(f"frame lacks {', '.join(sorted(missing))}; it has {list(frame.columns)}")
    keys = ["setting", "group", "prompt"]
    single = frame.groupby(keys, sort=False, as_index=False)[list(measures)].mean()
    found = [
        {"setting": setting, "group": group, "measure": name}
        | metrics.summarize(part[name].dropna()).to_row()
        for (setting, group), part in single.groupby(["setting", "group"], sort=False)
        for name in measures
        if part[name].notna().any()
    ]
    names = ["setting", "group", "measure", "prompts", "median", "mad", "low", "high"]
    return pd.DataFrame(found, columns=names)


def of(frame: pd.DataFrame, setting: str, prompts: Iterable[str]) -> pd.DataFrame:
    """The rows of some prompts under one setting, and undisturbed.

    Parameters: `frame`, from `measured`; `setting`, besides "default"; `prompts`.
    """
    wanted = frame["setting"].isin(["default", setting]) & frame["prompt"].isin(list(prompts))
    return frame[wanted].reset_index(drop=True)


def wide(summary: pd.DataFrame) -> pd.DataFrame:
    """The summary as a table to read: a row a setting, a column a group and measure.

    Returns text cells, ``0.83 ± 0.16 [0.80, 0.86]``; empty where a number is missing.
    Parameters: `summary`, from `over_prompts`.
    """
    cells = [
        str(metrics.Summary(r.median, r.mad, r.low, r.high, r.prompts))
        for r in summary.itertuples()
    ]
    heads = summary["group"] + " " + summary["measure"]
    table = summary.assign(cell=cells, head=heads)
    order, settings = list(dict.fromkeys(heads)), list(dict.fromkeys(summary["setting"]))
    return (
        table.pivot(index="setting", columns="head", values="cell").loc[settings, order].fillna("")
    )
