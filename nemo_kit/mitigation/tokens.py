"""Context managers that change how much attention a token gets, and leave nothing behind.

Source: Ren et al., ECCV 2024 (arXiv 2403.11052).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from nemo_kit.hooks import hooked


@contextmanager
def scale_tokens(denoiser: nn.Module, projections: list[str], gains: Tensor) -> Iterator[None]:
    """Multiply what projections put out for a token by that token's factor inside the block.

    On key projections this multiplies the token's attention logits, before the softmax, and no
    others: a logit is linear in its key.
    Parameters: `projections`, their names; `gains`, [batch, tokens].
    Raises ValueError, at the denoiser's call, for another batch or number of tokens.
    """

    def scale(_module: nn.Module, _inputs: tuple, output: Tensor) -> Tensor:
        if output.shape[:2] != gains.shape:
            raise ValueError(
                f"gains must be [batch, tokens] = {list(output.shape[:2])}, got {list(gains.shape)}"
            )
        return output * gains.to(output)[:, :, None]

    with hooked(denoiser, dict.fromkeys(projections, scale)):
        yield


@contextmanager
def mask_tokens(denoiser: nn.Module, keep: Tensor) -> Iterator[None]:
    """Give tokens no cross-attention weight inside the block: their logits become −∞ in effect.

    Parameters: `keep`, bool [batch, tokens], at least one True in each row; the denoiser must
    take diffusers' `encoder_attention_mask`.
    Raises ValueError where a row keeps no token or, at the denoiser's call, the batch is another.
    """
    if keep.ndim != 2 or not keep.any(dim=1).all():
        raise ValueError(
            f"keep must be [batch, tokens] with a token in each row, got {list(keep.shape)} with "
            f"{int(keep.sum())} in all"
        )

    def mask(_module: nn.Module, inputs: tuple, named: dict[str, Any]) -> tuple[tuple, dict]:
        sample = inputs[0] if inputs else named["sample"]
        if len(sample) != len(keep):
            raise ValueError(f"keep holds {len(keep)} rows, but the batch has {len(sample)}")
        return inputs, {**named, "encoder_attention_mask": keep.to(sample.device)}

    handle = denoiser.register_forward_pre_hook(mask, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
