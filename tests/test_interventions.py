"""Interventions on a U-Net that was changed after loading: they act, or an error names layers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from books import cutting
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from torch.nn import functional as F
from toys import count_hooks

from nemo_kit.detectors import attention_entropy, attention_entropy_late
from nemo_kit.generation import generate
from nemo_kit.hooks import InterventionError, scale_neurons
from nemo_kit.localization import LocalizationSettings, localize
from nemo_kit.mitigation import AttentionMasking, AttentionScaling, NeMo, WandaPruning
from nemo_kit.models import DiffusionModel
from nemo_kit.neurons import NeuronSet


class Foreign(AttnProcessor):
    """Another's processor, which takes the weights and not the layers."""

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Any = None, **_: Any
    ) -> Tensor:
        """As plain attention."""
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            F.linear(x, layer.weight)
            for x, layer in ((hidden_states, attn.to_q), (text, attn.to_k), (text, attn.to_v))
        )
        q, k, v = (attn.head_to_batch_dim(x) for x in (q, k, v))
        found = attn.batch_to_head_dim(attn.get_attention_scores(q, k) @ v)
        return attn.to_out[1](attn.to_out[0](found))


@pytest.fixture
def own_model(toy_model: DiffusionModel) -> DiffusionModel:
    """A copy that a test may spoil."""
    model = copy.copy(toy_model)
    model.calibration = replace(toy_model.calibration, threshold=0.1)  # all look memorized
    model.denoiser = copy.deepcopy(toy_model.denoiser)
    return model


CHANGES: dict[str, Callable[[nn.Module], None]] = {
    "fused": lambda denoiser: denoiser.fuse_qkv_projections(),
    "processor": lambda denoiser: denoiser.set_attn_processor(Foreign()),
}
PROMPT, SEEDS = "a red cup", [1, 2, 3]


Cut = cutting()["Cut"]


def everything(model: DiffusionModel) -> NeuronSet:
    return NeuronSet({layer.index: range(layer.width) for layer in model.searched})


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_no_intervention_on_a_changed_denoiser_is_silent(
    own_model: DiffusionModel, change: Callable[[nn.Module], None]
) -> None:
    change(own_model.denoiser)
    options: dict[str, Any] = {"steps": 2, "guidance": 0}
    generate(own_model, PROMPT, [1], **options)  # as such it works
    found = everything(own_model)
    settings = LocalizationSettings(theta=2, batch_size=8)
    calls: dict[str, Callable[[], object]] = {
        "generate": lambda: generate(own_model, PROMPT, [1], found, **options),
        "NeMo": lambda: generate(own_model, PROMPT, [1], mitigation=NeMo(found), **options),
        "scaling": lambda: generate(
            own_model, PROMPT, [1], mitigation=AttentionScaling(), **options
        ),
        "value": lambda: generate(own_model, PROMPT, [1], mitigation=Cut("value", 1), **options),
        "key": lambda: generate(own_model, PROMPT, [1], mitigation=Cut("key", 1), **options),
        "localize": lambda: localize(own_model, PROMPT, SEEDS, settings=settings),
        "entropy": lambda: attention_entropy(own_model, PROMPT, SEEDS),
        "late entropy": lambda: attention_entropy_late(own_model, PROMPT, SEEDS, steps=5),
    }  # fmt: skip
    for name, call in calls.items():
        with pytest.raises(InterventionError, match=r"attn2\.to_[vkq].* did not run"):
            print(name, call())
        assert count_hooks(own_model.denoiser) == 0, name


def test_masks_act_or_raise(own_model: DiffusionModel) -> None:
    options: dict[str, Any] = {"steps": 2, "guidance": 0, "mitigation": AttentionMasking()}
    expected = generate(own_model, PROMPT, [1], **options)
    plain = generate(own_model, PROMPT, [1], steps=2, guidance=0)
    assert (expected != plain).any()
    own_model.denoiser.fuse_qkv_projections()
    assert abs(generate(own_model, PROMPT, [1], **options).astype(int) - expected).max() <= 1
    own_model.denoiser.set_attn_processor(Foreign())
    with pytest.raises(InterventionError, match="attention processor Foreign"):
        generate(own_model, PROMPT, [1], **options)


def test_pruning_notices_a_layer_cut_into_pieces(own_model: DiffusionModel) -> None:
    for module in own_model.denoiser.modules():
        if isinstance(module, BasicTransformerBlock):
            module.set_chunk_feed_forward(chunk_size=1, dim=1)
    way = WandaPruning(steps=1, trajectory=2, seeds=(1,))
    with pytest.raises(InterventionError, match=r"ff\.net\.2.* ran \d+ times"):
        generate(own_model, PROMPT, [1], steps=2, guidance=0, mitigation=way)


def predicts_with(model: DiffusionModel, denoiser: nn.Module) -> None:
    model.denoiser = denoiser
    model.predict(model.noise([1]), 900, model.embed(PROMPT))


def test_a_denoiser_replaced_inside_the_block(own_model: DiffusionModel) -> None:
    first, found = own_model.denoiser, everything(own_model)
    cases = {
        "another denoiser": copy.deepcopy(first),
        "inside OptimizedModule": torch.compile(first),
    }
    for told, denoiser in cases.items():
        block = scale_neurons(first, own_model.value_layers, found)
        with pytest.raises(InterventionError, match=told), block:
            predicts_with(own_model, denoiser)
    with pytest.raises(InterventionError, match="compiled module"):
        generate(own_model, PROMPT, [1], found, steps=2)
