"""The method over many prompts, resumable: detection, localization, pictures.

Scope: thin over `run`; what each worker calls is a small class that holds its settings and the
model, or a reference to it where the work is done in other processes. Common to all: `executor`,
`workers`, `retry_failed` and `progress` go to `run`, other options to the method's own function; a
worker opens the model once, by its id; they raise what `run` raises, and prompts that failed are
named in a warning and have no row.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
from PIL import Image

from nemo_kit.keys import versions
from nemo_kit.neurons import NeuronSet
from nemo_kit.store.runs import run, tidy
from nemo_kit.store.work import Keyed, ModelRef, check_gpus, model_key, opened

if TYPE_CHECKING:
    from nemo_kit.mitigation import Mitigation
    from nemo_kit.models import DiffusionModel

    AnyModel = DiffusionModel | ModelRef | Keyed

RUNNING = ("executor", "workers", "retry_failed", "progress", "version")  # options of `run`


def detect_all(
    model: AnyModel,
    prompts: Iterable[str],
    seeds: Iterable[int] = range(1, 11),
    *,
    store: str | Path,
    **options: Any,
) -> pd.DataFrame:
    """``detect`` for many prompts, resumable: one row a prompt, as ``detect`` gives them.

    One more column, ``settings``, is the JSON of the detection and similarity settings.
    ``options``: of ``run`` and ``detect``.
    """
    return Detect(model, list(seeds), options).over(prompts, store)


def localize_all(
    model: AnyModel,
    prompts: Iterable[str],
    seeds: Iterable[int] = range(1, 11),
    *,
    store: str | Path,
    **options: Any,
) -> pd.DataFrame:
    """``localize`` for many prompts, resumable: one row a prompt (``Localization.to_row``).

    The columns ``initial`` and ``refined`` hold a ``NeuronSet``. ``options``: of ``run`` and
    ``localize``.
    """
    frame = Localize(model, list(seeds), options).over(prompts, store)
    sets = {name: frame[name].map(NeuronSet.from_json) for name in ("initial", "refined")}
    return frame.assign(**sets)


def generate_all(
    model: AnyModel,
    prompts: Iterable[str],
    seeds: Iterable[int],
    neurons: NeuronSet | Mapping[str, NeuronSet] | None = None,
    *,
    store: str | Path,
    mitigation: Mitigation | Mapping[str, Mitigation] | None = None,
    **options: Any,
) -> pd.DataFrame:
    """``generate`` for many prompts, resumable: columns prompt, seed, image (uint8 [H, W, 3]).

    ``neurons``, ``mitigation``: one for all prompts, or one for each (a prompt without one is
    undisturbed). ``options``: of ``run`` and ``generate``. A mitigation from outside the package
    counts with its source, ``version`` where that can't be had.
    """
    items = [
        {"prompt": text, "neurons": _of(neurons, text), **_given(_of(mitigation, text))}
        for text in prompts
    ]
    frame = Generate(model, list(seeds), options).over(items, store)
    return frame.assign(image=[_image(png) for png in frame["image"]])


@dataclass(frozen=True, eq=False)
class PerPrompt:
    """What a worker does with one prompt: a model (or where to find it), seeds, options."""

    model: AnyModel
    seeds: list[int]
    options: dict[str, Any]

    name: ClassVar[str]
    batch: ClassVar[int] = 8  # prompts to a shard
    rooms: ClassVar[tuple[str, ...]]  # where what it does is written

    def key(self) -> dict[str, Any]:
        """What its results depend on besides the prompt."""
        known = isinstance(self.model, (ModelRef, Keyed))
        model = self.model.key if known else model_key(self.model)
        code = versions(*self.rooms)
        return {"seeds": self.seeds, "options": self.options, "code": code, **model}

    def over(self, items: Iterable[Any], store: str | Path) -> pd.DataFrame:
        """Rows of all items, through the store; raises ValueError where workers lack GPUs."""
        running = {name: self.options[name] for name in RUNNING if name in self.options}
        own = {name: value for name, value in self.options.items() if name not in running}
        where = running.get("executor"), running.get("workers", 1)
        work = replace(self, model=_for_workers(self.model, *where), options=own)
        kept = run(work, items, store, work.key(), name=self.name, batch=self.batch, **running)
        return tidy(kept, 4)


class Detect(PerPrompt):
    """``detect`` as the work on one prompt."""

    name, batch, rooms = "detect", 2000, ("localization.detection",)

    def __call__(self, prompt: str) -> pd.DataFrame:
        """One row, as ``detect`` gives it, with its settings."""
        from nemo_kit.calibration import resolve
        from nemo_kit.localization import detect

        with opened(self.model) as model:
            frame = detect(model, [prompt], self.seeds, **self.options)
            kinds = ("settings", "similarity")
            chosen = resolve(model.calibration, *(self.options.get(kind) for kind in kinds))
        names = ("detection", "similarity")
        made = {name: asdict(one) for name, one in zip(names, chosen, strict=True)}
        return frame.assign(settings=json.dumps(made))


class Localize(PerPrompt):
    """``localize`` as the work on one prompt."""

    name = "localize"

    @property
    def rooms(self) -> tuple[str, ...]:
        """Where Algorithms 1 to 4 and the search mode are written."""
        from nemo_kit.localization.search import find_search

        mode = find_search(self.options.get("search", "speculative")).__module__
        own = (f"localization.{name}" for name in ("detection", "candidates", "nemo"))
        return (*own, mode.partition(".")[2])

    def __call__(self, prompt: str) -> dict[str, Any]:
        """One row, as ``Localization.to_row`` gives it."""
        from nemo_kit.localization import localize

        with opened(self.model) as model:
            return localize(model, prompt, seeds=self.seeds, **self.options).to_row()


class Generate(PerPrompt):
    """``generate`` as the work on one prompt; a mitigation's key names its own version."""

    name, rooms = "generate", ("generation",)

    def __call__(self, item: Mapping[str, Any]) -> list[dict[str, Any]]:
        """One row a seed; the image as PNG, which is a third of its size and exact."""
        from nemo_kit.generation import generate

        given = {k: item[k] for k in ("neurons", "mitigation") if item.get(k) is not None}
        with opened(self.model) as model:
            images = generate(model, item["prompt"], self.seeds, **given, **self.options)
        pairs = zip(self.seeds, images, strict=True)
        return [{"prompt": item["prompt"], "seed": s, "image": _png(image)} for s, image in pairs]


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
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def _image(png: bytes) -> Any:
    return np.array(Image.open(io.BytesIO(png)))
