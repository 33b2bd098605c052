"""All mitigations on the same prompts and seeds: the settings of table 1.

Scope: `nemo_kit.mitigation.table_rows` as settings of pictures. Measuring is in
`nemo_kit.frames.evaluation`, the paper's values are in `nemo_kit.frames.paper`.
Source: Hintersdorf et al., "Finding NeMo", NeurIPS 2024, section 4 and table 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from nemo_kit.frames.evaluation import Setting
from nemo_kit.mitigation import Mitigation, NeMo
from nemo_kit.neurons import NeuronSet

if TYPE_CHECKING:
    from nemo_kit.models import DiffusionModel


def settings(
    model: DiffusionModel, chosen: Sequence[tuple[str, Mitigation]], prompts: Sequence[str]
) -> list[Setting]:
    """The rows as settings of `evaluation.measured`.

    Returns pairs of a name and what `generate_all` takes. Mitigations that scale neurons become one
    set for each prompt, so that a prompt's pictures stay in the store when others are added.
    """
    found: list[Setting] = []
    for name, way in chosen:
        if type(way) is Mitigation:
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
