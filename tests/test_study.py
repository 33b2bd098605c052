"""Studies: every kind of setting, what they measure, and what a file of one's own adds."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from books import cutting
from matplotlib import pyplot as plt

from nemo_kit import metrics, plots
from nemo_kit.metrics import MEASURES
from nemo_kit.mitigation import AttentionScaling, NeMo, RandomNeurons
from nemo_kit.models import DiffusionModel, load
from nemo_kit.neurons import NeuronSet
from nemo_kit.store import ModelRef, generate_all
from nemo_kit.study import before_after, pictures, study

RED, BLUE = np.eye(3, dtype=np.uint8)[[0, 2]] * 200
ROWS = pd.DataFrame({"prompt": ["cat", "cup"], "group": ["VM", "TM"]})
SET = NeuronSet({1: [0, 1, 2, 3], 3: range(8)})


def solid(colour: np.ndarray) -> np.ndarray:
    return np.broadcast_to(colour, (64, 64, 3)).astype(np.uint8)


def colour(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1, 3).mean(axis=1)


LOOK = metrics.Embedder("colour", "mean", colour)


def options(folder: Path) -> dict[str, Any]:
    return {"store": folder, "steps": 1, "progress": False}


def test_every_kind_of_setting(toy_model: DiffusionModel, tmp_path: Path, toy_folder: Path) -> None:
    other = load(str(toy_folder), device="cpu")
    next(other.denoiser.parameters()).mul_(3)
    settings: dict[str, Any] = {
        "default": None,
        "set": SET,
        "own": {"cat": SET},
        "half": NeMo(SET, 0.5),
        "random": [RandomNeurons(SET, seed=seed, overflow=True) for seed in (0, 1)],
        "mitigation": AttentionScaling(),
        "each": {"cat": AttentionScaling()},
        "cut": cutting()["Cut"]("value", 1),
        "model": other,
    }
    args = (ROWS, settings, [50, 51], ["gen"])
    got = study(toy_model, *args, **options(tmp_path))
    assert got["setting"].tolist() == [n for n in settings for _ in range(2 + 2 * (n == "random"))]
    assert got.query("setting == 'random'")["repeat"].tolist() == [0, 0, 1, 1]
    gen = got.set_index(["setting", "repeat", "prompt"])["gen"].round(6)
    changed = set(gen[gen < 1].index)
    assert {("set", 0, "cat"), ("set", 0, "cup"), ("own", 0, "cat"), ("model", 0, "cat")} <= changed
    assert not {("default", 0, "cat"), ("own", 0, "cup"), ("each", 0, "cup")} & changed
    told = ["images", "gen", "threshold", "seed_median", "embedder", "protocol", "clip_model"]
    assert list(got) == ["setting", "repeat", *ROWS, *told, "mitigation_protocol"]
    drawn = toy_model.samples_evaluated
    again = study(ModelRef.of(toy_model), *args, **options(tmp_path))
    assert toy_model.samples_evaluated == drawn, "the second time from the store"
    pd.testing.assert_frame_equal(got, again)
    random = {"random": settings["random"]}
    alone = study(toy_model, ROWS[:1], random, *args[2:], **options(tmp_path))
    assert toy_model.samples_evaluated == drawn, "a prompt's pictures stay when others go"
    assert list(alone["gen"].round(6)) == list(gen["random"][:, "cat"])


def test_training_images_are_those_given(toy_model: DiffusionModel, tmp_path: Path) -> None:
    """Two studies beside each other, each against its own."""
    red, blue = (dict.fromkeys(ROWS["prompt"], solid(one)) for one in (RED, BLUE))
    args, more = (toy_model, ROWS, {"default": None}, [50], ["orig"]), options(tmp_path)
    more["look"] = LOOK
    first, second, again = (study(*args, training=one, **more)["orig"] for one in (red, blue, red))
    assert (first != second).all()
    assert list(first) == list(again)
    some = study(*args, training={"cat": solid(RED)}, **more)["orig"]
    assert some.isna().tolist() == [False, True]
    assert study(*args, **more)["orig"].isna().all()
    by_function = study(*args, training=red, **more | {"look": colour})
    assert list(by_function["orig"]) == list(first)
    assert set(by_function["embedder"]) == {"colour"}


def test_pictures_and_the_median_of_the_released_metrics(
    toy_model: DiffusionModel, tmp_path: Path
) -> None:
    args = (toy_model, ROWS, {"set": SET}, [50, 51], ["gen", "diversity"])
    usual, released = (
        study(*args, median=kind, **options(tmp_path)) for kind in ("middle two", "lower middle")
    )
    look = metrics.lab_descriptor()
    before, after = (
        pictures(generate_all(toy_model, ROWS["prompt"], [50, 51], one, **options(tmp_path)))
        for one in (None, SET)
    )
    pairs = [(look(before[p]) * look(after[p])).sum(axis=1) for p in ROWS["prompt"]]
    assert list(usual["gen"]) == pytest.approx([pair.mean() for pair in pairs])
    assert list(released["gen"]) == pytest.approx([pair.min() for pair in pairs])
    assert set(released["seed_median"]) == {"lower middle"}
    assert pictures(pd.DataFrame()) == {}


def test_a_setting_that_is_not_defined_for_the_model_has_rows_without_numbers(
    toy_model: DiffusionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(toy_model), "clip_attention", False)
    settings = {"default": None, "set": SET, "scaled": AttentionScaling()}
    with pytest.warns(UserWarning, match="'scaled' has no pictures: .* is not defined for Stable"):
        got = study(toy_model, ROWS, settings, [50, 51], ["gen", "orig"], **options(tmp_path))
    assert got["images"].tolist() == [2, 2, 2, 2, 0, 0]
    assert got["gen"].isna().tolist() == [False] * 4 + [True] * 2
    table = metrics.summary(got, ["gen", "orig"])
    assert table["measure"].tolist() == ["gen"] * 6  # none has a training image
    none = table[table["setting"] == "scaled"]
    assert (none["prompts"].tolist(), none["median"].isna().all()) == ([0, 0], True)
    there = table.assign(median=[0.9, 0.9, 0.5, 0.5, 0.1, 0.1])
    compared = metrics.orders(table, there)
    assert not {"scaled"} & {*compared["lower"], *compared["higher"]}
    drawn = plots.results(table)
    assert "–" in {text.get_text() for text in drawn.axes[0].texts}
    plt.close(drawn)


def test_a_prompt_whose_pictures_failed_has_no_row(
    toy_model: DiffusionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = generate_all

    def some(model: Any, prompts: list[str], seeds: Any, neurons: Any = None, **how: Any) -> Any:
        made = known(model, prompts, seeds, neurons, **how)
        return made[made["prompt"] != ("cat" if neurons is None else "cup")]

    rows = pd.DataFrame({"prompt": ["cat", "cup", "dog"]}, index=[4, 5, 6])
    monkeypatch.setattr("nemo_kit.study.generate_all", some)
    args = ({"default": None, "set": SET}, [50], ["gen"])
    got = study(toy_model, rows, *args, **options(tmp_path))
    assert got[["setting", "prompt"]].to_numpy().tolist() == [
        ["default", "cup"], ["default", "dog"], ["set", "dog"]
    ]  # fmt: skip
    with pytest.raises(ValueError, match="'set' has pictures of none of 2 prompts"):
        study(toy_model, rows[:2], *args, **options(tmp_path))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"settings": {}}, ValueError, "settings must map names to interventions"),
        ({"settings": {"x": 3}}, TypeError, "settings: 'x' must be None, a NeuronSet"),
        ({"settings": {"x": []}}, ValueError, "settings must hold an intervention in each list"),
        ({"settings": {"x": {}}}, TypeError, "settings: 'x' must be None, a NeuronSet"),
        ({"settings": {"x": {"dog": SET}}}, ValueError, "'x' is for none of the 2 prompts of rows"),
        ({"settings": {"x": NeMo({"dog": SET})}}, ValueError, "'x' is for none of the 2 prompts"),
        ({"measures": ["nothing"]}, ValueError, "measures must be one of orig"),
        ({"detection_seeds": [2]}, ValueError, "2 is in both; start the pictures above 2"),
        ({"seeds": [1, 1]}, ValueError, "seeds must differ"),
        ({"seeds": [9, 9], "detection_seeds": [2]}, ValueError, "seeds must differ"),
        ({"rows": ROWS.assign(gen=1, threshold=2)}, ValueError, "study adds, got gen, threshold"),
        ({"rows": ROWS[:0]}, ValueError, "prompts must hold at least one prompt, got none"),
        ({"rows": ROWS[["group"]]}, ValueError, "rows lacks prompt; it has group"),
        ({"look": "SSCD"}, TypeError, "embedder must be a function of pictures, got str"),
    ],
)
def test_study_refuses_before_it_draws(
    toy_model: DiffusionModel, tmp_path: Path, change: dict, error: type[Exception], text: str
) -> None:
    given: dict[str, Any] = {"rows": ROWS, "settings": {"default": None}, "seeds": [1, 2]}
    with pytest.raises(error, match=text):
        study(toy_model, **(given | change), **options(tmp_path))
    assert not list(tmp_path.iterdir())


def test_pictures_on_detection_seeds_are_refused_before_any_is_drawn(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 is in both"):
        study(None, ROWS, {"x": None}, [1, 2], detection_seeds=[2, 3], store=tmp_path)  # type: ignore[arg-type]


def test_before_and_after_side_by_side() -> None:
    told = pd.DataFrame(
        {"setting": ["a", "a", "b"], "repeat": 0, "prompt": ["y", "x", "x"], "group": "VM",
         "images": 2, "orig": [0.5, 0.9, 0.1], "gen": [1.0, 1.0, 0.2], "threshold": 0.7,
         "seed_median": "", "embedder": "e", "protocol": "p", "clip_model": "c"}
    )  # fmt: skip
    got = before_after(told, "a", "b")
    assert list(got) == ["prompt", "group", "gen", "orig_before", "orig_after",
                         "embedder", "protocol", "clip_model"]  # fmt: skip
    assert got[["prompt", "gen", "orig_before", "orig_after"]].to_numpy().tolist() == [
        ["x", 0.2, 0.9, 0.1]
    ]
    with pytest.raises(ValueError, match="after must be a setting of the frame, got 'z'"):
        before_after(told, "a", "z")


# ------------------------------------------------------------------------------ over prompts


def test_summary_counts_repeats_as_one_value_and_leaves_out_what_is_unknown() -> None:
    frame = pd.DataFrame(
        {
            "setting": "random", "prompt": ["a", "a", "b", "b"], "group": "VM",
            "orig": [0.0, 0.2, 0.5, 0.7], "gen": [np.nan] * 3 + [0.4], "diversity": np.nan,
        }
    )  # fmt: skip
    got = metrics.summary(frame, ["orig", "gen", "diversity"]).set_index("measure")
    assert got.loc["orig", ["prompts", "median", "mad"]].tolist() == pytest.approx([2, 0.35, 0.25])
    assert got.loc["gen", ["prompts", "median"]].tolist() == [1, pytest.approx(0.4)]
    assert "diversity" not in got.index
    assert list(metrics.summary(frame, ["gen"], by=["group"])["group"]) == ["VM"]
    none = metrics.summary(frame, ["diversity"])
    assert list(none) == [
        "setting", "group", "measure", "prompts", "median", "mad", "low", "high"
    ]  # fmt: skip
    with pytest.raises(ValueError, match="frame lacks alignment"):
        metrics.summary(frame, ["alignment"])


def test_orders_tell_agreement_ties_and_reversals() -> None:
    there = pd.DataFrame(
        {"setting": ["x", "y", "z", "w"], "group": "VM", "measure": "orig",
         "median": [0.1, 0.3, 0.9, 0.32]}
    )  # fmt: skip
    here = there.assign(median=[0.5, 0.2, 0.9, 0.52])
    got = metrics.orders(here, there).set_index(["lower", "higher"])
    assert got["verdict"].to_dict() == {
        ("x", "y"): "reversed", ("x", "z"): "same", ("y", "z"): "same", ("x", "w"): "tied",
        ("w", "z"): "same",
    }  # fmt: skip
    assert got.loc[("x", "y"), ["paper", "here"]].tolist() == pytest.approx([0.2, -0.3])
    assert metrics.orders(here[:0], there).empty


# ---------------------------------------------------------------------------- a file of one's own

TOY = """
from nemo_kit.metrics import measure

@measure("redness", "red", "higher")
def redness(seen):
    return seen.images[..., 0].mean(axis=(1, 2))
"""


def test_a_file_adds_a_measure_to_the_studies_and_the_tables(
    toy_model: DiffusionModel, tmp_path: Path
) -> None:
    path = tmp_path / "toy_measure.py"
    path.write_text(TOY)
    try:
        runpy.run_path(str(path))
        got = study(toy_model, ROWS, {"default": None, "set": SET}, [50], **options(tmp_path))
        assert got["redness"].between(0, 255).all()
        table = metrics.summary(got, metrics.listed())
        assert "redness" in set(table["measure"])
        with mpl.rc_context({"backend": "agg"}):
            drawn = plots.results(table)
        texts = {text.get_text() for text in drawn.axes[0].texts}
        assert {"red ↑", "gen ↓"} <= texts
    finally:
        MEASURES.pop("redness", None)
