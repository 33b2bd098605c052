"""What localization found for one prompt, and its flat form for tables.

Scope: the value object; written to CSV or parquet by whoever runs many prompts.
Source: "Finding NeMo" (arXiv 2406.02366), section 3.2 and table 2 (times of Algorithms 1 to 4).
"""

import json
import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from nemo_kit.localization.search import Refinement, Selection
from nemo_kit.neurons import NeuronSet
from nemo_kit.settings import LocalizationSettings

ALGORITHMS = {  # names of the stages of a run, with what they are in the paper
    "detect": "1 noise differences",
    "activations": "2 activations",
    "select": "3 initial selection",
    "refine": "4 refinement",
}
STAGES = tuple(ALGORITHMS)
_NUMBERS = ("theta", "k", "initial_score", "refined_score", "refinement_threshold", "verified")


@dataclass(frozen=True)
class Localization:
    """The outcome of Algorithms 1 to 4 for one prompt.

    `score` is the memorization score; `initial_score` and `refined_score` are the scores left
    with those neurons deactivated; `refinement_threshold` is what refinement compared with. For a
    prompt that is not flagged the sets are empty, θ, k and these three are None.
    `search` names the mode that ran. Modes that verify their result (`bisect`, `attributed`) set
    `verified`, and `fell_back`: neurons that failed the verification and were dropped in the
    paper's way.
    `samples` and `times` (seconds) count denoiser samples and time by algorithm, under the names
    in `STAGES`.
    Source: section 3.2; tables 1 and 2.
    """

    prompt: str
    flagged: bool
    score: float
    kept_seeds: tuple[int, ...]
    threshold: float
    settings: LocalizationSettings
    search: str
    samples: dict[str, int]
    times: dict[str, float]
    initial: NeuronSet = field(default_factory=NeuronSet)
    refined: NeuronSet = field(default_factory=NeuronSet)
    theta: float | None = None
    k: int | None = None
    initial_score: float | None = None
    refined_score: float | None = None
    refinement_threshold: float | None = None
    verified: bool | None = None
    fell_back: NeuronSet = field(default_factory=NeuronSet)

    def after(self, selection: Selection, refinement: Refinement) -> Self:
        """The same with what the search found."""
        return replace(
            self,
            flagged=True,
            initial=selection.candidates,
            refined=refinement.neurons,
            theta=selection.theta,
            k=selection.k,
            initial_score=selection.score,
            refined_score=refinement.score,
            refinement_threshold=selection.refinement_threshold,
            verified=refinement.verified,
            fell_back=refinement.fell_back,
        )

    @property
    def samples_evaluated(self) -> int:
        """Denoiser samples in all."""
        return sum(self.samples.values())

    @property
    def seconds(self) -> float:
        """Seconds in all."""
        return sum(self.times.values())

    def to_row(self) -> dict[str, Any]:
        """Plain values for one row of a table; sets and settings as JSON, None as NaN."""
        row: dict[str, Any] = {
            "prompt": self.prompt,
            "flagged": self.flagged,
            "score": self.score,
            "threshold": self.threshold,
            "kept_seeds": json.dumps(list(self.kept_seeds)),
            "initial": self.initial.to_json(),
            "refined": self.refined.to_json(),
            "n_initial": len(self.initial),
            "n_refined": len(self.refined),
            "samples_evaluated": self.samples_evaluated,
            "seconds": self.seconds,
            "search": self.search,
            "fell_back": self.fell_back.to_json(),
            "settings": json.dumps(asdict(self.settings)),
        }
        for name in _NUMBERS:
            value = getattr(self, name)
            row[name] = math.nan if value is None else float(value)
        row |= {f"samples_{name}": count for name, count in self.samples.items()}
        return row | {f"seconds_{name}": time for name, time in self.times.items()}
