"""The model that work needs, where it is done: by id and revision, opened once a process.

Scope: `ModelRef`, what stands for a model here and elsewhere; `model_key`, what results depend on
of it; one process a GPU. No weights are ever sent.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from getpass import getuser
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_kit.checks import MachineError
from nemo_kit.keys import FORMS, value_digest, versions
from nemo_kit.models.hub import EMBEDDED

if TYPE_CHECKING:
    from nemo_kit.calibration import Calibration
    from nemo_kit.models import DiffusionModel

_LOCK = threading.RLock()
_OPENED: dict[str, Any] = {}
_CLAIMS: list[Any] = []


@dataclass(frozen=True, eq=False)
class ModelRef:
    """A model with its key: the one that is open here, and what a process needs to open the same.

    `ModelRef.of(model)` computes the key once for many calls, in which the model stays as it is: an
    edit after that is not seen, and results would be kept as those of the model before. Where a
    reference is sent, `opening` goes to `models.load`; `calibration` and `guidance` are set on what
    it gives; `key` is `model_key` of the model meant, which the opened one must agree with.
    """

    key: dict[str, Any]
    opening: dict[str, Any]
    calibration: Calibration | None
    guidance: float
    model: DiffusionModel | None

    @classmethod
    def of(cls, model: DiffusionModel | ModelRef, device: str | None = None) -> ModelRef:
        """The reference to a model that is open here; a reference stays itself.

        Parameters: `device`, where workers put it if not where it is now: a machine without a GPU
        opens the model with `load(…, "cpu", torch.float16)` and gives "cuda" here.
        """
        if isinstance(model, ModelRef):
            return model
        opening = {
            "name": absolute(model.name),
            "revision": model.revision,
            "device": device or ("offload" if model.offloaded else model.device.type),
            "dtype": model.dtype,
            "lora": model.lora and model.lora.text,
            "config": model.config and absolute(model.config),
        }
        here = None if device else model
        return cls(model_key(model), opening, model.calibration, model.guidance, here)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"model": None}

    @contextmanager
    def borrow(self) -> Iterator[DiffusionModel]:
        """The model in this process, opened at the first call; threads take turns.

        Raises MachineError where it can't be opened, or what opens is not the model meant.
        """
        with _LOCK:
            yield self.model or self._open()

    def _open(self) -> DiffusionModel:
        from nemo_kit import models

        if (wanted := value_digest(self.key)) in _OPENED:
            return _OPENED[wanted]
        _OPENED.clear()  # one model a process
        name, device = self.opening["name"], self.opening["device"]
        try:
            place = free_gpu() if device == "cuda" else device
            model = models.load(**self.opening | {"device": place})
        except Exception as error:
            raise MachineError(f"a worker can't open the model {name!r}: {error}") from error
        model.calibration, model.guidance = self.calibration, self.guidance
        opened = model_key(model)
        if differing := [name for name in self.key if opened.get(name) != self.key[name]]:
            raise MachineError(
                f"the model that a worker opens as {name!r} is not the one given: they differ "
                f"in {', '.join(differing)}. Was it changed in memory, or does the worker have "
                "another version? Save it to a folder, or work in this process (workers=1)"
            )
        _OPENED[wanted] = model
        return model


def absolute(name: str) -> str:
    """A model's folder or file as an absolute path, for a process elsewhere; other names as are."""
    there = name not in EMBEDDED and Path(name).exists()
    return str(Path(name).resolve()) if there else name


def check_gpus(device: str, workers: int) -> None:
    """Raise ValueError where processes on this machine would have to share GPUs."""
    import torch

    count = torch.cuda.device_count()
    if device == "cuda" and workers > max(1, count):
        raise ValueError(f"workers must be at most {count}, one for each GPU here, got {workers}")


@cache
def free_gpu() -> str:
    """A CUDA device that no other worker on this machine has taken: one process a GPU.

    Returns "cuda:N". The claim is a lock file, which ends with the process; where all are taken,
    processes share by turns.
    """
    import torch
    from filelock import FileLock, Timeout

    count = torch.cuda.device_count()
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    for number in range(count):
        name = names[number] if len(names) == count and names[number] else str(number)
        lock = FileLock(Path(tempfile.gettempdir()) / f"nemo_kit-{getuser()}-gpu-{name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        _CLAIMS.append(lock)
        return f"cuda:{number}"
    return f"cuda:{os.getpid() % max(1, count)}"


def model_key(model: DiffusionModel) -> dict[str, Any]:
    """What results depend on besides prompt, seeds, settings and method, as values for a key.

    Returns digests of the weights as they are in memory (also after an edit), of tokenizer,
    scheduler and calibration, the number type, and the version of what reads and runs models. The
    name is none of it: a folder may move.
    """
    vocabularies = [value_digest(one.get_vocab()) for one in model.tokenizers.values()]
    scheduler = {k: v for k, v in dict(model.scheduler.config).items() if not k.startswith("_")}
    return {
        "weights": [value_digest(part) for part in model.weights()],
        "lora": model.lora and model.lora.sha256,
        "tokenizer": vocabularies if len(vocabularies) > 1 else vocabularies[0],
        "scheduler": value_digest(scheduler),
        "dtype": str(model.dtype),
        "guidance": model.guidance,
        "calibration": value_digest(model.calibration),
        "version": versions(type(model).__module__.partition(".")[2]),
        **({"settings": dict(model.settings)} if model.settings else {}),
    }


FORMS["nemo_kit.models.base.DiffusionModel"] = model_key  # a function may hold a model
