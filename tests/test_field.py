"""What people bring, good, bad and odd: a right result, or one clear line; never a traceback, never
a wrong number.

One table: each row is a call or a command with what must come of it. Rows that need models other
than the toy stand in `tests/models`, those of stored results in `tests/test_keys.py`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TOY_PROMPTS

from nemo_kit import NeuronSet, calibrate, cli, detect, generate, load, localize, metrics
from nemo_kit.calibration import CALIBRATION_FILE, Calibration
from nemo_kit.hooks import InterventionError, capture, scale_neurons
from nemo_kit.layers import value_layers
from nemo_kit.models import DiffusionModel
from nemo_kit.neuron_files import read_neurons
from nemo_kit.originals import TrainingImages
from nemo_kit.prompts import prompt_table
from nemo_kit.settings import DetectionSettings, LocalizationSettings, SimilaritySettings

LISTS = {
    # name: (content, prompts as read, types as read; or an exception's words)
    "plain.txt": ("a cat\nred cup\n", ["a cat", "red cup"], ["", ""]),
    "crlf.txt": ("a cat\r\nred cup\r\n", ["a cat", "red cup"], ["", ""]),
    "mark.txt": ("\ufeffa cat\n", ["a cat"], [""]),
    "separator.txt": ("a\u2028cat\nb\x0bc\x85d\n", ["a\u2028cat", "b\x0bc\x85d"], ["", ""]),
    "blank lines.txt": ("\n\na cat\n \n", ["a cat"], [""]),
    "twice.txt": ("a cat\nred cup\na cat\n", ["a cat", "red cup"], ["", ""]),
    "json-looking.txt": ('{"caption": "x"}\n', ['{"caption": "x"}'], [""]),
    "nothing.txt": ("", "holds no prompt"),
    "only blanks.txt": (" \n\n", "holds no prompt"),
    "latin.txt": ("caf\u00e9".encode("latin-1"), "not text in UTF-8"),
    "utf16.txt": ("a cat".encode("utf-16"), "not text in UTF-8"),
    "zero.txt": (b"a\0cat\n", "not text in UTF-8"),
    "prompts.md": ("a cat\n", "must end in"),
    "prompts": ("a cat\n", "must end in"),
    "prompts.xlsx": (b"PK\x03\x04", "must end in"),
    "numbers.csv": ("prompt\n007\n1984\n1e5\n", ["007", "1984", "1e5"], [""] * 3),
    "words.csv": ("prompt\nNA\nNone\nnan\ntrue\n", ["NA", "None", "nan", "true"], [""] * 4),
    "dates.csv": ("prompt\n2024-01-02\n1/2\n", ["2024-01-02", "1/2"], ["", ""]),
    "labels.csv": (
        "prompt,type\na,MV\nb,RV\nc,TV\nd,vm\ne,Template\nf,\ng,N\n",
        list("abcdefg"),
        ["VM", "VM", "TM", "VM", "TM", "", ""],
    ),
    "unknown type.csv": ("prompt,type\na,VM\nb,XX\n", "row 1"),
    "unknown role.csv": ("prompt,role\na,tempalte\n", "row 0"),
    "type and role.csv": ("prompt,type,role\na,VM,template\n", "row 0"),
    "released.csv": (";Caption;type\n0;a <b>;VM\n1;c;TM\n", ["a <b>", "c"], ["VM", "TM"]),
    "no index.csv": ("Caption;type\na;VM\n", ["a"], ["VM"]),
    "tabs.tsv": ("prompt\ttype\na, b\tTM\n", ["a, b"], ["TM"]),
    "quoted.csv": ('prompt,type\n"a, ""b""\nc",VM\n', ['a, "b"\nc'], ["VM"]),
    "CAPITALS.CSV": ("PROMPT\na\n", ["a"], [""]),
    "apostrophe.csv": ("prompt\n'@home sweet home\n", ["'@home sweet home"], [""]),
    "formula.csv": ("prompt\n=1+1 is two\n", ["=1+1 is two"], [""]),
    "commas.csv": ("prompt,type\na, b, c,VM\n", "row 0"),
    "short row.csv": ("prompt,type\na\n", "row 0"),
    "two prompts.csv": ("prompt,Prompt\na,b\n", "more than once"),
    "no prompts.csv": ("words,type\na,VM\n", "needs a column"),
    "header only.csv": ("prompt,type\n", "holds no prompt"),
    "empty prompt.csv": ('prompt,type\na,VM\n"",VM\n', "row 1"),
    "bad quote.csv": ('prompt\n"a" b\n', "no CSV"),
    "bad count.csv": ("prompt,repetitions\na,often\n", "row 0"),
    "two types.csv": ("prompt,type\na,VM\na,TM\nb,\n", ["a", "b"], ["VM", ""]),
    "late type.csv": ("prompt,type\na,\na,TM\n", ["a"], ["TM"]),
    "wen.jsonl": (
        '{"caption": "a", "index": 3, "url": "u"}\n{"caption": "007", "index": 4}\n',
        ["a", "007"],
        ["", ""],
    ),
    "list.json": ('[{"prompt": "a", "type": "VM"}, {"prompt": "b"}]', ["a", "b"], ["VM", ""]),
    "texts.json": ('["a", "b"]', ["a", "b"], ["", ""]),
    "torn.jsonl": ('{"caption": "a"}\n{"caption": "b\n', "line 2"),
    "null.jsonl": ('{"caption": "a"}\n{"caption": null}\n', "row 1"),
    "nested.jsonl": ('{"caption": ["a"]}\n', "row 0"),
    "half emoji.jsonl": ('{"caption": "\\ud83d"}\n', "row 0"),
    "emoji.jsonl": ('{"caption": "\\ud83d\\ude00 &amp; co"}\n', ["😀 &amp; co"], [""]),
    "torn.parquet": (b"PAR1 and no more", "not a parquet file"),
}


def write(folder: Path, name: str) -> Path:
    content = LISTS[name][0]
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.filterwarnings("ignore:.*repeat a prompt")
@pytest.mark.parametrize("name", list(LISTS))
def test_a_list_of_prompts(name: str, tmp_path: Path) -> None:
    path, (_, *wanted) = write(tmp_path, name), LISTS[name]
    if len(wanted) == 1:
        with pytest.raises(ValueError, match=wanted[0]) as refused:
            prompt_table([path])
        assert path.name in str(refused.value)
        assert "\n" not in str(refused.value)
    else:
        table = prompt_table([path])
        assert [list(table["prompt"]), list(table["type"])] == wanted


def test_a_parquet_list_with_a_null_and_one_with_labels(tmp_path: Path) -> None:
    path = tmp_path / "list.parquet"
    pd.DataFrame({"caption": ["a", None]}).to_parquet(path)
    with pytest.raises(ValueError, match="the prompt of row 1 is empty"):
        prompt_table([path])
    frame = pd.DataFrame({"caption": ["a", "b", "c"], "overfit_type": ["MV", "RV", "TV"]})
    frame.to_parquet(path)
    assert list(prompt_table([path])["type"]) == ["VM", "VM", "TM"]


Call = Callable[[DiffusionModel, Path], Any]
_CAT = TOY_PROMPTS[0]
_ONE = NeuronSet({1: [0]})

#: what is called, and the error's kind and a word of its message
REFUSED: dict[str, tuple[Call, type[Exception], str]] = {
    "no prompt": (lambda m, _: detect(m, []), ValueError, "prompts"),
    "an empty prompt": (lambda m, _: detect(m, [_CAT, " "]), ValueError, "prompts"),
    "a number for a prompt": (lambda m, _: detect(m, [7]), TypeError, "prompts"),
    "nothing for prompts": (lambda m, _: detect(m, None), TypeError, "prompts"),
    "bytes for a prompt": (lambda m, _: localize(m, b"cat"), TypeError, "prompt"),
    "two prompts to localize": (lambda m, _: localize(m, ["a", "b"]), TypeError, "prompt"),
    "one seed": (lambda m, _: detect(m, _CAT, [1]), ValueError, "seeds"),
    "no seed": (lambda m, _: detect(m, _CAT, []), ValueError, "seeds"),
    "the same seed twice": (lambda m, _: detect(m, _CAT, [1, 1]), ValueError, "seeds"),
    "a negative seed": (lambda m, _: detect(m, _CAT, [1, -1]), ValueError, "seeds"),
    "a seed that is no number": (lambda m, _: detect(m, _CAT, ["1", 2]), ValueError, "seeds"),
    "a broken seed": (lambda m, _: detect(m, _CAT, [1.5, 2]), ValueError, "seeds"),
    "seeds as text": (lambda m, _: detect(m, _CAT, "12"), ValueError, "seeds"),
    "a threshold that is no number": (
        lambda m, _: detect(m, _CAT, threshold=float("nan")),
        ValueError,
        "threshold",
    ),
    "an unknown search": (lambda m, _: localize(m, _CAT, search="best"), ValueError, "search"),
    "no such step": (lambda m, _: DetectionSettings(steps=0), ValueError, "steps"),
    "a timestep beyond the steps": (
        lambda m, _: DetectionSettings(steps=2, timestep_index=2),
        ValueError,
        "timestep_index",
    ),
    "negative guidance": (lambda m, _: DetectionSettings(guidance=-1), ValueError, "guidance"),
    "an unknown side": (
        lambda m, _: DetectionSettings(threshold_from="median"),
        ValueError,
        "threshold_from",
    ),
    "θ below its end": (
        lambda m, _: LocalizationSettings(theta=0.5, theta_min=1.0),
        ValueError,
        "theta",
    ),
    "a loop that stands still": (
        lambda m, _: LocalizationSettings(theta_step=0, k_step=0),
        ValueError,
        "theta_step",
    ),
    "an unknown similarity": (lambda m, _: SimilaritySettings(kind="mse"), ValueError, "kind"),
    "an even kernel": (lambda m, _: SimilaritySettings(kernel=4), ValueError, "kernel"),
    "a kernel beyond the latents": (
        lambda m, _: detect(m, _CAT, similarity=SimilaritySettings(kernel=99)),
        ValueError,
        "kernel",
    ),
    "layer 0": (lambda m, _: NeuronSet({0: [1]}), ValueError, "layer"),
    "a negative neuron": (lambda m, _: NeuronSet({1: [-1]}), ValueError, "neuron"),
    "a broken neuron": (lambda m, _: NeuronSet({1: [0.5]}), ValueError, "neuron"),
    "neurons as a list": (lambda m, _: NeuronSet([1, 2]), TypeError, "layers"),
    "a neuron that is not there": (
        lambda m, _: generate(m, _CAT, [11], NeuronSet({1: [10_000]}), steps=2),
        ValueError,
        "10000",
    ),
    "a layer that is not there": (
        lambda m, _: generate(m, _CAT, [11], NeuronSet({99: [0]}), steps=2),
        ValueError,
        "99",
    ),
    "neurons of another type": (
        lambda m, _: generate(m, _CAT, [11], {1: [0]}, steps=2),
        TypeError,
        "neurons",
    ),
    "two sets for one prompt": (
        lambda m, _: generate(m, [_CAT], [11], [_ONE, _ONE], steps=2),
        ValueError,
        "neurons",
    ),
    "an endless factor": (
        lambda m, _: generate(m, _CAT, [11], _ONE, factor=float("inf"), steps=2),
        ValueError,
        "factor",
    ),
    "no steps": (lambda m, _: generate(m, _CAT, [11], steps=0), ValueError, "steps"),
    "guidance below 0": (
        lambda m, _: generate(m, _CAT, [11], guidance=-2, steps=2),
        ValueError,
        "guidance",
    ),
    "unknown halves": (
        lambda m, _: generate(m, _CAT, [11], halves="left", steps=2),
        ValueError,
        "halves",
    ),
    "a mitigation and neurons": (
        lambda m, _: generate(m, _CAT, [11], _ONE, mitigation="nemo", steps=2),
        (TypeError, ValueError),
        "mitigation",
    ),
    "calibration on one prompt": (lambda m, _: calibrate(m, ["a"]), ValueError, "prompts"),
    "calibration on equal prompts": (
        lambda m, _: calibrate(m, ["a"] * 4, [1, 2], settings=_MAXIMA, similarity=_KERNEL),
        ValueError,
        "spread",
    ),
    "no such folder": (lambda m, p: load(str(p / "none")), (OSError, ValueError), "none"),
    "an empty folder": (lambda m, p: load(str(p)), (OSError, ValueError), "model_index"),
    "a model without a name": (lambda m, _: load(""), ValueError, "name"),
    "a path for a name": (lambda m, _: load("../../etc/passwd"), (OSError, ValueError), "passwd"),
    "an unknown device": (lambda m, _: load("lab", device="tpu"), ValueError, "device"),
    "a GPU that is not there": (lambda m, _: load("lab", device="cuda:7"), ValueError, "cuda"),
    "mps that is not there": (lambda m, _: load("lab", device="mps"), ValueError, "mps"),
    "an unknown number type": (lambda m, _: load("lab", dtype="int8"), ValueError, "dtype"),
    "a calibration that is none": (
        lambda m, p: Calibration.load(_put(p, CALIBRATION_FILE, "[]").parent),
        ValueError,
        "calibration",
    ),
    "neurons in a torn file": (
        lambda m, p: read_neurons(_put(p, "n.parquet", '{"1": [')),
        ValueError,
        "n.parquet",
    ),
    "neurons in no file": (
        lambda m, p: read_neurons(p / "no.parquet"),
        FileNotFoundError,
        "no.parquet",
    ),
    "images in no folder": (
        lambda m, p: TrainingImages(prompt_table(), p / "no"),
        FileNotFoundError,
        "training_images",
    ),
    "a table without prompts": (
        lambda m, _: TrainingImages(pd.DataFrame({"type": ["VM"]})),
        ValueError,
        "prompt",
    ),
    "scores of one class": (
        lambda m, _: metrics.detection_metrics([0.1, 0.2], [True, True], 0.5),
        ValueError,
        "",
    ),
    "scores that are no numbers": (
        lambda m, _: metrics.detection_metrics([0.1, float("nan")], [True, False], 0.5),
        ValueError,
        "",
    ),
    "pictures of another type": (
        lambda m, _: metrics.diversity(np.zeros((2, 64, 64, 3)), metrics.lab_descriptor()),
        (TypeError, ValueError),
        "uint8",
    ),
    "SSCD in no file": (
        lambda m, p: metrics.sscd(p / "sscd.pt"),
        (FileNotFoundError, ValueError),
        "sscd.pt",
    ),
    "SSCD that is another file": (
        lambda m, p: metrics.sscd(_put(p, "sscd.pt", "no network")),
        ValueError,
        "sha256",
    ),
    "fused projections": (lambda m, _: _fused(m), InterventionError, "to_v"),
    "a denoiser that ignores the text": (lambda m, _: _deaf(m), ValueError, "prompts apart"),
}
_MAXIMA, _KERNEL = DetectionSettings(threshold_from="maxima"), SimilaritySettings(kernel=3)


def _put(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def _copy(model: DiffusionModel, denoiser: torch.nn.Module) -> DiffusionModel:
    copy = type(model)(
        {
            "unet": denoiser,
            "text_encoder": model.text_encoder,
            "tokenizer": model.tokenizer,
            "vae": model.vae,
            "scheduler": model.scheduler,
        },
        name="copy",
        device=model.device,
        dtype=model.dtype,
    )
    copy.calibration = model.calibration
    return copy


def _twin(model: DiffusionModel) -> torch.nn.Module:
    twin = type(model.denoiser)(**model.denoiser.config)
    twin.load_state_dict(model.denoiser.state_dict())
    return twin.eval()


def _fused(model: DiffusionModel) -> None:
    twin = _twin(model)
    copy = _copy(model, twin)
    twin.fuse_qkv_projections()
    generate(copy, _CAT, [11], _ONE, steps=2)


def _deaf(model: DiffusionModel) -> None:
    twin = _twin(model)
    with torch.no_grad():
        for name, weights in twin.named_parameters():
            if "attn2.to_v" in name:
                weights.zero_()
    detect(_copy(model, twin), _CAT, [1, 2])


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_is_refused_in_python(name: str, toy_model: DiffusionModel, tmp_path: Path) -> None:
    call, kind, word = REFUSED[name]
    with pytest.raises(kind) as refused:
        call(toy_model, tmp_path)
    message = str(refused.value)
    assert word in message
    assert message.strip()
    assert "Traceback" not in message


#: what is odd and right: a call and a check of what comes of it
RIGHT: dict[str, tuple[Call, Callable[[Any], bool]]] = {
    "one text": (lambda m, _: detect(m, _CAT, [1, 2]), lambda f: list(f["prompt"]) == [_CAT]),
    "a tuple": (lambda m, _: detect(m, (_CAT, "b"), [1, 2]), lambda f: len(f) == 2),
    "a series": (lambda m, _: detect(m, pd.Series([_CAT]), [1, 2]), lambda f: len(f) == 1),
    "a prompt with line breaks": (
        lambda m, _: detect(m, "a\nb\tc", [1, 2]),
        lambda f: f["prompt"][0] == "a\nb\tc",
    ),
    "emoji": (lambda m, _: detect(m, "😀", [1, 2]), lambda f: 0 <= f["score"][0] <= 1),
    "numpy seeds": (
        lambda m, _: detect(m, _CAT, np.array([1, 2])),
        lambda f: 0 <= f["score"][0] <= 1,
    ),
    "seed 0": (lambda m, _: detect(m, _CAT, [0, 1]), lambda f: 0 <= f["score"][0] <= 1),
    "a generator of seeds": (
        lambda m, _: detect(m, _CAT, (n for n in (1, 2))),
        lambda f: len(f["pairwise"][0]) == 1,
    ),
    "the order of prompts": (
        lambda m, _: [detect(m, [a, b], [1, 2]) for a, b in ((_CAT, "b"), ("b", _CAT))],
        lambda pair: abs(pair[0]["score"][0] - pair[1]["score"][1]) < 1e-5,
    ),
    "a batch of one": (
        lambda m, _: [detect(m, [_CAT] * n, [1, 2, 3])["score"][0] for n in (1, 12)],
        lambda pair: abs(pair[0] - pair[1]) < 1e-5,
    ),
    "a threshold of 1": (
        lambda m, _: detect(m, _CAT, [1, 2], threshold=1.0),
        lambda f: not f["flagged"][0],
    ),
    "no neurons": (
        lambda m, _: [generate(m, _CAT, [11], n, steps=2) for n in (None, NeuronSet())],
        lambda pair: np.array_equal(*pair),
    ),
    "factor 1": (
        lambda m, _: [
            generate(m, _CAT, [11], n, factor=1.0, steps=2) for n in (None, _everything(m))
        ],
        lambda pair: np.array_equal(*pair),
    ),
    "all neurons off": (
        lambda m, _: [generate(m, _CAT, [11], n, steps=2) for n in (None, _everything(m))],
        lambda pair: not np.array_equal(*pair),
    ),
    "double neurons": (lambda m, _: NeuronSet({1: [2, 2, 0]}), lambda n: len(n) == 2),
    "text form and back": (
        lambda m, _: NeuronSet.from_text(NeuronSet({1: [0, 3]}).to_text()),
        lambda n: n == NeuronSet({1: [0, 3]}),
    ),
    "an unmemorized prompt": (
        lambda m, _: localize(m, _CAT, [1, 2], threshold=1.0),
        lambda found: not found.refined and not found.kept_seeds,
    ),
    "hooks that are gone": (
        lambda m, _: _hooks_after(m),
        lambda left: left == 0,
    ),
    "calibration twice": (
        lambda m, _: [
            calibrate(m, TOY_PROMPTS[:4], [1, 2], similarity=_KERNEL).threshold for _ in "ab"
        ],
        lambda pair: pair[0] == pair[1],
    ),
    "an own calibration of stricter τ": (
        lambda m, _: replace(m.calibration, threshold=0.9).threshold,
        lambda value: value == 0.9,
    ),
}


def _everything(model: DiffusionModel) -> NeuronSet:
    return NeuronSet({p.index: range(p.width) for p in model.searched})


def _hooks_after(model: DiffusionModel) -> int:
    layers = value_layers(model.denoiser)
    one, two = capture(model.denoiser, layers), scale_neurons(model.denoiser, layers, _ONE)
    with pytest.raises(KeyError), one, two:
        raise KeyError
    return sum(len(module._forward_hooks) for module in model.denoiser.modules())


@pytest.mark.parametrize("name", list(RIGHT))
def test_what_is_odd_and_right(name: str, toy_model: DiffusionModel, tmp_path: Path) -> None:
    call, right = RIGHT[name]
    assert right(call(toy_model, tmp_path))


#: arguments of the command (FILE: the list of that name) and a word of its one line
COMMANDS: list[tuple[Sequence[str], str]] = [
    (["detect", " "], "PROMPT"),
    (["detect", "x", "--seeds", "1"], "--seeds"),
    (["detect", "x", "--seeds", "many"], "--seeds"),
    (["detect", "x", "--device", "tpu"], "--device"),
    (["detect", "x", "--dtype", "int8"], "--dtype"),
    (["detect", "x", "--out", "table.xls"], "--out"),
    (["detect", "x", "--settings", "best"], "--settings"),
    (["detect", "x", "--model", "no/such/folder/at/all"], "no/such/folder/at/all"),
    (["detect", "x", "--threshold", "high"], "--threshold"),
    (["detect", "--prompts", "no.csv"], "no.csv"),
    (["detect", "--prompts", "FILE:unknown type.csv"], "row 1"),
    (["detect", "--prompts", "FILE:unknown role.csv"], "row 0"),
    (["detect", "--prompts", "FILE:latin.txt"], "UTF-8"),
    (["detect", "--prompts", "FILE:nothing.txt"], "no prompt"),
    (["detect", "--prompts", "FILE:torn.parquet"], "parquet"),
    (["detect", "--prompts", "FILE:prompts.md"], "must end in"),
    (["localize", "x", "--search", "best"], "search"),
    (["localize", "x", "--statistics", "no.pt"], "no.pt"),
    (["localize", "--prompts", "FILE:empty prompt.csv"], "row 1"),
    (["calibrate", "--model", "lab"], "--model"),
    (["export", "--out", "x", "--neurons", "no.parquet", "--no-report"], "no.parquet"),
    (["export", "--out", "x", "--neurons", '{"99": [1]}', "--no-report"], "99"),
    (["export", "--out", "x", "--neurons", '{"1": [', "--no-report"], "neurons"),
    (["figures", "--only", "F99"], "F99"),
    (["figures", "--preset", "huge"], "huge"),
    (["figures", "--set", "no_such_name=1"], "no_such_name"),
    (["figures", "--set", "seeds=ten", "--only", "F2a"], "seeds"),
    (["figures", "--model", "no/such/folder/at/all"], "no/such/folder/at/all"),
    (["no-such-command"], "no-such-command"),
    (["detect", "x", "--no-such-option"], "--no-such-option"),
]


@pytest.mark.parametrize("row", COMMANDS, ids=lambda row: " ".join(row[0])[:60])
def test_a_command_ends_in_one_line(
    row: tuple[Sequence[str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments, word = row
    given = [
        str(write(tmp_path, part.removeprefix("FILE:"))) if part.startswith("FILE:") else part
        for part in arguments
    ]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["nemo-kit", *given])
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    assert ended.value.code == 2, err
    told = [line for line in err.splitlines() if line.strip()]
    assert len(told) == 1, err
    assert word in told[0]
    assert "Traceback" not in out + err


def test_the_table_is_long_enough() -> None:
    assert len(LISTS) + len(REFUSED) + len(RIGHT) + len(COMMANDS) >= 120


def test_captions_of_json_lines_are_not_taken_whole(
    tmp_path: Path,
    toy_model: DiffusionModel,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write(tmp_path, "wen.jsonl")
    monkeypatch.setattr("nemo_kit.models.load", lambda *_, **__: toy_model)
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    store = ["--store", str(tmp_path / "store")]
    command = ["nemo-kit", "detect", "--prompts", str(path), "--seeds", "2", "--json", *store]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line]
    assert [row["prompt"] for row in rows] == ["a", "007"]
