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
            places = torch.arange(len(own))[:, None, None]
            if func.__name__ in _MOVING:
                places = func(places, *args[1:], **named)
            return _picked(found, places, own.beside)


def _picked(found: Any, places: Any, beside: Mapping[str, Tensor]) -> Any:
    """The result with the rest of the samples that it holds; `places` tells their numbers."""
    if isinstance(found, (tuple, list)):
        return tuple(_picked(*one, beside) for one in zip(found, places, strict=True))
    if found.ndim != 3 or len(found) != len(places):
        return found
    rows = places[:, 0, 0]
    kept = {name: value[rows].to(found.device) for name, value in beside.items()}
    return Conditioning.of(found, **kept)


def _joined(found: Tensor, tensors: Iterable[Tensor], dim: int = 0) -> Tensor:
    """Samples under each other, where all have the same beside them."""
    parts = [getattr(one, "beside", None) for one in tensors]
    if dim != 0 or any(part is None or part.keys() != parts[0].keys() for part in parts):
        return found
    beside = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return Conditioning.of(found, **beside)
