"""How many denoiser samples go into one call: what memory allows, and halved where it was too many.

Scope: `BatchSize`, which runs work in batches and halves them when memory runs out; `fitting`, the
one to start with for a model. The number of samples a call changes no result beyond the last
digits of floating point.
"""

import gc
import warnings
from collections.abc import Callable
from math import prod
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch

from nemo_kit.checks import check_whole

T = TypeVar("T")
PROBED = 2  # samples of the measuring call
MOST = 256  # above this a GPU's throughput no longer grows
SHARE = 0.8  # of the free memory of a GPU
AREA = 64 * 16 * 16  # latent pixels at once on a CPU, which more do not make faster


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
            step = min(max(1, self.size // per_item), total - start)
            try:
                done.append(call(slice(start, start + step)))
                start += step
                continue
            except Exception as error:
                if step == 1 or not out_of_memory(error):
                    raise
                reason = str(error)
            self.size = per_item * (step // 2)
            told = f"out of memory with {step * per_item} denoiser samples a call; going on with "
            warnings.warn(
                f"{told}{self.size} ({' '.join(reason.split()):.100})", RuntimeWarning, stacklevel=2
            )
            gc.collect()  # the error, which held tensors, is gone
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return done


def out_of_memory(error: BaseException) -> bool:
    """Whether this error says that memory ran out, on a device or on the host."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


_sizes: WeakKeyDictionary[Any, BatchSize] = WeakKeyDictionary()


def fitting(model: Any) -> BatchSize:
    """The samples a call that this model's memory allows: on a GPU measured at the first question.

    Returns one `BatchSize` a model, so that what halved it once holds for later calls. On a CPU it
    follows from the latents' size: 64 of the embedded model, 4 of 64×64. The measuring call of two
    samples is no part of any prompt's count of samples.
    """
    if model not in _sizes:
        if model.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(model.device)
            fit = min(int(SHARE * free) // _bytes_a_sample(model), MOST)
        else:
            fit = AREA // prod(model.latent_shape[1:])
        _sizes[model] = BatchSize(max(fit, 1))
    return _sizes[model]


def _bytes_a_sample(model: Any) -> int:
    """Bytes that a denoiser call takes for each sample, on a GPU."""
    noise, text = model.noise(range(1, PROBED + 1)), model.embed("")
    counted, before = model.samples_evaluated, torch.cuda.memory_allocated(model.device)
    torch.cuda.reset_peak_memory_stats(model.device)
    with torch.no_grad():
        model.predict(noise, model.timesteps(50)[0], text.expand(PROBED, -1, -1))
    model.samples_evaluated = counted
    return max((torch.cuda.max_memory_allocated(model.device) - before) // PROBED, 1 << 20)
