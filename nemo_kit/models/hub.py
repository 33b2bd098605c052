"""Models of the Hugging Face hub: what a download would fetch is said first, and how large it is.

Scope: where the files of a repository lie on this machine, and fetching the rest. Only what the
model's family needs is taken: no code, no safety checker, no second copy of the weights.
"""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nemo_kit.files import file_digest, folder_digest
from nemo_kit.keys import PACKAGE, value_digest

EMBEDDED = {"lab": "model", "lab-flow": "flow"}  # name -> folder in nemo_kit/lab
INDEX = "model_index.json"
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
    from huggingface_hub import hf_hub_download, snapshot_download, try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_CACHE

    from nemo_kit.models.parts import opening, read_json

    folder, info = _ask(name, revision)
    if info is None:
        return folder, folder.name
    sizes = {file.rfilename: file.size or 0 for file in info.siblings}
    try:
        with opening(name):
            if INDEX not in sizes:
                raise ValueError(f"it is no diffusers pipeline: it has no {INDEX}")
            index = read_json(Path(hf_hub_download(name, INDEX, revision=info.sha)))
            files = needed(index, sizes, weights)
        cached = {n: try_to_load_from_cache(name, n, revision=info.sha) for n in files}
        missing = {n: size for n, size in files.items() if not isinstance(cached[n], str)}
        if missing:
            largest = ", ".join(sorted(missing, key=sizes.__getitem__, reverse=True)[:3])
            print(
                f"downloading {name} (commit {info.sha[:12]}): "
                f"{sum(missing.values()) / 1e9:.2f} GB in {len(missing)} files, the largest "
                f"{largest}, into {HF_HUB_CACHE}",
                file=sys.stderr, flush=True,
            )  # fmt: skip
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except _unreachable() as error:
        raise _refusal(name, revision, error) from error
    return folder, folder.name


def lacking(name: str, revision: str | None, notes: Iterable[str]) -> list[str]:
    """Those of the files of a model's calibration that are neither here nor in its repository.

    Nothing is downloaded. Parameters: `name`, a folder, a checkpoint, or as `revision` in `fetch`;
    `notes`, names of files. Raises ValueError as `fetch` does.
    """
    place, info = (Path(name), None) if Path(name).exists() else _ask(name, revision)
    there = {file.rfilename for file in info.siblings} if info else set()
    here = place and notes_folder(place)
    return [n for n in notes if f"nemo/{n}" not in there and not (here and (here / n).is_file())]


def _ask(name: str, revision: str | None) -> tuple[Any, Any]:
    """Where a model of the hub lies here, and what the hub says of it; one of them may be None.

    Raises ValueError where the hub refuses, or can't be reached and the model is not here.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = HfApi().model_info(name, revision=revision, files_metadata=True, timeout=20)
        return local(name, info.sha), info
    except _unreachable() as error:
        refused = isinstance(error, (RepositoryNotFoundError, RevisionNotFoundError))
        folder = None if refused else local(name, revision)
        if folder is None:
            raise _refusal(name, revision, error) from error
        return folder, None


def _refusal(name: str, revision: str | None, error: Exception) -> ValueError:
    """What the hub says, in words."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
    from huggingface_hub.errors import RevisionNotFoundError as NoRevision

    if isinstance(error, GatedRepoError):
        at = f"https://huggingface.co/{name}"
        told = f"accept its licence at {at}, then log in with `hf auth login`"
    elif isinstance(error, (RepositoryNotFoundError, NoRevision)):
        at = f" at revision {revision!r}" if revision else ""
        told = f"the hub has no such model{at}, or it wants a login"
    else:
        told = (
            "it is not on this machine, or not whole, and the hub can't be reached "
            f"({type(error).__name__}). Where there is a network, `hf download {name}` fetches it; "
            "a folder with a diffusers model does as well"
        )
    return ValueError(f"name: {name!r} could not be opened: {told}")


def _unreachable() -> tuple[type[Exception], ...]:
    """What is raised offline, without a network, by a proxy or a hub that is down."""
    from httpx import HTTPError
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    return ConnectionError, TimeoutError, HTTPError, HfHubHTTPError, LocalEntryNotFoundError


def local(name: str, revision: str | None = None) -> Path | None:
    """The folder of a hub model that is on this machine; None where there is none."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, INDEX, revision=revision or "main")
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
    there = place if place.is_file() else local(name, revision)
    commit = there.name if there else revision or "main"
    what = [file_digest(place)] if place.is_file() else [name, commit]
    notes = there and notes_folder(there)
    own = [folder_digest(notes)] if notes and notes.is_dir() else []
    return value_digest([*what, *own])


def needed(
    index: Mapping[str, Any], sizes: Mapping[str, int], weights: bool = True
) -> dict[str, int]:
    """The files of a repository that its model is opened from, with their sizes.

    Returns name -> bytes: the index, calibration, and of each part that the family needs the
    settings, vocabulary and one copy of the weights.
    Parameters: `index`, the content of model_index.json; `sizes`, of all files of the repository.
    Raises ValueError for another family, and where a part lacks what it is opened from.
    """
    from nemo_kit.models.families import family_of
    from nemo_kit.models.parts import needed

    chosen = [name for name in sizes if name == INDEX or name.startswith("nemo/")]
    for part in family_of(index).parts_in(index):
        names = {n.removeprefix(f"{part}/") for n in sizes if n.startswith(f"{part}/")}
        names = {name for name in names if "/" not in name}
        chosen += [f"{part}/{name}" for name in needed(part, names, weights)]
    return {name: sizes[name] for name in chosen}
