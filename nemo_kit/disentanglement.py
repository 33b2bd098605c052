"""How far blocked neurons change what cross-attention hands on for other prompts.

Scope: outputs of the cross-attention blocks (`attn2`) with and without blocked neurons, compared by
their cosine, layer by layer; one prediction a seed, at the timestep that detection uses.
Source: Hintersdorf et al., "Finding NeMo", NeurIPS 2024, table 3 (500 non-memorized prompts, 3
seeds, 1 to 150 neurons blocked, random or most frequent).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from nemo_kit.calibration import resolve
from nemo_kit.checks import check_number, check_seeds, check_texts, check_whole
from nemo_kit.hooks import capture, scale_neurons
from nemo_kit.neurons import NeuronSet

if TYPE_CHECKING:
    from nemo_kit.layers import Projection
    from nemo_kit.models import DiffusionModel
    from nemo_kit.settings import DetectionSettings

VERSION = 1  # raised where results change (see nemo_kit.keys)
Outputs = Mapping[int, Tensor]  # layer -> [samples, pixels, width]


@torch.no_grad()
def disentanglement(
    model: DiffusionModel,
    prompts: str | Sequence[str],
    neurons: NeuronSet | Mapping[str, NeuronSet],
    seeds: Iterable[int] = (1, 2, 3),
    factor: float = 0.0,
    settings: DetectionSettings | None = None,
    batch_size: int = 32,
) -> pd.DataFrame:
    """Cosine of cross-attention outputs with and without blocked neurons, by layer (T3).

    Returns a frame with `setting`, `layer` (from 1), `block`, `cosine` (mean over prompts, seeds
    and pixels, in [-1, 1]; 1 is no change), `deviation` (over prompts and seeds), `samples`, and
    `neurons` (how many are blocked).

    Parameters: `prompts`, non-memorized ones; `neurons`, one set, or name -> set, each compared
    with the same undisturbed outputs; `seeds`; `factor`, by which the neurons are scaled;
    `settings`, whose timestep is used, by default the model's own detection's; `batch_size`,
    denoiser samples a call.
    Raises TypeError or ValueError for bad prompts, seeds, neurons or numbers.
    Source: paper, table 3. It doesn't say how a layer's outputs become one number: here the cosine
    of each pixel's vector over channels, averaged.
    """
    texts, numbers = check_texts(prompts), check_seeds(seeds, distinct=True)
    check_whole("batch_size", batch_size, 1)
    check_number("factor", factor)
    sets = _named(neurons)
    options, _ = resolve(model, settings)
    timestep = model.timesteps(options.steps)[options.timestep_index]
    found: dict[str, list[Tensor]] = {name: [] for name in sets}
    for noise, embeddings in _batches(model, texts, numbers, batch_size):
        plain = _outputs(model, noise, timestep, embeddings)
        for name, one in sets.items():
            blocked = _outputs(model, noise, timestep, embeddings, one, factor)
            found[name].append(_cosines(plain, blocked))
    parts = [_rows(model, name, sets[name], torch.cat(rows)) for name, rows in found.items()]
    return pd.concat(parts, ignore_index=True)


def _named(neurons: Any) -> dict[str, NeuronSet]:
    sets = {"blocked": neurons} if isinstance(neurons, NeuronSet) else neurons
    if not isinstance(sets, Mapping) or not all(isinstance(s, NeuronSet) for s in sets.values()):
        raise TypeError(f"neurons must be a NeuronSet or name -> NeuronSet, got {neurons!r:.80}")
    if not sets:
        raise ValueError("neurons must hold at least one set, got none")
    return {str(name): one for name, one in sets.items()}


def _batches(
    model: DiffusionModel, texts: Sequence[str], seeds: Sequence[int], size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Noise and embeddings of every prompt and seed, at most `size` at once."""
    jobs = [(text, seed) for text in texts for seed in seeds]
    for start in range(0, len(jobs), size):
        part = jobs[start : start + size]
        yield model.noise([seed for _, seed in part]), model.embed([text for text, _ in part])


def _outputs(
    model: DiffusionModel,
    noise: Tensor,
    timestep: Tensor,
    embeddings: Tensor,
    neurons: NeuronSet | None = None,
    factor: float = 0.0,
) -> Outputs:
    blocks = tuple(replace(p, name=_block(p)) for p in model.value_layers)
    layers = model.value_layers
    block = nullcontext() if neurons is None else scale_neurons(
        model.denoiser, layers, neurons, factor
    )  # fmt: skip
    with block, capture(model.denoiser, blocks) as seen:
        model.predict(noise, timestep, embeddings)
    return seen


def _block(projection: Projection) -> str:
    """Name of the attention block a projection belongs to."""
    return projection.name.rpartition(".")[0]


def _cosines(plain: Outputs, blocked: Outputs) -> Tensor:
    """[samples, layers]: mean over pixels."""
    layers = [
        F.cosine_similarity(plain[i].float(), blocked[i].float(), dim=2).mean(dim=1)
        for i in sorted(plain)
    ]
    return torch.stack(layers, dim=1).cpu()


def _rows(model: DiffusionModel, name: str, neurons: NeuronSet, cosines: Tensor) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "setting": name,
            "layer": [layer.index for layer in model.value_layers],
            "block": [layer.block for layer in model.value_layers],
            "cosine": cosines.mean(dim=0).numpy(),
            "deviation": cosines.std(dim=0, unbiased=False).numpy(),
            "samples": len(cosines),
            "neurons": len(neurons),
        }
    )
