"""Names what a picture of the embedded models shows, one of their corpus's hundred things.

Trained on rendered corpus pictures, as they are and through the autoencoder, and used for nothing
but to judge whether a generated picture shows what its prompt asks for.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import nn

from nemo_kit.lab.copy_descriptor import Network, to_tensor


class Logits(Network):
    """Pixels [N, 3, 64, 64] in [-1, 1] -> logits [N, concepts]."""

    def __init__(self, concepts: int) -> None:
        super().__init__()
        self.head = nn.Linear(192 * 16, concepts)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.head(self.stages(pixels).flatten(1))


class Classifier:
    """uint8 pictures [N, 64, 64, 3] -> the name of what each shows most likely, [N]."""

    def __init__(self, file: Path) -> None:
        """Read weights of any precision, and the names beside them."""
        with safe_open(file, framework="pt") as opened:
            self.names = np.array(json.loads(opened.metadata()["names"]))
            weights = {name: opened.get_tensor(name).float() for name in opened.keys()}  # noqa: SIM118
        self.network = Logits(len(self.names)).eval()
        self.network.load_state_dict(weights)

    @torch.no_grad()
    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        parts = to_tensor(pictures).split(256)
        return self.names[torch.cat([self.network(part).argmax(1) for part in parts]).numpy()]
