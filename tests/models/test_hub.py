"""Hub models: which files are taken, what is said before, and what offline users are told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from conftest import TOY_SIMILARITY
from hub_standin import COMMIT, FILES, repository, served
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from nemo_kit import detect
from nemo_kit.models import DiffusionModel, hub, load
from nemo_kit.models.families import FAMILIES

SD14 = "CompVis/stable-diffusion-v1-4"
SETTINGS = {
    "model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json",
    "tokenizer/merges.txt", "tokenizer/special_tokens_map.json", "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json", "unet/config.json", "vae/config.json",
}  # fmt: skip
PARTS = ("text_encoder", "unet", "vae")


def index(toy: Path) -> dict[str, Any]:
    return json.loads((toy / "model_index.json").read_text())


def test_what_is_needed_are_the_parts_that_a_pipeline_computes_with() -> None:
    """No safety checker, no encoder of pictures; each opened as this class alone."""
    clip = {"text_encoder": "CLIPTextModel", "tokenizer": "CLIPTokenizer"}
    t5 = {"text_encoder_2": "T5EncoderModel", "tokenizer_2": "T5Tokenizer"}
    wanted = {
        "StableDiffusionPipeline": {**clip, "unet": "UNet2DConditionModel"},
        "FluxPipeline": {**clip, **t5, "transformer": "FluxTransformer2DModel"},
        "SanaPipeline": {
            "text_encoder": "Gemma2Model", "tokenizer": "GemmaTokenizer",
            "transformer": "SanaTransformer2DModel", "vae": "AutoencoderDC",
        },
    }  # fmt: skip
    for family in FAMILIES:
        if parts := wanted.pop(family.pipelines[0], None):
            found = family.parts()
            assert found.pop("scheduler")
            assert found == {"vae": "AutoencoderKL", **parts}
    assert not wanted


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache of the hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def go_online(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.mark.parametrize("name", FILES)
def test_a_repository_opens_after_its_own_download(
    name: str,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    toy_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As the hub has it, and offline afterwards; as the same files opened from a folder."""
    files = repository(name, toy_folder)
    folder = tmp_path / "by path"
    for file, content in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)
    with served(name, files) as (address, fetched), monkeypatch.context() as online:
        go_online(online, address)
        first = load(name, device="cpu")
        said = capsys.readouterr().err.splitlines()[0]
    assert said.startswith(f"downloading {name} (commit {COMMIT[:12]}): ")
    assert sorted(fetched) == sorted(set(fetched))
    assert set(fetched) - weights_of(name) == SETTINGS
    assert (first.name, first.revision) == (name, COMMIT)
    offline, by_path = load(name, device="cpu"), load(str(folder), device="cpu")
    assert score(first) == score(offline) == score(by_path)


def weights_of(name: str) -> set[str]:
    """One copy of each part: in full precision before half, safetensors before pickles."""
    chosen = set()
    for part in PARTS:
        stem = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        old = "pytorch_model" if part == "text_encoder" else stem
        order = [f"{stem}.safetensors", f"{old}.bin", f"{stem}.fp16.safetensors"]
        chosen.add(next(f"{part}/{n}" for n in order if f"{part}/{n}" in FILES[name]))
    return chosen


def score(model: DiffusionModel) -> list[float]:
    found = detect(model, ["a cat"], range(1, 4), threshold=0.5, similarity=TOY_SIMILARITY)
    return found.score.tolist()


def test_what_is_taken_of_the_first(toy_folder: Path) -> None:
    taken = hub.needed(index(toy_folder), FILES[SD14])
    assert set(taken) == SETTINGS | weights_of(SD14)
    assert "unet/diffusion_pytorch_model.safetensors" in taken
    settings = hub.needed(index(toy_folder), FILES[SD14], weights=False)
    assert set(settings) == SETTINGS


def test_another_family_is_refused_before_its_weights_are_fetched(
    cache: Path, monkeypatch: pytest.MonkeyPatch, toy_folder: Path
) -> None:
    files = repository(SD14, toy_folder)
    other = index(toy_folder) | {"_class_name": "KandinskyPipeline"}
    files["model_index.json"] = json.dumps(other).encode()
    with served(SD14, files) as (address, fetched), monkeypatch.context() as online:
        go_online(online, address)
        with pytest.raises(ValueError, match=r"the pipeline KandinskyPipeline is not supp"):
            load(SD14, device="cpu")
    assert fetched == ["model_index.json"]


def test_only_a_strange_variant_is_refused_by_its_name(toy_folder: Path) -> None:
    files = {n: s for n, s in FILES[SD14].items() if not n.startswith("unet/diff")}
    with pytest.raises(ValueError, match=r"unet: weights must be there.* got none"):
        hub.needed(index(toy_folder), files)
    files["unet/diffusion_pytorch_model.non_ema.safetensors"] = 1
    with pytest.raises(ValueError, match="got only those of variant non_ema"):
        hub.needed(index(toy_folder), files)


@pytest.fixture
def snapshot(cache: Path, toy_folder: Path) -> Path:
    """The toy pipeline as the hub's cache keeps it."""
    place = cache / "models--owner--model"
    return Path(shutil.copytree(toy_folder, place / "snapshots" / COMMIT))


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch, toy_folder: Path) -> None:
    """A hub that lists the files of the toy pipeline, and gives none."""
    names = [p.relative_to(toy_folder).as_posix() for p in toy_folder.rglob("*") if p.is_file()]
    files = [SimpleNamespace(rfilename=name, size=5 * 10**8) for name in names]
    info = SimpleNamespace(siblings=files, sha=COMMIT)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: info)


def test_offline_a_model_that_is_here_opens_at_its_commit(snapshot: Path) -> None:
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(COMMIT)
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


def test_a_repository_that_is_no_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = SimpleNamespace(siblings=[], sha=COMMIT)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: nothing)
    with pytest.raises(ValueError, match=r"is no diffusers pipeline: it has no model_index\.json"):
        hub.fetch("owner/model")


@pytest.mark.usefixtures("listed")
def test_a_download_that_ends_early_is_no_model(
    monkeypatch: pytest.MonkeyPatch, snapshot: Path, cache: Path
) -> None:
    """Its index is there by then, as a whole model's would be."""
    index = str(snapshot / "model_index.json")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: index)
    for error, told in ((ConnectionError, "or not whole"), (GatedRepoError, "accept its licence")):

        def broken(*_: object, error: type[Exception] = error, **__: object) -> None:
            raise error.__new__(error)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
        with pytest.raises(ValueError, match=told):
            load("owner/model", device="cpu")


@pytest.mark.usefixtures("listed")
def test_what_a_model_lacks_is_told_without_a_download(
    monkeypatch: pytest.MonkeyPatch, snapshot: Path
) -> None:
    files = ["calibration.json"]
    assert hub.lacking("owner/model", None, files) == ["calibration.json"]
    (snapshot / "nemo").mkdir()
    (snapshot / "nemo" / "calibration.json").touch()
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(COMMIT)
    assert hub.lacking("owner/model", None, files) == []
    with monkeypatch.context() as offline:
        offline.setattr(huggingface_hub.HfApi, "model_info", _unreachable)
        assert hub.lacking("owner/model", None, files) == []
        with pytest.raises(ValueError, match=r"is not on this machine.*and the hub can't be reach"):
            hub.lacking("owner/model", "v2", files)


def _unreachable(*_: object, **__: object) -> None:
    raise ConnectionError
