"""Frames and figures of the paper's tables: seeds, settings, medians, orders, from small cases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from nemo_kit import metrics, plots
from nemo_kit.disentanglement import disentanglement
from nemo_kit.frames import ablation, evaluation, mitigation, paper, quality
from nemo_kit.mitigation import Found, NeMo, RandomNeurons, table_rows
from nemo_kit.models import DiffusionModel
from nemo_kit.neurons import NeuronSet, frequency
from nemo_kit.settings import LocalizationSettings

A, B, C = NeuronSet({1: [4], 3: [7]}), NeuronSet({3: [7]}), NeuronSet({2: [0, 1]})
SETS = {"a": A, "b": B, "c": NeuronSet()}
ROWS = pd.DataFrame({"prompt": ["a", "b", "c"], "group": ["VM", "TM", "TM"]})


def measured() -> pd.DataFrame:
    values = {"default": (0.9, 1.0), "NeMo": (0.1, 0.2), "× 0.5": (0.5, 0.6)}
    parts = [
        ROWS.assign(setting=name, repeat=0, orig=orig, gen=gen, diversity=orig, alignment=0.3)
        for name, (orig, gen) in values.items()
    ]
    return pd.concat(parts, ignore_index=True)


# ----------------------------------------------------------------------------------- seeds


def test_evaluation_seeds_are_none_of_detection_s() -> None:
    assert evaluation.evaluation_seeds(3, 101, range(1, 11)) == [101, 102, 103]
    with pytest.raises(ValueError, match=r"but 9, 10 are in both; start the pictures above 10"):
        evaluation.evaluation_seeds(4, 9, range(1, 11))
    with pytest.raises(ValueError, match="but 1 is in both"):
        evaluation.evaluation_seeds(2, 1, [1])


@pytest.mark.parametrize(("count", "first", "text"), [(0, 1, "count"), (1, -1, "first")])
def test_evaluation_seeds_refuse(count: int, first: int, text: str) -> None:
    with pytest.raises(ValueError, match=f"{text} must be an integer"):
        evaluation.evaluation_seeds(count, first, [9])


def test_pictures_on_detection_seeds_are_refused_before_any_is_drawn(tmp_path: Path) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("a model was asked")

    same = {"seeds": [1, 2], "detection_seeds": [2, 3], "store": tmp_path}
    with pytest.raises(ValueError, match="2 is in both"):
        evaluation.measured(never, ROWS, [("default", {})], **same)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="2 is in both"):
        quality.pictures(never, ["a"], [], **same)  # type: ignore[arg-type]


# -------------------------------------------------------------------- pictures and measures


def test_measured_compares_every_setting_with_the_undisturbed_pictures(
    toy_model: DiffusionModel, tmp_path: Path
) -> None:
    settings = [("default", {}), ("NeMo", {"neurons": SETS}), ("NeMo", {"neurons": SETS})]
    options: dict[str, Any] = {
        "seeds": [50, 51], "detection_seeds": [1, 2], "store": tmp_path, "steps": 1
    }  # fmt: skip
    got = evaluation.measured(toy_model, ROWS, settings, **options)
    assert got["setting"].value_counts().to_dict() == {"default": 3, "NeMo": 6}
    assert got["repeat"].tolist() == [0] * 6 + [1] * 3
    gen = got.set_index(["setting", "repeat", "prompt"])["gen"]
    assert gen["default"].tolist() == pytest.approx([1, 1, 1])
    assert gen["NeMo", 0, "c"] == pytest.approx(1)  # nothing was found, nothing changes
    assert gen["NeMo", 0, "a"] < 1
    assert got["orig"].isna().all()  # no training image is known
    assert set(got["clip_model"]) == {"lab CLIP"}
    drawn = toy_model.samples_evaluated
    evaluation.measured(toy_model, ROWS, settings, **options)
    assert toy_model.samples_evaluated == drawn  # all from the store


def test_over_prompts_counts_repeats_as_one_value_a_prompt() -> None:
    frame = pd.DataFrame(
        {
            "setting": "random", "repeat": [0, 1, 0, 1], "prompt": ["a", "a", "b", "b"],
            "group": "VM", "orig": [0.0, 0.2, 0.5, 0.7], "gen": [np.nan] * 3 + [0.4],
        }
    )  # fmt: skip
    got = evaluation.over_prompts(frame, ["orig", "gen"]).set_index("measure")
    assert got.loc["orig", ["prompts", "median", "mad"]].tolist() == pytest.approx([2, 0.35, 0.25])
    assert got.loc["gen", "prompts"] == 1
    assert got.loc["gen", "median"] == pytest.approx(0.4)
    with pytest.raises(ValueError, match="frame lacks alignment, diversity"):
        evaluation.over_prompts(frame)


def test_the_wide_table_keeps_the_order_of_settings() -> None:
    got = evaluation.wide(evaluation.over_prompts(measured()))
    assert got.index.tolist() == ["default", "NeMo", "× 0.5"]
    assert got.loc["NeMo", "VM orig"] == "0.10 ± 0.00 [0.10, 0.10]"


def test_rows_of_one_setting_beside_the_undisturbed() -> None:
    got = evaluation.of(measured(), "NeMo", ["a"])
    assert got["setting"].tolist() == ["default", "NeMo"]
    assert set(got["prompt"]) == {"a"}


# ------------------------------------------------------------------------------ mitigations


def test_sources_tell_draws_and_protocols() -> None:
    got = table_rows(Found(SETS), repeats=3)
    assert list(dict(got))[:8] == list(paper.TABLE_1)
    told = mitigation.sources(got).set_index("setting")
    assert told.loc["4 random tokens", "draws"] == 3
    assert told.loc["NeMo", "permanent"]
    assert told["source"].str.len().min() > 3
    assert told.loc["prompt embedding adjustment", "protocol"].startswith("one embedding for all")
    assert told.loc["initial-noise optimisation", "protocol"] == "the code's form"


def test_settings_name_the_neurons_of_each_prompt(toy_model: DiffusionModel) -> None:
    rows = [("NeMo", NeMo(SETS)), ("half", NeMo(SETS, 0.5)), ("random", RandomNeurons(SETS))]
    got = dict(mitigation.settings(toy_model, rows, ["a", "c"]))
    assert got["NeMo"] == {"neurons": {"a": A, "c": NeuronSet()}}
    assert got["half"]["factor"] == 0.5
    drawn = got["random"]["neurons"]["a"]
    assert drawn.counts() == A.counts()
    assert not drawn & (A | B)


def test_sets_are_those_of_all_prompts() -> None:
    frame = pd.DataFrame({"prompt": ["a", "c"], "refined": [A, NeuronSet()]})
    assert mitigation.sets(frame) == {"a": A, "c": NeuronSet()}
    with pytest.raises(ValueError, match="localized lacks initial"):
        mitigation.sets(frame, "initial")


# ------------------------------------------------------------------------------- the paper


def test_the_paper_s_table_is_complete() -> None:
    table = paper.table_1()
    assert len(table) == 8 * 2 * 4
    row = table.query("setting == 'NeMo' and group == 'TM' and measure == 'diversity'").iloc[0]
    assert (row["median"], row["mad"]) == (0.12, 0.05)
    assert len(paper.table_4()) == 7 * 2


def test_orders_tell_agreement_ties_and_reversals() -> None:
    there = pd.DataFrame(
        {"setting": ["x", "y", "z", "w"], "group": "VM", "measure": "orig",
         "median": [0.1, 0.3, 0.9, 0.32]}
    )  # fmt: skip
    here = there.assign(median=[0.5, 0.2, 0.9, 0.52])
    got = paper.orders(here, there).set_index(["lower", "higher"])["verdict"].to_dict()
    assert got == {
        ("x", "y"): "reversed", ("x", "z"): "same", ("y", "z"): "same", ("x", "w"): "tied",
        ("w", "z"): "same",
    }  # fmt: skip
    text = paper.sentences(paper.orders(here, there))
    assert "VM, orig: of 5 pairs that the paper orders, 3 same, 1 tied, 1 reversed." in text
    assert "*x* lies 0.3 above *y* here, 0.2 below it there" in text
    assert paper.sentences(paper.orders(here[:0], there)).startswith("No pair of settings")
    side = paper.beside(here[1:], there)
    assert side["setting"].tolist() == ["y", "z", "w"]
    assert side.loc[0, ["here", "paper"]].tolist() == [0.2, 0.3]


# -------------------------------------------------------------------------------- ablation


def found() -> pd.DataFrame:
    frame = ROWS.assign(memorized=[True, True, False], refined=[A, B, NeuronSet()])
    frame = frame.assign(neurons=[2.0, 1.0, np.nan], samples=[9, 8, 4])
    return pd.concat([frame.assign(setting=name) for name in ("NeMo", "no refinement")])


def test_variants_change_one_choice_each(toy_model: DiffusionModel) -> None:
    got = ablation.variants(toy_model, ["cat 0", "cat 1"], range(1, 4), guidance=2.0)
    assert list(got) == list(paper.TABLE_4)
    known = toy_model.calibration
    assert known is not None
    assert got["NeMo"] == {}
    assert got["τ = μ − σ"]["threshold"] == pytest.approx(known.mean - known.std)
    guided = got["with guidance, swapped"]["settings"]
    assert (guided.detection.guidance, guided.detection.swapped, guided.halves) == (2, True, "both")
    assert guided.detection.for_calibration() == guided.detection
    assert got["with guidance, swapped"]["threshold"] != pytest.approx(known.threshold)
    text = ablation.variants(toy_model, ["cat 0", "cat 1"], [1, 2], guidance=2.0, swapped=False)
    plain = text["with guidance"]["settings"]
    assert (plain.detection.swapped, plain.halves) == (False, "conditional")
    assert not got["no refinement"]["settings"].refine
    assert got["no top-k"]["settings"].k_step == 0


def test_variants_need_a_calibrated_model(
    toy_model: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toy_model, "calibration", None)
    with pytest.raises(ValueError, match="has no calibration"):
        ablation.variants(toy_model, ["a", "b"], range(1, 4))


def test_localized_counts_neurons_only_where_detection_flagged(
    toy_model: DiffusionModel, tmp_path: Path
) -> None:
    quick = LocalizationSettings(refine=False)
    chosen = {"NeMo": {"settings": quick, "threshold": 0.3}, "strict": {"threshold": 0.999}}
    got = ablation.localized(toy_model, ROWS[:2], chosen, range(1, 4), store=tmp_path)
    assert got["setting"].tolist() == ["NeMo"] * 2 + ["strict"] * 2
    assert got["memorized"].tolist() == [True, True, False, False]
    assert got["neurons"].isna().tolist() == [False, False, True, True]
    assert (got["samples"] >= 3).all()


def test_pictures_of_an_ablation_leave_0_and_1_to_what_is_there() -> None:
    got = ablation.picture_settings(found(), [-1, 0, 0.5, 1])
    assert [name for name, _ in got] == ["default", "NeMo", "no refinement", "× −1", "× 0.5"]
    assert dict(got)["× 0.5"] == {"neurons": SETS, "factor": 0.5}
    with pytest.raises(ValueError, match="setting must be one of NeMo, no refinement; got 'x'"):
        ablation.sets(found(), "x")


def test_scaling_joins_the_factors() -> None:
    got = ablation.scaling(measured(), [0.5])
    assert got["factor"].tolist() == [0.0] * 3 + [0.5] * 3 + [1.0] * 3
    assert got.loc[got["factor"] == 0.5, "orig"].tolist() == [0.5] * 3


def test_table_4_puts_neurons_first() -> None:
    table = ablation.table_4(found(), measured())
    first = table[(table["setting"] == "NeMo") & (table["group"] == "TM")]
    assert first["measure"].tolist() == ["neurons", *evaluation.MEASURES]
    assert first["prompts"].tolist() == [1, 2, 2, 2, 2]


# --------------------------------------------------------------------------------- quality


TABLE = frequency([A, B, B, C])  # 3: 7 three times, then 1: 4, 2: 0, 2: 1


@pytest.mark.parametrize(
    ("many", "wanted", "expected"),
    [(172, [], [1, 2, 5, 10, 20, 50, 100, 172]), (7, [1, 5, 50], [1, 5, 7]), (1, [], [1])],
)
def test_counts_end_with_all_found(many: int, wanted: list[int], expected: list[int]) -> None:
    assert quality.counts_up_to(many, wanted) == expected


def test_counts_refuse() -> None:
    with pytest.raises(ValueError, match="found must be an integer of at least 1, got 0"):
        quality.counts_up_to(0)
    with pytest.raises(ValueError, match="counts must be an integer of at least 1, got 0"):
        quality.counts_up_to(5, [0])


def test_blocks_are_the_most_frequent_and_random_ones_beside_them() -> None:
    got = quality.blocks(TABLE, [1, 3], {1: 8, 2: 8, 3: 9}, [0, 1])
    assert [(b.choice, b.count, b.seed) for b in got] == [
        ("most frequent", 1, None), ("random", 1, 0), ("random", 1, 1),
        ("most frequent", 3, None), ("random", 3, 0), ("random", 3, 1),
    ]  # fmt: skip
    assert got[0].neurons == B
    every = quality.most_frequent(TABLE, 4)
    assert not any(b.neurons & every for b in got if b.choice == "random")
    told = quality.described(got, TABLE)
    assert told["draws"].tolist() == [1, 2, 1, 2]
    assert told["least_prompts"].tolist() == [3, 0, 1, 0]
    with pytest.raises(ValueError, match="at most the 4 neurons found, got 5"):
        quality.most_frequent(TABLE, 5)


def test_it_is_told_where_random_neurons_lie_in_other_layers() -> None:
    roomy = quality.blocks(TABLE, [1, 3], {1: 8, 2: 8, 3: 9}, [0, 1])
    assert quality.elsewhere(roomy) == {1: 0, 3: 0}
    assert "as many in each layer" in quality.control(roomy)
    narrow = quality.blocks(
        TABLE, [4], {1: 9, 2: 2, 3: 9}, [0]
    )  # both neurons of layer 2 are found
    assert quality.elsewhere(narrow) == {4: 2}
    assert "other layers than those: 2 of 4. " in quality.control(narrow)


def test_blocks_without_room_have_no_random_ones() -> None:
    got = quality.blocks(TABLE, [1, 4], {1: 5, 2: 2, 3: 8}, [0])  # 15 neurons, 11 free
    assert [b.choice for b in got] == ["most frequent", "random"] * 2
    full = quality.blocks(TABLE, [4], {1: 1 + 4, 2: 2, 3: 8 - 0}, [])
    assert [b.choice for b in full] == ["most frequent"]


def test_pictures_draw_each_random_choice_with_its_own_seed(
    toy_model: DiffusionModel, tmp_path: Path
) -> None:
    chosen = quality.blocks(TABLE, [2], quality.widths(toy_model), range(2))
    got = quality.pictures(
        toy_model, ["a", "b"], chosen, seeds=[50, 51], detection_seeds=[1], store=tmp_path, steps=1
    )
    counts = got.groupby(["choice", "neurons", "seed"]).size()
    assert counts.to_dict() == {
        (c, n, s): 2
        for c, n in (("none", 0), ("most frequent", 2), ("random", 2))
        for s in (50, 51)
    }


def test_distances_are_named_after_their_network_and_told_over_seeds() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (12, 8, 8, 3), dtype=np.uint8)
    made = pd.DataFrame(
        {"choice": ["none"] * 6 + ["random"] * 6, "neurons": [0] * 6 + [2] * 6,
         "seed": [1, 1, 1, 2, 2, 2] * 2, "image": list(images)}
    )  # fmt: skip
    network = metrics.Embedder(
        "colours", "as they are", lambda x: x.reshape(len(x), -1, 3).mean(1), "CLIP"
    )
    real = rng.normal(120, 30, (20, 3))
    got = quality.distances(made, [network], real)  # type: ignore[arg-type]
    assert set(got["measure"]) == {"CLIP-FID", "CLIP-KID"}
    assert len(got) == 2 * 4
    by_hand = metrics.frechet_distance(network.features(images[:3]), real)
    assert got["value"].iloc[0] == pytest.approx(by_hand)
    told = quality.over_seeds(got)
    assert told["seeds"].tolist() == [2] * 4
    values = got.query("measure == 'CLIP-FID' and choice == 'none'")["value"]
    assert told["mean"].iloc[0] == pytest.approx(values.mean())
    assert told["deviation"].iloc[0] == pytest.approx(values.std())
    single = quality.over_seeds(got[got["seed"] == 1])
    assert single["deviation"].isna().all(), "one seed has no spread"
    assert "most frequent not measured; random not told from one seed" in quality.sentences(single)


def curves() -> pd.DataFrame:
    heights = {"none": {0: 10}, "most frequent": {1: 10, 5: 13, 9: 14}, "random": {1: 11, 5: 10}}
    rows = [
        ("CLIP-FID", choice, count, float(mean), 1.0)
        for choice, means in heights.items()
        for count, mean in means.items()
    ]
    return pd.DataFrame(rows, columns=["measure", "choice", "neurons", "mean", "deviation"])


def test_sentences_tell_where_a_curve_leaves_the_baseline() -> None:
    assert quality.sentences(curves()) == (
        "- CLIP-FID: most frequent above it by two deviations from 5 on; random within two "
        "deviations of none blocked; the most frequent are worse than random ones at 1 of 2 counts."
    )


def test_unseen_prompts_beside_the_paper_s() -> None:
    frame = pd.DataFrame({"group": ["non-memorized"] * 4 + ["VM"], "n_refined": [0, 0, 3, 0, 9]})
    got = quality.unseen(frame).set_index("source")
    assert got.loc["here", ["prompts", "with_neurons", "share"]].tolist() == [4, 1, 0.25]
    assert got.loc["paper", "share"] == pytest.approx(0.116)
    assert got.loc["paper", "low"] == pytest.approx(0.0908, abs=1e-3)  # Wilson, by hand
    with pytest.raises(ValueError, match="no non-memorized prompt"):
        quality.unseen(frame[4:])
    with pytest.raises(ValueError, match="localized lacks group, n_refined"):
        quality.unseen(pd.DataFrame())


def test_disentangled_averages_over_draws(toy_model: DiffusionModel) -> None:
    chosen = quality.blocks(TABLE, [1], quality.widths(toy_model), range(2))
    got = quality.disentangled(toy_model, ["a", "b"], chosen, [50])
    assert got.groupby("choice")["layer"].nunique().to_dict() == {"most frequent": 16, "random": 16}
    assert got.groupby("choice")["samples"].first().to_dict() == {"most frequent": 2, "random": 4}
    assert got["similarity"].between(-1, 1.0001).all()
    each = [disentanglement(toy_model, ["a", "b"], one.neurons, [50]) for one in chosen]
    rest = got.query("choice == 'random' and layer == 1").iloc[0]
    means, spreads = ([float(t[name][0]) for t in each[1:]] for name in ("cosine", "deviation"))
    assert rest["similarity"] == pytest.approx(np.mean(means))
    wanted = np.sqrt(np.mean(np.square(spreads)) + np.var(means))
    assert rest["deviation"] == pytest.approx(wanted, rel=1e-4)


# --------------------------------------------------------------------------------- figures


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_the_table_writes_medians_in_the_paper_s_form() -> None:
    table = evaluation.over_prompts(measured()).query("group == 'VM'")
    got = texts(
        plots.results(table.replace({"median": {0.9: 10.05}}), note="of whom", rules=["default"])
    )
    assert {"default", "NeMo", "VM (n = 1)", "orig ↓", "align ↑", "of whom"} <= set(got)
    assert "10.05±.00" in got
    assert not any("−.00" in text for text in got)
    assert "[.10, .10]" in got
    plain = texts(plots.results(paper.table_1()))
    assert ".83±.16" in plain
    assert "1.00" in plain


def test_a_missing_cell_of_the_table_is_a_dash() -> None:
    table = evaluation.over_prompts(measured())
    gone = table[~((table["setting"] == "NeMo") & (table["measure"] == "orig"))]
    assert texts(plots.results(gone)).count("–") == 2
