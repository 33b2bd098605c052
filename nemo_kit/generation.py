"""Images from prompts × seeds, under a mitigation or with neurons scaled on the way.

Scope: batches of prompts and seeds through the denoising loop of `sampling`, and to pictures.
Source: "Finding NeMo" (arXiv 2406.02366), section 4: 50 DDIM steps, guidance 7.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import count, groupby, product
from typing import Any, get_args

import numpy as np

from nemo_kit.checks import check_choice, check_number, check_seeds, check_texts, check_whole
from nemo_kit.memory import BatchSize
from nemo_kit.mitigation.base import Mitigation
from nemo_kit.mitigation.nemo import NeMo
from nemo_kit.models.base import DiffusionModel
from nemo_kit.neurons import NeuronSet
from nemo_kit.sampling import Run, denoise
from nemo_kit.settings import Halves, Noise

VERSION = 1  # raised where results change (see nemo_kit.keys)
Progress = Callable[[str, int, int | None], None]
Place = tuple[int, int]  # numbers of a prompt and of a seed
_AT_ONCE = 16  # pictures, halved where memory runs out


def generate(
    model: DiffusionModel,
    prompts: str | Sequence[str],
    seeds: Iterable[int],
    neurons: NeuronSet | Sequence[NeuronSet] | None = None,
    factor: float = 0.0,
    guidance: float | None = None,
    steps: int = 50,
    halves: Halves = "conditional",
    progress: Progress | None = None,
    mitigation: Mitigation | Sequence[Mitigation] | None = None,
    noise: Noise = "per seed",
) -> np.ndarray:
    """Generate an image for every prompt and seed.

    Returns uint8 [prompts, seeds, H, W, 3]; for one text [seeds, H, W, 3].
    Parameters: `neurons`, one set for all prompts or one for each, scaled by `factor` (0
    deactivates); `guidance`, 0 or 1 for none, by default the model's own (7 as in the paper, 2 for
    the embedded one); `steps`, of DDIM; `halves`, "conditional" acts on the prompt alone, "both" on
    the empty prompt too, as the released code does (difference 8); `progress`, called with (stage,
    done, total), in steps of pictures; `mitigation`, one for all prompts or one for each, in place
    of `neurons` and `factor`; `noise`, "one generator" as the released code draws it (see
    `DiffusionModel.noise`).
    Raises TypeError or ValueError for bad prompts, seeds, neurons, mitigations and numbers,
    FloatingPointError where the model's numbers overflow, InterventionError where a layer that is
    to be changed does not run.
    Source: section 4.
    """
    texts, numbers = check_texts(prompts), check_seeds(seeds)
    guidance = model.guidance if guidance is None else guidance
    check_number("guidance", guidance, 0)
    check_whole("steps", steps, 1)
    check_choice("halves", halves, get_args(Halves))
    ways = _mitigations(mitigation, neurons, factor, texts)
    drawn, empty = model.noise(numbers, noise), None if guidance in (0, 1) else model.embed("")
    whole = Run(
        model, tuple(texts), tuple(texts), tuple(numbers), drawn, model.embed(texts), empty,
        guidance, steps, halves, every=drawn,
    )  # fmt: skip
    places = list(product(range(len(texts)), range(len(numbers))))
    per_item = 1 if empty is None else 2
    batch, finished = BatchSize(_AT_ONCE * per_item), 0

    def draw(some: list[Place]) -> np.ndarray:
        """The pictures at places that are all under one mitigation: [N, H, W, 3]."""
        nonlocal finished
        way, step = ways[some[0][0]], count(1)

        def report() -> None:
            if progress:
                done = steps * finished + next(step) * len(some)
                progress("generate", done, steps * len(places))

        with way.apply(_batch(whole, some, way)) as run:
            latents = denoise(run, report)
        images = model.decode(latents)
        finished += len(some)
        return images

    images = []
    for _, group in groupby(places, key=lambda place: id(ways[place[0]])):
        own = list(group)
        images += batch.run(lambda part, own=own: draw(own[part]), len(own), per_item)
    shaped = np.concatenate(images).reshape(len(texts), len(numbers), *images[0].shape[1:])
    return shaped[0] if isinstance(prompts, str) else shaped


def _batch(whole: Run, places: list[Place], way: Mitigation) -> Run:
    """The run of all prompts and seeds at these places, texts as the mitigation rewrites them."""
    first, second = ([place[side] for place in places] for side in (0, 1))
    prompts = tuple(whole.prompts[place] for place in first)
    seeds = tuple(whole.seeds[place] for place in second)
    texts = tuple(way.rewrite(whole.model, *one) for one in zip(prompts, seeds, strict=True))
    same = texts == prompts
    embeddings = whole.embeddings[first] if same else whole.model.embed(texts)
    return replace(
        whole, prompts=prompts, texts=texts, seeds=seeds, noise=whole.noise[second],
        embeddings=embeddings,
    )  # fmt: skip


def _mitigations(given: Any, neurons: Any, factor: float, texts: list[str]) -> list[Mitigation]:
    """The mitigation of each prompt, from one for all or a list; neurons are NeMo's."""
    if given is not None and neurons is not None:
        raise ValueError(
            "neurons and mitigation can't both be given; NeMo(neurons) is a mitigation"
        )
    name, value, kind = "neurons", neurons, NeuronSet
    if neurons is None:
        name, value, kind = "mitigation", Mitigation() if given is None else given, Mitigation
    found = [value] * len(texts) if isinstance(value, kind) else value
    found = list(found) if isinstance(found, Iterable) else [found]
    if not all(isinstance(one, kind) for one in found):
        raise TypeError(
            f"{name} must be a {kind.__name__} or one for each prompt, got {value!r:.80}"
        )
    if len(found) != len(texts):
        raise ValueError(f"{name} holds {len(found)}, but there are {len(texts)} prompts")
    if kind is Mitigation:
        return found
    if len(set(texts)) < len(texts):  # one text under several sets
        return [NeMo(one, factor) for one in found]
    return [NeMo(dict(zip(texts, found, strict=True)), factor)] * len(texts)
