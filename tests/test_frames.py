"""Frames behind the figures, from small hand-made results."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from nemo_kit import frames
from nemo_kit.calibration import ActivationStatistics
from nemo_kit.localization.candidates import text_activations
from nemo_kit.models import DiffusionModel
from nemo_kit.neurons import NeuronSet

A, B = NeuronSet({1: [4], 3: [7]}), NeuronSet({3: [7]})


def table() -> pd.DataFrame:
    roles = ["verbatim"] * 5 + ["template"] * 3 + ["non_memorized"] * 4 + ["holdout"] * 2
    roles += ["ladder"] * 4
    return pd.DataFrame(
        {
            "prompt": [f"p{number}" for number in range(len(roles))],
            "role": roles,
            "repetitions": [9] * 8 + [0] * 6 + [30, 1, 30, 1],
        }
    )


def localized() -> pd.DataFrame:
    empty = NeuronSet()
    frame = pd.DataFrame(
        {
            "prompt": ["a", "b", "c", "d"],
            "group": ["VM", "VM", "TM", "non-memorized"],
            "memorized": [True, True, True, False],
            "score": [0.6, 0.9, 0.7, 0.1],
            "theta": [5.0, 4.0, 1.0, np.nan],
            "initial": [A, A, A | NeuronSet({2: [1]}), empty],
            "refined": [A, B, B, empty],
            "n_refined": [2, 1, 1, 0],
        }
    )
    for place, name in enumerate(frames.ALGORITHMS):
        frame[f"seconds_{name}"] = place + frame.index
        frame[f"samples_{name}"] = 10 * place
    return frame


def detected() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "prompt": ["a", "b", "c"],
            "group": ["VM", "TM", "non-memorized"],
            "score": [0.9, 0.6, 0.2],
            "pairwise": [[0.9, 0.8, 0.7], [0.6, 0.5, 0.4], [0.2, 0.1, 0.0]],
        }
    )


# --------------------------------------------------------------------------------- prompts


def test_choose_spreads_over_the_table_and_names_groups() -> None:
    got = frames.choose(table(), memorized=2, non_memorized=3, holdout=1)
    assert got["prompt"].tolist() == ["p0", "p4", "p5", "p7", "p8", "p10", "p11", "p12"]
    assert got["group"].tolist() == ["VM"] * 2 + ["TM"] * 2 + ["non-memorized"] * 3 + ["hold-out"]


def test_choose_takes_all_for_none_and_no_hold_out_unless_asked() -> None:
    assert frames.choose(table())["group"].value_counts().to_dict() == {
        "VM": 5, "non-memorized": 4, "TM": 3
    }  # fmt: skip
    assert len(frames.choose(table(), 99, 0)) == 8


def test_choose_refuses() -> None:
    with pytest.raises(ValueError, match="0 or more, or None for all, got -1"):
        frames.choose(table(), memorized=-1)
    with pytest.raises(ValueError, match="no prompt of the roles asked for"):
        frames.choose(table(), 0, 0)
    with pytest.raises(ValueError, match="frame lacks role; it has prompt"):
        frames.choose(pd.DataFrame({"prompt": ["a"]}))


def test_the_ladder_comes_rate_by_rate() -> None:
    got = frames.choose_ladder(table(), per_rate=1)
    assert got["repetitions"].tolist() == [1, 30]
    assert len(frames.choose_ladder(table())) == 4
    with pytest.raises(ValueError, match="no prompt of the role ladder"):
        frames.choose_ladder(table()[:5])


def test_first_prompt() -> None:
    assert frames.first_prompt(table()) == "p0"
    assert frames.first_prompt(table(), "my own") == "my own"
    with pytest.raises(ValueError, match="prompt must be given"):
        frames.first_prompt(table()[8:])


def test_grouped_follows_the_prompts_and_drops_those_without_a_result() -> None:
    prompts = pd.DataFrame({"prompt": ["y", "x", "z"], "group": ["VM", "TM", "VM"]})
    got = frames.grouped(pd.DataFrame({"prompt": ["x", "y"], "score": [1, 2]}), prompts)
    assert got.to_dict("list") == {"prompt": ["y", "x"], "group": ["VM", "TM"], "score": [2, 1]}


# ------------------------------------------------------------------------------- detection


def test_pairwise_names_both_seeds_of_every_score() -> None:
    got = frames.pairwise(detected(), [3, 5, 8])
    assert len(got) == 9
    assert got.iloc[1].to_dict() == {
        "prompt": "a", "group": "VM", "seed_a": 3, "seed_b": 8, "score": 0.8
    }  # fmt: skip
    with pytest.raises(ValueError, match="seeds must be those of detection: 6 pairs"):
        frames.pairwise(detected(), [1, 2, 3, 4])


def test_calibration_scores_take_pairs_or_maxima_of_the_hold_out() -> None:
    held = detected().assign(group="hold-out", prompt=["x", "y", "z"])
    pairs = frames.calibration_scores(detected(), held)
    assert pairs["group"].value_counts()["hold-out"] == 9
    assert len(pairs) == 12
    maxima = frames.calibration_scores(detected(), held, "maxima")
    assert maxima["score"].tolist() == [0.9, 0.6, 0.2] * 2


def test_detection_numbers_are_given_for_each_type_and_both() -> None:
    got = frames.detection_numbers(detected(), 0.5, resamples=10)
    assert got["memorized"].unique().tolist() == ["VM", "TM", "VM + TM"]
    assert (got["value"] == 1).all()
    assert got.loc[got["memorized"] == "VM + TM", "prompts"].tolist() == [2] * 3
    with pytest.raises(ValueError, match="group VM or TM, got none"):
        frames.detection_numbers(detected()[2:], 0.5)


def test_clearest_pairs_the_highest_with_a_middling_prompt() -> None:
    more = pd.DataFrame({"prompt": ["d", "e"], "group": "non-memorized", "score": [0.4, 0.3]})
    frame = pd.concat([detected(), more])
    assert frames.clearest(frame) == ("a", "e")
    assert frames.clearest(frame[frame["group"] != "VM"])[0] == "b"
    with pytest.raises(ValueError, match="needs memorized and other prompts"):
        frames.clearest(detected()[:2])


# ----------------------------------------------------------------------------- activations


def test_z_table_by_hand(toy_model: DiffusionModel) -> None:
    prompts = pd.DataFrame({"prompt": ["cat", "red cup"], "group": ["VM", "TM"]})
    own = text_activations(toy_model, ["cat", "red cup"])
    statistics = ActivationStatistics.from_activations(own)
    got = frames.z_table(toy_model, prompts, statistics)
    assert list(got.columns) == ["prompt", "group", "layer", "neuron", "z"]
    assert len(got) == 2 * sum(statistics.widths.values())
    # of two prompts each lies 1 / sqrt 2 unbiased deviations from the mean
    assert got["z"].abs().to_numpy() == pytest.approx(np.sqrt(0.5), abs=2e-2)
    row = got[(got["prompt"] == "red cup") & (got["layer"] == 2) & (got["neuron"] == 5)].iloc[0]
    expected = (own[2][1, 5] - own[2][:, 5].mean()) / own[2][:, 5].std()
    assert row["z"] == pytest.approx(expected.item(), abs=1e-4)


def test_z_table_needs_statistics(
    toy_model: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toy_model, "calibration", None)
    with pytest.raises(ValueError, match="statistics must be given: the model"):
        frames.z_table(toy_model, pd.DataFrame({"prompt": ["a"], "group": ["VM"]}))


def test_layer_rows() -> None:
    z = pd.DataFrame({"layer": [1, 2], "z": [0.123456, 1.0]})
    assert frames.layer_rows(z, 1)["z"].tolist() == [0.1235]
    with pytest.raises(ValueError, match=r"layer must be one of \[.*\], got 3"):
        frames.layer_rows(z, 3)


def test_workflow_neurons_name_the_stage_of_each(toy_model: DiffusionModel) -> None:
    got = frames.workflow_neurons(toy_model, "cat", NeuronSet({1: [0, 1]}), NeuronSet({1: [1]}))
    assert got["stage"].tolist()[:3] == ["candidate", "refined", "other"]
    assert got["stage"].value_counts().to_dict()["other"] == len(got) - 2


# ---------------------------------------------------------------------------- localization


def test_only_prompts_taken_for_memorized_are_counted() -> None:
    got = frames.neuron_counts(localized())
    assert got["initial"].tolist() == [2, 2, 3]
    assert got["refined"].tolist() == [2, 1, 1]
    with pytest.raises(ValueError, match="no VM or TM prompt that was taken for memorized"):
        frames.found(localized()[3:].assign(memorized=True))  # a false alarm is none


def test_neurons_by_layer_counts_empty_layers_as_zero() -> None:
    got = frames.neurons_by_layer(localized(), layers=3)
    assert got["neurons"].tolist() == [1, 0, 1, 0, 0, 1, 0, 0, 1]
    assert got["layer"].tolist() == [1, 2, 3] * 3


def test_costs_have_a_row_for_each_algorithm() -> None:
    got = frames.costs(localized())
    assert len(got) == 12
    refine = got[(got["algorithm"] == "4 refinement") & (got["prompt"] == "b")].iloc[0]
    assert (refine["seconds"], refine["samples"]) == (4, 30)


def test_verdicts_by_group() -> None:
    got = frames.verdicts(localized()).set_index("group")
    assert got.loc["VM"].tolist() == [2, 2, 2, 1.5]
    assert got.loc["non-memorized"].tolist()[:3] == [1, 0, 0]


def test_neuron_names() -> None:
    assert frames.neuron_names(NeuronSet({1: [2], 3: [7, 9]})) == "layer 1\n#2\nlayer 3\n#7, #9"


def test_example_and_grid() -> None:
    assert frames.example(localized()).prompt == "b"  # VM, refinement dropped a neuron
    assert frames.example(localized()[:1]).prompt == "a"
    assert frames.example(localized()[2:]).prompt == "c"
    copies = pd.DataFrame({"prompt": list("abc"), "orig_before": [0.9, 0.3, 0.8]})
    more = localized().assign(initial=[A | NeuronSet({5: [0]}), A, A, NeuronSet()])
    assert frames.example(more, copies).prompt == "a"  # pictures closest to the training image
    assert frames.rows_for_grid(localized(), 1)["prompt"].tolist() == ["a", "c"]
    none = localized().assign(refined=[NeuronSet()] * 4)
    for function in (frames.example, lambda frame: frames.rows_for_grid(frame, 1)):
        with pytest.raises(ValueError, match="no prompt with refined neurons"):
            function(none)
    assert frames.refined_sets(localized()) == {"a": A, "b": B, "c": B}


def test_against_truth_counts_prompts_that_were_not_flagged_as_missed() -> None:
    truth = {"b": A, "d": B, "unknown": A}
    got = frames.against_truth(localized(), truth).set_index("prompt")
    assert got.loc["b", ["hit", "missed", "extra"]].tolist() == [1, 1, 0]
    assert got.loc["d", ["hit", "missed", "extra", "recall"]].tolist() == [0, 1, 0, 0]
    empty = frames.against_truth(localized(), {})
    assert empty.empty
    assert "hit" in empty
