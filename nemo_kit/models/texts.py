"""Texts as tokens, and what text encoders make of them: shared by the families.

Scope: CLIP, T5 and the like as diffusers' pipelines use them.
"""

import warnings
from typing import Any

import torch
from torch import Tensor

from nemo_kit.models.base import DiffusionModel


def tokenized(tokenizer: Any, texts: list[str], length: int) -> Any:
    """The texts' tokens, padded or cut to a length, [N, length] each; cutting is warned of."""
    if any(len(ids) > length for ids in tokenizer(texts, verbose=False).input_ids):
        told = f"prompts of more than the text encoder's {length} tokens are cut to them"
        warnings.warn(told, RuntimeWarning, stacklevel=2)  # one text: shown once, not a prompt
    return tokenizer(
        texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )


def clips(model: DiffusionModel, texts: list[str]) -> tuple[Tensor, list[Tensor]]:
    """Both CLIPs' states before their last layers, side by side, and the pooled output of each."""
    states, pooled = [], []
    for which in ("", "_2"):
        tokenizer = model.tokenizers[f"tokenizer{which}"]
        ids = tokenized(tokenizer, texts, tokenizer.model_max_length).input_ids.to(model.device)
        found = model.text_encoder[f"text_encoder{which}"](ids, output_hidden_states=True)
        states.append(found.hidden_states[-2])
        pooled.append(found.text_embeds if "text_embeds" in found else found.pooler_output)
    return torch.cat(states, dim=-1), pooled


def encoded(
    model: DiffusionModel, which: str, texts: list[str], length: int, masked: bool = True
) -> tuple[Tensor, Tensor]:
    """An encoder's last states, [N, length, dim], and the tokens' mask, bool [N, length].

    Parameters: `which`, "" or "_2" and so on; `masked`, whether padding is hidden from the encoder
    itself.
    """
    encoder = model.text_encoder[f"text_encoder{which}"]
    tokens = tokenized(model.tokenizers[f"tokenizer{which}"], texts, length).to(model.device)
    mask = tokens.attention_mask
    home = next(encoder.parameters()).device
    encoder.to(model.device)  # while it runs
    try:
        found = encoder(tokens.input_ids, attention_mask=mask if masked else None)[0]
    finally:
        encoder.to(home)
    return found, mask.bool()
