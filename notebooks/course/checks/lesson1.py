"""Lesson 1, a diffusion model from noise to picture: noising, its inverse, one DDIM step, guidance.

Source: Song, Meng, Ermon, "Denoising Diffusion Implicit Models" (ICLR 2021), equations 4 and 12;
Salimans, Ho, "Progressive Distillation" (ICLR 2022), appendix D (v-prediction); Ho, Salimans,
"Classifier-Free Diffusion Guidance" (2022).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from checks.exercise import Exercise, Wrong, wrong


def _latents(rng: np.random.Generator, count: int) -> list[Tensor]:
    return [torch.from_numpy(rng.normal(size=(2, 4, 8, 8))).float() for _ in range(count)]


def _two_and_level(rng: np.random.Generator) -> tuple:
    return (*_latents(rng, 2), float(rng.uniform(0.2, 0.8)))


def _add_noise(latent: Tensor, noise: Tensor, kept: float) -> Tensor:
    return kept**0.5 * latent + (1 - kept) ** 0.5 * noise


def _clean(noisy: Tensor, noise: Tensor, kept: float) -> Tensor:
    return (noisy - (1 - kept) ** 0.5 * noise) / kept**0.5


def _noise_from_v(velocity: Tensor, noisy: Tensor, kept: float) -> Tensor:
    return kept**0.5 * velocity + (1 - kept) ** 0.5 * noisy


def _ddim(noisy: Tensor, noise: Tensor, kept: float, kept_next: float) -> Tensor:
    return _add_noise(_clean(noisy, noise, kept), noise, kept_next)


def _ddim_inputs(rng: np.random.Generator) -> tuple:
    level = float(rng.uniform(0.2, 0.5))
    return (*_latents(rng, 2), level, level + float(rng.uniform(0.1, 0.4)))


Predict = Callable[[Tensor, Tensor], Tensor]


def _guided(
    predict: Predict, latent: Tensor, with_text: Tensor, without: Tensor, scale: float
) -> Tensor:
    both = predict(torch.cat([latent, latent]), torch.cat([with_text, without]))
    text, plain = both.chunk(2)
    return plain + scale * (text - plain)


def _two_calls(
    predict: Predict, latent: Tensor, with_text: Tensor, without: Tensor, scale: float
) -> Tensor:
    text, plain = predict(latent, with_text), predict(latent, without)
    return plain + scale * (text - plain)


def _from_text(
    predict: Predict, latent: Tensor, with_text: Tensor, without: Tensor, scale: float
) -> Tensor:
    return _guided(predict, latent, with_text, without, scale + 1)


def _turned(
    predict: Predict, latent: Tensor, with_text: Tensor, without: Tensor, scale: float
) -> Tensor:
    return _guided(predict, latent, without, with_text, scale)


def _counted(guided: Callable[..., Any]) -> Callable[..., Any]:
    """Gives an answer a denoiser that counts its calls: what comes out, and their sizes."""

    def run(latent: Tensor, with_text: Tensor, without: Tensor, scale: float) -> Any:
        sizes = []

        def predict(latents: Tensor, embeddings: Tensor) -> Tensor:
            if len(latents) != len(embeddings):
                raise Wrong(
                    f"predict needs an embedding for each latent; it got {len(embeddings)} for "
                    f"{len(latents)}."
                )
            sizes.append(len(latents))
            return latents * embeddings.mean((1, 2))[:, None, None, None] + 1

        got = guided(predict, latent, with_text, without, scale)
        return got if got is None or got is ... else (got, sizes)

    return run


def _guidance_inputs(rng: np.random.Generator) -> tuple:
    shapes = ((1, 4, 8, 8), (1, 6, 5), (1, 6, 5))
    tensors = (torch.from_numpy(rng.normal(size=shape)).float() for shape in shapes)
    return (*tensors, float(rng.uniform(2, 8)))


EXERCISES = {
    "1.1": Exercise(
        "noise a latent to a given level",
        _add_noise,
        wrong(
            lambda latent, noise, kept: kept * latent + (1 - kept) * noise,
            "the variances must add up to one, not the factors: where are the roots?",
            lambda latent, noise, kept: _add_noise(noise, latent, kept),
            "latent and noise have changed places: at ᾱ = 1 the latent alone must be left.",
        ),
        _two_and_level,
        "a latent of the same shape",
    ),
    "1.2": Exercise(
        "the clean latent from a noisy one",
        _clean,
        wrong(
            lambda noisy, noise, kept: (noisy - (1 - kept) ** 0.5 * noise) / kept,
            "nearly: the latent was scaled by a root, and that root has to be divided by.",
            lambda noisy, noise, kept: noisy - (1 - kept) ** 0.5 * noise,
            "the noise is gone, but what is left is still scaled down.",
        ),
        _two_and_level,
        "the clean latent",
    ),
    "1.3": Exercise(
        "the noise from a velocity prediction",
        _noise_from_v,
        wrong(
            lambda velocity, noisy, kept: (1 - kept) ** 0.5 * velocity + kept**0.5 * noisy,
            "the two roots have changed places: at ᾱ = 0 the noisy latent is the noise itself.",
            lambda velocity, noisy, kept: velocity,
            "the velocity is not the noise yet: both unknowns have to be solved for.",
        ),
        _two_and_level,
        "the predicted noise",
    ),
    "1.4": Exercise(
        "one DDIM step",
        _ddim,
        wrong(
            lambda noisy, noise, kept, kept_next: _add_noise(
                _clean(noisy, noise, kept), noise, kept
            ),
            "the step ends where it began: which level does the next latent have?",
            lambda noisy, noise, kept, kept_next: _clean(noisy, noise, kept),
            "that is the clean latent at once; DDIM noises it again, to the next level.",
        ),
        _ddim_inputs,
        "the latent at the next level",
    ),
    "1.5": Exercise(
        "guidance in one call",
        _guided,
        wrong(
            _two_calls,
            "the prediction is right, but the denoiser was called twice: one batch holds both.",
            _from_text,
            "start from the prediction without text: at scale 1 the result must be the one "
            "with text.",
            _turned,
            "the halves have changed places: which embedding did you put first?",
        ),
        _guidance_inputs,
        "a prediction of the latent's shape",
        harness=_counted,
    ),
}
