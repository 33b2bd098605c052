"""Mitigations that act on the cross-attention to single tokens.

Source: Ren et al., "Unveiling and Mitigating Memorization in Text-to-image Diffusion Models
through Cross Attention", ECCV 2024 (arXiv 2403.11052), and their attention processor.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from nemo_kit.checks import UnsupportedError, check_number
from nemo_kit.hooks import InterventionError, hooked
from nemo_kit.mitigation.base import Mitigation
from nemo_kit.models.base import DiffusionModel
from nemo_kit.sampling import Run

VERSION = 2  # raised where results change (see nemo_kit.keys)
_NEVER = -10_000.0  # a logit that the softmax makes 0, in float16 too; as in diffusers
_SOURCE = "Ren et al., ECCV 2024 (arXiv 2403.11052)"


@dataclass(frozen=True)
class AttentionScaling(Mitigation):
    """Draw attention to the first token (BOS), away from those that trigger a copy.

    In every cross-attention layer and step the pre-softmax logit of the first token is multiplied,
    in the halves that the run names (the source: the conditional one).
    Parameters: `factor`, of the logit. Raises ValueError where it is not finite.
    Source: Ren et al., factor 1.25.
    """

    name = "attention scaling"
    factor: float = 1.25
    source = _SOURCE
    protocol = "scaling without the mask"
    place = 4

    def __post_init__(self) -> None:
        check_number("factor", self.factor)

    @contextmanager
    def apply(self, run: Run) -> Iterator[Run]:
        """Scale each layer's key of the first token, and so its logit, which is linear in it."""
        check_attention(run.model)
        factors = run.rows([self.factor] * len(run.prompts), 1.0)
        gains = torch.ones(len(factors), run.embeddings.shape[1], 1, device=run.model.device)
        gains[:, 0, 0] = torch.tensor(factors)

        def scale(_module: nn.Module, _inputs: tuple, output: Tensor) -> Tensor:
            return output * gains.to(output)

        keys = [layer.name for layer in run.model.key_layers]
        with hooked(run.model.denoiser, dict.fromkeys(keys, scale)):
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

    name = "attention masking and scaling"
    protocol = "mask on both guidance halves, scaling on the run's"
    place = 9

    @contextmanager
    def apply(self, run: Run) -> Iterator[Run]:
        """Mask and scale each sample."""
        with super().apply(run), _masked(replace(run, halves="both")):
            yield run


@dataclass(frozen=True)
class AttentionMasking(Mitigation):
    """Give the padding behind the prompt no attention.

    BOS, the prompt's tokens and the first EOS are kept; the rest has weight 0 in every
    cross-attention layer and step, in the halves that the run names.
    Source: Ren et al., masking of the summary tokens.
    """

    name = "attention masking"
    source = _SOURCE
    protocol = "mask without the scaling, on the run's halves"
    place = 8

    @contextmanager
    def apply(self, run: Run) -> Iterator[Run]:
        """Mask each sample behind its own prompt."""
        with _masked(run):
            yield run


def kept_tokens(model: DiffusionModel, text: str, tokens: int) -> Tensor:
    """bool [tokens]: BOS, the text's tokens and the first EOS."""
    length = len(model.tokenizer(text, truncation=True, max_length=tokens).input_ids)
    return torch.arange(tokens) < length


def check_attention(model: DiffusionModel) -> None:
    """Raise UnsupportedError where a model has no cross-attention to CLIP's tokens."""
    if not model.clip_attention:
        raise UnsupportedError(
            "model: what acts on or reads the attention to single tokens of CLIP (BOS first, "
            f"padding last) is not defined for {type(model).__name__}; not supported"
        )


@contextmanager
def _masked(run: Run) -> Iterator[None]:
    """No token behind a sample's text has a cross-attention weight, in the halves of the run.

    Raises InterventionError where an attention processor is not diffusers', which heed masks.
    """
    check_attention(run.model)
    tokens = run.embeddings.shape[1]
    own = [kept_tokens(run.model, text, tokens) for text in run.texts]
    kept = torch.stack(run.rows(own, torch.ones(tokens, dtype=torch.bool)))[:, None]

    def mask(_module: nn.Module, inputs: tuple, named: dict[str, Any]) -> tuple[tuple, dict]:
        return inputs, {**named, "attention_mask": (1 - kept.to(inputs[0])) * _NEVER}

    denoiser = run.model.denoiser
    attentions = {n: m for n, m in denoiser.named_modules() if n.endswith(".attn2")}
    for name, attention in attentions.items():
        if not type(attention.processor).__module__.startswith("diffusers."):
            raise InterventionError(
                f"{name} has the attention processor {type(attention.processor).__name__}, of "
                "which it isn't known whether it heeds masks; set_default_attn_processor() helps"
            )
    with hooked(denoiser, {}, dict.fromkeys(attentions, mask)):
        yield
