"""Models of the Hugging Face hub: what a download would fetch is said first, and how large it is.

Scope: which files of a repository a pipeline needs, where they lie on this machine, and fetching
the rest. Only weights, configuration and vocabulary are taken: no code, no safety checker, no
second copy of the weights in another format.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

PARTS = ("scheduler", "text_encoder", "tokenizer", "unet", "vae")
_SETTINGS = {".json", ".txt"}


def fetch(name: str, revision: str | None = None) -> tuple[Path, str]:
    """The files of a hub model on this machine, downloaded where they are missing.

    Returns their folder and the commit they are of. Before a download, standard error says what is
    fetched, how large it is and where it goes.
    Parameters: `name`, "owner/model"; `revision`, a commit, branch or tag, by default `main`.
    Raises ValueError where the hub has no such model or wants a login, or can't be reached and the
    files are not here.
    """
    try:
        with _plainly(name, revision):
            return _download(name, revision, _info(name, revision))
    except ValueError:
        raise
    except Exception as error:  # offline, no network, a proxy's own errors
        if folder := local(name, revision):
            return folder, folder.name
        raise _nowhere(name, error) from error


def lacking(name: str, revision: str | None, files: Iterable[str]) -> list[str]:
    """Those of the files that a hub model has neither on this machine nor in its repository.

    Nothing is downloaded. Parameters as in `fetch`; `files`, paths inside the repository.
    Raises ValueError as `fetch` does.
    """
    try:
        with _plainly(name, revision):
            info = _info(name, revision)
        folder, there = local(name, info.sha), {file.rfilename for file in info.siblings}
    except ValueError:
        raise
    except Exception as error:
        if not (folder := local(name, revision)):
            raise _nowhere(name, error) from error
        there = set()
    return [n for n in files if n not in there and not (folder and (folder / n).is_file())]


def _info(name: str, revision: str | None) -> Any:
    from huggingface_hub import HfApi

    return HfApi().model_info(name, revision=revision, files_metadata=True, timeout=20)


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


def needed(sizes: Mapping[str, int]) -> dict[str, int]:
    """The files of a repository that a pipeline is opened from, with their sizes.

    Returns name -> bytes: settings and vocabulary, and of each part's weights one copy: safetensors
    where there are any, in the precision they were published in.
    Parameters: `sizes`, of all files of the repository.
    Raises ValueError where a part has its weights as variants alone, which `load` does not open.
    """
    parts: dict[str, dict[str, int]] = {}
    chosen = {}
    for name, size in sizes.items():
        path = PurePosixPath(name)
        folder = str(path.parent)
        settings = path.suffix in _SETTINGS and not name.endswith(".index.json")
        if folder == "nemo" or name == "model_index.json" or (folder in PARTS and settings):
            chosen[name] = size
        elif folder in PARTS:
            parts.setdefault(folder, {})[name] = size
    for files in parts.values():
        chosen |= _weights(files)
    return chosen


def _weights(files: Mapping[str, int]) -> dict[str, int]:
    """One copy of a part's weights, safetensors first; never a variant (`model.fp16.…`).

    An index of shards has the name of its weights, and goes with them.
    """
    variants = []
    for ending in (".safetensors", ".bin"):
        kind = {n: s for n, s in files.items() if n.removesuffix(".index.json").endswith(ending)}
        stems = {n: PurePosixPath(n.removesuffix(".index.json")).stem for n in kind}
        plain = {n: s for n, s in kind.items() if "." not in stems[n] and "ema" not in stems[n]}
        if any(not name.endswith(".index.json") for name in plain):
            return plain
        variants += [name for name in kind if name not in plain]
    if variants:
        raise ValueError(
            f"weights must be there without a variant's name, got {', '.join(sorted(variants))} "
            "alone; save them under plain names in a folder (save_pretrained), and name that"
        )
    return {}


def _download(name: str, revision: str | None, info: Any) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download, try_to_load_from_cache

    try:
        files = needed({file.rfilename: file.size or 0 for file in info.siblings})
    except ValueError as error:
        raise ValueError(f"name: {name!r} could not be opened: {error}") from error
    if "model_index.json" not in files:
        raise ValueError(f"name: {name!r} is no diffusers pipeline: it has no model_index.json")
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
