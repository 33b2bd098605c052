"""A part of a pipeline: which of its files are needed, and opening it so that nothing is made up.

Scope: one choice of weights for downloads and for opening, so that they can't disagree; and checks
before and after the libraries load them, since these fill what is missing with random numbers.
"""

import json
import math
import re
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import torch

from nemo_kit.checks import listed

_WEIGHTS = re.compile(
    r"(?P<stem>diffusion_pytorch_model|pytorch_model|model)(?:\.(?P<variant>\w+))?"
    r"(?:-\d+-of-\d+)?(?:\.(?P<old>\w+))?\.(?P<kind>safetensors|bin)"
    r"(?P<index>(?:\.(?P<early>\w+))?\.index(?:\.(?P<late>\w+))?\.json)?"
)  # the places where diffusers and transformers put a variant's name, now and before
_STEMS = {("diffusion_pytorch_model", "safetensors"), ("diffusion_pytorch_model", "bin"),
          ("model", "safetensors"), ("pytorch_model", "bin")}  # fmt: skip
_VARIANTS = ("", "fp16", "bf16")  # in the order in which they are taken
_VOCABULARY = ({"tokenizer.json"}, {"vocab.json", "merges.txt"}, {"vocab.txt"}, {"spiece.model"})
_SETTINGS = (".json", ".txt", ".model")
_POINTER = b"version https://git-lfs"


def choose(part: str, names: Iterable[str]) -> tuple[list[str], str | None]:
    """The copy that is opened: in full before half precision, safetensors before pickles.

    Returns its files, weights first, and the variant that the libraries are asked for.
    Raises ValueError where there is none, and where only copies of other variants are there.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for name in sorted(names):
        match = _WEIGHTS.fullmatch(name)
        if match and (match["stem"], match["kind"]) in _STEMS:
            variant = match["variant"] or match["old"] or match["early"] or match["late"] or ""
            found.setdefault((variant, match["kind"]), []).append(name)
    whole = {key: files for key, files in found.items() if not files[0].endswith(".json")}
    for key in product(_VARIANTS, ("safetensors", "bin")):
        if key in whole:
            return whole[key], key[0] or None
    others = sorted({variant for variant, _ in whole})
    told = f"only those of variant {', '.join(others)}" if others else "none"
    raise ValueError(f"{part}: weights must be there, plain or as variant fp16 or bf16, got {told}")


def needed(part: str, names: Collection[str], weights: bool = True) -> list[str]:
    """Files of a part's folder that it is opened from: settings, vocabulary, one copy of weights.

    Raises ValueError where weights or vocabulary are not among them.
    """
    found = sorted(n for n in names if n.endswith(_SETTINGS) and not _WEIGHTS.fullmatch(n))
    if part.startswith("tokenizer") and not any(kind <= set(names) for kind in _VOCABULARY):
        raise ValueError(
            f"{part}: tokenizer.json, vocab.json and merges.txt, vocab.txt or spiece.model must be "
            "there"
        )
    return found + choose(part, names)[0] if weights and has_weights(part) else found


def has_weights(part: str) -> bool:
    """Whether it is a model: no scheduler, tokenizer or extractor of features."""
    return not part.startswith(("scheduler", "tokenizer", "feature_extractor"))


def files_of(folder: Path, part: str) -> list[Path]:
    """The files of that part in a folder on this machine, each of them whole.

    Raises ValueError that names what is missing or broken.
    """
    place = folder / part
    names = {file.name for file in place.iterdir() if file.is_file()} if place.is_dir() else set()
    if not names:
        raise ValueError(f"the part {part!r} is missing: there is nothing in {place}")
    files = [place / name for name in needed(part, names)]
    for file in files:
        check_whole(file)
    return files


def bytes_of(folder: Path, part: str, dtype: torch.dtype) -> int:
    """What a part's weights take in that number type; of pickles, the size of their files."""
    size = 0
    for file in files_of(folder, part):
        if file.suffix == ".safetensors":
            size += sum(map(math.prod, shapes_in(file).values())) * dtype.itemsize
        elif file.suffix == ".bin":
            size += file.stat().st_size
    return size


def shapes_in(file: Path) -> dict[str, list[int]]:
    """Name -> shape of the tensors of a safetensors file; ValueError where it is not whole."""
    from safetensors import safe_open

    check_whole(file)
    with safe_open(file, "pt") as opened:
        return {key: opened.get_slice(key).get_shape() for key in opened.keys()}  # noqa: SIM118


def check_whole(file: Path) -> None:
    """Raise ValueError for a file that git left a pointer of, and for one that was cut short."""
    from safetensors import SafetensorError, safe_open

    with file.open("rb") as opened:
        head = opened.read(len(_POINTER))
    if head == _POINTER:
        raise ValueError(f"{file} is a Git-LFS pointer, not the file: `git lfs pull` fetches it")
    cut = "was it cut short by a download that ended early, or a full disk?"
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, "pt"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{file} is no whole safetensors file ({error}); {cut}") from error
    elif file.suffix == ".bin" and head.startswith(b"PK") and not zipfile.is_zipfile(file):
        raise ValueError(f"{file} is no whole file of weights; {cut}")


def read_json(file: Path) -> dict[str, Any]:
    """A JSON file's object; ValueError that names the file where it is none."""
    try:
        content = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} can't be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold a JSON object, got {type(content).__name__}")
    return content


def plain(kind: str) -> str:
    """The class that is opened for one that a pipeline or its index names."""
    return kind.removesuffix("Fast").replace("PreTrainedModel", "Model")


def open_part(
    folder: Path, part: str, kind: str, dtype: torch.dtype, foreign: Mapping[str, str]
) -> Any:
    """A part of a pipeline from its folder; a model is on the CPU, in that number type.

    Parameters: `kind`, the class that is opened; `foreign`, as in `check_settings`.
    Raises ValueError, which names the file or the tensors, for a part that is not whole, of another
    class or quantized, and where a tensor is missing, unexpected or of another shape.
    """
    files = files_of(folder, part)
    ours = part.startswith(("text_encoder", "tokenizer"))
    opened = getattr(import_module("transformers" if ours else "diffusers"), kind)
    options: dict[str, Any] = {"local_files_only": True}
    if part.startswith("tokenizer"):
        with readable(f"{folder / part}"):
            return opened.from_pretrained(folder / part, **options)
    config = read_json(folder / part / "config.json")
    check_settings(part, config, kind, foreign)
    chosen, variant = choose(part, [file.name for file in files])
    options |= {"variant": variant, "use_safetensors": chosen[0].endswith(".safetensors")}
    options |= {"dtype" if ours else "torch_dtype": dtype}
    with readable(f"{folder / part}"):  # what is mismatched is told below, by name
        module, info = opened.from_pretrained(
            folder / part, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    check_complete(part, module, info, folder / part / chosen[0])
    return module


def check_settings(
    part: str, config: Mapping[str, Any], kind: str, foreign: Mapping[str, str]
) -> None:
    """Raise ValueError for a part of another class or kind of model, and for quantized weights.

    Parameters: `config`, its settings; `foreign`, setting -> what it means where that is set.
    """
    quantized = config.get("quantization_config")
    if quantized:
        method = quantized.get("quant_method", "?") if isinstance(quantized, dict) else quantized
        raise ValueError(
            f"{part}: its config.json says quantization_config ({method}); only weights in "
            "float32, float16 or bfloat16 are supported"
        )
    said = config.get("_class_name", kind)
    if said != kind:
        raise ValueError(f"{part}: must be a {kind}, its config.json says {said}")
    for name, what in foreign.items():
        value = config.get(name)
        if value is not None and value is not False:
            raise ValueError(f"{part}: {name} = {value!r:.40} means {what}; not supported")


def check_pairs(part: str, pairs: Mapping[str, tuple[Any, Any]]) -> None:
    """Raise ValueError for a setting of a part that is not what the others have: name -> both."""
    for name, (own, other) in pairs.items():
        if own != other:
            raise ValueError(
                f"{part}: {name} = {own}, the others have {other}: are they parts of one model, "
                "and of one that draws from text alone?"
            )


def check_words(parts: Mapping[str, Any]) -> None:
    """Raise ValueError for a tokenizer with more tokens than its text encoder knows."""
    for name, tokenizer in parts.items():
        if name.startswith("tokenizer") and tokenizer is not None:
            known = parts[name.replace("tokenizer", "text_encoder")].config.vocab_size
            if len(tokenizer) > known:
                raise ValueError(
                    f"{name}: {len(tokenizer)} tokens, its text encoder knows {known}: is it "
                    "another model's?"
                )


def check_complete(part: str, module: Any, info: Mapping[str, Any], source: Path) -> None:
    """Raise ValueError that names tensors which the file lacks, or has too many or in other shape.

    Parameters: `info`, the loading info of diffusers or transformers.
    """
    mismatched = [entry[0] for entry in info.get("mismatched_keys", ())]
    empty = {name for name, tensor in module.state_dict().items() if tensor.is_meta}
    faults = {
        "missing": {*info.get("missing_keys", ()), *empty} - set(mismatched),
        "unexpected": info.get("unexpected_keys", ()),
        "of another shape than config.json says": mismatched,
    }
    told = [f"{listed(sorted(names))} {fault}" for fault, names in faults.items() if names]
    if told:
        raise ValueError(f"{part}: {'; '.join(told)} in {source}")


@contextmanager
def readable(what: str) -> Iterator[None]:
    """Whatever a library raises while it reads files, as a ValueError that names them."""
    try:
        yield
    except Exception as error:  # of safetensors, zip, pickle, JSON, and of the libraries' own
        text = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{what} could not be opened: {text:.300}") from error


@contextmanager
def opening(name: str) -> Iterator[None]:
    """What is wrong with a model's files, with the model's name."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"name: {name!r} could not be opened: {error}") from error
