"""What localization costs: the released algorithm against the search modes, on one set of prompts.

Scope:
- `released`: a plain reading of the released algorithm, with its costs
- `compare`: baseline and modes in alternation, one shard a prompt; the table of ratios
- `quality`: precision and recall against known neurons, SSCD_gen of pictures without them
- `throughput`: `score` against the bare U-Net at Stable Diffusion's shapes, on a GPU
Source: "Finding NeMo" (arXiv 2406.02366), table 2 (times of Algorithms 1 to 4).
"""

from nemo_kit.bench.compare import disagreements, flagged_by_baseline, measure, summary
from nemo_kit.bench.quality import with_known, with_pictures
from nemo_kit.bench.released import localize_released
from nemo_kit.bench.throughput import throughput

__all__ = [
    "disagreements",
    "flagged_by_baseline",
    "localize_released",
    "measure",
    "summary",
    "throughput",
    "with_known",
    "with_pictures",
]
