"""The method over many prompts, resumable: `detect_all`, `localize_all`, `generate_all`.

Scope: thin over `run`; what each worker calls is a small class that holds its settings and the
model, or a reference to it where the work is done in other processes.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from nemo_kit.keys import versions
from nemo_kit.store.sweep import run, tidy
from nemo_kit.store.work import Keyed, ModelRef, check_gpus, model_key, opened

if TYPE_CHECKING:
    from nemo_kit.mitigation import Mitigation
    from nemo_kit.models import DiffusionModel
    from nemo_kit.neurons import NeuronSet

    AnyModel = DiffusionModel | ModelRef | Keyed


def detect_all(
    model: AnyModel,
    prompts: Iterable[str],
    seeds: Iterable[int] = range(1, 11),
    *,
    store: str | Path,
    executor: object = None,
    workers: int = 1,
    retry_failed: bool = False,
    progress: bool = True,
    **options: Any,
) -> pd.DataFrame:
    """``detect`` for many prompts, resumable: one row a prompt, as ``detect`` gives them.

    One more column, ``settings``, is the JSON of the detection and similarity settings.
    ``options`` go to ``detect``; ``executor`` and ``workers`` as in ``run``, where the model is
    opened once a process by its id. Raises what ``run`` raises; prompts that failed are named in a
    warning and have no row.
    """
    work = Detect(_for_workers(model, executor, workers), list(seeds), options)
    sweep = run(
        work, prompts, store, work.key(), name="detect", executor=executor, workers=workers,
        retry_failed=retry_failed, progress=progress,
    )  # fmt: skip
    return tidy(sweep)


def localize_all(
    model: AnyModel,
    prompts: Iterable[str],
    seeds: Iterable[int] = range(1, 11),
    *,
    store: str | Path,
    executor: object = None,
    workers: int = 1,
    retry_failed: bool = False,
    progress: bool = True,
    **options: Any,
) -> pd.DataFrame:
    """``localize`` for many prompts, resumable: one row a prompt (``Localization.to_row``).

    The columns ``initial`` and ``refined`` hold a ``NeuronSet``. ``options`` go to ``localize``;
    ``executor`` and ``workers`` as in ``run``, where the model is opened once a process by its id.
    Raises what ``run`` raises; prompts that failed are named in a warning and have no row.
    """
    work = Localize(_for_workers(model, executor, workers), list(seeds), options)
    sweep = run(
        work, prompts, store, work.key(), name="localize", executor=executor, workers=workers,
        retry_failed=retry_failed, progress=progress,
    )  # fmt: skip
    return with_sets(tidy(sweep))


def generate_all(
    model: AnyModel,
    prompts: Iterable[str],
    seeds: Iterable[int],
    neurons: NeuronSet | Mapping[str, NeuronSet] | None = None,
    *,
    store: str | Path,
    mitigation: Mitigation | Mapping[str, Mitigation] | None = None,
    executor: object = None,
    workers: int = 1,
    retry_failed: bool = False,
    progress: bool = True,
    version: Any = None,
    **options: Any,
) -> pd.DataFrame:
    """``generate`` for many prompts, resumable: columns prompt, seed, image (uint8 [H, W, 3]).

    ``neurons``, ``mitigation``: one for all prompts, or one for each (a prompt without one is
    undisturbed). ``options`` go to ``generate``; ``executor`` and ``workers`` as in ``run``, where
    the model is opened once a process by its id. A mitigation from outside the package counts with
    its source, ``version`` where that can't be had. Raises what ``run`` raises; prompts that failed
    are named in a warning and have no row.
    """
    texts = list(prompts)
    items = [
        {"prompt": text, "neurons": _of(neurons, text), **_given(_of(mitigation, text))}
        for text in texts
    ]
    work = Generate(_for_workers(model, executor, workers), list(seeds), options)
    sweep = run(
        work, items, store, work.key(), name="generate", executor=executor, workers=workers,
        retry_failed=retry_failed, progress=progress, version=version,
    )  # fmt: skip
    frame = tidy(sweep)
    return frame.assign(image=[_image(png) for png in frame["image"]])


@dataclass(frozen=True, eq=False)
class PerPrompt:
    """What a worker does with one prompt: a model (or where to find it), seeds, options."""

    model: AnyModel
    seeds: list[int]
    options: dict[str, Any]

    def key(self) -> dict[str, Any]:
        """What its results depend on besides the prompt."""
        known = isinstance(self.model, (ModelRef, Keyed))
        model = self.model.key if known else model_key(self.model)
        code = versions(*self.rooms())
        return {"seeds": self.seeds, "options": self.options, "code": code, **model}

    def rooms(self) -> list[str]:
        """Where what it does is written."""
        raise NotImplementedError


class Detect(PerPrompt):
    """``detect`` as the work on one prompt."""

    def rooms(self) -> list[str]:
        """Where detection is written."""
        return ["localization.detection"]

    def __call__(self, prompt: str) -> pd.DataFrame:
        """One row, as ``detect`` gives it, with its settings."""
        from nemo_kit.calibration import resolve
        from nemo_kit.localization import detect
        from nemo_kit.settings import to_dict

        with opened(self.model) as model:
            frame = detect(model, [prompt], self.seeds, **self.options)
            kinds = ("settings", "similarity")
            chosen = resolve(model, *(self.options.get(kind) for kind in kinds))
        names = ("detection", "similarity")
        made = {name: to_dict(one) for name, one in zip(names, chosen, strict=True)}
        return frame.assign(settings=json.dumps(made))


class Localize(PerPrompt):
    """``localize`` as the work on one prompt."""

    def rooms(self) -> list[str]:
        """Where Algorithms 1 to 4 and the search mode are written."""
        from nemo_kit.localization.search import find_search

        mode = find_search(self.options.get("search", "speculative")).select.__module__
        own = [f"localization.{name}" for name in ("detection", "candidates", "nemo")]
        return [*own, mode.partition(".")[2]]

    def __call__(self, prompt: str) -> dict[str, Any]:
        """One row, as ``Localization.to_row`` gives it."""
        from nemo_kit.localization import localize

        with opened(self.model) as model:
            return localize(model, prompt, seeds=self.seeds, **self.options).to_row()


class Generate(PerPrompt):
    """``generate`` as the work on one prompt."""

    def rooms(self) -> list[str]:
        """Where pictures are made; a mitigation names its own."""
        return ["generation"]

    def __call__(self, item: Mapping[str, Any]) -> list[dict[str, Any]]:
        """One row a seed; the image as PNG, which is a third of its size and exact."""
        from nemo_kit.generation import generate

        given = {k: item[k] for k in ("neurons", "mitigation") if item.get(k) is not None}
        with opened(self.model) as model:
            images = generate(model, item["prompt"], self.seeds, **given, **self.options)
        pairs = zip(self.seeds, images, strict=True)
        return [{"prompt": item["prompt"], "seed": s, "image": _png(image)} for s, image in pairs]


def with_sets(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with the JSON text of ``initial`` and ``refined`` as ``NeuronSet``."""
    from nemo_kit.neurons import NeuronSet

    named = [name for name in ("initial", "refined") if name in frame]
    return frame.assign(**{name: [NeuronSet.from_json(t) for t in frame[name]] for name in named})


def _for_workers(model: AnyModel, executor: object, workers: int) -> AnyModel:
    """The model itself for this process, a reference for others."""
    if executor is None and workers == 1:
        return model
    if not isinstance(model, ModelRef):
        model = ModelRef.of(model.model if isinstance(model, Keyed) else model)
    if executor is None:
        check_gpus(model.device, workers)
    return model


def _of(given: Any, prompt: str) -> Any:
    return given.get(prompt) if isinstance(given, Mapping) else given


def _given(mitigation: Mitigation | None) -> dict[str, Any]:
    """Nothing where there is none, so that undisturbed images have one key."""
    return {} if mitigation is None else {"mitigation": mitigation}


def _png(image: Any) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def _image(png: bytes) -> Any:
    import numpy as np
    from PIL import Image

    return np.array(Image.open(io.BytesIO(png)))
