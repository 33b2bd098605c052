"""Initial selection and refinement as pure logic over `score(sets)`, in named search modes.

Scope: Algorithms 3 and 4. Each entry of `SEARCHES` has the same two functions:
- `sequential`: the paper, call by call
- `speculative`: the same sets from batched chains, the default
- `bisect`: the same order by doubling and halving; verified
- `attributed`: in the order of each candidate's first-order effect; verified
Source: "Finding NeMo" (arXiv 2406.02366), Algorithms 3 and 4, and the authors' released code.
"""

from nemo_kit.checks import check_choice
from nemo_kit.localization.search import attributed, halving, sequential, speculative
from nemo_kit.localization.search.sequential import refine, select_initial
from nemo_kit.localization.search.steps import (
    Batched,
    Propose,
    Refinement,
    Report,
    Search,
    Selection,
    schedule,
)
from nemo_kit.localization.search.verification import unnecessary

__all__ = [
    "SEARCHES",
    "Batched",
    "Propose",
    "Refinement",
    "Report",
    "Search",
    "Selection",
    "find_search",
    "refine",
    "schedule",
    "select_initial",
    "unnecessary",
]

SEARCHES: dict[str, Search | Batched] = {
    "sequential": Search(sequential.select_initial, sequential.refine),
    "speculative": speculative.SEARCH,
    "bisect": halving.SEARCH,
    "attributed": attributed.SEARCH,
}


def find_search(name: str) -> Search | Batched:
    """The search mode of that name; raises ValueError that lists them."""
    check_choice("search", name, sorted(SEARCHES))
    return SEARCHES[name]
