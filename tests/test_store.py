"""The store of results per prompt: every item once, whatever is killed, torn or full."""

from __future__ import annotations

import errno
import json
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from units import ITEMS, held, main, started, wait_for

from nemo_kit import NeuronSet, files, keys
from nemo_kit.models import DiffusionModel
from nemo_kit.store import (
    Sweep,
    detect_all,
    generate_all,
    localize_all,
    model_key,
    prompt_table,
    run,
)
from nemo_kit.store.shards import Batch, Folder, Shard, stored

PROMPTS = ["a cat", "a red cup", "Öl & <b>wasser</b>"]


def sweep(
    store: Path, items: Any, function: Callable[[Any], Any] | None = None, **rest: Any
) -> Sweep:
    options = {"key": {"seeds": [1, 2]}, "name": "lengths", "progress": False, **rest}
    return run(function or (lambda text: {"prompt": text, "n": len(text)}), items, store, **options)


def shards(store: Path) -> list[Path]:
    return sorted(store.rglob("*.parquet"))


def test_rows_come_in_the_order_of_the_items_and_are_computed_once(tmp_path: Path) -> None:
    log = tmp_path / "log"

    def function(text: str) -> dict[str, Any]:
        with log.open("a") as file:
            file.write(f"{text}\n")
        return {"prompt": text, "n": len(text)}

    first = sweep(tmp_path, PROMPTS, function)
    second = sweep(tmp_path, [*reversed(PROMPTS), "new", "new"], function)
    assert log.read_text().splitlines() == [*PROMPTS, "new"]
    assert list(first.frame["prompt"]) == PROMPTS
    assert list(second.frame["prompt"]) == [*reversed(PROMPTS), "new"]
    assert (first.computed, first.reused, second.computed, second.reused) == (3, 0, 1, 3)
    assert (len(shards(tmp_path)), len(held(tmp_path))) == (2, 4)


@pytest.mark.parametrize("changed", [{"key": {"seeds": [1, 3]}}, {"name": "others"}])
def test_another_key_or_name_is_another_result(tmp_path: Path, changed: dict[str, Any]) -> None:
    sweep(tmp_path, PROMPTS)
    assert sweep(tmp_path, PROMPTS, **changed).computed == len(PROMPTS)


def test_a_function_may_give_a_row_rows_or_a_frame(tmp_path: Path) -> None:
    rows = [{"a": 1, "b": [1, 2]}, {"a": 2, "b": []}]
    for name, value in {"row": rows[0], "rows": rows, "frame": pd.DataFrame(rows)}.items():

        def function(_: str, value: Any = value) -> Any:
            return value

        sweep(tmp_path, ["x"], function, name=name)
        found = sweep(tmp_path, ["x"], function, name=name)
        assert found.computed == 0
        again = found.frame
        assert list(again["a"]) == ([1] if name == "row" else [1, 2])
        assert list(again["b"].iloc[0]) == [1, 2]


def test_a_failing_prompt_is_recorded_and_does_not_stop_the_rest(tmp_path: Path) -> None:
    mended = tmp_path / "mended"

    def function(text: str) -> dict[str, Any]:
        if text == "a cat" and not mended.exists():
            raise ValueError(f"cannot do {text}")
        return {"prompt": text}

    first = sweep(tmp_path, PROMPTS, function)
    assert list(first.frame["prompt"]) == PROMPTS[1:]
    assert first.failed.to_dict("records") == [
        {"item": "a cat", "error": "ValueError: cannot do a cat"}
    ]
    mended.touch()
    assert sweep(tmp_path, PROMPTS, function).computed == 0
    retried = sweep(tmp_path, PROMPTS, function, retry_failed=True)
    assert (retried.computed, len(retried.failed), len(retried.frame)) == (1, 0, 3)


@pytest.mark.parametrize("bad", [{"n": [1, "one"]}, {"n": object()}, {"n": {}}, {"n": 2**70}])
def test_rows_that_cannot_be_stored_are_a_failure_of_the_prompt(tmp_path: Path, bad: Any) -> None:
    mended = tmp_path / "mended"

    def function(text: str) -> dict[str, Any]:
        wrong = text == PROMPTS[0] and not mended.exists()
        return {"prompt": text, **(bad if wrong else {"n": 1})}

    found = sweep(tmp_path, PROMPTS, function, version=1)
    assert list(found.frame["prompt"]) == PROMPTS[1:]
    [failed] = found.failed.to_dict("records")
    assert failed["item"] == PROMPTS[0]
    assert "its rows can't be stored" in failed["error"]
    mended.touch()
    assert sweep(tmp_path, PROMPTS, function, version=1, retry_failed=True).computed == 1


def test_when_all_fail_the_first_error_is_raised(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"all 3 prompts failed; the first with KeyError: 'x'"):
        sweep(tmp_path, PROMPTS, lambda _: {}["x"])


def test_an_interrupt_is_no_failure_of_a_prompt(tmp_path: Path) -> None:
    begun = tmp_path / "begun"

    def function(text: str) -> dict[str, Any]:
        if text == PROMPTS[1] and not begun.exists():
            begun.touch()
            raise KeyboardInterrupt
        return {"prompt": text}

    with pytest.raises(KeyboardInterrupt):
        sweep(tmp_path, PROMPTS, function)
    assert sweep(tmp_path, PROMPTS, function).reused == 1


@pytest.mark.parametrize("left", [0.0, 0.01, 0.5, 0.999])
def test_a_torn_shard_is_computed_again(tmp_path: Path, left: float) -> None:
    whole = sweep(tmp_path, PROMPTS, batch=2).frame
    victim = shards(tmp_path)[0]
    lost = len(Shard.open(victim).items)
    os.truncate(victim, int(victim.stat().st_size * left))
    with pytest.warns(UserWarning, match="can't be read and is computed again"):
        again = sweep(tmp_path, PROMPTS)
    assert again.computed == lost
    pd.testing.assert_frame_equal(again.frame, whole)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it was put aside
        assert sweep(tmp_path, PROMPTS).computed == 0
    assert victim.with_suffix(".damaged").exists()


def test_a_flipped_byte_in_a_shard_is_noticed(tmp_path: Path) -> None:
    whole = sweep(tmp_path, ["a long text " * 50]).frame
    victim = shards(tmp_path)[0]
    content = bytearray(victim.read_bytes())
    content[content.index(b"long")] ^= 1
    victim.write_bytes(content)
    with pytest.warns(UserWarning, match="can't be read"):
        again = sweep(tmp_path, ["a long text " * 50])
    pd.testing.assert_frame_equal(again.frame, whole)


def test_a_failing_write_stops_the_run_and_leaves_no_half_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []

    def full(file: int) -> None:
        written.append(file)
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        sweep(tmp_path, PROMPTS, batch=1)
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".tmp"]
    assert len(shards(tmp_path)) == 1
    monkeypatch.undo()
    assert sweep(tmp_path, PROMPTS).reused == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_is_no_failure_of_a_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "nemo_kit.store.shards.write_atomically",
        lambda path, write: Path("/dev/full").write_text("x" * 9999),
    )
    with pytest.raises(OSError, match="space"):
        sweep(tmp_path, PROMPTS)


def test_a_name_that_leaves_the_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"name must consist of .*, got '\.\./x'"):
        sweep(tmp_path, PROMPTS, name="../x")


def test_a_key_without_a_plain_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"plain values, got builtins\.object"):
        sweep(tmp_path, PROMPTS, key={"what": object()})


@pytest.mark.parametrize("batch", [1, 7])
def test_a_run_killed_in_mid_sweep_goes_on_and_has_every_prompt_once(
    tmp_path: Path, begin: Callable[..., Any], batch: int
) -> None:
    store, log, out = (tmp_path / name for name in ("store", "log", "out"))
    given = out, main, str(store), str(log), 1, batch
    for target in (10, 25):
        process = begin(*given)
        wait_for(lambda least=target: len({item for _, item in started(log)}) >= least)
        process.kill()
        process.join()
        assert process.exitcode == -9
    kept = len(held(store))
    begin(*given).join()
    computed, reused, total = map(int, out.read_text().splitlines()[-1].split())
    assert (computed, reused) == (len(ITEMS) - kept, kept)
    assert total == sum(map(len, ITEMS))
    calls = pd.Series([item for _, item in started(log)]).value_counts()
    assert set(calls.index) == set(ITEMS)
    assert calls.sum() <= len(ITEMS) + 2 * batch  # at each kill at most the open batch
    assert sorted(set(held(store))) == sorted(held(store))  # no row twice
    assert "%" in out.read_text()  # a plain progress bar


def test_two_runs_at_once_on_one_store_agree(tmp_path: Path, begin: Callable[..., Any]) -> None:
    given = main, str(tmp_path / "store"), str(tmp_path / "log"), 1, 7
    outs = [tmp_path / name for name in ("first", "second")]
    for process in [begin(out, *given) for out in outs]:
        process.join()
    assert {out.read_text().split()[-1] for out in outs} == {str(sum(map(len, ITEMS)))}
    assert len(set(held(tmp_path / "store"))) == len(ITEMS)


def test_many_rows_are_in_few_files(tmp_path: Path) -> None:
    """Rows as those of detection, however often it is stopped."""
    items = [f"prompt {n}" for n in range(3_000)]

    def detected(prompt: str) -> dict[str, Any]:
        if prompt in detected.stops:  # type: ignore[attr-defined]
            detected.stops.remove(prompt)  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        return {"prompt": prompt, "score": len(prompt) / 7, "pairwise": [0.5] * 45}

    detected.stops = {items[450], items[451], items[1_499]}  # type: ignore[attr-defined]
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            sweep(tmp_path, items, detected, version=1, batch=300)
    found = sweep(tmp_path, items, detected, version=1, batch=300)
    assert list(found.frame["prompt"]) == items
    assert found.computed == 3_000 - 1_499
    assert len(shards(tmp_path)) <= 10 + 3  # a part of a shard for each stop
    assert len(held(tmp_path)) == 3_000
    assert sweep(tmp_path, items, detected, version=1).computed == 0


def test_small_shards_are_joined_by_the_next_run(tmp_path: Path) -> None:
    def function(text: str) -> dict[str, Any]:
        if text == "3":
            raise ValueError("cannot")
        return {"prompt": text, "n": int(text)}

    items = [str(n) for n in range(30)]
    for end in range(1, 30):
        sweep(tmp_path, items[:end], function, batch=16) if end != 4 else None
    assert len(shards(tmp_path)) < 12
    found = sweep(tmp_path, items, function)
    assert list(found.frame["prompt"]) == [one for one in items if one != "3"]
    assert list(found.failed["item"]) == ["3"]
    assert len(held(tmp_path)) == len(set(held(tmp_path))) == 29


def test_a_shard_that_was_joined_meanwhile_is_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for prompt in PROMPTS:
        sweep(tmp_path, [prompt], batch=1)
    before, news = shards(tmp_path), Folder.news

    def joined(self: Folder) -> Any:
        found = list(news(self))
        if all(path.exists() for path in before):  # another run joins them just now
            other, lasting = Folder(tmp_path, "x", {}), []
            other.path = self.path
            batch = Batch(other, 5, lasting.append)
            batch.join([Shard.open(path, rows=True) for path in before])
            batch.add("other", stored({"prompt": "other", "n": 0}))
            batch.close()
        return iter(found)

    monkeypatch.setattr(Folder, "news", joined)
    found = sweep(tmp_path, PROMPTS)
    assert found.computed == 0
    assert list(found.frame["prompt"]) == PROMPTS
    assert not any(path.exists() for path in before)


def test_no_value_changes_its_type_by_the_company_it_is_in(tmp_path: Path) -> None:
    rows = {
        "a": {"prompt": "a", "n": 2**60 + 1, "list": [], "note": None},
        "b": {"prompt": "b", "n": 0.5, "list": [1, 2], "note": "x"},
        "c": {"prompt": "c", "n": 2**60 + 3, "list": [3], "note": None},
        "d": {"prompt": "d", "other": True},
    }
    sweep(tmp_path, rows, rows.__getitem__, version=1)
    for prompt, row in rows.items():
        [found] = sweep(tmp_path, [prompt], rows.__getitem__, version=1).frame.to_dict("records")
        assert set(found) == set(row)
        assert list(found.get("list", [])) == list(row.get("list", []))
        assert {k: v for k, v in found.items() if k != "list"} == {
            k: v for k, v in row.items() if k != "list"
        }


def test_a_shard_whose_footer_tells_of_other_rows_is_refused(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    whole = sweep(tmp_path, PROMPTS).frame
    [path] = shards(tmp_path)
    table = pq.read_table(path)
    note = json.loads(table.schema.metadata[b"nemo_kit"])
    note["items"][0][1] = 2
    pq.write_table(table.replace_schema_metadata({b"nemo_kit": json.dumps(note)}), path)
    with pytest.warns(UserWarning, match=r"can't be read.*its footer tells of other rows"):
        again = sweep(tmp_path, PROMPTS)
    pd.testing.assert_frame_equal(again.frame, whole)


def test_detect_all_is_detect_and_resumes(toy_model: DiffusionModel, tmp_path: Path) -> None:
    from nemo_kit import detect

    plain = detect(toy_model, PROMPTS, range(1, 4))
    toy_model.samples_evaluated = 0
    options = {"seeds": range(1, 4), "store": tmp_path, "progress": False}
    first = detect_all(toy_model, PROMPTS, **options)
    assert toy_model.samples_evaluated == 3 * len(PROMPTS)
    again = detect_all(toy_model, PROMPTS, **options)
    assert toy_model.samples_evaluated == 3 * len(PROMPTS)
    np.testing.assert_allclose(first["score"], plain["score"], rtol=1e-5)
    pd.testing.assert_frame_equal(again[["prompt", "score"]], first[["prompt", "score"]])
    detect_all(toy_model, PROMPTS, threshold=0.1, **options)
    assert toy_model.samples_evaluated == 6 * len(PROMPTS)


def test_changed_weights_are_another_model(toy_model: DiffusionModel, tmp_path: Path) -> None:
    before = model_key(toy_model)
    weight = next(toy_model.denoiser.parameters())
    kept = weight.clone()
    try:
        weight.view(-1)[0] += 1
        assert model_key(toy_model) != before
    finally:
        weight.copy_(kept)
    assert model_key(toy_model) == before


def test_localize_all_gives_neuron_sets(toy_model: DiffusionModel, tmp_path: Path) -> None:
    options = {"seeds": range(1, 3), "store": tmp_path, "progress": False, "threshold": 0.5}
    first = localize_all(toy_model, PROMPTS[:2], **options)
    again = localize_all(toy_model, PROMPTS[:2], **options)
    assert list(first["prompt"]) == PROMPTS[:2]
    assert all(isinstance(found, NeuronSet) for found in first["refined"])
    assert list(first["refined"]) == list(again["refined"])
    assert (first["n_refined"] == first["refined"].map(len)).all()


def test_generate_all_gives_images_with_a_set_for_each_prompt(
    toy_model: DiffusionModel, tmp_path: Path
) -> None:
    from nemo_kit import generate

    options = {"store": tmp_path, "progress": False, "steps": 2}
    sets = {PROMPTS[0]: NeuronSet({1: [0, 1, 2]})}
    frame = generate_all(toy_model, PROMPTS[:2], [5, 6], sets, **options)
    assert list(frame["seed"]) == [5, 6, 5, 6]
    expected = generate(toy_model, PROMPTS[0], [5, 6], neurons=sets[PROMPTS[0]], steps=2)
    np.testing.assert_array_equal(np.stack(list(frame["image"][:2])), expected)
    plain = generate_all(toy_model, PROMPTS[:2], [5, 6], **options)
    np.testing.assert_array_equal(plain["image"][2], frame["image"][2])
    assert len(held(tmp_path)) == 3  # the undisturbed second prompt is one and the same


def test_generate_all_under_a_mitigation_for_each_prompt(
    toy_model: DiffusionModel, tmp_path: Path
) -> None:
    from nemo_kit import generate
    from nemo_kit.mitigation import AttentionScaling

    options = {"store": tmp_path, "progress": False, "steps": 2}
    given = {PROMPTS[0]: AttentionScaling()}
    frame = generate_all(toy_model, PROMPTS[:2], [5], mitigation=given, **options)
    expected = generate(toy_model, PROMPTS[0], [5], mitigation=given[PROMPTS[0]], steps=2)
    np.testing.assert_array_equal(frame["image"][0], expected[0])
    plain = generate_all(toy_model, PROMPTS[:2], [5], **options)
    np.testing.assert_array_equal(plain["image"][1], frame["image"][1])
    assert (plain["image"][0] != frame["image"][0]).any()
    assert len(held(tmp_path)) == 3  # the undisturbed second prompt is one and the same
    stronger = AttentionScaling(factor=2.0)
    generate_all(toy_model, PROMPTS[:1], [5], mitigation=stronger, **options)
    assert len(held(tmp_path)) == 4


def test_equal_fields_of_two_kinds_are_two_keys() -> None:
    @dataclass(frozen=True)
    class One:
        factor: float = 1.0

    @dataclass(frozen=True)
    class Other:
        factor: float = 1.0

    assert keys.value_digest(One()) == keys.value_digest(One(1.0))
    assert keys.value_digest(One()) != keys.value_digest(Other())


def test_failed_prompts_are_named_in_a_warning(toy_model: DiffusionModel, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="1 prompts failed and have no row"):
        frame = detect_all(toy_model, ["a cat", " "], [1, 2], store=tmp_path, progress=False)
    assert list(frame["prompt"]) == ["a cat"]
    assert list(frame.attrs["failed"]) == [" "]


@pytest.mark.parametrize("sweep", [detect_all, localize_all, generate_all])
def test_one_text_is_one_prompt_and_none_is_refused(
    toy_model: DiffusionModel, tmp_path: Path, sweep: Any
) -> None:
    with pytest.raises(ValueError, match="prompts must hold at least one prompt, got none"):
        sweep(toy_model, [], [1, 2], store=tmp_path)
    how = {"steps": 1} if sweep is generate_all else {"threshold": 1.0}
    frame = sweep(toy_model, "a cat", [1, 2], store=tmp_path, progress=False, **how)
    assert set(frame["prompt"]) == {"a cat"}


def test_prompt_table_reads_the_three_kinds_of_files(tmp_path: Path) -> None:
    released, own, text = tmp_path / "r.csv", tmp_path / "o.csv", tmp_path / "t.txt"
    released.write_text(';Caption;URL;type\n0;"a; b";http://x;VM\n1;c;http://y;TM\n')
    own.write_text("prompt,type\nd,\nc,TM\n")
    text.write_text("e\n\n f \n", encoding="utf-8")
    table = prompt_table([released, own, text])
    assert list(table["prompt"]) == ["a; b", "c", "d", "e", "f"]
    assert list(table["role"]) == ["verbatim", "template", *["non_memorized"] * 3]
    assert list(table.columns) == ["prompt", "type", "role", "family", "image", "repetitions"]


def test_prompt_table_names_a_file_it_cannot_read(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"x\.csv needs a column 'prompt' \(or 'caption'"):
        prompt_table([tmp_path / "x.csv"])


def test_shards_say_what_they_hold(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    sweep(tmp_path, PROMPTS[:1])
    note = json.loads(pq.read_schema(shards(tmp_path)[0]).metadata[b"nemo_kit"])
    [(digest, count)] = note["items"]
    assert (digest, count) == (keys.value_digest(PROMPTS[0])[:24], 1)
    assert note["errors"] == {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sweep(tmp_path, PROMPTS[:1])


def test_rows_come_in_the_order_of_the_items_however_they_were_gathered(tmp_path: Path) -> None:

    def rows(item: str) -> list[dict[str, Any]]:
        if item == "broken":
            raise ValueError("cannot")
        return [{"prompt": item, "n": n} for n in range(int(item) % 4)]

    def sweep(items: list[str]) -> Sweep:
        return run(rows, items, tmp_path, {}, name="rows", progress=False, batch=3)

    sweep(["9", "3", "7"])  # found first by the sweep below, though in the middle of it
    items = ["1", "2", "3", "broken", "5", "6", "7", "8", "9", "10"]
    found = sweep(items)
    expected = [(i, n) for i in items if i != "broken" for n in range(int(i) % 4)]
    assert list(found.frame.itertuples(index=False, name=None)) == expected
    assert list(found.frame.index) == list(range(len(expected)))
    assert found.failed.to_dict("records") == [{"item": "broken", "error": "ValueError: cannot"}]
    assert (found.computed, found.reused) == (7, 3)
