"""The registry: figure → notebook → parameters, with the presets ``quick``, ``lab``, ``paper``.

Scope: names, and what a notebook accepts. The defaults of each parameter class are the preset
``quick`` and stand as literals in the notebook's parameters cell (tested), so that a notebook
opened in JupyterLab runs as ``make figures`` runs it. ``lab`` is what each row says on top, in full
for the embedded model; ``paper`` is ``lab`` with the settings of the paper's section 4 and every
prompt there is. ``None`` means all there are.
Source: figure and table numbers of Hintersdorf et al., NeurIPS 2024.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

PRESETS = ("quick", "lab", "paper")
PAPER = {"seeds": 10, "images": 10, "steps": 50, "guidance": 7.0}  # section 4
Count = Annotated[int, Field(ge=1)]


class Parameters(BaseModel):
    """What every notebook accepts; a name that is not here is refused, never passed on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = "lab"  # "lab", a diffusers folder, or a hub id
    revision: str | None = None  # of a hub id; None: the one that is on this machine
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"  # of the model's weights
    prompt_files: list[str] = []  # CSV or text files; empty: the prompts of the lab model
    training_images: str | None = None  # folder of them; None: those of the lab model
    out: str = "../figures/lab-quick"  # figures and manifest
    store: str = "../runs/store"  # results per prompt, kept between runs


class Quickstart(Parameters):
    """00_quickstart: one prompt from picture to neurons and back."""

    prompt: str = ""  # empty: the first verbatim prompt there is
    seeds: Count = 10  # of detection
    images: Count = 4  # generations shown, each with and without the neurons
    steps: Count = 25
    guidance: float | None = Field(None, ge=1.0)  # None: the model's own


class Detection(Parameters):
    """01_detection: the score apart for memorized and other prompts, its ROC, its threshold."""

    memorized: Count | None = 12  # prompts of each type, VM and TM
    non_memorized: Count | None = 24
    holdout: Count | None = 40  # prompts on which the threshold is computed again
    seeds: Annotated[int, Field(ge=2)] = 10
    bootstrap: Count = 200
    compared: Count | None = 4  # prompts of each group for the detectors of the field
    detector_seeds: Count = 2  # images of each prompt; NeMo has its own, attention entropy one
    detector_steps: Annotated[int, Field(ge=5)] = 5  # DDIM steps of those that denoise


class Activations(Parameters):
    """02_activations: z-scores of value neurons, no denoiser call."""

    memorized: Count | None = 12
    non_memorized: Count | None = 40
    extremes: Count = 3  # most extreme neurons shown per layer


class LocalizationRun(Parameters):
    """03_localization: Algorithms 1–4 over the memorized prompts, and what the neurons do."""

    memorized: Count | None = 6
    non_memorized: Count | None = 8  # unseen prompts that should yield no neuron
    seeds: Annotated[int, Field(ge=2)] = 10
    images: Count = 4  # seeds of the generations
    steps: Count = 20
    guidance: float | None = Field(None, ge=1.0)  # None: the model's own


class DoseResponse(Parameters):
    """04_dose_response: score, copies and neurons against the repetition rate."""

    per_rate: Count | None = 2  # prompts at each repetition rate
    seeds: Annotated[int, Field(ge=2)] = 10
    images: Count = 4
    steps: Count = 20
    guidance: float | None = Field(None, ge=1.0)  # None: the model's own


class Evaluation(Parameters):
    """What notebooks that judge pictures have in common: their seeds are not detection's."""

    seeds: Annotated[int, Field(ge=2)] = 10  # of detection: 1, 2, …
    first_seed: Annotated[int, Field(ge=0)] = 101  # of the pictures; refused where they meet
    steps: Count = 20
    guidance: float | None = Field(None, ge=1.0)  # None: the model's own


class Copying(Evaluation):
    """… and of those that compare them with training images."""

    sscd: str | None = None  # TorchScript file of SSCD; None: the embedded model's descriptor
    sscd_sha256: str | None = None  # of a file you trust, where it is none of the published ones
    clip: str = "lab"  # for the alignment


class MitigationRun(Copying):
    """05_mitigation: NeMo and all other mitigations on the same prompts and seeds."""

    memorized: Count | None = 3  # prompts of each type, VM and TM
    images: Count = 3
    repeats: Count = 1  # draws of each mitigation that draws at random
    known: Count | None = 6  # of each type, whose neurons the random ones avoid; None: all
    noise_candidates: Count | None = 1  # of the initial-noise optimisation; None: its own 8
    grid: Count = 3  # prompts of each type in the grid of F3
    steps: Count = 15


class MemorizationTypes(Evaluation):
    """06_memorization_types: verbatim or template, by the closest picture."""

    memorized: Count | None = 12  # prompts of each type, VM and TM
    images: Count = 4
    sscd: str | None = None  # TorchScript file of SSCD; None: the embedded model's descriptor
    sscd_sha256: str | None = None  # of a file you trust, where it is none of the published ones
    threshold: Annotated[float, Field(ge=-1, le=1)] = 0.7


class Quality(Evaluation):
    """07_quality: what blocking memorization neurons costs prompts that are not memorized."""

    memorized: Count | None = 6  # prompts of each type, VM and TM, whose neurons are blocked
    non_memorized: Count | None = 8  # unseen prompts that should yield no neuron
    ordinary: Annotated[int, Field(ge=2)] | None = 6  # non-memorized prompts looked at
    repeats: Count = 3  # picture seeds, each with a random choice of its own
    counts: list[Count] = [1, 10]  # blocked neurons; empty: 1, 2, 5, 10, …; all come last
    steps: Count = 15
    clip: str = "lab"  # of CLIP-FID and CLIP-KID
    inception: str | None = None  # TorchScript file, for FID and KID
    real_images: str | None = None  # folder; None: the lab's features of background pictures


class Ablation(Copying):
    """08_ablation: localization with one choice changed at a time, and other scaling factors."""

    memorized: Count | None = 2  # prompts of each type, VM and TM
    holdout: Annotated[int, Field(ge=2)] | None = 10  # for the threshold with guidance
    images: Count = 3
    steps: Count = 15
    factors: list[float] = [-1.0, -0.5, 0.25, 0.5, 0.75]  # besides 0 and 1


class Thresholds(Parameters):
    """09_thresholds: neurons and pictures for every pair of an initial and refinement threshold."""

    memorized: Count | None = 3  # prompts of each type, VM and TM
    deviations: Annotated[list[float], Field(min_length=1)] = [-1.0, 0.0, 1.0]  # in σ, from μ
    seeds: Annotated[int, Field(ge=2)] = 10
    images: Count = 3
    steps: Count = 15
    guidance: float | None = Field(None, ge=1.0)  # None: the model's own


class Layers(Parameters):
    """10_layers: whole layers and halves of convolutions switched off, one after the other."""

    memorized: Count | None = 2  # prompts of each type, VM and TM
    images: Count = 2
    steps: Count = 12
    guidance: float | None = Field(None, ge=1.0)  # None: the model's own
    grid: Count = 2  # prompts in the grids of F18 to F20
    share: Annotated[float, Field(gt=0, le=1)] = 0.5  # of a convolution's channels at zero
    draw: Annotated[int, Field(ge=0)] = 0  # seed of which channels


class NeuronAtlas(Parameters):
    """11_neuron_atlas: large sets, shared neurons, and what drives one neuron."""

    memorized: Count | None = 6  # prompts of each type, VM and TM
    non_memorized: Count | None = 40  # other prompts that may drive a neuron, text side alone
    seeds: Annotated[int, Field(ge=2)] = 10
    largest: Count = 4  # prompts with the most neurons shown in F9
    images: Count = 4
    steps: Count = 20
    guidance: float | None = Field(None, ge=1.0)  # None: the model's own
    neuron: str = ""  # "3:63" is neuron 63 of layer 3; empty: the first of F10


@dataclass(frozen=True)
class Notebook:
    """One notebook: its parameters, what ``lab`` changes, and seconds to expect on two cores."""

    parameters: type[Parameters]
    lab: dict[str, Any]
    expected: dict[str, float]  # seconds per preset, used until a manifest knows better
    paper: dict[str, Any] = field(default_factory=dict)  # beyond what holds for every notebook
    role: str = ""  # of prompts that it can't do without, and that a prompt file may lack

    def changes(self, preset: str) -> dict[str, Any]:
        """What a preset sets, by parameter; ``paper`` asks for all prompts by itself."""
        if preset == "quick":
            return {}
        if preset == "lab":
            return self.lab
        own = set(self.parameters.model_fields) - set(Parameters.model_fields)
        counts = {name for name in own if _may_be_none(self.parameters, name)}
        fixed = {name: value for name, value in PAPER.items() if name in own}
        return {**self.lab, **dict.fromkeys(counts), **fixed, **self.paper}


def _may_be_none(kind: type[Parameters], name: str) -> bool:
    return type(None) in get_args(kind.model_fields[name].annotation)


@dataclass(frozen=True)
class Figure:
    """One figure or table: its name, the notebook that draws it, and what it shows."""

    name: str
    notebook: str
    shows: str
    picture: bool = True  # False: a table, of which the CSV is the result
    also: tuple[str, ...] = ()  # figures and tables of the paper that it shows besides its own

    @property
    def numbers(self) -> tuple[str, ...]:
        """Figures and tables of the paper that it shows, as F2a or T1; empty where it is ours."""
        own = bool(re.fullmatch(r"[FT]\d+[a-d]?", self.name))
        parts = any(number.startswith(self.name) for number in self.also)  # F8: F8a, F8b, F8c
        return self.also if parts or not own else (self.name, *self.also)

    @property
    def paper(self) -> str:
        """Those numbers in words: "Figure 2a", "Figures 10, 11", "Table 1"; empty for ours."""
        kinds = {"F": "Figure", "T": "Table"}
        parts = []
        for letter, word in kinds.items():
            some = [number[1:] for number in self.numbers if number[0] == letter]
            if some:
                parts.append(f"{word}{'s' * (len(some) > 1)} {', '.join(some)}")
        return " and ".join(parts)

    @property
    def files(self) -> tuple[str, ...]:
        """Files that must be there: the data as CSV, and the picture where there is one."""
        return (f"{self.name}.png", f"{self.name}.csv") if self.picture else (f"{self.name}.csv",)


_PICTURES = {"images": 4, "steps": 25}
_FACTORS = [-1.0, -0.75, -0.5, -0.25, 0.25, 0.5, 0.75]

NOTEBOOKS: dict[str, Notebook] = {
    "00_quickstart": Notebook(Quickstart, {"steps": 50}, {"quick": 30, "lab": 60}),
    "01_detection": Notebook(
        Detection,
        {"memorized": None, "non_memorized": None, "holdout": None, "bootstrap": 1000}
        | {"compared": 10, "detector_steps": 25},
        {"quick": 60, "lab": 430},
        paper={"detector_seeds": 4, "detector_steps": 50},
    ),
    "02_activations": Notebook(
        Activations, {"memorized": None, "non_memorized": None}, {"quick": 20, "lab": 30}
    ),
    "03_localization": Notebook(
        LocalizationRun,
        {"memorized": None, "non_memorized": 40, **_PICTURES},
        {"quick": 130, "lab": 880},
    ),
    "04_dose_response": Notebook(
        DoseResponse, {"per_rate": None, **_PICTURES}, {"quick": 120, "lab": 390}, role="ladder"
    ),
    "05_mitigation": Notebook(
        MitigationRun,
        {
            "memorized": 6,
            "images": 3,
            "steps": 15,
            "repeats": 2,
            "known": None,
            "noise_candidates": 2,
            "grid": 4,
        },
        {"quick": 210, "lab": 840},
        paper={"repeats": 5, "known": None, "grid": 4},
    ),
    "06_memorization_types": Notebook(
        MemorizationTypes, {"memorized": None, "images": 6, "steps": 15}, {"quick": 55, "lab": 230}
    ),
    "07_quality": Notebook(
        Quality,
        {
            "memorized": None,
            "non_memorized": 40,
            "ordinary": 12,
            "repeats": 3,
            "counts": [1, 10, 50],
            "steps": 15,
        },
        {"quick": 120, "lab": 270},
        paper={"repeats": 5, "counts": [25, 50, 100, 150, 250, 500, 750]},
    ),
    "08_ablation": Notebook(
        Ablation,
        {"memorized": 6, "holdout": 40, "images": 3, "steps": 15, "factors": _FACTORS},
        {"quick": 110, "lab": 470},
    ),
    "09_thresholds": Notebook(
        Thresholds, {"memorized": 6, "images": 3, "steps": 15}, {"quick": 50, "lab": 220}
    ),
    "10_layers": Notebook(
        Layers,
        {"memorized": 4, "images": 3, "steps": 15, "grid": 3},
        {"quick": 200, "lab": 730},
    ),
    "11_neuron_atlas": Notebook(
        NeuronAtlas,
        {"memorized": None, "non_memorized": None, "largest": 6, **_PICTURES},
        {"quick": 40, "lab": 80},
    ),
}

FIGURES: tuple[Figure, ...] = (
    Figure("quickstart", "00_quickstart", "one prompt, before and after its neurons are zeroed"),
    Figure("F2a", "01_detection", "density of the pairwise score: non-memorized, TM, VM"),
    Figure("ROC", "01_detection", "detection from the score alone: ROC curves"),
    Figure("detection", "01_detection", "AUROC, TPR@1%FPR and accuracy with intervals", False),
    Figure("detectors", "01_detection", "detection scores of the field: AUROC, TPR@1%FPR, cost"),
    Figure("F13", "01_detection", "noise differences as pictures"),
    Figure("calibration", "01_detection", "the threshold and the scores it comes from"),
    Figure("F2b", "02_activations", "density of z in value layer 1"),
    Figure("extremes", "02_activations", "the most extreme neurons of each layer"),
    Figure("verdicts", "03_localization", "prompts flagged, and prompts with neurons", False),
    Figure("F4a", "03_localization", "prompts by number of refined neurons"),
    Figure("F7a", "03_localization", "prompts by number of initial neurons"),
    Figure("F7b", "03_localization", "prompts by number of refined neurons, full range"),
    Figure("F4b", "03_localization", "mean number of refined neurons by layer"),
    Figure("T2", "03_localization", "seconds and denoiser samples by algorithm"),
    Figure("effect", "03_localization", "copying, diversity, alignment before and after", False),
    Figure("F1", "03_localization", "the workflow on one prompt"),
    Figure("truth", "03_localization", "neurons found against planted ones"),
    Figure("dose_response", "04_dose_response", "memorization against the repetition rate"),
    Figure("T1", "05_mitigation", "all mitigations side by side"),
    Figure("T1_distinct", "05_mitigation", "the same without near-duplicate prompts", False),
    Figure("T1_paper", "05_mitigation", "the paper's table 1, to read beside"),
    Figure("T1_orders", "05_mitigation", "pairs of rows that the paper orders otherwise", False),
    Figure("F3", "05_mitigation", "generations with and without the neurons"),
    Figure("F6", "06_memorization_types", "density of the largest similarity: VM, TM"),
    Figure("types", "06_memorization_types", "labels against measured types", False),
    Figure("unseen", "07_quality", "non-memorized prompts that yield neurons"),
    Figure("blocked", "07_quality", "which neurons are blocked", False),
    Figure("F5a", "07_quality", "a distance to real pictures against blocked neurons"),
    Figure("F8", "07_quality", "all distances", also=("F8a", "F8b", "F8c")),
    Figure("T3", "07_quality", "cross-attention outputs with and without blocked neurons"),
    Figure("T4", "08_ablation", "one choice changed at a time, and other scaling factors"),
    Figure("F5b", "08_ablation", "similarity against the scaling factor"),
    Figure("sharing", "09_thresholds", "samples saved by sharing work between thresholds", False),
    Figure("F14a", "09_thresholds", "initial neurons by both thresholds, VM"),
    Figure("F14b", "09_thresholds", "initial neurons by both thresholds, TM"),
    Figure("F14c", "09_thresholds", "refined neurons by both thresholds, VM"),
    Figure("F14d", "09_thresholds", "refined neurons by both thresholds, TM"),
    Figure("F15a", "09_thresholds", "similarity to the undisturbed pictures, VM"),
    Figure("F15b", "09_thresholds", "similarity to the undisturbed pictures, TM"),
    Figure("F15c", "09_thresholds", "similarity to the training image, VM"),
    Figure("F15d", "09_thresholds", "similarity to the training image, TM"),
    Figure("F16", "10_layers", "one key or value layer at zero: similarity and alignment, VM"),
    Figure("F17", "10_layers", "one key or value layer at zero: similarity and alignment, TM"),
    Figure("F18", "10_layers", "pictures with one value layer at zero"),
    Figure("F19", "10_layers", "pictures with one key layer at zero"),
    Figure("F20", "10_layers", "pictures with half of a convolution's channels at zero"),
    Figure("F9", "11_neuron_atlas", "the prompts with the most neurons, before and after"),
    Figure("shared", "11_neuron_atlas", "neurons by the number of prompts they serve"),
    Figure("F10", "11_neuron_atlas", "neurons that several prompts share, switched off alone"),
    Figure("F11", "11_neuron_atlas", "the next shared neurons, switched off alone"),
    Figure("F12", "11_neuron_atlas", "the third shared neurons, switched off alone"),
    Figure("bipartite", "11_neuron_atlas", "the graph of prompts and neurons"),
    Figure("neuron", "11_neuron_atlas", "one neuron: the prompts that drive it most"),
    Figure("layer_shares", "11_neuron_atlas", "the share of each layer that memorizes"),
)


def parameters(notebook: str, preset: str = "quick", **common: Any) -> Parameters:
    """Parameters of a notebook under a preset.

    Returns the validated parameters. ``common`` overrides any of them.
    Raises ValueError for an unknown notebook or preset, pydantic's ValidationError (a ValueError)
    for a name or value that the notebook does not accept.
    """
    if notebook not in NOTEBOOKS:
        raise ValueError(f"notebook must be one of {', '.join(NOTEBOOKS)}, got {notebook!r}")
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    row = NOTEBOOKS[notebook]
    return row.parameters(**{**row.changes(preset), **common})


def select(only: Iterable[str] = ()) -> tuple[Figure, ...]:
    """Figures by name, number in the paper, or notebook; all of them when none is named.

    Returns rows of ``FIGURES`` in its order. Raises ValueError that names those most alike.
    """
    named = {name.casefold(): name for name in only}
    wanted = set(named)
    known = {name for row in FIGURES for name in _names(row)}
    if unknown := sorted(wanted - known):
        raise ValueError(
            f"only must name a figure or a notebook, got {named[unknown[0]]!r}; "
            f"{_alike(unknown[0])}nemo-kit figures --list names them all"
        )
    if not wanted:
        return FIGURES
    return tuple(row for row in FIGURES if _names(row) & wanted)


def _alike(wrong: str) -> str:
    """The names that someone may have meant: those that begin so, or are spelled alike."""
    names = {name.casefold(): name for name in (*(row.name for row in FIGURES), *NOTEBOOKS)}
    longer = [name for name in names if wrong and wrong in name]
    found = longer or difflib.get_close_matches(wrong, names, 3, 0.5)
    return f"did you mean {', '.join(names[name] for name in found[:4])}? " if found else ""


def _names(row: Figure) -> set[str]:
    return {name.casefold() for name in (row.name, row.notebook, *row.numbers)}
