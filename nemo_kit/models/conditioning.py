"""What a prompt says to a denoiser: embeddings of its tokens, and what else it is given of it.

Scope: a tensor that keeps pooled text and masks with the samples they belong to, so that whoever
repeats, picks or joins embeddings need not know which family they are of.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

import torch
from torch import Tensor

# Operations that put samples elsewhere, and those that leave them where they are; by their names.
_MOVING = {"__getitem__", "expand", "expand_as", "repeat", "repeat_interleave", "split", "chunk"}
_KEEPING = {"to", "float", "clone", "detach", "contiguous", "add", "sub"}


class Conditioning(Tensor):
    """Embeddings of tokens, [N, tokens, dim], that keep what else is given of each text with them.

    For all that torch does it is the tensor of the tokens. What picks, repeats or joins samples
    does the same to the rest, sums and other number types keep it; any other operation gives a
    plain tensor, which a model that needs the rest refuses.
    Attribute: `beside`, name -> [N, …]: "pooled" text, the "mask" of tokens (True: attended to), …
    """

    beside: dict[str, Tensor]

    @classmethod
    def of(cls, tokens: Tensor, **beside: Tensor) -> Self:
        """The embeddings, [N, tokens, dim], with what lies beside them, [N, …] each."""
        made = tokens.as_subclass(cls)
        made.beside = beside
        return made

    @property
    def tokens(self) -> Tensor:
        """The embeddings alone, a plain tensor."""
        return self.as_subclass(Tensor)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """What torch calls in place of an operation on such a tensor."""
        named = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            found = func(*args, **named)
            if isinstance(found, cls):  # in place
                return found
            if func is torch.cat:
                return _joined(found, *args, **named)
            own = args[0] if args and isinstance(args[0], cls) else None
            if own is None or func.__name__ not in _MOVING | _KEEPING or not hasattr(own, "beside"):
                return found
            if func.__name__ in _KEEPING:
                kept = found.ndim == 3 and len(found) == len(own)
                return cls.of(found, **_on(own.beside, found)) if kept else found
            numbers = torch.arange(len(own))[:, None, None]
            return _picked(found, func(numbers, *args[1:], **named), own.beside)


def _on(beside: Mapping[str, Tensor], found: Tensor) -> dict[str, Tensor]:
    return {name: value.to(found.device) for name, value in beside.items()}


def _picked(found: Any, places: Any, beside: Mapping[str, Tensor]) -> Any:
    """The result with the rest of the samples that it holds; `places` tells their numbers."""
    if isinstance(found, (tuple, list)):
        return tuple(_picked(*one, beside) for one in zip(found, places, strict=True))
    if found.ndim != 3:
        return found
    rows = places[:, 0, 0]
    return Conditioning.of(found, **{name: value[rows] for name, value in beside.items()})


def _joined(found: Tensor, tensors: Iterable[Tensor], dim: int = 0) -> Tensor:
    """Samples under each other, where all have the same beside them."""
    parts = [getattr(one, "beside", None) for one in tensors]
    if dim != 0 or any(part is None or part.keys() != parts[0].keys() for part in parts):
        return found
    beside = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return Conditioning.of(found, **beside)
