"""The neuron atlas: large sets, shared neurons, links, one neuron; frames and figures."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nemo_kit import plots, sharing
from nemo_kit.frames import atlas
from nemo_kit.localization.candidates import text_activations, z_scores
from nemo_kit.models import DiffusionModel
from nemo_kit.neurons import NeuronSet

A, B, NONE = NeuronSet({1: [4], 3: [7]}), NeuronSet({3: [7]}), NeuronSet()


def localized(**sets: NeuronSet) -> pd.DataFrame:
    """Results of prompts named as the arguments; capital names are TM."""
    sets = sets or {"a": A, "b": B, "C": B, "d": NONE}
    return pd.DataFrame(
        {
            "prompt": list(sets),
            "group": ["TM" if name.isupper() else "VM" for name in sets],
            "memorized": True,
            "initial": list(sets.values()),
            "refined": list(sets.values()),
        }
    )


# ---------------------------------------------------------------------------------- frames


def test_the_largest_sets_come_first() -> None:
    assert atlas.largest(localized(), 2)["prompt"].tolist() == ["a", "b"]
    assert atlas.largest(localized())["prompt"].tolist() == ["a", "b", "C"]
    with pytest.raises(ValueError, match="no prompt with refined neurons"):
        atlas.largest(localized(a=NONE))


def test_links_hold_every_prompt_and_neuron() -> None:
    got = atlas.links(localized())
    assert got.to_numpy().tolist() == [
        ["a", "VM", 1, 4], ["a", "VM", 3, 7], ["b", "VM", 3, 7], ["C", "TM", 3, 7]
    ]  # fmt: skip


def test_shared_neurons_by_number_of_prompts() -> None:
    got = atlas.shared_neurons(localized())
    assert got.to_numpy().tolist() == [[3, 7, 3], [1, 4, 1]]


def test_a_shared_group_has_its_prompts_smallest_sets_first() -> None:
    assert atlas.shared_groups(localized()) == [(B, ["b", "C", "a"])]  # a needs another one too
    both = NeuronSet({3: [7, 9]})
    assert atlas.shared_groups(localized(a=both | A, b=both)) == [(both, ["b", "a"])]


def test_what_is_all_of_a_prompt_s_set_comes_before_one_among_many() -> None:
    many = NeuronSet({1: [0, 1, 2, 3, 4]})
    frame = localized(a=many, b=many, c=many, d=B, e=B)
    assert atlas.shared_groups(frame) == [(B, ["d", "e"]), (many, ["a", "b", "c"])]
    assert len(atlas.shared_groups(frame, 1)) == 1  # 2 sets whole, not 3 fifths


def test_without_a_shared_neuron_there_is_no_group() -> None:
    assert atlas.shared_groups(localized(a=A, b=NeuronSet({2: [1]}))) == []


def test_a_neuron_is_chosen_by_name_or_as_the_most_shared() -> None:
    assert atlas.chosen_neuron(localized(), " 2:15 ") == (2, 15)
    assert atlas.chosen_neuron(localized()) == (3, 7)
    assert atlas.chosen_neuron(localized(a=A)) == (1, 4)
    with pytest.raises(ValueError, match='neuron must be "LAYER:INDEX", as "3:63", or empty'):
        atlas.chosen_neuron(localized(), "layer 3")


def test_prompts_that_drive_a_neuron(toy_model: DiffusionModel) -> None:
    names = ["cat 0", "red cup 1", "Öl 2"]
    prompts = pd.DataFrame({"prompt": names, "group": ["VM", "TM", "non-memorized"]})
    found = pd.DataFrame({"prompt": ["cat 0"], "refined": [NeuronSet({2: [3]})]})
    got = atlas.neuron_prompts(toy_model, prompts, found, (2, 3), most=2)
    own = text_activations(toy_model, names)
    z = z_scores(own, toy_model.calibration.statistics)
    order = np.argsort(-own[2][:, 3].numpy(), kind="stable")[:2]
    assert got["prompt"].tolist() == [names[i] for i in order]
    assert got["z"].tolist() == pytest.approx(z[2][order, 3].tolist())
    assert got["share"].tolist() == pytest.approx((own[2][:, 3] / own[2].sum(1))[order].tolist())
    assert got["serves"].tolist() == [names[i] == "cat 0" for i in order]
    assert toy_model.samples_evaluated == 0


def test_prompts_that_drive_a_neuron_refuse(toy_model: DiffusionModel) -> None:
    prompts = pd.DataFrame({"prompt": ["cat 0"], "group": ["VM"]})
    with pytest.raises(ValueError, match="layer 9 does not exist here"):
        atlas.neuron_prompts(toy_model, prompts, localized(), (9, 0))
    with pytest.raises(ValueError, match="frame lacks group"):
        atlas.neuron_prompts(toy_model, prompts[["prompt"]], localized(), (1, 0))
    known, toy_model.calibration = toy_model.calibration, None
    try:
        with pytest.raises(ValueError, match="has no activation statistics"):
            atlas.neuron_prompts(toy_model, prompts, localized(), (1, 0))
    finally:
        toy_model.calibration = known


def test_layer_shares_count_neurons_and_pairs() -> None:
    got = atlas.layer_shares(localized(), [8, 8, 10], (3, 7))
    assert got["one"].tolist() == [1, 0, 0]
    assert got["several"].tolist() == [0, 0, 1]
    assert got["links"].tolist() == [1, 0, 3]
    assert got["share"].tolist() == [0.0, 0.0, 1.0]
    assert atlas.layer_shares(localized(), [8, 8, 10])["chosen"].sum() == 0


# --------------------------------------------------------------------------------- sharing


class Made:
    """`generate_all` without a model: its calls, and prompts that fail with neurons off."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[str], Any]] = []
        self.failed: set[str] = set()

    def __call__(
        self, model: None, prompts: list[str], seeds: list[int], neurons: Any = None, **more: Any
    ) -> pd.DataFrame:
        self.calls.append((list(prompts), neurons))
        good = [p for p in prompts if neurons is None or p not in self.failed]
        image = np.full((64, 64, 3), 0 if neurons is None else 90, np.uint8)
        rows = [(p, s, image) for p in good for s in seeds]
        return pd.DataFrame(rows, columns=["prompt", "seed", "image"])


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    made = Made()
    monkeypatch.setattr(sharing, "generate_all", made)
    monkeypatch.setattr(sharing.Keyed, "of", lambda model: model)
    monkeypatch.setattr(
        sharing.effects, "copying", lambda rows, before, after, known: rows.assign(gen=0.5)
    )
    return made


def test_only_the_shared_neurons_are_switched_off(made: Made) -> None:
    first, second = sharing.shared_effects(None, localized(), [101, 102], 2, most=2, store="x")
    assert made.calls == [(["b", "C"], None), (["b", "C"], B)]
    assert (first.neurons, first.names, first.prompts) == (B, "layer 3\n#7", ["b", "C"])
    assert first.before.shape == first.after.shape == (2, 2, 64, 64, 3)
    assert first.table["serves"].tolist() == [3, 3]
    assert first.table["group"].tolist() == ["VM", "TM"]
    assert (second.prompts, second.table["serves"].tolist()) == ([], [0])


def test_a_later_group_s_neurons_serve_prompts_shown_before_too(made: Made) -> None:
    second = NeuronSet({2: [5]})
    frame = localized(a=B, b=B, c=B | second, d=second, e=second)
    first, later = sharing.shared_effects(None, frame, [101], 2, store="x")
    assert (first.neurons, first.prompts) == (B, ["a", "b", "c"])
    assert (later.neurons, later.prompts) == (second, ["d", "e"])  # c was shown
    counts = atlas.shared_neurons(frame).set_index(["layer", "neuron"])["prompts"]
    assert later.table["serves"].tolist() == [3, 3] == [counts[2, 5]] * 2


def test_a_prompt_that_failed_is_not_shown(made: Made) -> None:
    made.failed = {"b"}
    [group] = sharing.shared_effects(None, localized(), [101, 102], 1, store="x")
    assert group.prompts == group.table["prompt"].tolist() == ["C", "a"]
    assert group.before.shape == group.after.shape == (2, 2, 64, 64, 3)
    assert group.table["serves"].tolist() == [3, 3]
    made.failed = {"a", "b", "C"}
    with pytest.raises(ValueError, match="of 3 prompts none has them"):
        sharing.shared_effects(None, localized(), [101, 102], 1, store="x")


# --------------------------------------------------------------------------------- figures


def test_the_graph_draws_shared_neurons_and_says_what_it_leaves_out() -> None:
    axes = plots.bipartite(atlas.links(localized())).axes[0]
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["a (2)", "b (1)", "C (1)", "layer 3, #7: 3 prompts"]
    assert axes.get_title(loc="right") == "not drawn: 1 of 2 neurons"
    lines = [
        line for line in axes.lines if len(line.get_xdata()) == 2 and line.get_marker() == "None"
    ]
    assert len(lines) == 3
    assert lines[0].get_linewidth() < lines[1].get_linewidth()  # a has two neurons, b one


def test_the_graph_says_which_prompts_it_leaves_out() -> None:
    axes = plots.bipartite(atlas.links(localized()), prompts=2).axes[0]
    assert [text.get_text() for text in axes.texts] == ["b (1)", "C (1)", "layer 3, #7: 3 prompts"]
    assert axes.get_title(loc="right") == "not drawn: 1 of 2 neurons, 1 of 3 prompts"


def test_the_graph_tells_shared_neurons_left_out_from_single_ones() -> None:
    frame = atlas.links(localized(a=NeuronSet({1: [4], 3: [7]}), b=NeuronSet({1: [4, 9], 3: [7]})))
    axes = plots.bipartite(frame, most=1).axes[0]
    assert axes.get_title(loc="right") == "not drawn: 2 of 3 neurons (1 of one prompt)"


def test_the_graph_of_a_single_prompt() -> None:
    axes = plots.bipartite(atlas.links(localized(a=A))).axes[0]
    assert [text.get_text() for text in axes.texts][1:] == [
        "layer 1, #4: 1 prompt", "layer 3, #7: 1 prompt"
    ]  # fmt: skip


def portrait() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "layer": 3, "neuron": 7, "prompt": ["a $1", "b"], "group": ["VM", "TM"],
            "z": [6.0, -1.0], "share": [0.2, 0.1], "serves": [True, False],
        }
    )  # fmt: skip


def test_a_portrait_has_z_and_share() -> None:
    left, right = plots.neuron_portrait(portrait()).axes
    assert [bar.get_width() for bar in left.patches] == [6.0, -1.0]
    assert [bar.get_width() for bar in right.patches] == pytest.approx([20.0, 10.0])
    assert left.patches[0].get_hatch() is None
    assert left.patches[1].get_hatch()
    assert left.get_xlabel() == "z of layer 3, #7"


def test_layer_shares_stack_to_the_layer_s_part() -> None:
    axes = plots.layer_shares(atlas.layer_shares(localized(), [8, 8, 10], (3, 7))).axes[0]
    assert [bar.get_height() for bar in axes.patches] == pytest.approx([0, 0, 10, 12.5, 0, 0])
    assert "100 % of the layer's prompt–neuron pairs" in axes.get_title(loc="right")


def test_shared_pictures_or_a_note() -> None:
    pictures = np.zeros((1, 3, 8, 8, 3), np.uint8)
    group = SimpleNamespace(
        names="layer 3\n#7", prompts=["a"], training=None, before=pictures, after=pictures
    )
    drawn = plots.shared_alone(group, seeds=2)
    assert any("layer 3" in text.get_text() for text in drawn.texts)
    empty = plots.shared_alone(SimpleNamespace(prompts=[]))
    assert empty.axes[0].texts[0].get_text() == "no further neuron serves several prompts"


@pytest.mark.parametrize("draw", [plots.bipartite, plots.neuron_portrait, plots.layer_shares])
def test_figures_refuse_other_frames(draw: Any) -> None:
    with pytest.raises(ValueError, match="frame lacks"):
        draw(pd.DataFrame({"x": [1]}))
