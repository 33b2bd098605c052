"""Mitigations that act on the cross-attention to single tokens.

Source: Ren et al., "Unveiling and Mitigating Memorization in Text-to-image Diffusion Models
through Cross Attention", ECCV 2024 (arXiv 2403.11052), and their attention processor.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from nemo_kit.checks import check_number
from nemo_kit.mitigation.base import Mitigation
from nemo_kit.mitigation.tokens import mask_tokens, scale_tokens

if TYPE_CHECKING:
    from nemo_kit.generation import Run
    from nemo_kit.layers import Projection
    from nemo_kit.models import DiffusionModel

VERSION = 2  # raised where results change (see nemo_kit.keys)
_SOURCE = "Ren et al., ECCV 2024 (arXiv 2403.11052)"


@dataclass(frozen=True)
class AttentionScaling(Mitigation):
    """Draw attention to the first token (BOS), away from those that trigger a copy.

    In every cross-attention layer and step the pre-softmax logit of the first token is multiplied,
    in the halves that the run names (the source: the conditional one).
    Parameters: `factor`, of the logit. Raises ValueError where it is not finite.
    Source: Ren et al., factor 1.25.
    """

    name: str = field(init=False, default="attention scaling")
    factor: float = 1.25
    source: ClassVar[str] = _SOURCE
    protocol: ClassVar[str] = "scaling without the mask"

    def __post_init__(self) -> None:
        check_number("factor", self.factor)

    @contextmanager
    def apply(self, run: Run) -> Iterator[Run]:
        """Scale each layer's key of the first token, and so its logit."""
        keys = [layer.name for layer in plain_keys(run.model)]
        plain = torch.ones(run.embeddings.shape[1])
        scaled = torch.cat([plain.new_tensor([self.factor]), plain[1:]])
        gains = torch.stack(run.rows([scaled] * len(run.prompts), plain)).to(run.model.device)
        with scale_tokens(run.model.denoiser, keys, gains):
            yield run


@dataclass(frozen=True)
class AttentionMaskingAndScaling(AttentionScaling):
    """Mask and scaling together, as the authors' command has them.

    The mask acts on both halves of a guided batch (the empty prompt's too is masked behind the
    prompt's length), whatever the run's `halves`; the scaling as in `AttentionScaling`.
    Parameters and errors as `AttentionScaling`.
    Source: Ren et al., the released command for mitigation at inference. Which of the three table
    1 of "Finding NeMo" means is in no code.
    """

    name: str = field(init=False, default="attention masking and scaling")
    protocol: ClassVar[str] = "mask on both guidance halves, scaling on the run's"

    @contextmanager
    def apply(self, run: Run) -> Iterator[Run]:
        """Mask and scale each sample."""
        keep = _kept(run) * (1 if run.empty is None else 2)
        with super().apply(run), mask_tokens(run.model.denoiser, torch.stack(keep)):
            yield run


@dataclass(frozen=True)
class AttentionMasking(Mitigation):
    """Give the padding behind the prompt no attention.

    BOS, the prompt's tokens and the first EOS are kept; the rest has weight 0 in every
    cross-attention layer and step, in the halves that the run names.
    Source: Ren et al., masking of the summary tokens.
    """

    name: str = field(init=False, default="attention masking")
    source: ClassVar[str] = _SOURCE
    protocol: ClassVar[str] = "mask without the scaling, on the run's halves"

    @contextmanager
    def apply(self, run: Run) -> Iterator[Run]:
        """Mask each sample behind its own prompt."""
        every = torch.ones(run.embeddings.shape[1], dtype=torch.bool)
        with mask_tokens(run.model.denoiser, torch.stack(run.rows(_kept(run), every))):
            yield run


def _kept(run: Run) -> list[Tensor]:
    """`kept_tokens` of each sample's text."""
    return [kept_tokens(run.model, text, run.embeddings.shape[1]) for text in run.texts]


def kept_tokens(model: DiffusionModel, text: str, tokens: int) -> Tensor:
    """bool [tokens]: BOS, the text's tokens and the first EOS."""
    length = len(model.tokenizer(text, truncation=True, max_length=tokens).input_ids)
    return torch.arange(tokens) < length


def plain_keys(model: DiffusionModel) -> tuple[Projection, ...]:
    """The key projections, which attention takes as they are.

    Raises ValueError where queries or keys are normalized: logits are not what they give then.
    """
    for layer in model.key_layers:
        attention = model.denoiser.get_submodule(layer.name.rsplit(".", 1)[0])
        if getattr(attention, "norm_k", None) or getattr(attention, "norm_q", None):
            raise ValueError(f"model: {layer.name} is normalized, so its logits can't be had")
    return model.key_layers
