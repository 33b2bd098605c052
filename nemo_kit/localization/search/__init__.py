"""Initial selection and refinement as pure logic over scores of neuron sets, in named search modes.

Scope: Algorithms 3 and 4. Each entry of `SEARCHES` is a class with the same two functions, `select`
and `refine`; the version of its file counts:
- `sequential`: the paper, call by call
- `speculative`: the same sets from batched chains, the default
- `bisect`: the same order by doubling and halving; verified
- `attributed`: in the order of each candidate's first-order effect; verified
Source: "Finding NeMo" (arXiv 2406.02366), Algorithms 3 and 4, and the authors' released code.
"""

from nemo_kit.checks import check_choice
from nemo_kit.localization.search.attributed import Fewest
from nemo_kit.localization.search.halving import Halving, unnecessary
from nemo_kit.localization.search.sequential import Sequential, refine, select_initial
from nemo_kit.localization.search.speculative import Chain
from nemo_kit.localization.search.steps import (
    Propose,
    Refinement,
    Report,
    Selection,
    Walk,
    schedule,
)

SEARCHES: dict[str, type[Sequential | Walk]] = {
    "sequential": Sequential,
    "speculative": Chain,
    "bisect": Halving,
    "attributed": Fewest,
}


def find_search(name: str) -> type[Sequential | Walk]:
    """The search mode of that name; raises ValueError that lists them."""
    check_choice("search", name, sorted(SEARCHES))
    return SEARCHES[name]
