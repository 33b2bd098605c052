"""Which prompts to work on: so many of each group, spread over the table; results beside them.

Source: Hintersdorf et al., "Finding NeMo", NeurIPS 2024, section 4 (VM, TM and other prompts).
"""

import numpy as np
import pandas as pd

from nemo_kit.checks import check_columns

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

    Parameters: `table`, with `prompt` and `role`, as `prompt_table` gives; `memorized`, prompts of
    each type VM and TM; `non_memorized`, `holdout`, prompts of that role; None takes all, 0 none.
    A table without hold-out prompts (the released files name none) gives non-memorized ones in
    their place.
    Raises ValueError for a missing column, a negative number, or when no prompt is left.
    """
    check_columns("table", table, "prompt", "role")
    counts = {
        "verbatim": memorized,
        "template": memorized,
        "non_memorized": non_memorized,
        "holdout": holdout,
    }
    if holdout != 0 and not (table["role"] == "holdout").any():
        other = table[table["role"] == "non_memorized"]
        table = pd.concat([table, other.assign(role="holdout")])
    parts = [spread(table[table["role"] == role], count) for role, count in counts.items()]
    chosen = pd.concat(parts, ignore_index=True)
    if chosen.empty:
        raise ValueError(f"table has no prompt of the roles asked for; roles: {set(table['role'])}")
    return chosen.assign(group=chosen["role"].map(GROUP_OF_ROLE))


def spread(rows: pd.DataFrame, count: int | None) -> pd.DataFrame:
    """So many rows, spread evenly from the first to the last; None or more than there are: all.

    Raises ValueError for a negative number.
    """
    if count is not None and count < 0:
        raise ValueError(f"numbers of prompts must be 0 or more, or None for all, got {count}")
    if count is None or count >= len(rows):
        return rows
    return rows.iloc[np.linspace(0, len(rows) - 1, count).round().astype(int)]


def grouped(results: pd.DataFrame, prompts: pd.DataFrame) -> pd.DataFrame:
    """Results with the group of their prompt as second column, in the order of the prompts.

    Where prompts have an `origin` (planted or natural), it is the third.
    Raises ValueError for a missing column; prompts without a result have no row.
    """
    check_columns("results", results, "prompt")
    check_columns("prompts", prompts, "prompt", "group")
    known = [name for name in ("prompt", "group", "origin") if name in prompts]
    return prompts[known].merge(results, on="prompt", validate="one_to_many")
