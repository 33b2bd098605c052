"""Single cells of the figure notebooks on hand-made frames: exact numbers, and what has no rows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from books import cell, house, run
from matplotlib import pyplot as plt

from nemo_kit.neurons import NeuronSet

A, B, NONE = NeuronSet({1: [4], 3: [7]}), NeuronSet({3: [7]}), NeuronSet()


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """A notebook's style ends with the test that ran it, and its figures are closed."""
    with mpl.rc_context():
        yield
    plt.close("all")


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
    told = SimpleNamespace(told=lambda: "0 of 3 prompts have a training image; …")
    given = house(closest=none, threshold=0.6, originals=told)
    types = run([cell("06_memorization_types", '"F6"')], given)["ax"]
    assert {t.get_text().strip() for t in types.texts} == {told.told(), "VM above 0.6"}
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
