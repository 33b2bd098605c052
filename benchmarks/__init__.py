"""What localization costs: the released algorithm against the search modes, on one set of prompts.

Scope, from a clone; nothing here is in the package:
- `python -m benchmarks` (or `make bench`): all of it, into runs/bench
- `compare`: baseline and modes in alternation, one shard a prompt; the table of ratios
- `released`: a plain reading of the released algorithm, with its costs
- `quality`: precision and recall against known neurons, SSCD_gen of pictures without them
- `throughput`: `score` against the bare U-Net at Stable Diffusion's shapes, on a GPU
- `python -m benchmarks.explorer`: how fast the explorer answers
Source: "Finding NeMo" (arXiv 2406.02366), table 2 (times of Algorithms 1 to 4).
"""
