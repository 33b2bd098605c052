"""The paper's own numbers, to read beside measured ones, and where two orders disagree.

Scope: tables 1 and 4 of the paper as frames, and comparison of orders. The numbers belong to Stable
Diffusion 1.4, SSCD and CLIP ViT-B/32: only their order can be expected elsewhere.
Source: Hintersdorf et al., "Finding NeMo", NeurIPS 2024, tables 1 and 4.
"""

from __future__ import annotations

from itertools import combinations

import pandas as pd

NAN = float("nan")
COMPARED = ("orig", "gen", "diversity")  # alignment hardly differs between the paper's rows

# setting -> VM and TM, each (orig, gen, diversity, alignment) as (median, MAD)
TABLE_1 = {
    "default": (
        ((0.83, 0.16), (1.0, NAN), (0.99, 0.01), (0.32, NAN)),
        ((0.04, 0.04), (1.0, NAN), (0.17, 0.06), (0.31, NAN)),
    ),
    "prompt embedding adjustment": (
        ((0.04, 0.02), (0.08, 0.03), (0.08, 0.03), (0.30, NAN)),
        ((0.03, 0.02), (0.08, 0.03), (0.09, 0.03), (0.31, NAN)),
    ),
    "random neurons": (
        ((0.80, 0.11), (0.999, NAN), (0.99, 0.01), (0.32, NAN)),
        ((0.05, 0.04), (0.997, NAN), (0.16, 0.06), (0.31, NAN)),
    ),
    "attention scaling": (
        ((0.08, 0.04), (0.14, 0.07), (0.15, 0.05), (0.31, NAN)),
        ((0.05, 0.02), (0.19, 0.12), (0.12, 0.03), (0.31, NAN)),
    ),
    "1 random token": (
        ((0.59, 0.31), (0.68, 0.31), (0.67, 0.33), (0.31, NAN)),
        ((0.04, 0.03), (0.16, 0.05), (0.17, 0.05), (0.31, NAN)),
    ),
    "4 random tokens": (
        ((0.09, 0.06), (0.12, 0.09), (0.15, 0.06), (0.30, NAN)),
        ((0.04, 0.03), (0.13, 0.04), (0.15, 0.04), (0.30, NAN)),
    ),
    "10 random tokens": (
        ((0.03, 0.02), (0.07, 0.05), (0.11, 0.03), (0.28, NAN)),
        ((0.03, 0.03), (0.08, 0.05), (0.12, 0.04), (0.29, NAN)),
    ),
    "NeMo": (
        ((0.09, 0.06), (0.10, 0.07), (0.16, 0.06), (0.31, NAN)),
        ((0.05, 0.03), (0.05, 0.04), (0.12, 0.05), (0.31, NAN)),
    ),
}

# setting -> median number of neurons of VM and TM prompts
TABLE_4 = {
    "NeMo": (4, 21),
    "with guidance, swapped": (3, 6),  # the halves of guidance swapped, as in the released code
    "τ = μ − σ": (10.5, 32),
    "τ = μ": (6, 30),
    "τ = μ + 2σ": (3, 7),
    "no refinement": (26.5, 674.5),
    "no top-k": (11, 30),
}

# factor -> median SSCD_gen of VM prompts (the paper tells .11 to .12 for all negative ones)
TABLE_4_SCALING = {0.75: 0.995, 0.5: 0.97, 0.25: 0.32}


def table_1() -> pd.DataFrame:
    """The paper's table 1: columns `setting`, `group`, `measure`, `median`, `mad` (NaN: none told).

    Source: paper, table 1 (Stable Diffusion 1.4, SSCD, 10 seeds).
    """
    measures = ("orig", "gen", "diversity", "alignment")
    found = [
        (setting, group, measure, *pair)
        for setting, groups in TABLE_1.items()
        for group, pairs in zip(("VM", "TM"), groups, strict=True)
        for measure, pair in zip(measures, pairs, strict=True)
    ]
    return pd.DataFrame(found, columns=["setting", "group", "measure", "median", "mad"])


def table_4() -> pd.DataFrame:
    """The paper's neuron counts of table 4: `setting`, `group`, `measure` ("neurons"), `median`.

    Source: paper, table 4 (Stable Diffusion 1.4).
    """
    found = [
        (setting, group, "neurons", float(count))
        for setting, counts in TABLE_4.items()
        for group, count in zip(("VM", "TM"), counts, strict=True)
    ]
    return pd.DataFrame(found, columns=["setting", "group", "measure", "median"])


def beside(here: pd.DataFrame, there: pd.DataFrame) -> pd.DataFrame:
    """Medians here and in the paper, side by side, where both have them.

    Returns a frame with `setting`, `group`, `measure`, `here`, `paper`, in the paper's order.
    Parameters: `here` and `there`, with `setting`, `group`, `measure`, `median`.
    """
    keys = ["setting", "group", "measure"]
    both = there.merge(here, on=keys, suffixes=("_there", "_here"), validate="one_to_one")
    named = both.rename(columns={"median_here": "here", "median_there": "paper"})
    return named[[*keys, "here", "paper"]]


def orders(here: pd.DataFrame, there: pd.DataFrame, margin: float = 0.05) -> pd.DataFrame:
    """Pairs of settings that the paper tells apart, and how they come out here.

    Returns a frame with `group`, `measure`, `lower`, `higher` (settings, as the paper orders them),
    `paper` and `here` (higher minus lower), `verdict`: "same" or "reversed", or "tied" where the
    difference here is within the margin. Pairs within the margin in the paper are left out.

    Parameters: `here` and `there`, with `setting`, `group`, `measure`, `median`; `margin`, the
    difference that counts, in the unit of the measure.
    """
    known = {key: part.set_index("setting")["median"] for key, part in _groups(there)}
    found = []
    for key, part in _groups(here):
        own, paper = part.set_index("setting")["median"], known.get(key, pd.Series(dtype=float))
        for one, two in combinations([name for name in paper.index if name in own.index], 2):
            low, high = (one, two) if paper[one] < paper[two] else (two, one)
            gap, ours = paper[high] - paper[low], own[high] - own[low]
            if gap > margin:
                verdict = "tied" if abs(ours) <= margin else "same" if ours > 0 else "reversed"
                found.append((*key, low, high, gap, ours, verdict))
    names = ["group", "measure", "lower", "higher", "paper", "here", "verdict"]
    return pd.DataFrame(found, columns=names)


def _groups(frame: pd.DataFrame) -> list[tuple[tuple[str, str], pd.DataFrame]]:
    return [(key, part) for key, part in frame.groupby(["group", "measure"], sort=False)]


def sentences(compared: pd.DataFrame, most: int = 6) -> str:
    """What `orders` found, in words: how many pairs agree, and the largest reversals.

    Returns Markdown, a line for each group and measure and one for each of the `most` largest
    reversals.
    """
    if compared.empty:
        return "No pair of settings can be compared with the paper's order."
    lines = []
    for (group, measure), part in compared.groupby(["group", "measure"], sort=False):
        count = part["verdict"].value_counts()
        told = ", ".join(f"{count.get(v, 0)} {v}" for v in ("same", "tied", "reversed"))
        lines.append(f"- {group}, {measure}: of {len(part)} pairs that the paper orders, {told}.")
    turned = compared[compared["verdict"] == "reversed"].sort_values("here")[:most]
    lines += [
        f"- Other than in the paper ({row.group}, {row.measure}): *{row.lower}* lies "
        f"{-row.here:.3g} above *{row.higher}* here, {row.paper:.3g} below it there."
        for row in turned.itertuples()
    ]
    return "\n".join(lines)
