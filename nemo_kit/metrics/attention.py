"""How far blocked neurons change what cross-attention hands on for other prompts (table 3).

Scope: outputs of the cross-attention blocks (`attn2`) with and without blocked neurons, compared by
their cosine, layer by layer; one prediction a seed, at the timestep that detection uses.
Source: Hintersdorf et al., "Finding NeMo", NeurIPS 2024, table 3 (500 non-memorized prompts, 3
seeds, 1 to 150 neurons blocked, random or most frequent).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from nemo_kit.calibration import resolve
from nemo_kit.checks import check_number, check_seeds, check_texts
from nemo_kit.hooks import capture, scale_neurons
from nemo_kit.memory import BatchSize
from nemo_kit.models.base import DiffusionModel
from nemo_kit.neurons import NeuronSet

VERSION = 1  # raised where results change (see nemo_kit.keys)
_AT_ONCE = 32  # denoiser samples a call, at most


@torch.no_grad()
def disentanglement(
    model: DiffusionModel,
    prompts: str | Sequence[str],
    neurons: NeuronSet | Mapping[str, NeuronSet],
    seeds: Iterable[int] = (1, 2, 3),
    factor: float = 0.0,
) -> pd.DataFrame:
    """Cosine of cross-attention outputs with and without blocked neurons, by layer (T3).

    Returns a frame with `setting`, `layer` (from 1), `block`, `cosine` (mean over prompts, seeds
    and pixels, in [-1, 1]; 1 is no change), `deviation` (over prompts and seeds), `samples`, and
    `neurons` (how many are blocked).

    Parameters: `prompts`, non-memorized ones; `neurons`, one set, or name -> set, each compared
    with the same undisturbed outputs; `seeds`; `factor`, by which the neurons are scaled.
    Raises TypeError or ValueError for bad prompts, seeds, neurons or numbers.
    Source: paper, table 3. It doesn't say how a layer's outputs become one number: here the cosine
    of each pixel's vector over channels, averaged.
    """
    texts, numbers = check_texts(prompts), check_seeds(seeds, distinct=True)
    check_number("factor", factor)
    sets = {"blocked": neurons} if isinstance(neurons, NeuronSet) else neurons
    if not isinstance(sets, Mapping) or not all(isinstance(s, NeuronSet) for s in sets.values()):
        raise TypeError(f"neurons must be a NeuronSet or name -> NeuronSet, got {neurons!r:.80}")
    if not sets:
        raise ValueError("neurons must hold at least one set, got none")
    options, _ = resolve(model.calibration)
    timestep = model.timesteps(options.steps)[options.timestep_index]
    layers = model.value_layers
    blocks = [replace(layer, name=layer.name.rpartition(".")[0], tokens=None) for layer in layers]
    jobs = [(text, seed) for text in texts for seed in numbers]

    def compared(part: slice) -> Tensor:
        """Cosines of each set, [sets, samples, layers]."""
        words, drawn = zip(*jobs[part], strict=True)
        noise, text = model.noise(drawn), model.embed(words)

        def outputs(off: NeuronSet) -> dict[int, Tensor]:
            """Layer -> [samples, pixels, width]."""
            scaling = scale_neurons(model.denoiser, layers, off, factor)
            with scaling, capture(model.denoiser, blocks) as seen:
                model.predict(noise, timestep, text)
            return seen

        plain = outputs(NeuronSet())
        return torch.stack([_cosines(plain, outputs(one)) for one in sets.values()])

    found = torch.cat(BatchSize(_AT_ONCE).run(compared, len(jobs)), dim=1)
    about = {"layer": [p.index for p in layers], "block": [p.block for p in layers]}
    parts = []
    for (name, neurons), cosines in zip(sets.items(), found, strict=True):
        means = {"cosine": cosines.mean(0).numpy(), "deviation": cosines.std(0, False).numpy()}
        counts = {"samples": len(cosines), "neurons": len(neurons)}
        parts.append(pd.DataFrame({"setting": name, **about, **means, **counts}))
    return pd.concat(parts, ignore_index=True)


def _cosines(plain: Mapping[int, Tensor], blocked: Mapping[int, Tensor]) -> Tensor:
    """[samples, layers]: mean over pixels."""
    layers = [
        F.cosine_similarity(plain[i].float(), blocked[i].float(), dim=2).mean(dim=1)
        for i in sorted(plain)
    ]
    return torch.stack(layers, dim=1).cpu()
