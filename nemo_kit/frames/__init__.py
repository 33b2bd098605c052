"""Tidy frames behind notebooks 05, 07 and 08, and what they ask models for.

- `evaluation`, `mitigation`: table 1
- `ablation`: table 4, figure 5b; `quality`: table 3, figures 5a and 8
- `paper`: the paper's own numbers
Source: Hintersdorf et al., "Finding NeMo", NeurIPS 2024; each module names its figures.
"""
