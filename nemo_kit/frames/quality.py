"""What blocking neurons costs other prompts: image quality, and neurons found where none should be.

Scope: which neurons are blocked (the most frequent of the memorized prompts, or random ones), the
pictures of non-memorized prompts without them, their distance to real pictures, and how many of
these prompts yield neurons.
Source: Hintersdorf et al., "Finding NeMo", NeurIPS 2024, section 4, figures 5a and 8.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from nemo_kit import metrics
from nemo_kit.checks import check_seeds, check_seeds_apart, check_whole
from nemo_kit.disentanglement import disentanglement
from nemo_kit.neurons import NeuronSet, random_neurons
from nemo_kit.store import Keyed, generate_all

if TYPE_CHECKING:
    from nemo_kit.models import DiffusionModel

FREQUENT, RANDOM, NONE = "most frequent", "random", "none"
CHOICES = (FREQUENT, RANDOM)
PAPER_UNSEEN = (58, 500)  # unseen non-memorized prompts that yield neurons, of how many


@dataclass(frozen=True)
class Block:
    """Neurons to block at once: how many, how chosen, and for a random choice its seed."""

    choice: str
    count: int
    neurons: NeuronSet
    seed: int | None = None


def counts_up_to(found: int, wanted: Sequence[int] = ()) -> list[int]:
    """Numbers of neurons to block: those wanted (by default 1, 2, 5, 10, 20, …) up to all found.

    Returns ascending counts; the last is `found` itself.

    Parameters: `found`, how many different neurons there are, at least 1; `wanted`, counts of 1 or
    more; larger ones than `found` are left out.
    Raises ValueError for other numbers.
    """
    check_whole("found", found, 1)
    for count in wanted:
        check_whole("counts", count, 1)
    steps = wanted or [digit * 10**power for power in range(len(str(found))) for digit in (1, 2, 5)]
    return sorted({count for count in steps if count < found} | {found})


def most_frequent(table: pd.DataFrame, count: int) -> NeuronSet:
    """The `count` neurons that serve most prompts.

    Parameters: `table`, from `neurons.frequency`: `layer`, `neuron`, `prompts`, most first.
    Raises ValueError for more neurons than the table has.
    Source: paper, figure 5a (the most frequent first).
    """
    check_whole("count", count, 0)
    if count > len(table):
        raise ValueError(f"count must be at most the {len(table)} neurons found, got {count}")
    rows = table[:count]
    return NeuronSet.of(zip(rows["layer"].tolist(), rows["neuron"].tolist(), strict=True))


def blocks(
    table: pd.DataFrame, counts: Sequence[int], widths: Mapping[int, int], seeds: Sequence[int]
) -> list[Block]:
    """All neuron sets of the comparison: for each count the most frequent, and random ones a seed.

    Parameters: `table`, from `neurons.frequency`; `counts`, from `counts_up_to`; `widths`, layer ->
    number of neurons; `seeds`, one random draw for each.
    Raises ValueError as `most_frequent`; where the layers have too few
    neurons that were not found, that count has no random block.
    """
    found, made = most_frequent(table, len(table)), []
    free = sum(widths.values()) - len(found)
    for count in counts:
        chosen = most_frequent(table, count)
        made.append(Block(FREQUENT, count, chosen))
        if count <= free:
            for seed in seeds:
                drawn = random_neurons(chosen, widths, found, seed, overflow=True)
                made.append(Block(RANDOM, count, drawn, seed))
    return made


def widths(model: DiffusionModel) -> dict[int, int]:
    """Layer -> number of neurons, of the layers that localization searches."""
    return {layer.index: layer.width for layer in model.searched}


def pictures(
    model: DiffusionModel,
    prompts: Sequence[str],
    chosen: Iterable[Block],
    *,
    seeds: Sequence[int],
    detection_seeds: Iterable[int],
    store: str | Path,
    **options: Any,
) -> pd.DataFrame:
    """Pictures of the prompts with each block's neurons deactivated, and undisturbed.

    Returns a frame with `choice` ("none", "most frequent", "random"), `neurons` (count), `seed`,
    `prompt`, `image`. A random block is drawn with the picture of its own place among the seeds.

    Parameters: `prompts`; `chosen`, from `blocks`; `seeds` of the pictures, one for each random
    draw; `detection_seeds`, which they must not meet; `options`, for `generate_all`.
    Raises ValueError for shared seeds, and what `generate_all` raises.
    Source: paper, figures 5a and 8 (five seeds).
    """
    numbers = check_seeds(check_seeds_apart(seeds, detection_seeds), distinct=True)
    places = dict(zip(range(len(numbers)), numbers, strict=True))
    parts, keyed = [], Keyed.of(model)
    for block in [Block(NONE, 0, NeuronSet()), *chosen]:
        own = numbers if block.seed is None else [places[block.seed]]
        neurons = block.neurons or None
        made = generate_all(keyed, prompts, own, neurons, store=store, **options)
        parts.append(made.assign(choice=block.choice, neurons=block.count))
    frame = pd.concat(parts, ignore_index=True)
    return frame[["choice", "neurons", "seed", "prompt", "image"]]


def unseen(localized: pd.DataFrame) -> pd.DataFrame:
    """How many non-memorized prompts yield neurons, here and in the paper.

    Returns a frame with `source`, `prompts`, `with_neurons`, `share`, `low`, `high` (95 % Wilson
    interval of the share).

    Parameters: `localized`, from `localize_all`, grouped; only its non-memorized prompts count.
    Raises ValueError for a missing column or no such prompt.
    Source: paper, section 4 (58 of 500).
    """
    if missing := {"group", "n_refined"} - set(localized.columns):
        raise ValueError(f"localized lacks {', '.join(sorted(missing))}")
    rows = localized[localized["group"] == "non-memorized"]
    if rows.empty:
        raise ValueError("localized has no non-memorized prompt")
    counted = {"here": (int((rows["n_refined"] > 0).sum()), len(rows)), "paper": PAPER_UNSEEN}
    found = [
        {"source": source, "prompts": n, "with_neurons": k, "share": k / n} | wilson(k, n)
        for source, (k, n) in counted.items()
    ]
    return pd.DataFrame(found)


def wilson(hits: int, of: int) -> dict[str, float]:
    """Ends `low` and `high` of the 95 % Wilson interval of a share; ValueError for bad counts."""
    from scipy.stats import binomtest

    interval = binomtest(hits, of).proportion_ci(method="wilson")
    return {"low": float(interval.low), "high": float(interval.high)}


def described(chosen: Sequence[Block], table: pd.DataFrame) -> pd.DataFrame:
    """What each choice blocks: how many neurons, how many draws, how many in each layer.

    Returns a frame with `choice`, `neurons`, `draws`, `least_prompts` (that the rarest of the most
    frequent neurons serves; 0 for random ones), `layers` (text, "1: 4, 3: 7", of the first draw).

    Parameters: `chosen`, from `blocks`; `table`, from `neurons.frequency`.
    """
    first: dict[tuple[str, int], Block] = {}
    for block in chosen:
        first.setdefault((block.choice, block.count), block)
    found = [
        {
            "choice": block.choice,
            "neurons": block.count,
            "draws": sum((b.choice, b.count) == key for b in chosen),
            "least_prompts": table["prompts"].iloc[block.count - 1] * (block.choice == FREQUENT),
            "layers": ", ".join(f"{k}: {n}" for k, n in block.neurons.counts().items()),
        }
        for key, block in first.items()
    ]
    return pd.DataFrame(found)


def networks(
    clip: str = "lab", inception: str | None = None, device: str = "cpu"
) -> list[metrics.Embedder]:
    """The networks whose features are compared: Inception where its file is given, then a CLIP.

    Parameters: `clip`, "lab", a folder or a hub id; `inception`, a TorchScript file, None: none.
    Raises ValueError where one can't be opened.
    Source: paper, figures 5a and 8.
    """
    first = [] if inception is None else [metrics.inception(inception, device=device)]
    return [*first, metrics.load_clip(clip, device=device).embedder]


def distances(
    made: pd.DataFrame, chosen: Sequence[metrics.Embedder], real: str | Path | None = None
) -> pd.DataFrame:
    """Fréchet and kernel distance to real pictures, for every choice, count and picture seed.

    Returns a frame with `measure` (such as "CLIP-FID"), `extractor`, `choice`, `neurons`, `seed`,
    `value`, `images`, `references`.

    Parameters: `made`, from `pictures`; `chosen`, from `networks`; `real`, a folder of real
    pictures, None: the features that come with the embedded model, which only its CLIP can use.
    Raises ValueError for fewer than two pictures a seed, and as `metrics.real_features`.
    Source: paper, figures 5a and 8.
    """
    found = []
    for network in chosen:
        reference = metrics.real_features("lab" if real is None else real, network)
        for (choice, count, seed), part in made.groupby(["choice", "neurons", "seed"], sort=False):
            images = np.stack(list(part["image"]))
            found += [
                {
                    "measure": one.name, "extractor": one.extractor, "choice": choice,
                    "neurons": count, "seed": seed, "value": one.value, "images": one.images,
                    "references": one.references,
                }
                for one in metrics.image_distances(images, reference, network)
            ]  # fmt: skip
    return pd.DataFrame(found)


def over_seeds(measured: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over picture seeds of each measure, choice and count.

    Returns a frame with `measure`, `extractor`, `choice`, `neurons`, `mean`, `deviation` (NaN for
    one seed), `seeds`.
    Parameters: `measured`, from `distances`.
    """
    keys = ["measure", "extractor", "choice", "neurons"]
    table = measured.groupby(keys, sort=False)["value"].agg(["mean", "std", "size"]).reset_index()
    return table.rename(columns={"std": "deviation", "size": "seeds"})


def sentences(table: pd.DataFrame) -> str:
    """What the curves say, by measure: where each choice leaves the grey band, which is worse.

    Returns Markdown, a line for each measure. In the paper the most frequent neurons cost hardly
    more than random ones.
    Parameters: `table`, from `over_seeds`.
    """
    lines = []
    for measure, rows in table.groupby("measure", sort=False):
        none = rows[rows["choice"] == NONE].iloc[0]
        told = [f"{c} {_leaves(rows[rows['choice'] == c], none)}" for c in CHOICES]
        lines.append(f"- {measure}: {'; '.join(told)}; {_worse(rows)}.")
    return "\n".join(lines)


def _leaves(rows: pd.DataFrame, none: Any) -> str:
    """From how many neurons on the mean stays above the undisturbed mean by two deviations."""
    if rows.empty:
        return "not measured"
    if np.isnan(none["deviation"]):
        return "not told from one seed"
    ordered = rows.sort_values("neurons")
    above = (ordered["mean"] > none["mean"] + 2 * none["deviation"]).to_numpy()
    stays = np.logical_and.accumulate(above[::-1])[::-1]
    if not stays.any():
        return "within two deviations of none blocked"
    return f"above it by two deviations from {ordered['neurons'].iloc[int(stays.argmax())]} on"


def _worse(rows: pd.DataFrame) -> str:
    wide = rows[rows["choice"].isin(CHOICES)].pivot(
        index="neurons", columns="choice", values="mean"
    )
    both = wide.dropna() if set(CHOICES) <= set(wide.columns) else wide[:0]
    worse = int((both[FREQUENT] > both[RANDOM]).sum()) if len(both) else 0
    return f"the most frequent are worse than random ones at {worse} of {len(both)} counts"


def disentangled(
    model: DiffusionModel, prompts: Sequence[str], chosen: Sequence[Block], seeds: Sequence[int]
) -> pd.DataFrame:
    """Cosine of cross-attention outputs with and without each block's neurons, by layer (T3).

    Returns a frame with `choice`, `neurons`, `layer`, `similarity` (mean over prompts, seeds and
    draws, in [-1, 1]), `deviation` (standard deviation over them), `samples`, `elsewhere` (as
    `elsewhere` says).

    Parameters: `prompts`, non-memorized ones; `chosen`, from `blocks`; `seeds` (the paper: 3).
    Raises as `disentanglement`.
    Source: paper, table 3.
    """
    named = {str(place): block.neurons for place, block in enumerate(chosen)}
    table = disentanglement(model, list(prompts), named, seeds)
    blocks_of = [chosen[int(name)] for name in table["setting"]]
    table = table.assign(
        choice=[block.choice for block in blocks_of], neurons=[b.count for b in blocks_of]
    )
    table = table.astype({"cosine": float, "deviation": float})  # squares near 1, in double
    table = table.assign(square=table["deviation"] ** 2 + table["cosine"] ** 2)
    keys = ["choice", "neurons", "layer"]
    found = table.groupby(keys, sort=False, as_index=False).agg(
        similarity=("cosine", "mean"), square=("square", "mean"), samples=("samples", "sum")
    )
    spread = (found.pop("square") - found["similarity"] ** 2).clip(lower=0) ** 0.5
    found.insert(4, "deviation", spread)
    moved = elsewhere(chosen)
    pairs = zip(found["choice"], found["neurons"], strict=True)
    return found.assign(elsewhere=[moved.get(count, 0) * (c == RANDOM) for c, count in pairs])


def elsewhere(chosen: Sequence[Block]) -> dict[int, int]:
    """Count -> how many of the random neurons lie in other layers than the most frequent ones.

    Where most neurons of a layer serve some prompt, too few are left to draw from.
    Parameters: `chosen`, from `blocks`; the draws of a count have the same layers.
    """
    layers = {(b.choice, b.count): b.neurons.counts() for b in chosen}
    return {
        count: sum(max(0, n - wanted.get(layer, 0)) for layer, n in drawn.items())
        for (choice, count), drawn in layers.items()
        if choice == RANDOM and (wanted := layers.get((FREQUENT, count))) is not None
    }


def control(chosen: Sequence[Block]) -> str:
    """A sentence on whether the random neurons could be drawn from the layers of the frequent ones.

    Parameters: `chosen`, from `blocks`.
    """
    moved = [f"{n} of {count}" for count, n in elsewhere(chosen).items() if n]
    if not moved:
        return "The random neurons are as many in each layer as the most frequent ones."
    return (
        "Some layers have too few neurons that serve no prompt, so random neurons lie in other "
        f"layers than those: {', '.join(moved)}. There the two also differ in layers."
    )
