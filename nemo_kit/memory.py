"""How many denoiser samples fit into memory at once: measured, and halved where it was too many.

Scope: `BatchSize`, which runs work in batches and halves them when memory runs out; `fitting`,
which measures one for a model. The number of samples a call changes no result beyond the last
digits of floating point.
"""

import gc
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from psutil import virtual_memory

from nemo_kit.checks import check_whole

T = TypeVar("T")
PROBED = 2  # samples of the measuring call
MOST = {"cuda": 256, "cpu": 64}  # above these the throughput no longer grows
SHARE = {"cuda": 0.8, "cpu": 0.25}  # of the free memory; a CPU's is shared with everything else
UNMEASURED = 16  # where the system tells no peak of memory


class BatchSize:
    """A number of samples a call that halves itself when memory runs out, and says so."""

    def __init__(self, size: int) -> None:
        check_whole("batch_size", size, 1)
        self.size = int(size)

    def run(self, call: Callable[[slice], T], total: int, per_item: int = 1) -> list[T]:
        """Call `call(slice)` over `total` items in order, at most `size` samples at once.

        Returns what the calls returned. `per_item`, samples of one item (2 under guidance). A call
        that runs out of memory is made again with half as many.
        Raises what `call` raises, out of memory only where a single item does not fit.
        """
        done, start = [], 0
        while start < total:
            step = max(1, self.size // per_item)
            try:
                done.append(call(slice(start, start + step)))
            except Exception as error:
                if step == 1 or not out_of_memory(error):
                    raise
                self._halve(step, per_item, str(error))
                continue
            start += step
        return done

    def _halve(self, step: int, per_item: int, reason: str) -> None:
        self.size = per_item * (step // 2)
        warnings.warn(
            f"out of memory with {step * per_item} denoiser samples a call; going on with "
            f"{self.size} ({' '.join(reason.split()):.100})",
            RuntimeWarning,
            stacklevel=3,
        )
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def out_of_memory(error: BaseException) -> bool:
    """Whether this error says that memory ran out, on a device or on the host."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


_measured: WeakKeyDictionary[Any, BatchSize] = WeakKeyDictionary()


def fitting(model: Any) -> BatchSize:
    """The samples a call that this model's memory allows, measured at the first question.

    Returns one `BatchSize` a model, so that what halved it once holds for later calls. The
    measuring call of two samples is no part of any prompt's count of samples.
    """
    if model not in _measured:
        cuda, each = model.device.type == "cuda", bytes_a_sample(model)
        kind = "cuda" if cuda else "cpu"
        free = torch.cuda.mem_get_info(model.device)[0] if cuda else virtual_memory().available
        fit = UNMEASURED if each is None else SHARE[kind] * free // each
        _measured[model] = BatchSize(int(min(max(fit, 1), MOST[kind])))
    return _measured[model]


def bytes_a_sample(model: Any) -> int | None:
    """Bytes that a denoiser call takes for each sample, or None where the system doesn't tell."""
    noise, text = model.noise(range(1, PROBED + 1)), model.embed("")
    before = start_watch(model.device)
    counted = model.samples_evaluated
    with torch.no_grad():
        model.predict(noise, model.timesteps(50)[0], text.expand(PROBED, -1, -1))
    model.samples_evaluated = counted
    after = peak(model.device)
    return None if before is None or after is None else max((after - before) // PROBED, 1 << 20)


def start_watch(device: torch.device) -> int | None:
    """Set the peak back to what is in use now, and return that."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return peak(device)


def peak(device: torch.device) -> int | None:
    """The most bytes in use since `start_watch`; None where the system doesn't tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        told = re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())
    except OSError:
        return None
    return told and int(told[1]) * 1024
