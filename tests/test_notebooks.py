"""Every figure notebook run small in this process, what it wrote, and single cells by hand.

A notebook's cells are executed as they stand, on the embedded model, in a folder far from the
notebooks; the store is shared, so that none searches twice. The data of each figure must have the
columns of the committed one, and agree with the other figures of its notebook.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import seaborn as sns
from matplotlib import pyplot as plt
from PIL import Image

from nemo_kit import effects, figures, metrics, models, plots
from nemo_kit.figures import runner
from nemo_kit.models import DiffusionModel
from nemo_kit.neurons import NeuronSet, frequency

ROOT = Path(__file__).resolve().parents[1]
BOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"))
MODEL = ROOT / "nemo_kit" / "lab" / "model" / "model_index.json"
needs_lab = pytest.mark.skipif(
    not MODEL.is_file(), reason="the embedded model is not there: make lab"
)
TINY = {
    "memorized": 2, "non_memorized": 2, "holdout": 3, "per_rate": 1, "grid": 1, "extremes": 1,
    "largest": 1, "seeds": 3, "images": 2, "steps": 2, "bootstrap": 20, "compared": 1, "known": 2,
    "detector_seeds": 1, "ordinary": 2, "repeats": 2, "counts": [1], "noise_candidates": 1,
    "factors": [0.5], "device": "cpu",
}  # fmt: skip
FEWER = {"10_layers": {"memorized": 1}, "09_thresholds": {"memorized": 1}}
LARGE = {"04_dose_response", "05_mitigation", "07_quality", "08_ablation", "10_layers"}
EACH = [pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in BOOKS]


def cells(name: str) -> list[tuple[str, bool]]:
    """The code cells of a notebook, and whether they hold its parameters."""
    content = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
    code = [one for one in content["cells"] if one["cell_type"] == "code"]
    return [("".join(c["source"]), "parameters" in c["metadata"].get("tags", [])) for c in code]


def cell(name: str, text: str) -> str:
    """The one code cell that holds a text."""
    [found] = [source for source, _ in cells(name) if text in source]
    return found


def run(sources: Sequence[str], names: dict[str, Any]) -> dict[str, Any]:
    """The names after these cells, one after another."""
    for source in sources:
        exec(compile(source, "<cell>", "exec"), names)
    return names


def start(name: str, folder: Path, until: str = "") -> dict[str, Any]:
    """The names after a notebook, or after its cell that holds a text, with small parameters."""
    names: dict[str, Any] = {"__name__": "__main__"}
    given = TINY | FEWER.get(name, {}) | {"out": str(folder), "store": str(folder.parent / "store")}
    for source, parameters in cells(name):
        run([source], names)
        if parameters:
            names |= {key: value for key, value in given.items() if key in names}
        if until and until in source:
            break
    return names


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
    read = [json.loads((at / f"{name}.manifest.json").read_text("utf-8"))
            for at in (folder, ROOT / "figures" / "lab")]  # fmt: skip
    files, committed = (manifest["files"] for manifest in read)
    assert files == committed
    for figure, written in files.items():
        rows = table(folder, figure)
        assert len(rows), figure
        wanted = list(table(ROOT / "figures" / "lab", figure))
        none = "neurons" in rows and rows["neurons"].iloc[0] == "{}"  # no further shared neuron
        assert list(rows) == (["rank", "neurons", "serves", "prompt"] if none else wanted), figure
        if len(written) > 1:
            image = Image.open(folder / f"{figure}.png")
            assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1)
            assert image.width <= 7.3 * 200, "no wider than the text"
            assert len(set(image.convert("L").resize((64, 64)).tobytes())) > 4, "an empty picture"


@pytest.mark.parametrize("name", BOOKS)
def test_no_cell_overwrites_a_parameter(name: str) -> None:
    [given] = [source for source, parameters in cells(name) if parameters]
    names = {node.targets[0].id for node in ast.parse(given).body}
    rest = "\n".join(source for source, parameters in cells(name) if not parameters)
    tree = ast.parse(rest)
    inside = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.Lambda |
              ast.ListComp | ast.GeneratorExp | ast.DictComp) for n in ast.walk(f)}  # fmt: skip
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
    folder = runner.root() / "notebooks"
    monkeypatch.setattr(runner, "root", lambda: tmp_path)
    chosen, few = figures.select(["02_activations"]), {"memorized": 1, "non_memorized": 2}
    [job] = runner.plan(chosen, "quick", tmp_path / "out", notebooks=folder, device="cpu", **few)
    outcome = runner.run(job, 900, lambda seconds, cell: None)
    assert outcome.error == ""
    cells_of = json.loads(job.executed.read_text("utf-8"))["cells"]
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
    assert field["memorized"].tolist() == ["VM", "TM", "VM + TM"] * 7
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
    assert (dose["neurons"].isna() == ~dose["memorized"]).all()


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


# --------------------------------------------------------------------- single cells, by hand

A, B, NONE = NeuronSet({1: [4], 3: [7]}), NeuronSet({3: [7]}), NeuronSet()


def house(**names: Any) -> dict[str, Any]:
    """What every notebook has imported."""
    silent = SimpleNamespace(save=lambda *given, **more: None)
    given = {"np": np, "pd": pd, "sns": sns, "plt": plt, "NeuronSet": NeuronSet, "folder": None}
    return given | {"plots": plots, "metrics": metrics, "effects": effects, "figures": silent,
                    "frequency": frequency} | names  # fmt: skip


def found(**sets: NeuronSet) -> pd.DataFrame:
    """Memorized prompts named as the arguments; capital names are TM."""
    groups = ["TM" if name.isupper() else "VM" for name in sets]
    rows = pd.DataFrame({"prompt": list(sets), "group": groups, "refined": list(sets.values())})
    return rows.assign(n_refined=rows["refined"].map(len))


MANY, BOTH = NeuronSet({1: [0, 1, 2, 3, 4]}), NeuronSet({3: [7, 9]})


@pytest.mark.parametrize(
    ("sets", "expected"),
    [
        ({"a": A, "b": B, "C": B}, [(B, ["b", "C", "a"])]),  # a needs another one too
        ({"a": BOTH | A, "b": BOTH}, [(BOTH, ["b", "a"])]),
        ({"a": MANY, "b": MANY, "c": MANY, "d": B, "e": B}, [(B, ["d", "e"]), (MANY, list("abc"))]),
        ({"a": A, "b": NeuronSet({2: [1]})}, []),
    ],
)
def test_shared_neurons_go_by_the_part_they_are_of_each_set(
    sets: dict[str, NeuronSet], expected: list
) -> None:
    names = run([cell("11_neuron_atlas", "while len(groups)")], house(found=found(**sets)))
    assert names["groups"] == expected
    links = names["links"]
    assert len(links) == sum(map(len, sets.values()))
    drawing = [cell("11_neuron_atlas", "most_neurons, most_prompts"),
               cell("11_neuron_atlas", '"bipartite"')]  # fmt: skip
    drawn = run(drawing, names)["ax"]
    joined = sum((row.layer, row.neuron) in names["place"] for row in links.itertuples())
    assert len(drawn.lines) == joined


def test_a_neuron_is_named_or_refused() -> None:
    source = cell("11_neuron_atlas", "re.fullmatch").split("\n\n")[0]
    net = SimpleNamespace(searched=[SimpleNamespace(index=3, width=10)])
    names = house(re=re, net=net, groups=[(B, ["a"])], links=None)
    assert run([source], names | {"neuron": " 3:9 "})["index"] == 9
    assert run([source], names | {"neuron": ""})["index"] == 7
    with pytest.raises(ValueError, match='neuron must be "LAYER:INDEX", as "3:63", or empty'):
        run([source], names | {"neuron": "layer 3"})
    with pytest.raises(ValueError, match="10"):
        run([source], names | {"neuron": "3:10"})


def swept() -> pd.DataFrame:
    """Two VM prompts and one TM prompt, thresholds μ and μ + σ."""
    rows = [
        (prompt, group, *pair, initial, refined, 30, alone)
        for prompt, group in (("a", "VM"), ("b", "VM"), ("c", "TM"))
        for pair, initial, refined, alone in (
            ((0.0, 0.0), 9, 4, 20), ((0.0, 1.0), 9, 2, 20), ((1.0, 1.0), 5, 1 + (prompt == "b"), 10)
        )
    ]  # fmt: skip
    names = ["prompt", "group", "initial_deviations", "refinement_deviations"]
    return pd.DataFrame(
        rows, columns=[*names, "n_initial", "n_refined", "samples", "samples_alone"]
    )


def test_threshold_maps_hold_median_and_deviation() -> None:
    names = run([cell("09_thresholds", "def medians"), cell("09_thresholds", '"sharing"')],
                house(swept=swept().assign(orig=np.nan)))  # fmt: skip
    got = names["medians"]("VM", "n_refined")
    assert got[["initial", "refinement"]].to_numpy().tolist() == [
        ["μ", "μ"], ["μ", "μ + σ"], ["μ + σ", "μ + σ"]
    ]  # fmt: skip
    assert got[["median", "mad", "prompts"]].to_numpy().tolist() == [[4, 0, 2], [2, 0, 2],
                                                                     [1.5, 0.5, 2]]  # fmt: skip
    assert [names["spelled"](d) for d in (-1, -0.5)] == ["μ − σ", "μ − 0.5σ"]
    shared = names["shared"].set_index("group")
    assert shared.loc["VM"].tolist() == [2, 3, 100, 60, pytest.approx(0.4)]
    assert shared.loc["all", ["samples_alone", "samples_shared"]].tolist() == [150, 90]
    axes = names["heatmap"](got, "refined neurons").axes
    assert [t.get_text() for t in axes[0].texts] == ["4\n± 0", "2\n± 0", "1.5\n± 0.5"]
    assert axes[0].get_title(loc="right") == "VM (n = 2)"
    for rows in (names["medians"]("TM", "orig"), names["medians"]("XM", "orig")):
        text = names["heatmap"](rows, "similarity").axes[0].texts[0].get_text()
        assert text == "similarity: not known for any prompt"


def test_separation_is_told_for_each_type_and_both() -> None:
    source = cell("01_detection", "def separation").split("\n\n\n")[0]
    separation = run([source], house(bootstrap=20))["separation"]
    rows = pd.DataFrame({"group": ["VM", "VM", "TM", "non-memorized"], "score": [9, 1, 8, 2.0]})
    got = separation(rows).set_index(["memorized", "metric"])["value"]
    assert got[:, "AUROC"].to_dict() == {"VM": 0.5, "TM": 1, "VM + TM": pytest.approx(2 / 3)}
    assert separation(rows[1:].query("group != 'TM'"))["memorized"].nunique() == 2


def test_bars_hold_whole_numbers() -> None:
    rows = found(a=B, B=A).assign(initial=[A, A], theta=5.0)
    bars = run([cell("03_localization", "def bars")], house(found=rows))["bars"]
    assert bars(3).tolist() == [-0.5, 0.5, 1.5, 2.5, 3.5]
    wide = bars(120)
    assert len(wide) <= 52
    assert set(np.diff(wide)) == {3}
    assert wide[-1] > 120


def test_figures_without_rows_say_so() -> None:
    none = pd.DataFrame(columns=["prompt", "group", "maximum", "hit", "missed", "extra"])
    types = run([cell("06_memorization_types", '"F6"')], house(closest=none, threshold=0.6))["ax"]
    assert {t.get_text().strip() for t in types.texts} == {
        "no prompt with a training image", "VM above 0.6"
    }  # fmt: skip
    truth = run([cell("03_localization", '"truth"')], house(truth=none))["left"]
    assert truth.texts[0].get_text() == "no prompt with known neurons"
    alone = cell("11_neuron_atlas", "def alone")
    figure, rows = run([alone], house(groups=[]))["alone"](1)
    assert "no further neuron" in figure.axes[0].texts[0].get_text()
    assert rows.to_dict("list") == {"rank": [1], "neurons": ["{}"], "serves": [0], "prompt": [""]}


def pictures() -> pd.DataFrame:
    """Two prompts: undisturbed, with one value layer and one key layer at zero."""
    kinds = [("none", 0), ("value", 1), ("key", 1)]
    rows = [
        (prompt, kind, layer, f"{kind} {layer}", seed, np.full((8, 8, 3), 9, np.uint8))
        for kind, layer in kinds for prompt in "ab" for seed in (101, 102)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["prompt", "kind", "layer", "place", "seed", "image"])


def test_layers_rows_begin_undisturbed_and_leave_out_what_failed() -> None:
    prompts = pd.DataFrame({"prompt": ["a", "b"], "group": ["VM", "VM"]})
    made = pictures()
    names = house(prompts=prompts, grid=5, pictures=made)
    names = run([cell("10_layers", "def layer_rows")], names)
    assert names["shown"] == ["a", "b"]
    assert names["drawn"]["place"].unique().tolist() == ["none 0", "value 1"]
    assert [text.get_text() for text in names["fig"].texts] == ["none 0", "value 1", "a", "b"]
    failed = (made["prompt"] == "b") & (made["kind"] == "value")
    figure, drawn = names["layer_rows"](made[~failed], "value")
    assert len(figure.axes) == 3  # of four
    assert len(drawn) == 6


def test_curves_over_layers_are_means_over_prompts() -> None:
    rows = [("a", k, n, b, m) for k, n, b, m in
            (("none", 0, "", 1.0), ("value", 1, "down.0", 0.5), ("value", 2, "up.1", 0.0),
             ("key", 1, "down.0", 1.0))]  # fmt: skip
    losses = pd.DataFrame(rows, columns=["prompt", "kind", "layer", "block", "median"])
    losses = losses.assign(group="VM", reference="training image", maximum=losses["median"],
                           alignment=0.3)  # fmt: skip
    source = cell("10_layers", "def curves").split("\n\n\n")[1]
    curves = run([source], house())["curves"]
    axes = curves(losses).axes
    drawn = [list(line.get_ydata()) for line in axes[0].lines]
    assert [0.5, 0.0] in drawn
    assert [1.0, 1.0] in drawn  # undisturbed
    assert "VM (n = 1)" in axes[2].get_xlabel()
    empty = curves(losses[:0]).axes[1].texts[0].get_text()
    assert empty == "no prompt of this group"


@pytest.mark.parametrize("seeds", [1, 3])
def test_quality_s_curves_stand_beside_what_nothing_blocked_gives(seeds: int) -> None:
    rows = [("none", 0, 10.0), ("random", 1, 11.0), ("random", 5, 12.0), ("most frequent", 5, 13.0)]
    one = pd.DataFrame(rows, columns=["choice", "neurons", "mean"])
    spread = np.nan if seeds == 1 else 0.5
    one = one.assign(extractor="lab CLIP (unit vectors)", deviation=spread, seeds=seeds)
    both = pd.concat([one.assign(measure="CLIP-FID"), one.assign(measure="CLIP-KID")])
    source = cell("07_quality", "def curves").split("\n\n\n")[0]
    axes = run([source], house())["curves"](both).axes
    assert [ax.get_ylabel() for ax in axes] == ["CLIP-FID (lab CLIP)", "CLIP-KID (lab CLIP)"]
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes[0].lines}
    assert lines["random"] == [[1, 11], [5, 12]]
    assert lines["none blocked"][0][1] == 10


def test_scaling_s_lines_are_medians_of_prompts() -> None:
    values = {"a": 0.1, "b": 0.2, "c": 0.9}
    scaling = pd.DataFrame(
        [(f, p, "VM", v, 1 - v) for f in (0.0, 1.0) for p, v in values.items()],
        columns=["factor", "prompt", "group", "orig", "gen"],
    )
    ablation = SimpleNamespace(scaling=lambda measured, factors: scaling)
    drawing = house(ablation=ablation, measured=None, factors=[])
    left, right = run([cell("08_ablation", '"F5b"')], drawing)["axes"]
    assert left.lines[0].get_xydata().tolist() == [[0, 0.2], [1, 0.2]]
    assert right.lines[0].get_xydata().tolist() == [[0, 0.8], [1, 0.8]]
