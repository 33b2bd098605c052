"""A progress bar that whoever waits for the process can read too.

Scope: tqdm's bar, whose numbers also go to the file that an environment variable names. So the
runner of the figures shows how far the work inside a notebook is, without reading printed text.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tqdm import tqdm

FILE = "NEMO_KIT_PROGRESS"  # environment variable: where the numbers go; unset: nowhere


class Bar(tqdm):
    """tqdm's bar; while it is open, label, done, total and seconds left are in the file too."""

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        """Show the bar, and note its numbers."""
        _note(self.format_dict)
        return super().display(msg, pos)

    def close(self) -> None:
        """Close the bar; its numbers are no longer true."""
        shown = not self.disable
        super().close()
        if shown and (name := os.environ.get(FILE)):
            Path(name).unlink(missing_ok=True)


def _note(numbers: dict[str, Any]) -> None:
    """Write by rename, so that a reader never sees half; progress is never worth a failure."""
    if not (name := os.environ.get(FILE)):
        return
    path = Path(name)
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_text(json.dumps(_numbers(**numbers)), encoding="utf-8")
        os.replace(part, path)
    except OSError:
        return


def _numbers(
    *, n: float, total: float | None, elapsed: float, rate: float | None, prefix: str, **_: Any
) -> dict[str, Any]:
    pace = rate or (n / elapsed if elapsed else None)
    left = (total - n) / pace if total is not None and pace else None
    return {"label": prefix, "done": n, "total": total, "left": left}
