"""Figures: what notebooks call to write them, and the runner that keeps them fresh.

Scope: ``output`` (what a notebook calls), ``runner`` with ``worker``, and ``gallery``. Nothing here
computes a result or imports torch.
"""

from nemo_kit.figures.output import save, write_manifest
from nemo_kit.notebooks import place, read_all, select
