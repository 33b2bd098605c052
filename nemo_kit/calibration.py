"""What a model's hold-out prompts say: activation statistics and the memorization threshold.

Scope: the two value objects, how they follow from scores and activations, their files
(`calibration.json`, `statistics.safetensors`, and the released code's `.pt`), and which of them
hold for a model. Scores and activations are drawn by `localization.calibrate`.
Source: "Finding NeMo" (arXiv 2406.02366), section 3.1 (threshold: mean + 1 standard deviation
of the score on non-memorized prompts, 0.428 for SD v1.4) and Algorithm 2 (mean and deviation of
each neuron's activation).
"""

import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nemo_kit.checks import ROUNDING, check_kind, check_number
from nemo_kit.files import json_writer, write_together
from nemo_kit.settings import DetectionSettings, SimilaritySettings

CALIBRATION_FILE = "calibration.json"
STATISTICS_FILE = "statistics.safetensors"
_UNREADABLE = (  # what the readers of files raise
    SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, TypeError, KeyError
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class ActivationStatistics:
    """Mean and standard deviation of each neuron's activation over hold-out prompts.

    Parameters: `means`, `stds`, one [width] tensor a layer, layer 1 first, values ≥ 0.
    Raises ValueError for unequal lengths or shapes, NaN, and negative deviations.
    Source: Algorithm 2, μ_i and σ_i.
    """

    means: tuple[Tensor, ...]
    stds: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        for name in ("means", "stds"):
            object.__setattr__(self, name, _vectors(name, getattr(self, name)))
        shapes = [[len(t) for t in side] for side in (self.means, self.stds)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"means and stds must have the same widths, got {shapes}")
        if any((std < 0).any() for std in self.stds):
            raise ValueError("stds must not be negative")

    @property
    def widths(self) -> dict[int, int]:
        """Layer -> number of neurons."""
        return {layer: len(mean) for layer, mean in enumerate(self.means, start=1)}

    def check(self, widths: Mapping[int, int]) -> Self:
        """These statistics, where they are of layers of these widths.

        Raises ValueError for statistics of another model.
        """
        if self.widths != widths:
            raise ValueError(
                f"statistics must have the widths of the model's layers, {dict(widths)}, got "
                f"{self.widths}; are they of another model?"
            )
        return self

    @classmethod
    def from_activations(cls, activations: Mapping[int, Tensor]) -> Self:
        """Mean and unbiased deviation over prompts.

        Parameters: `activations`, layer -> [prompts, width], layers 1 to n, at least 2 prompts.
        Raises ValueError for fewer prompts, a gap in the layers, and where no neuron varies.
        """
        layers = range(1, len(activations) + 1)
        if set(activations) != set(layers) or min(map(len, activations.values()), default=0) < 2:
            shapes = {layer: list(one.shape) for layer, one in activations.items()}
            raise ValueError(
                "activations must be of layers 1 to n, [prompts, width] each with at least 2 "
                f"prompts, got {shapes}"
            )
        ordered = [activations[layer].double() for layer in layers]
        means = tuple(a.mean(dim=0).float() for a in ordered)
        found = cls(means, tuple(a.std(dim=0).float() for a in ordered))
        pairs = zip(found.means, found.stds, strict=True)
        if all((std <= ROUNDING * mean).all() for mean, std in pairs):
            raise ValueError(
                f"prompts: the {len(ordered[0])} hold-out prompts have one and the same "
                "activations, so no neuron could stand out; are they one text, or is the text "
                "encoder without its weights?"
            )
        return found

    def save(self, path: str | Path) -> None:
        """Write safetensors with `mean.1`, `std.1`, …"""
        sides = {"mean": self.means, "std": self.stds}
        save_file(
            {f"{n}.{i}": t.contiguous() for n, s in sides.items() for i, t in enumerate(s, 1)}, path
        )

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote, or the released code's `.pt`, a pair of lists of tensors.

        A `.pt` is loaded as weights only. Raises ValueError where the file holds anything else.
        """
        try:
            if Path(path).suffix == ".pt":
                means, stds = torch.load(path, map_location="cpu", weights_only=True)
            else:
                tensors = load_file(path)
                layers = range(1, len(tensors) // 2 + 1)
                means, stds = ([tensors[f"{n}.{i}"] for i in layers] for n in ("mean", "std"))
            return cls(means, stds)
        except _UNREADABLE as error:
            text = " ".join(str(error).split())  # torch's has many lines
            raise ValueError(f"{path} holds no activation statistics: {text:.300}") from error


def _vectors(name: str, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    if not isinstance(tensors, (list, tuple)) or not tensors:
        raise ValueError(f"{name} must be a list of tensors, one a layer, got {tensors!r:.60}")
    for layer, tensor in enumerate(tensors, start=1):
        if not isinstance(tensor, Tensor) or tensor.ndim != 1:
            raise ValueError(f"{name}: layer {layer} must be a 1-D tensor")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name}: layer {layer} holds NaN or infinity")
    return tuple(tensor.detach().float().cpu() for tensor in tensors)


@dataclass(frozen=True, eq=False)
class Calibration:
    """The score's mean, deviation and threshold on non-memorized prompts, with how it was made.

    Parameters: `mean`, `std`, `threshold` of the score; `statistics` of the activations, or None;
    `similarity`, `detection`, the settings they hold for; `prompts`, how many; `source`, in words;
    `seeds`, those that were compared.
    Source: section 3.1.
    """

    mean: float
    std: float
    threshold: float
    statistics: ActivationStatistics | None = field(repr=False)
    similarity: SimilaritySettings = field(default_factory=SimilaritySettings)
    detection: DetectionSettings = field(default_factory=DetectionSettings)
    prompts: int = 0
    source: str = ""
    seeds: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("mean", "std", "threshold"):
            check_number(name, getattr(self, name))
        object.__setattr__(self, "seeds", tuple(self.seeds))

    def holds(self, detection: DetectionSettings, similarity: SimilaritySettings) -> bool:
        """Whether it was made with these settings."""
        return (self.detection, self.similarity) == (detection, similarity)

    def false_alarms(self, threshold: float | None = None) -> float | None:
        """Expected share of prompts like the hold-out ones whose score is above τ, in [0, 1].

        From mean and deviation, as if scores were normal; None where these are of pairs of seeds: a
        prompt's score is the largest of its pairs.
        Parameters: `threshold`, another one than its own.
        """
        if self.detection.threshold_from != "maxima" or not self.std:
            return None
        limit = self.threshold if threshold is None else threshold
        return 1 - NormalDist(self.mean, self.std).cdf(limit)

    def save(self, folder: str | Path) -> None:
        """Write `calibration.json` and, where there are any, `statistics.safetensors`.

        Files of before stay where it fails. A kill while they are exchanged leaves no
        `calibration.json`, never one beside another's statistics. A model's own calibration lies in
        the folder `nemo` inside the model's folder.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        plain = asdict(replace(self, statistics=None))
        del plain["statistics"]
        statistics = self.statistics and self.statistics.save
        write_together(
            {folder / STATISTICS_FILE: statistics, folder / CALIBRATION_FILE: json_writer(plain)}
        )

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what `save` wrote.

        Raises FileNotFoundError where there is none, ValueError where it can't be read.
        """
        path = Path(folder) / CALIBRATION_FILE
        statistics = path.with_name(STATISTICS_FILE)
        found = ActivationStatistics.load(statistics) if statistics.is_file() else None
        try:
            values = json.loads(path.read_text("utf-8"))
            values["similarity"] = SimilaritySettings(**values["similarity"])
            values["detection"] = DetectionSettings(**values["detection"])
            return cls(**values, statistics=found)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no calibration: {error!r}") from error


def published(name: str) -> Calibration | None:
    """The paper's threshold for the models it names one for (SD v1.4), without statistics.

    Source: section 4; mean 0.358, one deviation 0.070, threshold 0.428.
    """
    if name != "CompVis/stable-diffusion-v1-4":
        return None
    source = "Finding NeMo (arXiv 2406.02366); statistics are a file of the released code"
    return Calibration(0.358, 0.070, 0.428, None, prompts=50_000, source=source)


def resolve(
    own: Calibration | None,
    detection: DetectionSettings | None = None,
    similarity: SimilaritySettings | None = None,
) -> tuple[DetectionSettings, SimilaritySettings]:
    """What was given, else what the model's `own` calibration was made with, else the defaults.

    Raises TypeError where what was given are other settings.
    """
    check_kind("settings of detection", detection, DetectionSettings)
    check_kind("similarity", similarity, SimilaritySettings)
    detection = detection or (own.detection if own else DetectionSettings())
    return detection, similarity or (own.similarity if own else SimilaritySettings())


def check_threshold(
    model: Any,
    threshold: float | None,
    detection: DetectionSettings,
    similarity: SimilaritySettings,
) -> float:
    """The threshold that holds for these settings.

    Raises ValueError where none was given and the model's own is missing or belongs to other
    settings.
    """
    if threshold is not None:
        check_number("threshold", threshold)
        return float(threshold)
    own = model.calibration
    if own is None:
        raise ValueError(
            f"threshold: the model {model.name!r} has none; give threshold=…, or set "
            "model.calibration = calibrate(model, hold_out_prompts)"
        )
    if not own.holds(detection, similarity):
        raise ValueError(
            f"threshold: the model's {own.threshold:.3f} was calibrated with {own.detection} and "
            f"{own.similarity}; give threshold=… or calibrate with your settings"
        )
    return own.threshold


def check_statistics(
    model: Any, statistics: ActivationStatistics | None = None
) -> ActivationStatistics:
    """The statistics given, else the model's own.

    Raises ValueError where there are none that fit it, TypeError for anything else.
    """
    check_kind("statistics", statistics, ActivationStatistics)
    found = statistics or (model.calibration.statistics if model.calibration else None)
    if found is None:
        raise ValueError(
            f"statistics: the model {model.name!r} has none; give statistics=… (for SD v1.4 "
            "ActivationStatistics.load(path)), or set model.calibration = "
            "calibrate(model, hold_out_prompts)"
        )
    return found.check({layer.index: layer.width for layer in model.searched})
