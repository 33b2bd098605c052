"""Scores that tell memorized prompts from others: those of the field beside the method's own.

Scope: a detector is a function (model, prompt, seeds) -> a number, or one for each seed, higher for
memorized prompts. `@detector("its name")` gives it a row wherever detectors are compared or listed,
whichever file or notebook cell it stands in; `score` calls one and counts what it cost.
Built in is what the methods' own code computes. All but the anisotropy's cosine is taken of the
predicted noise ε: a model trained to predict v (or x_0) is converted first, so that its ‖Δε‖ is
√ᾱ_t·‖Δv‖; at one timestep this is a fixed factor, over several it gives later steps more weight
than Δv would. Of a rectified flow Δv stands for Δε, which is 0 at σ = 1. Δε is the conditional
minus the unconditional prediction; where it is 0 throughout, a score would be 0 for any prompt, and
is refused. All raise TypeError or ValueError for a bad prompt, seeds or numbers.
Source: each function names its own; restated from the methods' published formulas and code.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from nemo_kit.calibration import resolve
from nemo_kit.checks import check_finite, check_number, check_seeds, check_text, check_whole
from nemo_kit.hooks import capture
from nemo_kit.layers import Projection
from nemo_kit.localization.detection import score_pairs
from nemo_kit.mitigation.attention import check_attention, kept_tokens
from nemo_kit.mitigation.gap import norms, predicted_gap, relative_size
from nemo_kit.models.base import DiffusionModel
from nemo_kit.registry import Registered, check_takes, find
from nemo_kit.sampling import Run, both_outputs, denoise

VERSION = 2  # raised where results change (see nemo_kit.keys)
SEEDS = range(1, 5)  # four images, as Wen et al. use
GUIDANCE = 7.5  # of the denoising runs, as in their released code
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Detector(Registered):
    """A function under its name: `options` of comparisons, `protocol` in words for results."""

    name: str
    function: Callable[..., Any]
    protocol: str | Callable[[DiffusionModel], str] = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def told(self, model: DiffusionModel, options: Mapping[str, Any]) -> str:
        """How many images, and the protocol with its numbers."""
        images, said = len(options["seeds"]), self.protocol
        known = {**self.defaults, **options}
        words = said.format(**known) if isinstance(said, str) else said(model)
        return f"{images} image{'s' * (images > 1)}" + (f", {words}" if words else "")


DETECTORS: dict[str, Detector] = {}


def detector(
    name: str, protocol: str | Callable[[DiffusionModel], str] = "", **options: Any
) -> Callable[[Function], Function]:
    """Register a function under a name, as a decorator; who had the name gives way.

    Parameters: `protocol`, what numbers of two ways of computing the score can't be compared
    without, with parameters in braces ("{steps} steps"), or a function of the model; `options`, of
    every comparison.
    Raises TypeError for a function that doesn't take (model, prompt, seeds) and the options alone.
    """

    def register(function: Function) -> Function:
        check_takes(f"detector {name!r}", function, "model, prompt, seeds", **options)
        DETECTORS[name] = Detector(name, function, protocol, options)
        return function

    return register


@dataclass(frozen=True)
class PromptScore:
    """A detector's score of one prompt, and what it cost.

    `score`, the mean over seeds where there is one for each; `samples`, what the denoiser
    evaluated, a Jacobian-vector product counted twice; `seconds` on this machine; `seeds`, how
    many; `protocol`, what numbers of two ways of computing the score can't be compared without.
    """

    detector: str
    score: float
    samples: int
    seconds: float
    seeds: int
    protocol: str


def score(
    which: str | Detector | Callable[..., Any],
    model: DiffusionModel,
    prompt: str,
    seeds: Iterable[int] | None = None,
    **options: Any,
) -> PromptScore:
    """Call a detector, and count its denoiser samples and seconds.

    Parameters: `which`, a registered name, or a function; `seeds`, by default the detector's own,
    else 1 to 4; `options`, of the function.
    Raises TypeError or ValueError for a bad prompt, seeds or options, TypeError for a result that
    is no number nor one for each seed, FloatingPointError for one that is not finite.
    """
    one, text = find("detector", Detector, DETECTORS, which), check_text(prompt)
    given = {"seeds": SEEDS, **one.options, **options}
    given["seeds"] = check_seeds(given["seeds"] if seeds is None else seeds, distinct=True)
    told = one.told(model, given)
    before, started = model.samples_evaluated, time.perf_counter()
    images = len(given["seeds"])
    number = _number(one.name, one.function(model, text, **given), images, model)
    seconds, samples = time.perf_counter() - started, model.samples_evaluated - before
    return PromptScore(one.name, number, samples, seconds, images, told)


def _number(name: str, found: Any, seeds: int, model: DiffusionModel) -> float:
    try:
        values = torch.as_tensor(found).detach().double().flatten()
    except (TypeError, ValueError, RuntimeError):
        values = torch.empty(0)
    if len(values) not in (1, seeds):
        raise TypeError(
            f"detector {name!r} must return a number, or one for each of {seeds} seeds; "
            f"got {found!r:.80}"
        )
    check_finite(name, values, FloatingPointError)
    return values.mean().item()


def _nemo_protocol(model: DiffusionModel) -> str:
    detection, similarity = resolve(model.calibration)
    return f"largest pair, {similarity.kind}, timesteps[{detection.timestep_index}]"


@detector("NeMo", _nemo_protocol, seeds=range(1, 11))
def nemo_score(model: DiffusionModel, prompt: str, seeds: Iterable[int]) -> float:
    """The method's own: the largest similarity of two seeds' noise differences, in [0, 1].

    Parameters: `seeds`, at least two; settings are the model's calibration's.
    Source: "Finding NeMo" (arXiv 2406.02366), section 3.1.
    """
    numbers = check_seeds(seeds, least=2, distinct=True)
    ((_, pairs),) = score_pairs(model, [check_text(prompt)], numbers, *resolve(model.calibration))
    return pairs.nan_to_num(nan=-torch.inf).max().item()


@detector("noise magnitude", "mean over {steps} steps, guidance {guidance:g}")
@detector(
    "noise magnitude, first step", "mean over {first} of {steps} steps, guidance {guidance:g}",
    first=1,
)  # fmt: skip
def noise_magnitude(
    model: DiffusionModel,
    prompt: str,
    seeds: Iterable[int] = SEEDS,
    steps: int = 50,
    first: int | None = None,
    guidance: float = GUIDANCE,
) -> Tensor:
    """Mean of ‖Δε‖₂ over the steps of the guided DDIM trajectory, in units of the latents.

    Returns [seeds], at least 0; it grows with the latents' size.
    Parameters: `steps`, of DDIM; `first`, only the first so many of them (1 is the cheap form);
    `guidance`, of the trajectory.
    Source: Wen et al., "Detecting, Explaining, and Mitigating Memorization in Diffusion Models",
    ICLR 2024: on SD 1.4 an AUROC of 0.994 with 4 images and 50 steps.
    """
    run = Run.of(model, check_text(prompt), seeds, steps, guidance)
    if first is not None:
        check_whole("first", first, 1)
    found = []

    def look(timestep: Tensor, latents: Tensor, *halves: Tensor) -> None:
        text, empty = (model.as_compared(one, latents, timestep) for one in halves)
        found.append(text - empty)

    denoise(run, last=first or 0, look=look)
    return norms(torch.cat(found)).reshape(len(found), -1).mean(dim=0)


@detector("attention entropy E", "layer {layer}, first step", seeds=range(1, 2))
def attention_entropy(
    model: DiffusionModel, prompt: str, seeds: Iterable[int] = range(1, 2), layer: int = 4
) -> Tensor:
    """E: entropy of the cross-attention over tokens at the first step, in one layer.

    Returns [seeds] in [0, ln tokens], in nats: p is the attention averaged over heads and pixels,
    E = −Σ p ln p.
    Parameters: `seeds`, one as in the source; `layer`, cross-attention layer from 1 (the source's
    index 3 counts from 0).
    Raises ValueError for a layer that the model doesn't have.
    Source: Ren et al., "Unveiling and Mitigating Memorization in Text-to-Image Diffusion Models
    through Cross Attention", ECCV 2024.
    """
    run, read = Run.of(model, check_text(prompt), seeds), _queries_and_keys(model)
    known = [one.index for one in model.key_layers]
    if layer not in known:
        raise ValueError(f"layer must be one of {known[0]} to {known[-1]}, got {layer!r}")
    with capture(model.denoiser, read) as seen:
        model.predict(run.noise, model.timesteps(50)[0], run.embeddings)
    return _entropy(_attention(model, seen, layer))


@detector(
    "attention entropy D",
    "layers averaged first, last fifth of {steps} steps, guidance {guidance:g}",
    seeds=range(1, 2),
)
def attention_entropy_late(
    model: DiffusionModel,
    prompt: str,
    seeds: Iterable[int] = range(1, 2),
    steps: int = 50,
    guidance: float = GUIDANCE,
) -> Tensor:
    """D: entropy of the cross-attention in the last fifth of the steps, and how its padding's grew.

    Returns [seeds], in nats. The attention p is averaged over layers, heads and pixels first; then
    D is the mean over steps (40 to 49 of 50) of the entropy of all tokens plus the padding's (EOS
    counted with it), less the padding's at step 0.
    Parameters: `seeds`, one as in the source; `steps`, of DDIM, at least 5; `guidance`, of the
    trajectory.
    Source: Ren et al., ECCV 2024, and their `detect.py`.
    """
    check_whole("steps", steps, 5)
    run, maps = Run.of(model, check_text(prompt), seeds, steps, guidance), []

    late, number = steps - steps // 5, count()

    def look(*_: Any) -> None:
        if 0 < next(number) < late:
            return
        layers = [_attention(model, seen, one.index) for one in model.key_layers]
        maps.append(torch.stack(layers).mean(dim=0)[: len(run.seeds)])

    with capture(model.denoiser, _queries_and_keys(model)) as seen:
        denoise(run, look=look)
    kept = kept_tokens(model, prompt, run.embeddings.shape[1])
    padding = slice(int(kept.sum()) - 1, None)  # from the first EOS on
    return late_entropy(maps[0], torch.stack(maps[1:]), padding)


def late_entropy(first: Tensor, late: Tensor, padding: slice) -> Tensor:
    """D of attention averaged over layers, heads and pixels: [seeds].

    Parameters: `first`, at step 0, [seeds, tokens]; `late`, at the late steps, [steps, seeds,
    tokens]; `padding`, its tokens.
    """
    both = _entropy(late) + _entropy(late[..., padding])
    return both.mean(dim=0) - _entropy(first[..., padding])


@detector("sharpness", "first step")
def sharpness(model: DiffusionModel, prompt: str, seeds: Iterable[int] = SEEDS) -> Tensor:
    """‖(H_c − H_∅) s_Δ‖₂ at the first step: how sharp the prompt makes the density at x_T.

    Returns [seeds], at least 0: the length of `curvature_difference`.
    Source: Jeon et al., "Understanding and Mitigating Memorization in Generative Models via
    Sharpness of Probability Landscapes", ICML 2025.
    """
    return curvature_difference(model, prompt, seeds).flatten(1).norm(dim=1)


def curvature_difference(
    model: DiffusionModel, prompt: str, seeds: Iterable[int] = SEEDS
) -> Tensor:
    """(H_c − H_∅) s_Δ at the first step, [seeds, C, H, W]: where the prompt bends the density.

    H is the Jacobian of the score s = −ε/√(1−ᾱ_T), s_Δ the difference −Δε/√(1−ᾱ_T), so that one
    exact Jacobian-vector product of Δε a seed gives it.
    Source: Jeon et al., ICML 2025, whose sharpness is its length.
    """
    run = Run.of(model, check_text(prompt), seeds)
    timestep = model.timesteps(50)[0]
    spread = (1 - model.scheduler.alphas_cumprod[int(timestep)].item()) ** 0.5

    def gap(x: Tensor) -> Tensor:
        return predicted_gap(model, x, timestep, run.embeddings[: len(x)], run.empty)

    along, products = [], []
    for noise in run.noise.split(4):  # each with both halves, and its tangents
        along.append(gap(noise))
        products.append(_product(model, gap, noise, -along[-1] / spread) / spread)
    norms(torch.cat(along))  # refused where it is 0
    return torch.cat(products)


@detector("anisotropy", "raw outputs' cosine, γ {weights}", steps=50)
def anisotropy(
    model: DiffusionModel,
    prompt: str,
    seeds: Iterable[int] = SEEDS,
    weights: tuple[float, float] | str = "published",
    steps: int = 50,
) -> Tensor:
    """γ1·‖Δε(x_T, first t)‖ + γ2·cosine of o_∅ and Δo at the third last t, on pure noise.

    Returns [seeds]; o is the model's raw output (ε or v), whose cosine is taken over channels and
    averaged over pixels; for a model that predicts v the norm is ‖Δε‖/(1 − ᾱ_t).
    Parameters: `weights`, γ1 and γ2, or "published": (1, 2) for SD 1.4, which predicts ε, (1, 0.1)
    for SD 2, which predicts v; other models take those of their kind. They hold for latents of
    4×64×64, on others γ1 is divided by √(numbers/16384), with which a norm grows; `steps`, whose
    timesteps are meant, at least 3.
    Source: Asthana et al., ICLR 2026, and their code.
    """
    run = Run.of(model, check_text(prompt), seeds)
    check_whole("steps", steps, 3)
    predicts_v = model.scheduler.config.prediction_type == "v_prediction"
    if weights == "published":
        weights = (1 / relative_size(model), 0.1 if predicts_v else 2.0)
    if isinstance(weights, str) or len(weights) != 2:
        raise ValueError(f'weights must be two numbers or "published", got {weights!r}')
    for weight in weights:
        check_number("weights", weight)
    timesteps = model.timesteps(steps).clone()
    norm = norms(predicted_gap(model, run.noise, timesteps[0], run.embeddings, run.empty))
    if predicts_v:
        norm = norm / (1 - model.scheduler.alphas_cumprod[int(timesteps[0])].item())
    text, empty = both_outputs(model.predict, run.noise, timesteps[-3], run.embeddings, run.empty)
    cosine = F.cosine_similarity(empty, text - empty, dim=1).mean(dim=(1, 2))
    return weights[0] * norm + weights[1] * cosine


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
    check_attention(model)
    keys = list(model.key_layers)
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
