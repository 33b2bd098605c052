"""What a result was computed with: model, versions of the libraries, commit of the clone.

Scope: plain values for manifests and reports, and where the clone is.
"""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from nemo_kit.keys import PACKAGE

_LIBRARIES = ("numpy", "pandas", "torch", "diffusers", "transformers", "torchmetrics")
_DRAWING = ("matplotlib", "seaborn")


def describe_model(model: Any) -> dict[str, str | None] | None:
    """Name, revision, device and dtype of a loaded model as JSON; None for None."""
    if model is None:
        return None
    place = f"{platform.machine()}, {os.cpu_count()} cores"
    if str(model.device).startswith("cuda"):
        import torch

        place = torch.cuda.get_device_name(model.device)
    described = {"name": str(model.name), "revision": model.revision and str(model.revision)}
    if getattr(model, "lora", None):
        described["lora"] = str(model.lora)
    return {**described, "device": f"{model.device} ({place})", "dtype": str(model.dtype)}


def versions() -> dict[str, str]:
    """Versions of nemo_kit, Python and the libraries that results depend on."""
    found = {"python": platform.python_version()}
    for name in ("nemo_kit", *_LIBRARIES, *_DRAWING):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def root() -> Path:
    """The clone the package lies in, or the current folder where there is none."""
    return PACKAGE.parent if (PACKAGE.parent / "notebooks").is_dir() else Path.cwd()


def git_commit() -> str | None:
    """Commit of the clone the package lies in, ``+changes`` where the tree differs; else None."""
    if not (PACKAGE.parent / ".git").exists():
        return None
    asked = (["rev-parse", "HEAD"],
             ["status", "--porcelain", "--untracked-files=no", "--", "nemo_kit"])  # fmt: skip
    how = {"cwd": PACKAGE.parent, "capture_output": True, "text": True, "check": True}
    try:
        told = [subprocess.run(["git", *one], timeout=20, **how).stdout.strip() for one in asked]
    except (OSError, subprocess.SubprocessError):
        return None
    return told[0] + ("+changes" if told[1] else "")
