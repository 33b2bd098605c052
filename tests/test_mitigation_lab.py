"""Mitigations on the embedded model, whose memorized images and neurons are known."""

from __future__ import annotations

import numpy as np
import pytest

from nemo_kit import lab
from nemo_kit.generation import generate
from nemo_kit.metrics import copy_similarities, lab_descriptor
from nemo_kit.mitigation import EmbeddingAdjustment, Mitigation, NeMo, RandomNeurons
from nemo_kit.models import DiffusionModel
from nemo_kit.originals import TrainingImages

SEEDS = [101]


@pytest.mark.slow
def test_nemo_and_embedding_adjustment_reduce_memorization_and_random_neurons_do_not(
    lab_model: DiffusionModel,
) -> None:
    planted = lab.planted()
    names = [name for name in lab.prompts("verbatim")["prompt"] if name in planted][:3]
    neurons = {name: planted[name] for name in names}
    known, look = TrainingImages(lab.prompts()), lab_descriptor()
    originals = [known[name] for name in names]

    def copying(way: Mitigation) -> float:
        """Median cosine to the training image over the prompts."""
        shots = generate(lab_model, names, SEEDS, steps=10, mitigation=way)
        pairs = zip(shots, originals, strict=True)
        return float(np.median([copy_similarities(a, b, look) for a, b in pairs]))

    default = copying(Mitigation())
    assert default > 0.6, "the embedded model memorizes these"
    assert copying(NeMo(neurons)) < default - 0.2
    assert copying(EmbeddingAdjustment()) < default - 0.1
    assert copying(RandomNeurons(neurons)) > default - 0.1
