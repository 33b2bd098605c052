"""nemo_kit: find and switch off the neurons by which a diffusion model memorizes images.

Scope: the public names, imported only when asked for, so that `import nemo_kit` stays quick.
Source: Hintersdorf et al., "Finding NeMo", NeurIPS 2024, arXiv 2406.02366.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nemo_kit.explorer import explore
    from nemo_kit.generation import generate
    from nemo_kit.localization import calibrate, detect, localize
    from nemo_kit.models import load
    from nemo_kit.neurons import NeuronSet

__version__ = "0.1.0"
_HOMES = {
    "NeuronSet": "nemo_kit.neurons",
    "load": "nemo_kit.models",
    "detect": "nemo_kit.localization",
    "calibrate": "nemo_kit.localization",
    "localize": "nemo_kit.localization",
    "explore": "nemo_kit.explorer",
    "generate": "nemo_kit.generation",
}
__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"nemo_kit has no {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
