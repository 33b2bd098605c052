"""The public names, imported only when asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest


def test_public_names_are_imported_only_when_asked_for() -> None:
    code = (
        "import nemo_kit, sys; print('torch' in sys.modules, nemo_kit.__version__, dir(nemo_kit));"
        "import nemo_kit.models.opening, nemo_kit.localization, nemo_kit.generation;"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, later = done.stdout.splitlines()
    assert first.startswith("False 0.1.0")
    slow = {"pandas", "torchmetrics", "scipy", "seaborn", "matplotlib", "diffusers", "papermill"}
    assert not slow & {*later.split()}  # imported where they are used, not to open a model
    import nemo_kit

    for name in nemo_kit.__all__:
        assert getattr(nemo_kit, name) is not None
    with pytest.raises(AttributeError, match="nemo_kit has no 'find'; it has NeuronSet"):
        _ = nemo_kit.find
