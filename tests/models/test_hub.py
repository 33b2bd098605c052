"""Hub models: which files are taken, what is said before, and what offline users are told."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from nemo_kit.models import hub
from nemo_kit.models import load

COMMIT = "133a221b8aa7292a167afc5127cb63fb5005638b"
SD14 = {  # the kinds of files that such a repository holds, with sizes in the same proportion
    ".gitattributes": 1, "README.md": 1, "model_index.json": 1, "sd-v1-4.ckpt": 4_000,
    "feature_extractor/preprocessor_config.json": 1, "safety_checker/model.safetensors": 1_200,
    "scheduler/scheduler_config.json": 1, "text_encoder/config.json": 1,
    "text_encoder/model.safetensors": 490, "text_encoder/model.fp16.safetensors": 245,
    "text_encoder/pytorch_model.bin": 490, "tokenizer/merges.txt": 1, "tokenizer/vocab.json": 1,
    "unet/config.json": 1, "unet/diffusion_pytorch_model.safetensors": 3_400,
    "unet/diffusion_pytorch_model.non_ema.safetensors": 3_400,
    "unet/diffusion_pytorch_model.bin": 3_400, "unet/code.py": 1, "vae/config.json": 1,
    "vae/diffusion_pytorch_model.bin": 330, "vae/diffusion_flax_model.msgpack": 330,
}  # fmt: skip


def test_one_copy_of_the_weights_and_no_code_is_taken() -> None:
    assert set(hub.needed(SD14)) == {
        "model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json",
        "text_encoder/model.safetensors", "tokenizer/merges.txt", "tokenizer/vocab.json",
        "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "vae/config.json",
        "vae/diffusion_pytorch_model.bin",
    }  # fmt: skip


def test_shards_go_with_their_index() -> None:
    shards = {
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors": 5,
        "unet/diffusion_pytorch_model-00002-of-00002.safetensors": 5,
        "unet/diffusion_pytorch_model.safetensors.index.json": 1,
    }
    more = {"unet/diffusion_pytorch_model.bin.index.json": 1}
    assert set(hub.needed(shards | more)) == set(shards)


def test_plain_weights_of_either_kind_are_taken_before_a_variant() -> None:
    files = {"vae/model.fp16.safetensors": 2, "vae/model.bin": 4, "vae/model.fp16.bin": 2}
    assert set(hub.needed(files)) == {"vae/model.bin"}
    with pytest.raises(ValueError, match=r"got vae/model\.fp16\.safetensors alone; save them"):
        hub.needed({"vae/model.fp16.safetensors": 2, "unet/model.bin": 4})


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, toy_folder: Path) -> dict[str, Any]:
    """A hub that holds the toy pipeline; what was asked of it."""
    asked: dict[str, Any] = {}
    names = [p.relative_to(toy_folder).as_posix() for p in toy_folder.rglob("*") if p.is_file()]
    files = [SimpleNamespace(rfilename=name, size=5 * 10**8) for name in [*names, "x/evil.py"]]

    def info(_: object, name: str, **options: Any) -> Any:
        asked["info"] = (name, options["revision"])
        return SimpleNamespace(siblings=files, sha=COMMIT)

    def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked["files"] = allow_patterns
        folder = tmp_path / "snapshots" / COMMIT
        shutil.copytree(toy_folder, folder, dirs_exist_ok=True)
        return str(folder)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return asked | {"asked": asked}


def test_a_download_says_first_what_and_how_large(
    online: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    model = load("owner/model", device="cpu", revision="main")
    asked = online["asked"]
    said = capsys.readouterr().err.splitlines()[0]
    count = len(asked["files"])
    assert said.startswith(f"downloading owner/model (commit {COMMIT[:12]}): {count / 2:.2f} GB in")
    assert f"in {count} files, the largest " in said
    assert str(constants.HF_HUB_CACHE) in said
    assert asked["info"] == ("owner/model", "main")
    assert "x/evil.py" not in asked["files"]
    assert (model.name, model.revision) == ("owner/model", COMMIT)


def test_what_is_here_already_is_not_announced(
    online: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: "/a/file")
    load("owner/model", device="cpu")
    assert "downloading" not in capsys.readouterr().err


def in_cache(folder: Path, toy: Path) -> None:
    """The toy pipeline as the hub's cache keeps it."""
    place = folder / "models--owner--model"
    shutil.copytree(toy, place / "snapshots" / COMMIT)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(COMMIT)


def test_offline_a_model_that_is_here_opens_at_its_commit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, toy_folder: Path
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    in_cache(tmp_path, toy_folder)
    for revision in (None, "main", COMMIT):
        assert load("owner/model", device="cpu", revision=revision).revision == COMMIT
    with pytest.raises(ValueError, match="is not on this machine"):
        hub.fetch("owner/model", "v2")


def test_offline_a_model_that_is_not_here_says_what_to_do() -> None:
    message = r"'nobody/nothing' could not be opened: it is not on this machine.* `hf download nob"
    with pytest.raises(ValueError, match=message):
        load("nobody/nothing")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (GatedRepoError, "accept its licence at https://huggingface.co/owner/model, then log in"),
        (
            RepositoryNotFoundError,
            "the hub has no such model at revision 'v1', or it wants a login",
        ),
    ],
)
def test_what_the_hub_refuses(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception], message: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error.__new__(error)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    with pytest.raises(ValueError, match=message):
        hub.fetch("owner/model", "v1")


def test_a_repository_that_is_no_pipeline(
    online: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = SimpleNamespace(siblings=[], sha=COMMIT)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: nothing)
    with pytest.raises(ValueError, match=r"is no diffusers pipeline: it has no model_index\.json"):
        hub.fetch("owner/model")


def test_variants_alone_are_refused_before_a_download(
    online: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["model_index.json", "unet/model.fp16.safetensors"]
    files = [SimpleNamespace(rfilename=name, size=1) for name in names]
    info = SimpleNamespace(siblings=files, sha=COMMIT)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: info)
    with pytest.raises(ValueError, match=r"'owner/model' could not be opened: weights must be th"):
        hub.fetch("owner/model")
    assert "files" not in online["asked"]


def test_what_a_model_lacks_is_told_without_a_download(
    online: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, toy_folder: Path
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    files = ["model_index.json", "nemo/calibration.json"]
    assert hub.lacking("owner/model", None, files) == ["nemo/calibration.json"]
    assert "files" not in online["asked"]
    in_cache(tmp_path / "hub", toy_folder)
    own = tmp_path / "hub" / "models--owner--model" / "snapshots" / COMMIT / "nemo"
    own.mkdir()
    (own / "calibration.json").touch()
    assert hub.lacking("owner/model", None, files) == []
    with pytest.MonkeyPatch.context() as offline:
        offline.setattr(huggingface_hub.HfApi, "model_info", _unreachable)
        assert hub.lacking("owner/model", None, files) == []
        with pytest.raises(ValueError, match="is not on this machine, and the hub can't be reach"):
            hub.lacking("owner/model", "v2", files)


def _unreachable(*_: object, **__: object) -> None:
    raise ConnectionError
