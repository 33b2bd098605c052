"""Scores that tell memorized prompts from others: those of the field beside the method's own.

Scope: one function a score, called with a model, a prompt and seeds, higher for memorized prompts;
each says what it cost in denoiser samples and seconds, and by which protocol: what the methods'
own code computes. All but the anisotropy's cosine are taken of the predicted noise ε: a model
trained to predict v (or x_0) is converted first, so that its ‖Δε‖ is √ᾱ_t·‖Δv‖; at one timestep
this is a fixed factor, over several it gives later steps more weight than Δv would.
Δε is the conditional minus the unconditional prediction.
Where Δε is 0 throughout, a score would be 0 for any prompt, and is refused.
Source: each function names its own; restated from the methods' published formulas and code.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from nemo_kit.checks import HALF_PRECISION, check_number, check_seeds, check_text, check_whole
from nemo_kit.hooks import capture
from nemo_kit.mitigation.attention import plain_keys
from nemo_kit.mitigation.gap import check_gap, relative_size

if TYPE_CHECKING:
    from nemo_kit.layers import Projection
    from nemo_kit.models import DiffusionModel

VERSION = 2  # raised where results change (see nemo_kit.keys)
SEEDS = range(1, 5)  # four images, as Wen et al. use
ONE_SEED = range(1, 2)  # one image, as Ren et al. detect from
GUIDANCE = 7.5  # of the denoising runs, as in their released code


@dataclass(frozen=True)
class PromptScore:
    """A detector's score of one prompt, higher for memorized ones, and what it cost.

    `by_seed` is one number a seed, `score` their mean (NeMo's own: their maximum); `samples`,
    what the denoiser evaluated, a Jacobian-vector product counted twice; `seconds` on this machine;
    `protocol`, what numbers of two ways of computing the score can't be compared without.
    """

    detector: str
    score: float
    by_seed: tuple[float, ...]
    samples: int
    seconds: float
    protocol: str = ""


class _Count:
    """Counts samples and seconds of one score."""

    def __init__(self, model: DiffusionModel, prompt: str, seeds: Iterable[int]) -> None:
        self.prompt, self.seeds = check_text(prompt), check_seeds(seeds, distinct=True)
        self.model, self.before, self.started = model, model.samples_evaluated, time.perf_counter()

    def result(
        self, name: str, values: Tensor, protocol: str, own: float | None = None
    ) -> PromptScore:
        """The score, by default the mean over seeds. Raises FloatingPointError for NaN."""
        numbers = values.double().cpu()
        if not torch.isfinite(numbers).all():
            raise FloatingPointError(
                f"{name} became NaN or infinite in {self.model.dtype} ({HALF_PRECISION})"
            )
        score = numbers.mean().item() if own is None else own
        samples = self.model.samples_evaluated - self.before
        seconds = time.perf_counter() - self.started
        said = f"{_counted(len(self.seeds))}, {protocol}"
        return PromptScore(name, score, tuple(numbers.tolist()), samples, seconds, said)


def _counted(images: int) -> str:
    return "1 image" if images == 1 else f"{images} images"


def nemo_score(
    model: DiffusionModel, prompt: str, seeds: Iterable[int] = range(1, 11)
) -> PromptScore:
    """The method's own: the largest similarity of two seeds' noise differences.

    Returns a `PromptScore` in [0, 1]; `by_seed` is each seed's best pair.
    Parameters: `seeds`, at least two; settings are the model's calibration's.
    Raises TypeError or ValueError for a bad prompt or seeds.
    Source: "Finding NeMo" (arXiv 2406.02366), section 3.1.
    """
    from nemo_kit.localization.detection import resolve, score_pairs

    count = _Count(model, prompt, check_seeds(seeds, least=2))
    chosen = resolve(model, None, None)
    ((_, pairs),) = score_pairs(model, [count.prompt], count.seeds, *chosen)
    best = pairs.nan_to_num(nan=-torch.inf).amax(dim=1)
    detection, similarity = chosen
    said = f"largest pair, {similarity.kind}, timesteps[{detection.timestep_index}]"
    return count.result("NeMo", best, said, best.max().item())


@torch.no_grad()
def noise_magnitude(
    model: DiffusionModel,
    prompt: str,
    seeds: Iterable[int] = SEEDS,
    steps: int = 50,
    first: int | None = None,
    guidance: float = GUIDANCE,
) -> PromptScore:
    """Mean of ‖Δε‖₂ over seeds and steps of the guided DDIM trajectory.

    Returns a `PromptScore`, at least 0, in units of the latents; it grows with their size.
    Parameters: `steps`, of DDIM; `first`, only the first so many of them (1 is the cheap form);
    `guidance`, of the trajectory.
    Raises TypeError or ValueError for a bad prompt, seeds or numbers.
    Source: Wen et al., "Detecting, Explaining, and Mitigating Memorization in Diffusion Models",
    ICLR 2024: on SD 1.4 an AUROC of 0.994 with 4 images and 50 steps.
    """
    count = _Count(model, prompt, seeds)
    check_whole("steps", steps, 1)
    used = steps if first is None else first
    check_whole("first", used, 1)
    run = islice(_trajectory(count, steps, guidance), used)
    norms = torch.stack([(text - empty).flatten(1).norm(dim=1) for text, empty in run])
    check_gap(norms, math.prod(model.latent_shape))
    name = "noise magnitude" if used >= steps else f"noise magnitude, {used} of {steps} steps"
    said = f"mean over {min(used, steps)} of {steps} steps, guidance {guidance:g}"
    return count.result(name, norms.mean(dim=0), said)


@torch.no_grad()
def attention_entropy(
    model: DiffusionModel, prompt: str, seeds: Iterable[int] = ONE_SEED, layer: int = 4
) -> PromptScore:
    """E: entropy of the cross-attention over tokens at the first step, in one layer.

    Returns a `PromptScore` in [0, ln tokens], in nats: p is the attention averaged over heads and
    pixels, E = −Σ p ln p.
    Parameters: `seeds`, one as in the source; `layer`, cross-attention layer from 1 (the source's
    index 3 counts from 0).
    Raises TypeError or ValueError for a bad prompt or seeds, or a layer the model doesn't have.
    Source: Ren et al., "Unveiling and Mitigating Memorization in Text-to-Image Diffusion Models
    through Cross Attention", ECCV 2024.
    """
    count = _Count(model, prompt, seeds)
    known = [one.index for one in model.key_layers]
    if layer not in known:
        raise ValueError(f"layer must be one of {known[0]} to {known[-1]}, got {layer!r}")
    timestep = model.timesteps(50)[0]  # the first of any number of steps that reaches T
    embeddings = model.embed(count.prompt).expand(len(count.seeds), -1, -1)
    with capture(model.denoiser, _queries_and_keys(model)) as seen:
        model.predict(model.noise(count.seeds), timestep, embeddings)
    said = f"layer {layer}, first step"
    return count.result("attention entropy E", _entropy(_attention(model, seen, layer)), said)


@torch.no_grad()
def attention_entropy_late(
    model: DiffusionModel,
    prompt: str,
    seeds: Iterable[int] = ONE_SEED,
    steps: int = 50,
    guidance: float = GUIDANCE,
) -> PromptScore:
    """D: entropy of the cross-attention in the last fifth of the steps, and how its padding's grew.

    Returns a `PromptScore` in nats. The attention p is averaged over layers, heads and pixels
    first; then D is the mean over steps (40 to 49 of 50) of the entropy of all tokens plus the
    padding's (EOS counted with it), less the padding's at step 0.
    Parameters: `seeds`, one as in the source; `steps`, of DDIM, at least 5; `guidance`, of the
    trajectory.
    Raises TypeError or ValueError for a bad prompt, seeds or numbers.
    Source: Ren et al., ECCV 2024, and their `detect.py`.
    """
    count = _Count(model, prompt, seeds)
    check_whole("steps", steps, 5)
    padding = slice(_length(model, count.prompt) - 1, None)  # from the first EOS on
    late, maps = steps - steps // 5, []
    with capture(model.denoiser, _queries_and_keys(model)) as seen:
        for step, _ in enumerate(_trajectory(count, steps, guidance)):
            if step == 0 or step >= late:
                layers = [_attention(model, seen, one.index) for one in model.key_layers]
                maps.append(torch.stack(layers).mean(dim=0)[: len(count.seeds)])
    found = late_entropy(maps[0], torch.stack(maps[1:]), padding)
    said = f"layers averaged first, steps {late} to {steps - 1} of {steps}, guidance {guidance:g}"
    return count.result("attention entropy D", found, said)


def late_entropy(first: Tensor, late: Tensor, padding: slice) -> Tensor:
    """D of attention averaged over layers, heads and pixels: [seeds].

    Parameters: `first`, at step 0, [seeds, tokens]; `late`, at the late steps, [steps, seeds,
    tokens]; `padding`, its tokens.
    """
    both = _entropy(late) + _entropy(late[..., padding])
    return both.mean(dim=0) - _entropy(first[..., padding])


@torch.no_grad()
def sharpness(
    model: DiffusionModel, prompt: str, seeds: Iterable[int] = SEEDS, batch_size: int = 8
) -> PromptScore:
    """‖(H_c − H_∅) s_Δ‖₂ at the first step: how sharp the prompt makes the density at x_T.

    Returns a `PromptScore`, at least 0. H is the Jacobian of the score s = −ε/√(1−ᾱ_T), s_Δ the
    difference −Δε/√(1−ᾱ_T), so that one exact Jacobian-vector product of Δε gives it.
    Parameters: `batch_size`, denoiser samples a call.
    Raises TypeError or ValueError for a bad prompt or seeds.
    Source: Jeon et al., "Understanding and Mitigating Memorization in Generative Models via
    Sharpness of Probability Landscapes", ICML 2025.
    """
    count = _Count(model, prompt, seeds)
    check_whole("batch_size", batch_size, 1)
    timestep = model.timesteps(50)[0]
    spread = (1 - model.scheduler.alphas_cumprod[int(timestep)].item()) ** 0.5
    norms, gaps = [], []
    for noise in model.noise(count.seeds).split(max(1, batch_size // 2)):
        pairs = _pairs(model, count.prompt, len(noise))

        def gap(x: Tensor, pairs: Tensor = pairs) -> Tensor:
            text, empty = model.predict_noise(torch.cat([x, x]), timestep, pairs).chunk(2)
            return text - empty

        along = gap(noise)
        gaps.append(along.flatten(1).norm(dim=1))
        change = _product(model, gap, noise, -along / spread)
        norms.append((change / spread).flatten(1).norm(dim=1))
    check_gap(torch.cat(gaps), math.prod(model.latent_shape))
    return count.result("sharpness", torch.cat(norms), "first step")


@torch.no_grad()
def anisotropy(
    model: DiffusionModel,
    prompt: str,
    seeds: Iterable[int] = SEEDS,
    weights: tuple[float, float] | None = None,
    steps: int = 50,
) -> PromptScore:
    """γ1·‖Δε(x_T, first t)‖ + γ2·cosine of o_∅ and Δo at the third last t, on pure noise.

    Returns a `PromptScore`; o is the model's raw output (ε or v), whose cosine is taken over
    channels and averaged over pixels; for a model that predicts v the norm is ‖Δε‖/(1 − ᾱ_t).
    Parameters: `weights`, γ1 and γ2, by default as published: (1, 2) for SD 1.4, which predicts ε,
    (1, 0.1) for SD 2, which predicts v; other models take those of their kind. They hold for
    latents of 4×64×64, on others γ1 is divided by √(numbers/16384), with which a norm grows;
    `steps`, whose timesteps are meant, at least 3.
    Raises TypeError or ValueError for a bad prompt, seeds or numbers.
    Source: Asthana et al., ICLR 2026, and their code.
    """
    count = _Count(model, prompt, seeds)
    check_whole("steps", steps, 3)
    of_norm, of_cosine = _published(model) if weights is None else _two(weights)
    timesteps, noise = model.timesteps(steps).clone(), model.noise(count.seeds)
    pairs = _pairs(model, count.prompt, len(noise))
    both = torch.cat([noise, noise])
    text, empty = model.predict_noise(both, timesteps[0], pairs).chunk(2)
    norm = (text - empty).flatten(1).norm(dim=1)
    check_gap(norm, math.prod(model.latent_shape))
    if _predicts_v(model):
        norm = norm / (1 - model.scheduler.alphas_cumprod[int(timesteps[0])].item())
    text, empty = model.predict(both, timesteps[-3], pairs).chunk(2)
    cosine = F.cosine_similarity(empty, text - empty, dim=1).mean(dim=(1, 2))
    said = f"γ = ({of_norm:g}, {of_cosine:g}), cosine of {'v' if _predicts_v(model) else 'ε'}"
    return count.result("anisotropy", of_norm * norm + of_cosine * cosine, said)


def _predicts_v(model: DiffusionModel) -> bool:
    return model.scheduler.config.prediction_type == "v_prediction"


def _published(model: DiffusionModel) -> tuple[float, float]:
    """γ1 and γ2 of `anisotropy`."""
    return 1 / relative_size(model), 0.1 if _predicts_v(model) else 2.0


def _two(weights: tuple[float, float]) -> tuple[float, float]:
    if len(weights) != 2:
        raise ValueError(f"weights must be two numbers, got {weights!r}")
    for weight in weights:
        check_number("weights", weight)
    return weights


def _trajectory(count: _Count, steps: int, guidance: float) -> Iterator[tuple[Tensor, Tensor]]:
    """(ε_c, ε_∅) at each step of guided DDIM, [seeds, C, H, W] each."""
    from diffusers import DDIMScheduler

    check_number("guidance", guidance, 0)
    model = count.model
    scheduler = DDIMScheduler.from_config(model.scheduler.config, prediction_type="epsilon")
    scheduler.set_timesteps(steps)
    latents = model.noise(count.seeds)
    pairs = _pairs(model, count.prompt, len(latents))
    for timestep in scheduler.timesteps:
        both = model.predict_noise(torch.cat([latents, latents]), timestep, pairs)
        text, empty = both.chunk(2)
        yield text, empty
        guided = empty + guidance * (text - empty)
        latents = scheduler.step(guided, timestep, latents, return_dict=False)[0]


def _pairs(model: DiffusionModel, prompt: str, count: int) -> Tensor:
    """[2·count, tokens, dim]: the prompt's embedding, then as often the empty one's."""
    return model.embed([prompt, ""]).repeat_interleave(count, dim=0)


def _product(
    model: DiffusionModel, function: Callable[[Tensor], Tensor], at: Tensor, along: Tensor
) -> Tensor:
    """Jacobian-vector product in forward mode, which fused attention doesn't have."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        product = torch.func.jvp(function, (at,), (along,))[1]
    model.samples_evaluated += 2 * len(at)  # the tangents, beside the values predict() counted
    return product


def _queries_and_keys(model: DiffusionModel) -> list[Projection]:
    """Each layer's key projection under its number, its query projection under minus that."""
    keys = list(plain_keys(model))
    return keys + [replace(k, index=-k.index, name=k.name[: -len("to_k")] + "to_q") for k in keys]


def _attention(model: DiffusionModel, seen: Mapping[int, Tensor], layer: int) -> Tensor:
    """[samples, tokens]: a layer's cross-attention, averaged over heads and pixels."""
    key = next(one for one in model.key_layers if one.index == layer)
    block = model.denoiser.get_submodule(key.name.rpartition(".")[0])
    query, keys = (
        seen[place].float().unflatten(2, (block.heads, -1)).transpose(1, 2)
        for place in (-layer, layer)
    )  # [samples, heads, pixels or tokens, width of a head]
    return (query @ keys.transpose(2, 3) * block.scale).softmax(dim=3).mean(dim=(1, 2))


def _entropy(p: Tensor) -> Tensor:
    """−Σ p ln p over the last dimension; 0 where p is."""
    return torch.special.entr(p).sum(dim=-1)


def _length(model: DiffusionModel, prompt: str) -> int:
    """Tokens of a prompt with BOS and EOS, as far as the text encoder reads."""
    most = model.embed("").shape[1]
    return len(model.tokenizer(prompt, truncation=True, max_length=most).input_ids)
