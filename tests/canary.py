"""A few numbers of everything that states a VERSION, as it is; `python tests/canary.py` notes them.

Each case takes the embedded model and returns numbers; `canary.json` beside this file holds them
with the versions they belong to. Note them anew only with a raised VERSION, or where a version is
new: what isn't raised keeps the results that users have stored.
"""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pipelines

from nemo_kit import NeuronSet, detectors, lab, load, metrics
from nemo_kit.generation import generate
from nemo_kit.keys import versions
from nemo_kit.localization import calibrate, detect, localize
from nemo_kit.localization.candidates import text_activations, z_scores
from nemo_kit.localization.methods import METHODS, rank
from nemo_kit.metrics import distances
from nemo_kit.metrics.attention import disentanglement
from nemo_kit.mitigation import (
    AttentionMasking,
    AttentionMaskingAndScaling,
    AttentionScaling,
    EmbeddingAdjustment,
    EmbeddingNoise,
    Mitigation,
    NeMo,
    NoiseOptimisation,
    RandomNeurons,
    RandomNumbers,
    RandomTokens,
    WandaPruning,
    WordRepetition,
)

FILE = Path(__file__).with_name("canary.json")
SEEDS = range(1, 5)
NEURONS = NeuronSet({1: [0, 3, 5], 3: [2, 7]})
Numbers = dict[str, list[float]]


@cache
def text() -> str:
    """A prompt that the embedded model memorizes."""
    return str(lab.prompts("verbatim")["prompt"].iloc[0])


@cache
def model() -> Any:
    """The embedded model."""
    return load("lab", device="cpu")


@cache
def images(count: int = 4) -> np.ndarray:
    """Training images, uint8 [N, 64, 64, 3]."""
    return np.stack(list(lab.training_images()[1][:count]))


def small(*families: str) -> Callable[[], Numbers]:
    """What small models of these families predict, and the first values of their first layer."""

    def case() -> Numbers:
        numbers = {}
        with TemporaryDirectory() as folder:
            for name in families:
                one = load(str(pipelines.save(Path(folder) / name, name)), device="cpu")
                words, time = one.embed("a red cup"), one.timesteps(50)[1]
                told = one.predict_compared(one.noise([1]), time, words)
                numbers[name] = flat(told[0, :, 0, :3])
                numbers[f"{name} values"] = flat(one.value_activations(words)[1][0, 1, :6])
        return numbers

    return case


def flat(values: Any) -> list[float]:
    """Numbers of any array or tensor."""
    return [float(one) for one in np.asarray(values, dtype=float).ravel()]


def glance(pictures: np.ndarray) -> list[float]:
    """Means of a picture's 4 x 4 squares, each of its colours."""
    size = pictures.shape[1] // 4
    squares = pictures.reshape(-1, 4, size, 4, size, 3).astype(float)
    return flat(squares.mean(axis=(2, 4)))


def drawn(ways: Iterable[Mitigation]) -> Callable[[], Numbers]:
    """A picture under each mitigation, after three steps."""
    return lambda: {
        f"{way.name} {place}": glance(generate(model(), text(), [101], mitigation=way, steps=3))
        for place, way in enumerate(ways)
    }


def found(search: str) -> Callable[[], Numbers]:
    """A localization in one search mode."""

    def numbers() -> Numbers:
        one = localize(model(), text(), SEEDS, search=search)
        places = [number for pair in one.refined for number in pair]
        scores = [one.score, one.initial_score or 0.0, one.refined_score or 0.0]
        return {"neurons": flat(places), "scores": flat(scores)}

    return numbers


def ranked(file: str) -> Callable[[], Numbers]:
    """The methods of a file, within a small budget: a few scores, and the size of the set."""

    def numbers() -> Numbers:
        home = f"nemo_kit.localization.methods.{file}"
        own = [name for name, one in METHODS.items() if one.function.__module__ == home]
        asked = model(), text(), [1, 2], 80, images(1)[0]
        got = {name: rank(name, *asked) for name in own}
        return {
            name: [*flat(one.scores[1][:3]), *flat(one.scores[3][:3]), len(one.found or ())]
            for name, one in got.items()
        }

    return numbers


def _calibrated() -> Numbers:
    prompts = lab.prompts("holdout")["prompt"][:4]
    made = calibrate(model(), prompts, SEEDS)
    means = [one.double().mean() for one in made.statistics.means] if made.statistics else []
    return {"threshold": [made.threshold, made.mean, made.std], "means": flat(means)}


def _activations() -> Numbers:
    known = text_activations(model(), [text()])
    z = z_scores(known, model().calibration.statistics)
    return {str(layer): flat(values[0, :4]) for layer, values in z.items()}


def _detectors() -> Numbers:
    ways: dict[str, Any] = {
        "nemo": lambda: detectors.nemo_score(model(), text(), SEEDS),
        "magnitude": lambda: detectors.noise_magnitude(model(), text(), [1, 2], steps=3),
        "entropy": lambda: detectors.attention_entropy(model(), text(), [1, 2]),
        "late": lambda: detectors.attention_entropy_late(model(), text(), [1, 2], steps=5),
        "sharpness": lambda: detectors.sharpness(model(), text(), [1]),
        "anisotropy": lambda: detectors.anisotropy(model(), text(), [1, 2]),
    }
    return {name: flat(way()) for name, way in ways.items()}


def _copying() -> Numbers:
    import pandas as pd

    rows = pd.DataFrame({"prompt": ["a", "b"], "group": ["VM", "VM"]})
    look = metrics.lab_descriptor()
    both = [metrics.Seen("", part, look) for part in (images()[:2], images()[2:])]
    shots = [
        replace(one, before=other, training=known)
        for one, other, known in zip(both, both[::-1], images(2), strict=True)
    ]
    table = metrics.measured(rows, shots)
    table["alignment"] = 0.5
    names = ["orig", "above", "gen", "diversity", "alignment"]
    told = pd.concat(
        metrics.summary(part, names, by=["group"]) for part in (table, metrics.distinct(table))
    )
    return {name: flat(table[name]) for name in ("orig", "gen", "diversity", "above")} | {
        "medians": flat(told[["median", "mad", "low", "high"]])
    }


def _distances() -> Numbers:
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=(12, 3)), rng.normal(0.5, size=(10, 3))
    return {"frechet": [distances._frechet(one, two)],
            "kernel": flat(distances._kernel(one, two, subsets=5))}  # fmt: skip


def _scores() -> Numbers:
    values, labels = [0.1, 0.4, 0.35, 0.8, 0.7], [False, False, True, True, True]
    summary = list(metrics.summarize(values).values())[1:]
    table = metrics.detection_metrics(values, labels, 0.5, resamples=50)
    return {"summary": summary,
            "detection": flat(table[["value", "low", "high"]])}  # fmt: skip


def _neighbours() -> Numbers:
    texts = ["a red cup on a table", "a red cup on the table", "an owl", "An owl!"]
    return {"repeats": flat(metrics.near_duplicates(texts))}


MITIGATIONS = {
    "mitigation.base": [Mitigation()],
    "mitigation.nemo": [NeMo(NEURONS), RandomNeurons(NEURONS)],
    "mitigation.noise": [NoiseOptimisation(steps=1, candidates=1)],
    "mitigation.prompts": [RandomTokens(4), RandomNumbers(), WordRepetition()],
    "mitigation.embedding": [EmbeddingAdjustment(steps=2), EmbeddingNoise()],
    "mitigation.attention": [
        AttentionScaling(),
        AttentionMasking(),
        AttentionMaskingAndScaling(),
    ],
    "mitigation.wanda": [WandaPruning()],
}
CASES: dict[str, Callable[[], Numbers]] = {
    "models.stable_diffusion": lambda: {
        "noise": flat(model().noise([1])[0, 0, :2]),
        "text": flat(model().embed(text())[0, 1, :6]),
        "predicted": flat(
            model().predict(model().noise([1]), model().timesteps(50)[1], model().embed(text()))[
                0, :, 0, :2
            ]
        ),
    },
    "models.sdxl": small("sdxl"),
    "models.pixart": small("pixart_alpha", "pixart_sigma"),
    "models.sana": small("sana"),
    "models.hunyuan": small("hunyuan"),
    "models.sd3": small("sd3"),
    "models.flux": small("flux"),
    "localization.detection": lambda: {
        "score": flat(detect(model(), [text()], SEEDS)["score"]),
        **_calibrated(),
    },
    "localization.candidates": _activations,
    "localization.nemo": found("speculative"),
    "localization.search.sequential": found("sequential"),
    "localization.search.speculative": found("speculative"),
    "localization.search.halving": found("bisect"),
    "localization.search.attributed": found("attributed"),
    **{
        f"localization.methods.{file}": ranked(file)
        for file in (
            "activation",
            "chance",
            "gradient",
            "hard_concrete",
            "integrated",
            "nemo",
            "patching",
            "slimming",
            "wanda",
            "z_score",
        )
    },
    "generation": lambda: {
        "picture": glance(generate(model(), text(), [101, 102], steps=4)),
        "scaled": glance(generate(model(), text(), [101], NEURONS, factor=-1.0, steps=4)),
    },
    **{name: drawn(ways) for name, ways in MITIGATIONS.items()},
    "metrics.attention": lambda: {
        "cosine": flat(disentanglement(model(), [text()], NEURONS, [1])["cosine"])
    },
    "detectors": _detectors,
    "metrics.measures": _copying,
    "metrics.distances": _distances,
    "metrics.duplicates": _neighbours,
    "metrics.images": lambda: {
        "alignment": flat(metrics.load_clip().align(images(2), text())),
        "diversity": [metrics.diversity(images(), metrics.lab_descriptor())],
    },
    "metrics.scores": _scores,
    "metrics.embedders": lambda: {"lab": flat(metrics.lab_descriptor()(images(1))[0, :6])},
    "metrics.clip": lambda: {"lab": flat(metrics.load_clip().embedder.features(images(1))[0, :6])},
}


def numbers() -> dict[str, Numbers]:
    """Those of every case, as they are now."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {name: case() for name, case in CASES.items()}


def noted() -> dict[str, Any]:
    """Name -> version and numbers, as they were noted."""
    return json.loads(FILE.read_text()) if FILE.is_file() else {}


def weights() -> str:
    """Which edition of the embedded model the numbers are of."""
    told = sorted(lab.MODEL.rglob("*.safetensors"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in told)).hexdigest()[:16]


def main() -> None:
    """Note what is new, has another version, or is of other weights; the rest stays as it was."""
    before, now = noted(), {}
    for name, found in numbers().items():
        old = before.get(name, {})
        here = {"version": versions()[name], "weights": weights()}
        same = here.items() <= old.items()
        kept = {label: [round(one, 6) for one in values] for label, values in found.items()}
        now[name] = old if same else here | {"numbers": kept}
    lines = [f"{json.dumps(name)}: {json.dumps(one)}" for name, one in now.items()]
    FILE.write_text("{" + ",\n".join(lines) + "}\n")


if __name__ == "__main__":
    sys.exit(main())
