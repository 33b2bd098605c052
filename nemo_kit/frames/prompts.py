"""Which prompts a notebook works on: so many of each group, spread over the table.

Scope: choosing rows of a prompt table, naming their groups, joining results with them.
Source: Hintersdorf et al., "Finding NeMo", NeurIPS 2024, section 4 (VM, TM and other prompts).
"""

from __future__ import annotations

import numpy as np
import pandas as pd

GROUP_OF_ROLE = {
    "verbatim": "VM",
    "template": "TM",
    "non_memorized": "non-memorized",
    "holdout": "hold-out",
}


def choose(
    table: pd.DataFrame,
    memorized: int | None = None,
    non_memorized: int | None = None,
    holdout: int | None = 0,
) -> pd.DataFrame:
    """Prompts to work on, so many of each group, spread evenly over the table.

    Returns the chosen rows of the table with a column `group`: VM, TM, non-memorized, hold-out.

    Parameters: `table`, with `prompt` and `role`, as `experiments.prompt_table` gives;
    `memorized`, prompts of each type VM and TM; `non_memorized`, `holdout`, prompts of that role;
    None takes all, 0 none. A table without hold-out prompts (the released files name none) gives
    non-memorized ones in their place.
    Raises ValueError for a missing column, a negative number, or when no prompt is left.
    """
    need(table, "prompt", "role")
    counts = {
        "verbatim": memorized,
        "template": memorized,
        "non_memorized": non_memorized,
        "holdout": holdout,
    }
    if holdout != 0 and not (table["role"] == "holdout").any():
        other = table[table["role"] == "non_memorized"]
        table = pd.concat([table, other.assign(role="holdout")])
    parts = [_spread(table[table["role"] == role], count) for role, count in counts.items()]
    chosen = pd.concat(parts, ignore_index=True)
    if chosen.empty:
        raise ValueError(f"table has no prompt of the roles asked for; roles: {set(table['role'])}")
    return chosen.assign(group=chosen["role"].map(GROUP_OF_ROLE))


def choose_ladder(table: pd.DataFrame, per_rate: int | None = None) -> pd.DataFrame:
    """Prompts of the repetition ladder, so many at each rate, by rate.

    Returns the chosen rows of the table, their `group` VM as each has one fixed picture.

    Parameters: `table`, with `prompt`, `role`, `repetitions`; `per_rate`, None takes all.
    Raises ValueError for a missing column or when no prompt has the role ladder.
    """
    need(table, "prompt", "role", "repetitions")
    rows = table[table["role"] == "ladder"].sort_values("repetitions", kind="stable")
    if rows.empty:
        raise ValueError("table has no prompt of the role ladder; only the model `lab` has them")
    parts = [_spread(part, per_rate) for _, part in rows.groupby("repetitions")]
    return pd.concat(parts, ignore_index=True).assign(group="VM")


def _spread(rows: pd.DataFrame, count: int | None) -> pd.DataFrame:
    if count is not None and count < 0:
        raise ValueError(f"numbers of prompts must be 0 or more, or None for all, got {count}")
    if count is None or count >= len(rows):
        return rows
    return rows.iloc[np.linspace(0, len(rows) - 1, count).round().astype(int)]


def first_prompt(table: pd.DataFrame, prompt: str = "") -> str:
    """The prompt itself, or where it is empty the table's first verbatim one.

    Raises ValueError where the table has none.
    """
    verbatim = table.loc[table["role"] == "verbatim", "prompt"]
    if not prompt.strip() and verbatim.empty:
        raise ValueError("prompt must be given: the prompt table has none of the role verbatim")
    return prompt if prompt.strip() else verbatim.iloc[0]


def grouped(results: pd.DataFrame, prompts: pd.DataFrame) -> pd.DataFrame:
    """Results with the group of their prompt as second column, in the order of the prompts.

    Raises ValueError for a missing column; prompts without a result have no row.
    """
    need(results, "prompt")
    need(prompts, "prompt", "group")
    return prompts[["prompt", "group"]].merge(results, on="prompt", validate="one_to_many")


def need(frame: pd.DataFrame, *columns: str) -> None:
    """Raise ValueError that names the missing columns and those there are."""
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise ValueError(f"frame lacks {', '.join(missing)}; it has {', '.join(map(str, frame))}")
