"""All mitigations on the same prompts and seeds: the settings of table 1, with repeated draws.

Scope: rows of `nemo_kit.mitigation` as settings of pictures. Measuring is in
`nemo_kit.frames.evaluation`, the paper's values are in `nemo_kit.frames.paper`.
Source: Hintersdorf et al., "Finding NeMo", NeurIPS 2024, section 4 and table 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING

import pandas as pd

from nemo_kit.checks import check_whole
from nemo_kit.frames.evaluation import Setting
from nemo_kit.mitigation import (
    Mitigation,
    NeMo,
    NoiseOptimisation,
    NoMitigation,
    RandomNeurons,
    further_rows,
    paper_rows,
)
from nemo_kit.mitigation.nemo import union
from nemo_kit.neurons import NeuronSet

if TYPE_CHECKING:
    from nemo_kit.models import DiffusionModel


def rows(
    found: Mapping[str, NeuronSet],
    initial: Mapping[str, NeuronSet],
    known: Mapping[str, NeuronSet],
    repeats: int = 1,
    candidates: int | None = None,
) -> list[tuple[str, Mitigation]]:
    """The rows of table 1 in the paper's order, then the others; random ones `repeats` times.

    Returns pairs of a name and a mitigation; a mitigation that draws comes once for each seed
    0, 1, …; random neurons overflow into other layers where one is too narrow.

    Parameters: `found`, prompt -> refined neurons; `initial`, prompt -> candidates; `known`, the
    refined neurons of all prompts that were looked at, which random ones avoid; `repeats`, at least
    1 (the paper: 5 for random neurons); `candidates`, of the initial-noise optimisation, by default
    its own 8.
    Raises ValueError for numbers below 1.
    Source: paper, table 1; the others name their own.
    """
    check_whole("repeats", repeats, 1)
    barred = union(known)
    drawn: dict[str, list[Mitigation]] = {}
    for seed in range(repeats):
        all_rows = paper_rows(found, seed, overflow=True) | further_rows(initial, seed)
        for name, way in all_rows.items():
            if seed == 0 or draws(way):
                drawn.setdefault(name, []).append(_adjusted(way, barred, candidates))
    return [(name, way) for name, ways in drawn.items() for way in ways]


def draws(way: Mitigation) -> bool:
    """Whether a mitigation draws at random, so that it is to be repeated."""
    return any(one.name == "seed" for one in fields(way))


def _adjusted(way: Mitigation, barred: NeuronSet, candidates: int | None) -> Mitigation:
    if isinstance(way, RandomNeurons):
        return replace(way, found=barred)
    if isinstance(way, NoiseOptimisation) and candidates is not None:
        return replace(way, candidates=candidates)
    return way


def settings(
    model: DiffusionModel, chosen: Sequence[tuple[str, Mitigation]], prompts: Sequence[str]
) -> list[Setting]:
    """The rows as settings of `evaluation.measured`.

    Returns pairs of a name and what `generate_all` takes. Mitigations that scale neurons become one
    set for each prompt, so that a prompt's pictures stay in the store when others are added.
    """
    found: list[Setting] = []
    for name, way in chosen:
        if isinstance(way, NoMitigation):
            found.append((name, {}))
        elif isinstance(way, NeMo):
            sets = {prompt: way.chosen(model, prompt) for prompt in prompts}
            factor = {} if way.factor == 0 else {"factor": way.factor}
            found.append((name, {"neurons": sets, **factor}))
        else:
            found.append((name, {"mitigation": way}))
    return found


def sources(chosen: Sequence[tuple[str, Mitigation]]) -> pd.DataFrame:
    """What each row is: `setting`, `draws` (how often it was repeated), `permanent`, `protocol`
    (what its authors' code does where papers or codes differ), `source`."""
    table = pd.DataFrame(
        [(name, way.permanent, way.protocol, way.source) for name, way in chosen],
        columns=["setting", "permanent", "protocol", "source"],
    )
    table.insert(1, "draws", table.groupby("setting")["setting"].transform("size"))
    return table.drop_duplicates("setting", ignore_index=True)


def sets(localized: pd.DataFrame, column: str = "refined") -> dict[str, NeuronSet]:
    """Prompt -> its neurons, empty where detection did not flag the prompt.

    Parameters: `localized`, from `localize_all`; `column`, "refined" or "initial".
    Raises ValueError for a missing column.
    """
    if missing := {"prompt", column} - set(localized.columns):
        raise ValueError(f"localized lacks {', '.join(sorted(missing))}; it has {list(localized)}")
    return dict(zip(localized["prompt"], localized[column], strict=True))
