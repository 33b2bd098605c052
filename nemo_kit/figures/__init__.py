"""Figures: which notebook draws which, with what parameters, and the runner that keeps them fresh.

Scope: ``registry`` (figure → notebook → parameters, presets), ``output`` (what a notebook calls to
write a figure and its manifest), ``keys`` (when a figure is stale), ``runner`` and ``worker``
(papermill in a process of its own). Nothing here computes a result or imports torch.
Source: the figure and table numbers are those of Hintersdorf et al., NeurIPS 2024.
"""

from nemo_kit.figures.output import save, write_manifest
from nemo_kit.figures.registry import FIGURES, NOTEBOOKS, PRESETS, Figure, Parameters, select

__all__ = [
    "FIGURES",
    "NOTEBOOKS",
    "PRESETS",
    "Figure",
    "Parameters",
    "save",
    "select",
    "write_manifest",
]
