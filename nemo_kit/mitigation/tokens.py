"""Context managers that change how much attention a token gets, and leave nothing behind.

Source: Ren et al., ECCV 2024 (arXiv 2403.11052).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from nemo_kit.hooks import InterventionError, hooked

_NEVER = -10_000.0  # a logit that the softmax makes 0, in float16 too; as in diffusers


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

    Parameters: `keep`, bool [batch, tokens], at least one True in each row.
    Raises ValueError where a row keeps no token or, at the denoiser's call, the batch is another;
    InterventionError where an attention processor is not one of diffusers', which heed masks.
    """
    if keep.ndim != 2 or not keep.any(dim=1).all():
        raise ValueError(
            f"keep must be [batch, tokens] with a token in each row, got {list(keep.shape)} with "
            f"{int(keep.sum())} in all"
        )

    def mask(_module: nn.Module, inputs: tuple, named: dict[str, Any]) -> tuple[tuple, dict]:
        if len(inputs[0]) != len(keep):
            raise ValueError(f"keep holds {len(keep)} rows, but the batch has {len(inputs[0])}")
        logits = (1 - keep.to(inputs[0])[:, None]) * _NEVER  # [batch, 1, tokens]
        return inputs, {**named, "attention_mask": logits}

    attentions = {n: m for n, m in denoiser.named_modules() if n.endswith(".attn2")}
    for name, attention in attentions.items():
        if not type(attention.processor).__module__.startswith("diffusers."):
            raise InterventionError(
                f"{name} has the attention processor {type(attention.processor).__name__}, of "
                "which it isn't known whether it heeds masks; set_default_attn_processor() helps"
            )
    with hooked(denoiser, {}, dict.fromkeys(attentions, mask)):
        yield
