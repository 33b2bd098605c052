"""The benchmark: the baseline's costs and neurons, the tables, the command."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import TOY_SIMILARITY
from test_cli import call as call_command
from toys import TEXT_WIDTH, save_pipeline, unet

from benchmarks import compare
from benchmarks.__main__ import app
from benchmarks.compare import disagreements, measure, summary
from benchmarks.plot import costs
from benchmarks.quality import with_known, with_pictures
from benchmarks.released import localize_released
from benchmarks.throughput import throughput
from nemo_kit import cli
from nemo_kit.localization import localize
from nemo_kit.models import DiffusionModel
from nemo_kit.neurons import NeuronSet

call = partial(call_command, main=partial(cli.run, app))
SEEDS = [1, 2, 3]


@pytest.fixture
def easy(toy_model: DiffusionModel, monkeypatch: pytest.MonkeyPatch) -> DiffusionModel:
    """The random-weight model with a threshold at which a few candidates suffice."""
    calibration = replace(toy_model.calibration, threshold=0.5)
    monkeypatch.setattr(toy_model, "calibration", calibration)
    return toy_model


def test_the_baseline_costs_what_the_released_code_does(easy: DiffusionModel) -> None:
    found, nearest = localize_released(easy, "a red cup", SEEDS)
    plain = localize(easy, "a red cup", SEEDS, "sequential")
    assert found.flagged
    assert (found.initial, found.refined) == (plain.initial, plain.refined)
    assert (found.theta, found.k, found.kept_seeds) == (plain.theta, plain.k, plain.kept_seeds)
    assert found.samples["detect"] == 2 * 3
    assert found.samples["activations"] == 3
    checks = round((5 - found.theta) / 0.25) + 1
    assert found.samples["select"] == 2 * 3 * checks
    assert found.samples["refine"] % 6 == 0
    assert found.samples["refine"] > 2 * plain.samples["refine"] - 1
    assert found.samples_evaluated == sum(found.samples.values())
    assert 0 < nearest < 0.5


def test_a_prompt_that_is_not_flagged_ends_with_detection(
    toy_model: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    high = replace(toy_model.calibration, threshold=0.99)
    monkeypatch.setattr(toy_model, "calibration", high)
    found, _ = localize_released(toy_model, "a", SEEDS)
    assert not found.flagged
    assert found.samples == {"detect": 6, "activations": 0, "select": 0, "refine": 0}


def test_a_run_goes_on_and_gives_ratios(easy: DiffusionModel, tmp_path: Path) -> None:
    prompts = pd.DataFrame({"prompt": ["a red cup"], "group": ["VM"]})
    options = {"ways": ["attributed"], "seeds": SEEDS, "store": tmp_path, "progress": False}
    frame = measure(easy, prompts, **options)
    assert sorted(frame["way"]) == ["attributed", "released"]
    before = easy.samples_evaluated
    again = measure(easy, prompts, **options)
    assert easy.samples_evaluated == before  # nothing was left, so nothing was warmed up
    pd.testing.assert_frame_equal(again, frame)
    ratios = summary(frame)
    assert ratios["group"].tolist() == ["VM", "VM"]
    assert ratios.loc[1, "samples"] < 0.5
    assert ratios.loc[1, "verified"] == 1


def test_a_prompt_that_fails_is_named_and_tried_again_when_asked(
    easy: DiffusionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = compare.localize_released

    def fail(model: DiffusionModel, prompt: str, seeds: list[int]) -> Any:
        if prompt == "a dog":
            raise MemoryError("no room")
        return real(model, prompt, seeds)

    monkeypatch.setattr(compare, "localize_released", fail)
    prompts = pd.DataFrame({"prompt": ["a red cup", "a dog"], "group": ["VM", "VM"]})
    options: dict[str, Any] = {"ways": ["attributed"], "seeds": SEEDS, "store": tmp_path,
                               "progress": False}  # fmt: skip
    with pytest.warns(UserWarning, match="1 prompts failed .* the first, 'a dog', with Memory"):
        frame = measure(easy, prompts, **options)
    assert set(frame["prompt"]) == {"a red cup"}
    assert frame.attrs["failed"] == {"a dog": "MemoryError: no room"}
    monkeypatch.setattr(compare, "localize_released", real)
    again = measure(easy, prompts, retry_failed=True, **options)
    assert set(again["prompt"]) == {"a red cup", "a dog"}


def test_the_command_says_what_failed(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    easy: DiffusionModel,
) -> None:
    def shapes(out: Path) -> None:
        """Not on this machine."""

    def measured(*_: Any, retry_failed: bool, **__: Any) -> pd.DataFrame:
        frame = rows().query("prompt == 'a'")
        if not retry_failed:
            frame.attrs["failed"] = {"b": "MemoryError: no room"}
        return frame

    monkeypatch.setattr("nemo_kit.models.load", lambda *_, **__: easy)
    monkeypatch.setattr("benchmarks.compare.measure", measured)
    monkeypatch.setattr("benchmarks.__main__.shapes", shapes)
    (tmp_path / "p.csv").write_text("prompt,type\na,VM\nb,TM\n")
    words = ["--prompts", tmp_path / "p.csv", "--model", "m", "--store", tmp_path / "store"]
    words += ["--out", tmp_path / "out"]
    assert call(monkeypatch, *map(str, words)) == 1
    shown = capsys.readouterr()
    assert "Prompts that failed, and that don't count here either: 1." in shown.out
    last = shown.err.splitlines()[-1]
    assert last.startswith("nemo-kit: 1 of 2 prompts failed (--retry-failed tries them again)")
    assert last.endswith("the first, 'b', with MemoryError: no room")
    assert call(monkeypatch, *map(str, words), "--retry-failed") == 0
    assert "failed" not in capsys.readouterr().out


def rows() -> pd.DataFrame:
    """Two prompts; the mode takes a quarter, and finds another neuron for the second."""
    one, two = NeuronSet({1: [0]}).to_json(), NeuronSet({1: [0, 1]}).to_json()
    cells = [
        ("a", "VM", "released", 8.0, 100, one, 1, 0.2),
        ("a", "VM", "speculative", 2.0, 25, one, 1, float("nan")),
        ("b", "TM", "released", 4.0, 60, one, 1, 1e-6),
        ("b", "TM", "speculative", 1.0, 15, two, 2, float("nan")),
    ]
    names = ["prompt", "group", "way", "seconds", "samples", "refined", "neurons", "nearest"]
    more = {"flagged": True, "limit": 20, "verified": False, "fell_back": 0, "peak": 100.0}
    return pd.DataFrame(cells, columns=names).assign(**more)


def test_ratios_by_hand() -> None:
    known = with_known(rows(), {"a": NeuronSet({1: [0]}), "b": NeuronSet({1: [0]})})
    found = summary(known.assign(sscd_gen=[0.1, 0.2, 0.3, 0.4]))
    both = found[(found["group"] == "all") & (found["way"] == "speculative")].iloc[0]
    assert both[["faster", "samples", "same", "to_limit"]].tolist() == [4.0, 0.25, 0.5, 1.0]
    assert (both["precision"], both["recall"], both["neurons"]) == (0.75, 1.0, 1.5)
    assert both["sscd_gen"] == pytest.approx(0.3)
    assert found["group"].tolist() == ["VM", "VM", "TM", "TM", "all", "all"]
    assert (found.loc[found["way"] == "released", "faster"] == 1).all()


def test_known_neurons_row_by_row() -> None:
    frame = rows().assign(flagged=[True, True, True, False])
    found = with_known(frame, {"b": NeuronSet({1: [0, 7]})})
    assert found["precision"].fillna(-1).tolist() == [-1, -1, 1, -1]
    assert found["recall"].fillna(-1).tolist() == [-1, -1, 0.5, -1]
    assert "precision" not in summary(rows())


def test_pictures_with_and_without_the_neurons(easy: DiffusionModel, tmp_path: Path) -> None:
    none = NeuronSet().to_json()
    every = NeuronSet({p.index: range(p.width) for p in easy.searched}).to_json()
    frame = rows().query("prompt == 'a'").assign(prompt="a red cup", refined=[none, every])
    found = with_pictures(easy, frame, 1, SEEDS, store=tmp_path)
    assert found["way"].tolist() == ["released", "speculative"]
    assert found["sscd_gen"][0] == pytest.approx(1.0, abs=1e-5)  # without neurons nothing changes
    assert found["sscd_gen"][1] < 0.999
    with pytest.raises(ValueError, match="pictures must be an integer of at least 1"):
        with_pictures(easy, frame, 0, SEEDS, store=tmp_path)


def test_disagreements_name_the_ties() -> None:
    found = disagreements(rows())
    assert found.to_dict("records") == [
        {"prompt": "b", "group": "TM", "way": "speculative", "neurons": 2, "baseline": 1,
         "shared": 1, "tie": True}
    ]  # fmt: skip


def test_the_figure_tells_the_ratio() -> None:
    figure = costs(rows())
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert texts == ["4.0", "4.0"]
    with pytest.raises(ValueError, match="frame needs the way 'released' and another"):
        costs(rows().query("way == 'released'"))


def test_throughput_of_small_shapes() -> None:
    found = throughput("cpu", torch.float32, [2], 1, dict(unet().config), TOY_SIMILARITY)
    assert found["batch"].tolist() == [2]
    assert (found[["bare", "score"]] > 0).all(axis=None)
    assert found["share"][0] == pytest.approx(found["score"][0] / found["bare"][0])
    assert unet().config.cross_attention_dim == TEXT_WIDTH


def test_bad_arguments(easy: DiffusionModel, tmp_path: Path) -> None:
    one = pd.DataFrame({"prompt": ["a"], "group": ["VM"]})
    with pytest.raises(ValueError, match=r"way must be one of attributed, bisect.*got 'quick'"):
        measure(easy, one, ["quick"], store=tmp_path)
    with pytest.raises(ValueError, match=r"precision must be one of .*got 'int8'"):
        measure(easy, one, ["bisect@int8"], store=tmp_path)
    with pytest.raises(ValueError, match=r"way must be one of .*got 'released'"):
        measure(easy, one, ["bisect@bfloat16", "released"], store=tmp_path)
    with pytest.raises(ValueError, match=r"prompts lacks the columns \['group'\]"):
        measure(easy, one[["prompt"]], store=tmp_path)
    with pytest.raises(ValueError, match="no prompt that detection flags"):
        summary(rows().assign(flagged=False))
    with pytest.raises(TypeError, match="prompt must be one text, got 3"):
        localize_released(easy, 3)  # type: ignore[arg-type]
    easy.calibration = None
    with pytest.raises(ValueError, match="has no calibration"):
        localize_released(easy, "a")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="needs a CUDA device, and torch sees none here"):
            throughput()


@pytest.mark.slow
def test_the_command(
    easy: DiffusionModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def none() -> Any:
        raise ValueError("no GPU here")

    monkeypatch.setattr("benchmarks.throughput.throughput", none)
    folder = save_pipeline(tmp_path / "toy")
    easy.calibration.save(folder / "nemo")
    (tmp_path / "p.csv").write_text("prompt,type\na red cup,VM\n")
    words = ["--prompts", tmp_path / "p.csv", "--model", folder, "--seeds", "3"]
    words += ["--store", tmp_path / "store", "--out", tmp_path / "out", "--search"]
    assert call(monkeypatch, *map(str, words), "attributed") == 0
    told = capsys.readouterr().out
    assert "attributed" in told
    assert "not measured: no GPU here" in told
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written >= {"bench.csv", "bench_summary.csv", "bench.png"}
    assert call(monkeypatch, *map(str, words), "quick") == 2
    wrong = capsys.readouterr().err
    assert "must be one of attributed, bisect" in wrong
    assert "got 'quick'" in wrong
    (tmp_path / "full").touch()
    assert call(monkeypatch, "--out", str(tmp_path / "full" / "x")) == 2
    assert "--out: nothing can be written to" in capsys.readouterr().err


def test_what_the_baseline_flags_counts_whatever_another_precision_flags() -> None:
    """Detection in another precision may flag another prompt, or miss one."""
    some, none = NeuronSet({1: [0]}).to_json(), NeuronSet().to_json()
    rows = []
    for prompt, base, other in (("a", True, True), ("b", False, True), ("c", True, False)):
        for way, flagged in (("released", base), ("speculative@bfloat16", other)):
            rows.append(
                {"prompt": prompt, "group": "VM", "way": way, "seconds": 1.0, "samples": 10,
                 "flagged": flagged, "refined": some if flagged else none, "limit": 5,
                 "neurons": int(flagged), "peak": 1.0, "verified": math.nan, "fell_back": 0}
            )  # fmt: skip
    found = summary(pd.DataFrame(rows)).set_index("way")
    assert found["prompts"].tolist() == [2, 2]
    assert found.loc["speculative@bfloat16", "same"] == 0.5  # it misses c, and b does not count
    assert found["verified"].isna().all()


def test_one_line_when_all_prompts_fail(
    easy: DiffusionModel,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr("nemo_kit.models.load", lambda *_, **__: easy)
    monkeypatch.setattr(compare, "_row", fail)
    (tmp_path / "p.csv").write_text("prompt,type\na,VM\nb,TM\n")
    words = ["--prompts", tmp_path / "p.csv", "--model", "m", "--store", tmp_path / "store"]
    assert call(monkeypatch, *map(str, words), "--out", str(tmp_path / "out")) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert told == "nemo-kit: all 2 prompts failed; the first with MemoryError: no room"
