"""Models of the Hugging Face hub: what a download would fetch is said first, and how large it is.

Scope: where the files of a repository lie on this machine, and fetching the rest. Only what the
model's family needs is taken: no code, no safety checker, no second copy of the weights.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nemo_kit.files import file_digest, folder_digest
from nemo_kit.keys import PACKAGE, value_digest

EMBEDDED = {"lab": "model", "lab-flow": "flow"}  # name -> folder in nemo_kit/lab
_WEIGHTS = (".json", ".txt", ".safetensors", ".bin")


def fetch(name: str, revision: str | None = None, weights: bool = True) -> tuple[Path, str]:
    """The files of a hub model on this machine, downloaded where they are missing.

    Returns their folder and the commit they are of. Before a download, standard error says what is
    fetched, how large it is and where it goes.
    Parameters: `name`, "owner/model"; `revision`, a commit, branch or tag, by default `main`;
    `weights`, False for the settings and the vocabulary alone.
    Raises ValueError for a pipeline of a family that is not supported, where the hub has no such
    model or wants a login, or can't be reached and the files are not here.
    """
    try:
        with _plainly(name, revision):
            return _download(name, revision, _info(name, revision), weights)
    except _unreachable() as error:
        if folder := local(name, revision):
            return folder, folder.name
        raise _nowhere(name, error) from error


def lacking(name: str, revision: str | None, notes: Iterable[str]) -> list[str]:
    """Those of the files of a model's calibration that are neither here nor in its repository.

    Nothing is downloaded. Parameters: `name`, a folder, a checkpoint, or as `revision` in `fetch`;
    `notes`, names of files. Raises ValueError as `fetch` does.
    """
    if (place := Path(name)).exists():
        return [file for file in notes if not (notes_folder(place) / file).is_file()]
    try:
        with _plainly(name, revision):
            info = _info(name, revision)
        folder, there = local(name, info.sha), {file.rfilename for file in info.siblings}
    except _unreachable() as error:
        if not (folder := local(name, revision)):
            raise _nowhere(name, error) from error
        there = set()
    here = folder and notes_folder(folder)
    return [n for n in notes if f"nemo/{n}" not in there and not (here and (here / n).is_file())]


def _info(name: str, revision: str | None) -> Any:
    from huggingface_hub import HfApi

    return HfApi().model_info(name, revision=revision, files_metadata=True, timeout=20)


def _unreachable() -> tuple[type[Exception], ...]:
    """What is raised offline, without a network, by a proxy or a hub that is down."""
    from httpx import HTTPError
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    return ConnectionError, TimeoutError, HTTPError, HfHubHTTPError, LocalEntryNotFoundError


@contextmanager
def _plainly(name: str, revision: str | None) -> Iterator[None]:
    """What the hub refuses, in words."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
    from huggingface_hub.errors import RevisionNotFoundError as NoRevision

    try:
        yield
    except GatedRepoError as error:
        raise ValueError(
            f"name: {name!r} could not be opened: accept its licence at "
            f"https://huggingface.co/{name}, then log in with `hf auth login`"
        ) from error
    except (RepositoryNotFoundError, NoRevision) as error:
        raise ValueError(
            f"name: {name!r} could not be opened: the hub has no such model"
            f"{f' at revision {revision!r}' if revision else ''}, or it wants a login"
        ) from error


def _nowhere(name: str, error: Exception) -> ValueError:
    return ValueError(
        f"name: {name!r} could not be opened: it is not on this machine, and the hub can't be "
        f"reached ({type(error).__name__}). Where there is a network, `hf download {name}` "
        "fetches it; a folder with a diffusers model does as well"
    )


def local(name: str, revision: str | None = None) -> Path | None:
    """The folder of a hub model that is on this machine; None where there is none."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "model_index.json", revision=revision or "main")
    return Path(found).parent if isinstance(found, str) else None


def notes_folder(place: Path) -> Path:
    """Where a model's calibration lies: in `nemo` in its folder, in `NAME.nemo` beside a file."""
    return place / "nemo" if place.is_dir() else place.with_suffix(".nemo")


def digest(name: str, revision: str | None = None) -> str:
    """SHA-256 that tells models apart: of files, or of a hub model's commit.

    Calibrations count by their content, since they may be written on this machine later; the
    embedded models with their data.
    Parameters: `name`, "lab", "lab-flow", a folder, a checkpoint, or "owner/model"; `revision`, of
    a hub model.
    """
    place = Path(name)
    if name in EMBEDDED:
        own = [] if name == "lab" else [EMBEDDED[name]]  # beside what it shares with lab
        parts = ["model", "data", *own]
        return value_digest([folder_digest(PACKAGE / "lab" / part) for part in parts])
    if place.is_dir():
        return folder_digest(place, _WEIGHTS)
    there = None if place.is_file() else local(name, revision)
    notes = notes_folder(place) if place.is_file() else there and notes_folder(there)
    own = [folder_digest(notes)] if notes and notes.is_dir() else []
    if place.is_file():
        return value_digest([file_digest(place), *own])
    return value_digest([name, there.name if there else revision or "main", *own])


def needed(
    index: Mapping[str, Any], sizes: Mapping[str, int], weights: bool = True
) -> dict[str, int]:
    """The files of a repository that its model is opened from, with their sizes.

    Returns name -> bytes: the index, calibration, and of each part that the family needs the
    settings, vocabulary and one copy of the weights.
    Parameters: `index`, the content of model_index.json; `sizes`, of all files of the repository.
    Raises ValueError for another family, and where a part lacks what it is opened from.
    """
    from nemo_kit.models.families import INDEX, family_of
    from nemo_kit.models.parts import WITHOUT_WEIGHTS, needed, settings_of

    chosen = [name for name in sizes if name == INDEX or name.startswith("nemo/")]
    for part in family_of(index).parts_in(index):
        names = {n.removeprefix(f"{part}/") for n in sizes if n.startswith(f"{part}/")}
        names = {name for name in names if "/" not in name}
        kept = needed(part, names) if weights or part in WITHOUT_WEIGHTS else settings_of(names)
        chosen += [f"{part}/{name}" for name in kept]
    return {name: sizes[name] for name in chosen}


def _download(name: str, revision: str | None, info: Any, weights: bool) -> tuple[Path, str]:
    from huggingface_hub import hf_hub_download, snapshot_download, try_to_load_from_cache

    from nemo_kit.models.families import INDEX
    from nemo_kit.models.parts import read_json

    sizes = {file.rfilename: file.size or 0 for file in info.siblings}
    if INDEX not in sizes:
        raise ValueError(f"name: {name!r} is no diffusers pipeline: it has no {INDEX}")
    index = read_json(Path(hf_hub_download(name, INDEX, revision=info.sha)))
    try:
        files = needed(index, sizes, weights)
    except ValueError as error:
        raise ValueError(f"name: {name!r} could not be opened: {error}") from error
    cached = {n: try_to_load_from_cache(name, n, revision=info.sha) for n in files}
    missing = {n: size for n, size in files.items() if not isinstance(cached[n], str)}
    if missing:
        print(_told(name, info.sha, missing), file=sys.stderr, flush=True)
    folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))
    return folder, folder.name


def _told(name: str, commit: str, files: Mapping[str, int]) -> str:
    from huggingface_hub.constants import HF_HUB_CACHE

    size = sum(files.values()) / 1e9
    largest = ", ".join(sorted(files, key=files.__getitem__, reverse=True)[:3])
    return (
        f"downloading {name} (commit {commit[:12]}): {size:.2f} GB in {len(files)} files, "
        f"the largest {largest}, into {HF_HUB_CACHE}"
    )
