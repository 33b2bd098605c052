"""Single cells of the figure notebooks on hand-made frames: exact numbers, and what has no rows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from books import NOTEBOOKS, cell, house, run
from matplotlib import pyplot as plt
from torch.nn import functional as F
from torchmetrics.functional.image import structural_similarity_index_measure as ssim

from nemo_kit.neurons import NeuronSet, random_neurons

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
    columns = ["prompt", "group", "maximum", "hit", "missed", "extra", "logic", "strength"]
    none = pd.DataFrame(columns=columns)
    told = SimpleNamespace(told=lambda: "0 of 3 prompts have a training image; …")
    given = house(closest=none, threshold=0.6, training=told)
    types = run([cell("06_memorization_types", '"F6"')], given)["ax"]
    assert {t.get_text().strip() for t in types.texts} == {told.told(), "VM above 0.6"}
    truth = run([cell("03_localization", '"truth"')], house(truth=none))["left"]
    assert truth.texts[0].get_text() == "no prompt with known neurons"
    alone = cell("11_neuron_atlas", "def alone")
    figure, rows = run([alone], house(groups=[]))["alone"](1)
    assert "no further neuron" in figure.axes[0].texts[0].get_text()
    assert rows.to_dict("list") == {"rank": [1], "neurons": ["{}"], "serves": [0], "prompt": [""]}


def test_layers_rows_begin_undisturbed_and_leave_out_what_failed() -> None:
    def generate_all(net: None, prompts: list, seeds: list, mitigation: Any, **how: Any) -> Any:
        kept = [one for one in prompts if mitigation is None or one != "b"]  # b fails when cut
        image = np.full((8, 8, 3), 9, np.uint8)
        return pd.DataFrame([{"prompt": p, "seed": s, "image": image} for p in kept for s in seeds])

    prompts = pd.DataFrame({"prompt": ["a", "b"], "group": ["VM", "VM"]})
    layers = {f"{kind} 1": SimpleNamespace(kind=kind, layer=1) for kind in ("value", "key")}
    given = {"prompts": prompts, "grid": 5, "layers": layers, "net": None, "drawing": {}}
    names = house(**given, picture_seeds=[101, 102], generate_all=generate_all)
    names = run([cell("10_layers", "def layer_rows")], names)
    assert names["shown"] == ["a", "b"]
    drawn = names["drawn"]
    assert drawn["place"].unique().tolist() == ["undisturbed", "value 1"]
    assert drawn[["kind", "layer"]].drop_duplicates().to_numpy().tolist() == [
        ["none", 0], ["value", 1]
    ]  # fmt: skip
    axes = names["fig"].axes
    told = {text.get_text() for ax in axes for text in ax.texts}
    assert told == {"undisturbed", "value 1", "a", "b"}
    assert [len(ax.images) for ax in axes] == [1, 1, 1, 0]
    assert len(drawn) == 6


def measured_layers() -> pd.DataFrame:
    """Two VM prompts and a TM prompt under three settings; no training image of the TM one."""
    rows = [
        (name, prompt, group, orig, orig, gen, gen, 0.3)
        for name, gen in (("undisturbed", 1.0), ("value 1", 0.5), ("key 1", 0.1))
        for prompt, group, orig in (
            ("a", "VM", gen - 0.1),
            ("b", "VM", np.nan),
            ("c", "TM", np.nan),
        )
    ]  # fmt: skip
    names = ["setting", "prompt", "group", "orig", "orig_max", "gen", "gen_max", "alignment"]
    return pd.DataFrame(rows, columns=names)


def test_losses_against_the_training_image_or_the_undisturbed_picture() -> None:
    about = [("undisturbed", "none", 0, ""), ("value 1", "value", 1, "down.0"),
             ("key 1", "key", 1, "down.0")]  # fmt: skip
    about = pd.DataFrame(about, columns=["setting", "kind", "layer", "block"])
    source = cell("10_layers", "def losses").split("\n\n\n")[0]
    given = {"about": about, "settings": dict.fromkeys(about["setting"])}
    names = house(**given, measured=measured_layers())
    losses = run([source], names)["losses"]
    known, other = losses("VM"), losses("TM")
    assert set(known["reference"]) == {"training image"}
    assert known["prompt"].unique().tolist() == ["a"]
    assert known["median"].tolist() == known["maximum"].tolist() == pytest.approx([0.9, 0.4, 0])
    assert set(other["reference"]) == {"undisturbed picture"}
    assert other["median"].tolist() == [1, 0.5, 0.1]
    failed = measured_layers().query("not (prompt == 'a' and setting == 'value 1')")
    losses = run([source], names | {"measured": failed})["losses"]
    assert losses("VM")["prompt"].unique().tolist() == ["b"], "in all layers or in none"
    losses = run([source], names | {"measured": failed.query("prompt != 'b'")})["losses"]
    with pytest.raises(ValueError, match="no VM prompt has pictures under every cut"):
        losses("VM")


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


@pytest.mark.parametrize("origins", [{"": "abc"}, {"planted": "abc", "natural": "d"}])
def test_scaling_s_lines_are_medians_of_prompts(origins: dict[str, str]) -> None:
    values = {"a": 0.1, "b": 0.2, "c": 0.9, "d": 0.5}
    measured = pd.DataFrame(
        [(name, p, "VM", origin, values[p], 1 - values[p])
         for name in ("× 0.5", "NeMo", "default", "τ = μ")
         for origin, prompts in origins.items() for p in prompts],
        columns=["setting", "prompt", "group", "origin", "orig", "gen"],
    )  # fmt: skip
    naming = cell("08_ablation", "def factor_name").split("\n\n\n")[0]
    names = run([naming], house(measured=measured, factors=[0.5]))
    assert names["factor_name"](-1.0) == "× −1"
    names = run([cell("08_ablation", '"F5b"')], names)
    count = sum(map(len, origins.values()))
    assert names["scaling"]["factor"].tolist() == [f for f in (0, 0.5, 1) for _ in range(count)]
    assert len(names["axes"]) == len(origins)
    (left, right), *more = names["axes"]
    for (one, _), origin in zip(names["axes"], origins, strict=True):
        assert one.get_title(loc="left").startswith(origin)
    for ax in more and more[0][:1]:
        assert ax.lines[0].get_xydata().tolist() == [[0, 0.5], [0.5, 0.5], [1, 0.5]]
    assert left.lines[0].get_xydata().tolist() == [[0, 0.2], [0.5, 0.2], [1, 0.2]]
    assert right.lines[0].get_xydata().tolist() == [[0, 0.8], [0.5, 0.8], [1, 0.8]]


def test_table_4_puts_neurons_first_and_keeps_the_order_of_settings() -> None:
    rows = pd.DataFrame({"prompt": ["a", "b", "c"], "group": ["VM", "TM", "TM"], "origin": ""})
    settings = dict.fromkeys(["default", "NeMo", "no top-k"])
    both = [rows.assign(setting=name, orig=0.5, gen=0.4, diversity=0.3, alignment=0.2)
            for name in settings]  # fmt: skip
    found = [rows.assign(setting=name, neurons=[2, 1, np.nan]) for name in ("NeMo", "no top-k")]
    seen = SimpleNamespace(name="x")
    names = house(found=pd.concat(found), measured=pd.concat(both), settings=settings, look=seen,
                  words=seen)  # fmt: skip
    table = run([cell("08_ablation", '"T4"')], names)["table"]
    assert list(dict.fromkeys(table["setting"])) == list(settings)
    first = table[(table["setting"] == "NeMo") & (table["group"] == "TM")]
    assert first["measure"].tolist() == ["neurons", "orig", "gen", "diversity", "alignment"]
    assert first["prompts"].tolist() == [1, 2, 2, 2, 2]


def test_flags_stand_beside_the_share_expected_by_chance() -> None:
    rows = [("a", "VM", "planted", True), ("b", "VM", "natural", False),
            ("c", "VM", "planted", True), ("d", "non-memorized", "", True),
            ("e", "non-memorized", "", False)]  # fmt: skip
    detected = pd.DataFrame(rows, columns=["prompt", "group", "origin", "flagged"])
    told = SimpleNamespace(false_alarms=lambda: 0.16)
    flags = run([cell("01_detection", '"flagged"')], house(detected=detected, known=told))["flags"]
    assert flags["flagged"].tolist() == [2, 0, 1]
    assert flags["share"].tolist() == [1, 0, 0.5]
    assert set(flags["false_alarms"]) == {0.16}
    told = SimpleNamespace(false_alarms=lambda: None)  # a threshold from pairs of seeds
    flags = run([cell("01_detection", '"flagged"')], house(detected=detected, known=told))["flags"]
    assert flags["false_alarms"].isna().all()


@pytest.mark.parametrize("known", [True, False])
def test_grid_has_as_many_planted_as_natural_prompts_and_their_similarity(known: bool) -> None:
    image, names = np.full((2, 8, 8, 3), 9, np.uint8), list("abcdef")
    origins = ["planted"] * 3 + ["natural"] * 3 if known else [""] * 6
    localized = pd.DataFrame({"prompt": names, "group": "VM", "origin": origins, "flagged": True,
                              "refined": [B] * 6})  # fmt: skip
    sides = [localized[["prompt", "group"]].assign(setting=name, orig=value)
             for name, value in (("default", 0.9), ("NeMo", 0.25))]  # fmt: skip
    drawn = pd.DataFrame({"prompt": np.repeat(names, 2), "image": [image[0]] * 12})
    given = {"localized": localized, "grid": 4, "images": 2, "picture_seeds": [1, 2], "net": None}
    given |= {"refined": dict.fromkeys(names, B), "training": {"a": image[0]}, "results": ""}
    given |= {"measured": pd.concat(sides), "steps": 1, "guidance": None}
    given |= {"generate_all": lambda *_, **__: drawn}
    sources = [cell("05_mitigation", "kinds = "), cell("05_mitigation", '"F3"')]
    got = run(sources, house(**given))
    assert got["shown"] == (list("abde") if known else list("abcd"))
    first, second = got["axes"][0], got["axes"][1]
    assert first[1].get_title(loc="left") == ("a, planted" if known else "a")
    assert first[3].get_title(loc="right") == "0.90 → 0.25"
    assert second[3].get_title(loc="right") == ""  # without a training image


SETS = [A, B, B, NeuronSet({2: [0, 1]})]  # 3: 7 three times, 1: 4, 2: 0, 2: 1


def blocked(counts: list[int], widths: dict[int, int], seeds: list[int]) -> dict[str, Any]:
    """The names after the cells of notebook 07 that choose the neurons to block."""
    searched = [SimpleNamespace(index=layer, width=width) for layer, width in widths.items()]
    rows = pd.DataFrame({"group": "VM", "flagged": True, "refined": SETS})
    names = house(localized=rows, counts=counts, picture_seeds=seeds, random_neurons=random_neurons,
                  net=SimpleNamespace(searched=searched), Markdown=str)  # fmt: skip
    sources = [cell("07_quality", text) for text in ("sizes = counts or", '"blocked"', "moved = {")]
    return run(sources, names)


def test_blocked_are_the_most_frequent_and_random_ones_beside_them() -> None:
    names = blocked([1, 3], {1: 8, 2: 8, 3: 9}, [101, 102])
    got = names["blocked"]
    assert [row[:3] for row in got] == [
        (choice, count, seed) for count in (1, 3, 4)
        for choice, seed in (("most frequent", None), ("random", 101), ("random", 102))
    ]  # fmt: skip
    assert got[0][3] == B
    assert not any(neurons & names["every"] for choice, *_, neurons in got if choice == "random")
    told = names["described"]
    assert told["draws"].tolist() == [1, 2] * 3
    assert told["least_prompts"].tolist() == [3, 0, 1, 0, 1, 0]
    assert names["moved"] == {1: 0, 3: 0, 4: 0}


def test_counts_go_up_to_all_found_and_narrow_layers_are_told() -> None:
    names = blocked([], {1: 9, 2: 2, 3: 9}, [101])  # both neurons of layer 2 are found
    assert names["sizes"] == [1, 2, 4]
    assert names["moved"][4] == 2
    roomy = blocked([4], {1: 5, 2: 2, 3: 8}, [101])["blocked"]  # 15 neurons, 11 free
    assert [row[0] for row in roomy] == ["most frequent", "random"]
    none = blocked([4], {1: 5, 2: 2, 3: 8, 4: 0}, [])["blocked"]
    assert [row[0] for row in none] == ["most frequent"]
    with pytest.raises(ValueError, match="counts must be at least 1, got"):
        blocked([0], {1: 9}, [101])


def test_copying_is_told_inside_and_outside_a_region() -> None:
    source = cell("06_memorization_types", "def similarity_map").split("\n\n\nsettings")[0]
    alike = run([source], house(torch=torch, ssim=ssim))["similarity_map"]
    original = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    half = original.copy()
    half[:, 32:] = 255 - half[:, 32:]
    same, mixed = alike(np.stack([original, half]), original)
    assert same.shape == (64, 64)
    assert same == pytest.approx(np.ones((64, 64)), abs=1e-6)
    assert mixed[:, :26].mean() > 0.99
    assert mixed[:, 38:].mean() < -0.5


def test_two_seeds_agree_where_both_maps_are_high() -> None:
    source = cell("06_memorization_types", "def agreed")
    source = source[source.index("def agreed") : source.index("twins")]
    agreed = run([source], house(F=F))["agreed"]
    maps = torch.zeros(2, 4, 4)
    maps[0, :2], maps[1, :, :2] = 3, 5
    found = agreed(maps, 4)
    assert found.tolist() == [[1, 1, 0, 0]] * 2 + [[0] * 4] * 2


def test_means_over_prompts_have_bootstrap_intervals() -> None:
    names = run([cell("12_who_finds_them", "def interval")], house())
    one = names["interval"]([1.0, 3.0, np.nan])
    assert (one["prompts"], one["mean"]) == (2, 2)
    assert (one["low"], one["high"]) == (1, 3)
    assert np.isnan(names["interval"]([])["mean"])
    rows = [("m", "a", 0.0), ("m", "a", 1.0), ("m", "b", 1.0), ("n", "a", 2.0)]
    frame = pd.DataFrame(rows, columns=["method", "prompt", "x"])
    told = names["told"](frame, ["x"], ["method"]).set_index("method")
    assert told["mean"].to_dict() == {"m": 0.75, "n": 2}
    assert told["prompts"].to_dict() == {"m": 2, "n": 1}


def test_the_metric_that_notebook_07_proposes_runs() -> None:
    text = (NOTEBOOKS / "07_quality.ipynb").read_text(encoding="utf-8")
    cells_of = json.loads(text)["cells"]
    [block] = [b for c in cells_of for b in re.findall(r"```python\n(.+?)```", "".join(c["source"]),
                                                       flags=re.DOTALL)]  # fmt: skip
    grey, red = np.full((4, 4, 3), 99, np.uint8), np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 200
    made = pd.DataFrame({"choice": ["none", "random"], "neurons": [0, 3], "image": [grey, red]})
    assert run([block], house(made=made))["made"]["colour"].tolist() == [0, 200]
