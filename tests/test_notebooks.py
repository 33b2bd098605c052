"""Every figure notebook run small in this process: what it wrote, and what a reader may change.

A notebook's cells are executed as they stand, on the embedded model, in a folder far from the
notebooks; the store is shared, so that none searches twice. The data of each figure must have the
columns of the committed one, and agree with the other figures of its notebook.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator
from contextlib import chdir
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from books import ROOT, cell, cells, run, run_cells
from matplotlib import pyplot as plt
from PIL import Image

from nemo_kit import figures, models
from nemo_kit.detectors import DETECTORS
from nemo_kit.figures import runner
from nemo_kit.models import DiffusionModel

BOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"))
MODEL = ROOT / "nemo_kit" / "lab" / "model" / "model_index.json"
needs_lab = pytest.mark.skipif(
    not MODEL.is_file(), reason="the embedded model is not there: make lab"
)
SINCE = {"rule", "TPR_rule", "protocol", "mitigation_protocol", "seed_median"}  # of later columns
TINY = {
    "memorized": 2, "non_memorized": 2, "holdout": 3, "per_rate": 1, "grid": 1, "extremes": 1,
    "largest": 1, "seeds": 3, "images": 2, "steps": 2, "bootstrap": 20, "compared": 1, "known": 2,
    "detector_seeds": 1, "ordinary": 2, "repeats": 2, "counts": [1], "noise_candidates": 1,
    "factors": [0.5], "device": "cpu", "natural": 1, "other": 1, "budget": 40, "budgets": [20],
    "most": 3, "audited": 1, "audit_steps": 1, "masked": 1,
}  # fmt: skip
ONE = ("05_mitigation", "08_ablation", "10_layers")
FEWER = {"04_dose_response": {"seeds": 2}} | {name: {"memorized": 1} for name in ONE}
# the first template prompt is not flagged
FEWER["09_thresholds"] = {"memorized": 2, "deviations": [-1.0, 1.0], "images": 1}
# of these there is more on the smaller models of test_stable_diffusion
FEWER["05_mitigation"] |= {"repeats": 1, "known": 1}
FEWER["10_layers"] |= {"images": 1}
DEAR = ["slimming", "hard concrete", "integrated gradients", "integrated gradients, score",
        "gradient × activation, image", "NeMo, sequential", "NeMo, bisect", "NeMo, attributed",
        "patching"]  # fmt: skip
FEWER["12_who_finds_them"] = {"known": 1, "budget": 20, "budgets": [10], "without": DEAR}
LARGE = {
    "04_dose_response",
    "05_mitigation",
    "07_quality",
    "08_ablation",
    "10_layers",
    "12_who_finds_them",
}
EACH = [pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in BOOKS]


def start(name: str, folder: Path, until: str = "") -> dict[str, Any]:
    """The names after a notebook, or after its cell that holds a text, with small parameters."""
    given = TINY | FEWER.get(name, {}) | {"out": str(folder), "store": str(folder.parent / "store")}
    [first] = [source for source, parameters in cells(name) if parameters]
    known = run([first], {})
    return run_cells(name, until=until, **{k: v for k, v in given.items() if k in known})


@pytest.fixture(scope="module", autouse=True)
def _one_model() -> Iterator[None]:
    """The embedded model is loaded once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "load", cache(models.load))
        yield


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """A notebook's style ends with the test that ran it, and its figures are closed."""
    with mpl.rc_context():
        yield
    plt.close("all")


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """What a notebook wrote, run once from another folder."""
    place = tmp_path_factory.mktemp("books")

    @cache
    def written(name: str) -> Path:
        with chdir(place):
            start(name, place / name)
        plt.close("all")
        return place / name

    return written


def table(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(folder / f"{name}.csv")


# ------------------------------------------------------------------------------ all notebooks


@needs_lab
@pytest.mark.parametrize("name", EACH)
def test_a_notebook_writes_its_figures_with_the_columns_they_had(
    name: str, book: Callable[[str], Path]
) -> None:
    folder = book(name)
    if not (ROOT / "figures" / "lab" / f"{name}.manifest.json").is_file():
        pytest.skip("its figures are not drawn yet: nemo-kit figures --preset lab")
    read = [json.loads((at / f"{name}.manifest.json").read_text("utf-8"))
            for at in (folder, ROOT / "figures" / "lab")]  # fmt: skip
    files, committed = (manifest["files"] for manifest in read)
    assert files == committed
    for figure, written in files.items():
        rows = table(folder, figure)
        assert len(rows), figure
        wanted = list(table(ROOT / "figures" / "lab", figure))
        none = "neurons" in rows and rows["neurons"].iloc[0] == "{}"  # no further shared neuron
        wanted = ["rank", "neurons", "serves", "prompt"] if none else wanted
        assert [name for name in rows if name not in SINCE or name in wanted] == wanted, figure
        if len(written) > 1:
            image = Image.open(folder / f"{figure}.png")
            assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1)
            assert image.width <= 7.3 * 200, "no wider than the text"
            assert len(set(image.convert("L").resize((64, 64)).tobytes())) > 4, "an empty picture"


@pytest.mark.parametrize("name", BOOKS)
def test_no_cell_overwrites_a_parameter(name: str) -> None:
    [given] = [source for source, parameters in cells(name) if parameters]
    targets = (getattr(n, "target", None) or n.targets[0] for n in ast.parse(given).body)
    names = {target.id for target in targets}
    rest = "\n".join(source for source, parameters in cells(name) if not parameters)
    tree = ast.parse(rest)
    scopes = ast.FunctionDef | ast.ClassDef | ast.Lambda | ast.ListComp | ast.GeneratorExp
    scopes |= ast.DictComp
    inside = {id(n) for f in ast.walk(tree) if isinstance(f, scopes) for n in ast.walk(f)}
    bound = {
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and id(node) not in inside
    }
    assert not bound & names, "its manifest would tell another value than the one that was used"


@needs_lab
def test_a_notebook_runs_in_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    books, few = figures.read_all(ROOT / "notebooks"), {"memorized": 1, "non_memorized": 2}
    monkeypatch.setattr(runner, "root", lambda: tmp_path)
    rows = figures.select(books, ["02_activations"])
    [job] = runner.plan(books, rows, "quick", tmp_path / "out", device="cpu", **few)
    assert runner.draw([job], 900, keep_going=False, log=True) == {"02_activations": ""}
    executed = job.out / "executed" / "02_activations.ipynb"
    cells_of = json.loads(executed.read_text("utf-8"))["cells"]
    outputs = [output.get("data", {}) for one in cells_of for output in one.get("outputs", [])]
    assert sum("image/png" in data for data in outputs) == 2, "each figure is shown once"
    manifest = runner.read_manifest(job.out, "02_activations")
    assert manifest["model"]["name"] == "lab"
    assert {key: manifest["parameters"][key] for key in few} == few


# ------------------------------------------------------------------ figures against each other


@needs_lab
def test_detection_s_figures_agree(book: Callable[[str], Path]) -> None:
    from sklearn.metrics import roc_auc_score

    folder = book("01_detection")
    pairs, scores = table(folder, "F2a"), table(folder, "ROC")
    assert pairs["score"].between(-1, 1).all()
    assert pairs.groupby("prompt")["score"].max().to_dict() == pytest.approx(
        scores.set_index("prompt")["score"].to_dict()
    )
    assert pairs.groupby("prompt")[["seed_a", "seed_b"]].apply(
        lambda rows: rows.to_numpy().tolist() == [[1, 2], [1, 3], [2, 3]]
    ).all()  # fmt: skip
    numbers = table(folder, "detection").set_index(["memorized", "metric"])
    area = roc_auc_score(scores["group"] != "non-memorized", scores["score"])
    assert numbers.loc[("VM + TM", "AUROC"), "value"] == pytest.approx(area)
    field = table(folder, "detectors")
    assert field["memorized"].tolist() == ["VM", "TM", "VM + TM"] * len(DETECTORS)
    assert field["detector"].unique().tolist() == [*DETECTORS]
    assert (field["AUROC_low"] <= field["AUROC_high"]).all()
    best = table(folder, "F13").groupby("case")["score"].max()
    assert best["memorized"] == pytest.approx(scores[scores["group"] == "VM"]["score"].max())


@needs_lab
def test_activations_figures_agree(book: Callable[[str], Path]) -> None:
    first, furthest = (table(book("02_activations"), name) for name in ("F2b", "extremes"))
    assert not furthest.duplicated(["prompt", "layer"]).any()
    largest = first.groupby("prompt")["z"].apply(lambda z: z.abs().max())
    own = furthest[furthest["layer"] == 1].set_index("prompt")["z"].abs()
    assert own.to_dict() == pytest.approx(largest.to_dict(), abs=1e-3)


@needs_lab
def test_localization_s_figures_agree(book: Callable[[str], Path]) -> None:
    folder = book("03_localization")
    counts, layers = table(folder, "F4a"), table(folder, "F4b")
    assert (counts["refined"] <= counts["initial"]).all()
    sums = layers.groupby("prompt")["neurons"].sum().to_dict()
    assert sums == counts.set_index("prompt")["refined"].to_dict()
    costs = table(folder, "T2").set_index(["group", "algorithm"])["samples"]
    for group in counts["group"].unique():
        assert costs[group].drop("total").sum() == pytest.approx(costs[group]["total"])
    stages = table(folder, "F1")["stage"].value_counts()
    assert stages.get("refined", 0) in counts["refined"].to_numpy()
    assert stages.get("refined", 0) + stages.get("candidate", 0) in counts["initial"].to_numpy()


@needs_lab
@pytest.mark.slow
def test_the_ladder_s_numbers(book: Callable[[str], Path]) -> None:
    dose = table(book("04_dose_response"), "dose_response")
    assert dose["repetitions"].is_monotonic_increasing
    assert dose["repetitions"].is_unique  # one prompt a rate
    assert dose["copies"].isin([0, 0.5, 1]).all()
    assert (dose["neurons"].isna() == ~dose["flagged"]).all()


@needs_lab
def test_types_follow_from_the_closest_picture(book: Callable[[str], Path]) -> None:
    closest, types = (table(book("06_memorization_types"), name) for name in ("F6", "types"))
    assert ((closest["maximum"] > 0.7) == (closest["measured"] == "VM")).all()
    assert (closest["median"] <= closest["maximum"]).all()
    assert (types["VM"] + types["TM"] == types["prompts"]).all()
    assert types["prompts"].sum() == len(closest)


@needs_lab
def test_thresholds_figures_agree(book: Callable[[str], Path]) -> None:
    folder = book("09_thresholds")
    for initial, refined in (("F14a", "F14c"), ("F14b", "F14d")):
        first, second = (table(folder, name) for name in (initial, refined))
        pairs = first[["initial", "refinement"]].to_numpy().tolist()
        assert pairs == second[["initial", "refinement"]].to_numpy().tolist()
        assert (first["median"] >= second["median"]).all()
        assert (first.groupby("initial")["median"].nunique() <= 1).all()  # whatever is refined
    saved = table(folder, "sharing")
    assert saved["saved"].between(0, 1).all()
    assert saved["group"].tolist()[-1] == "all"


@needs_lab
def test_the_atlas_counts_the_same_links_everywhere(book: Callable[[str], Path]) -> None:
    folder = book("11_neuron_atlas")
    links = table(folder, "bipartite")
    assert table(folder, "shared")["prompts"].sum() == len(links)
    shares = table(folder, "layer_shares")
    assert shares["links"].sum() == len(links)
    driven = table(folder, "neuron")
    assert driven["activation"].is_monotonic_decreasing
    layer, index = driven.loc[0, ["layer", "neuron"]]
    served = links[(links["layer"] == layer) & (links["neuron"] == index)]["prompt"]
    assert set(driven.loc[driven["serves"], "prompt"]) <= set(served)
    assert shares["chosen"].sum() == len(served)


# ----------------------------------------------------------------------- a reader's own changes

SECOND = """
second = load("toy")
more = grouped(detect_all(second, prompts["prompt"], detection_seeds, store=results), prompts)
more = more[["prompt", "group", "pairwise"]].explode("pairwise").rename(
    columns={"pairwise": "score"}
)
pairs = pd.concat([pairs.assign(model="lab"), more.assign(model="toy")]).astype({"score": float})
sns.kdeplot(
    pairs[pairs["model"] == "toy"], x="score", color="black", linestyle=":", label="toy", ax=ax
)
"""


@needs_lab
def test_a_researcher_changes_bins_and_adds_a_second_model_in_the_notebook(
    tmp_path: Path, toy_model: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = models.load
    monkeypatch.setattr(
        models, "load", lambda name, **more: toy_model if name == "toy" else known(name, **more)
    )
    names = start("01_detection", tmp_path / "out", until="pairs[[")
    source = cell("01_detection", '"F2a"')
    assert source.count("bins=50") == 1
    before = run([source], names)["ax"]
    edited = source.replace("bins=50", "bins=12").replace("ax.axvline(", SECOND + "ax.axvline(", 1)
    after = run([edited, 'ax.set_title("two models")\nplt.xlim(0, 0.9)'], names)["ax"]
    edges = [np.unique(ax.collections[0].get_paths()[0].vertices[:, 0]) for ax in (before, after)]
    assert len(edges[1]) == 13
    assert len(edges[0]) > len(edges[1])
    assert len(after.lines) == len(before.lines) + 1
    assert (after.get_title(), after.get_xlim()) == ("two models", (0, 0.9))
    saved = table(tmp_path / "out", "F2a")
    assert saved["model"].value_counts().to_dict() == {"lab": 18, "toy": 18}  # 6 prompts, 3 pairs
    assert set(saved["prompt"][saved["model"] == "toy"]) == set(names["prompts"]["prompt"])
