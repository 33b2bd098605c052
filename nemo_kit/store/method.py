"""The method over many prompts, resumable: detection, localization, pictures.

Scope: thin over `run`. Common to all: `executor`, `workers`, `retry_failed` and `progress` go to
`run`, other options to the method's own function; a worker in another process opens the model once,
by its id; they raise what `run` raises, and prompts that failed are named in a warning and have no
row.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from PIL import Image

from nemo_kit.keys import versions
from nemo_kit.neurons import NeuronSet
from nemo_kit.store.runs import run, tidy
from nemo_kit.store.work import ModelRef, check_gpus

if TYPE_CHECKING:
    from nemo_kit.mitigation import Mitigation
    from nemo_kit.models import DiffusionModel

RUNNING = ("executor", "workers", "retry_failed", "progress", "version")  # options of `run`


def detect_all(
    model: DiffusionModel | ModelRef,
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
    work = PerPrompt(detected, ModelRef.of(model), list(seeds), options)
    return work.over(_listed(prompts), store, "detect", "localization.detection", batch=2000)


def localize_all(
    model: DiffusionModel | ModelRef,
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
    from nemo_kit.localization.search import find_search

    mode = find_search(options.get("search", "speculative")).__module__.partition(".")[2]
    rooms = (*(f"localization.{name}" for name in ("detection", "candidates", "nemo")), mode)
    work = PerPrompt(localized, ModelRef.of(model), list(seeds), options)
    frame = work.over(_listed(prompts), store, "localize", *rooms)
    sets = {name: frame[name].map(NeuronSet.from_json) for name in ("initial", "refined")}
    return frame.assign(**sets)


def generate_all(
    model: DiffusionModel | ModelRef,
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
    items = []
    for text in _listed(prompts):
        items.append({"prompt": text, "neurons": _of(neurons, text)})
        if (own := _of(mitigation, text)) is not None:  # without, images have one key
            items[-1]["mitigation"] = own
    work = PerPrompt(generated, ModelRef.of(model), list(seeds), options)
    frame = work.over(items, store, "generate", "generation")
    return frame.assign(image=[np.array(Image.open(io.BytesIO(png))) for png in frame["image"]])


@dataclass(frozen=True, eq=False)
class PerPrompt:
    """A function of the method with all it takes but the item; other processes can be sent it."""

    function: Callable[..., Any]
    model: ModelRef
    seeds: list[int]
    options: dict[str, Any]

    def __call__(self, item: Any) -> Any:
        """What the function gives for a prompt, or for a prompt with what is its own."""
        with self.model.borrow() as model:
            return self.function(model, item, self.seeds, **self.options)

    def over(
        self, items: Iterable[Any], store: str | Path, name: str, *rooms: str, batch: int = 8
    ) -> pd.DataFrame:
        """Rows of all items, through the store; raises ValueError where workers lack GPUs.

        Parameters: `rooms`, where what the function does is written; `batch`, prompts to a shard.
        """
        running = {one: self.options[one] for one in RUNNING if one in self.options}
        work = replace(self, options={k: v for k, v in self.options.items() if k not in running})
        if running.get("executor") is None:
            check_gpus(self.model.opening["device"], running.get("workers", 1))
        own = {"seeds": self.seeds, "options": work.options, "code": versions(*rooms)}
        kept = run(work, items, store, own | self.model.key, name=name, batch=batch, **running)
        return tidy(kept, 4)


def detected(model: DiffusionModel, prompt: str, seeds: list[int], **options: Any) -> pd.DataFrame:
    """One row, as ``detect`` gives it, with its settings."""
    from nemo_kit.calibration import resolve
    from nemo_kit.localization import detect

    frame = detect(model, [prompt], seeds, **options)
    given = (options.get(kind) for kind in ("settings", "similarity"))
    chosen = zip(("detection", "similarity"), resolve(model.calibration, *given), strict=True)
    return frame.assign(settings=json.dumps({name: asdict(one) for name, one in chosen}))


def localized(model: DiffusionModel, prompt: str, seeds: list[int], **options: Any) -> pd.DataFrame:
    """One row, as ``Localization.to_row`` gives it."""
    from nemo_kit.localization import localize

    return pd.DataFrame([localize(model, prompt, seeds=seeds, **options).to_row()])


def generated(
    model: DiffusionModel, item: Mapping[str, Any], seeds: list[int], **options: Any
) -> list[dict[str, Any]]:
    """One row a seed; the image as PNG, which is a third of its size and exact."""
    from nemo_kit.generation import generate

    own = {"neurons": item["neurons"], "mitigation": item.get("mitigation")}
    images = generate(model, item["prompt"], seeds, **own, **options)
    rows = []
    for seed, image in zip(seeds, images, strict=True):
        Image.fromarray(image).save(buffer := io.BytesIO(), "PNG")
        rows.append({"prompt": item["prompt"], "seed": seed, "image": buffer.getvalue()})
    return rows


def _listed(prompts: Iterable[str]) -> list[str]:
    """The prompts, one text being one; a bad one fails where it is worked on, and alone."""
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not texts:
        raise ValueError("prompts must hold at least one prompt, got none")
    return texts


def _of(given: Any, prompt: str) -> Any:
    return given.get(prompt) if isinstance(given, Mapping) else given
