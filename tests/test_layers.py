"""Finding key and value projections: SD 1.x, SD 2.x, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from toys import SD2, ToyDenoiser, unet

from nemo_kit.layers import key_layers, searched, value_layers

BLOCKS = ["down.0"] * 2 + ["down.1"] * 2 + ["down.2"] * 2 + ["mid"]
BLOCKS += ["up.1"] * 3 + ["up.2"] * 3 + ["up.3"] * 3


@pytest.mark.parametrize("changes", [{}, SD2], ids=["sd1", "sd2"])
def test_sixteen_value_and_key_layers_in_forward_order(changes: dict) -> None:
    denoiser = unet(**changes)
    for kind, layers in (("value", value_layers(denoiser)), ("key", key_layers(denoiser))):
        assert [layer.index for layer in layers] == list(range(1, 17))
        assert [layer.block for layer in layers] == BLOCKS
        assert {layer.kind for layer in layers} == {kind}
        assert [layer.width for layer in layers] == [8] * 2 + [16] * 11 + [8] * 3
        assert all(isinstance(denoiser.get_submodule(p.name), nn.Linear) for p in layers)
    assert value_layers(denoiser)[6].name.endswith(
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_v"
    )


def test_the_order_is_that_of_the_forward_pass() -> None:
    denoiser = unet()
    called: list[str] = []
    for layer in value_layers(denoiser):
        denoiser.get_submodule(layer.name).register_forward_hook(
            lambda *_, name=layer.name: called.append(name)
        )
    with torch.no_grad():
        denoiser(torch.zeros(1, 4, 16, 16), 1, encoder_hidden_states=torch.zeros(1, 3, 16))
    assert called == [layer.name for layer in value_layers(denoiser)]


def test_searched_are_those_of_down_and_mid() -> None:
    assert [layer.index for layer in searched(value_layers(unet()))] == [1, 2, 3, 4, 5, 6, 7]


def test_widths_of_stable_diffusion() -> None:
    with torch.device("meta"):
        denoiser = unet(block_out_channels=(320, 640, 1280, 1280), norm_num_groups=32,
                        attention_head_dim=8, cross_attention_dim=768)  # fmt: skip
    widths = [layer.width for layer in searched(value_layers(denoiser))]
    assert widths == [320, 320, 640, 640, 1280, 1280, 1280]


def test_a_model_without_cross_attention_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no cross-attention \(attn2\) found in Linear"):
        value_layers(nn.Linear(2, 2))


def test_an_attention_elsewhere_is_refused() -> None:
    strange = nn.Module()
    strange.blocks = ToyDenoiser()
    with pytest.raises(ValueError, match=r"can't place the attention 'blocks\.down_blocks"):
        value_layers(strange)


def test_attentions_whose_values_are_not_of_the_text_are_refused() -> None:
    cases = {
        "fused_projections": (True, "fused projections; call unfuse"),
        "is_cross_attention": (False, "attends to the image itself"),
        "norm_cross": (nn.Identity(), "uses norm_cross"),
        "add_v_proj": (nn.Identity(), "uses add_v_proj"),
        "to_v": (nn.Identity(), "to_v must be a linear layer, got Identity"),
    }
    for name, (value, text) in cases.items():
        denoiser = ToyDenoiser()
        setattr(denoiser.attentions()[0], name, value)
        with pytest.raises(ValueError, match=text):
            value_layers(denoiser)
