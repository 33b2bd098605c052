"""Small pipelines of every family, built from diffusers' classes with random weights."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    HunyuanDiT2DModel,
    HunyuanDiTPipeline,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
)
from diffusers.models.embeddings import get_2d_rotary_pos_embed
from diffusers.pipelines.hunyuandit.pipeline_hunyuandit import get_resize_crop_region_for_grid
from torch import nn
from toys import TEXT_WIDTH, TOKENS, scheduler, tokenizer, unet
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

T5_TOKENS = 14
T5_WIDTH = 32
SIDE = 16  # of a latent


def clip(kind: Any = CLIPTextModelWithProjection, width: int = TEXT_WIDTH) -> Any:
    size = len(tokenizer())
    return kind(
        CLIPTextConfig(
            vocab_size=size, hidden_size=width, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=TOKENS, projection_dim=width,
            bos_token_id=size - 2, eos_token_id=size - 1, pad_token_id=size - 1,
        )
    )  # fmt: skip


def t5_tokenizer() -> T5TokenizerFast:
    """One token a letter, "</s>" at the end."""
    letters = [chr(n) for n in range(32, 127)] + ["▁"]
    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((one, -1.0) for one in letters)]
    return T5TokenizerFast(vocab=words, extra_ids=0, model_max_length=T5_TOKENS)


def t5() -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(vocab_size=len(t5_tokenizer()), d_model=T5_WIDTH, d_kv=8, d_ff=32, num_layers=2,
                 num_heads=2, feed_forward_proj="gated-gelu")
    )  # fmt: skip


def vae(channels: int = 4, **options: Any) -> AutoencoderKL:
    two = {
        "block_out_channels": (8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    }
    return AutoencoderKL(norm_num_groups=4, latent_channels=channels, **{**two, **options})


def flow(**options: Any) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(shift=3.0, **options)


def lively(denoiser: nn.Module, by: float = 12.0) -> nn.Module:
    """With values that count: otherwise a random transformer's text hardly changes its output."""
    with torch.no_grad():
        for name, module in denoiser.named_modules():
            if name.endswith(("attn2.to_v", "add_v_proj")):
                module.weight *= by
    return denoiser


def sdxl() -> Any:
    cross = "CrossAttn{}Block2D"
    denoiser = unet(
        block_out_channels=(8, 16), cross_attention_dim=2 * TEXT_WIDTH, layers_per_block=1,
        down_block_types=("DownBlock2D", cross.format("Down")),
        up_block_types=(cross.format("Up"), "UpBlock2D"),
        transformer_layers_per_block=(1, 2), use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=24 + TEXT_WIDTH,
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=vae(scaling_factor=0.13025), text_encoder=clip(CLIPTextModel), text_encoder_2=clip(),
        tokenizer=tokenizer(), tokenizer_2=tokenizer(), unet=lively(denoiser),
        scheduler=scheduler(), add_watermarker=False,
    )  # fmt: skip


def _pixart(kind: Any, **options: Any) -> Any:
    denoiser = PixArtTransformer2DModel(
        num_attention_heads=3, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=3,
        cross_attention_dim=24, sample_size=SIDE, patch_size=2, caption_channels=T5_WIDTH,
        **options,
    )  # fmt: skip
    schedule = DDIMScheduler(beta_start=0.0001, beta_end=0.02, clip_sample=False, steps_offset=1,
                             set_alpha_to_one=False)  # fmt: skip
    return kind(
        tokenizer=t5_tokenizer(), text_encoder=t5(), vae=vae(), transformer=lively(denoiser),
        scheduler=schedule,
    )  # fmt: skip


def pixart_alpha() -> Any:
    return _pixart(PixArtAlphaPipeline, use_additional_conditions=True)


def pixart_sigma() -> Any:
    return _pixart(PixArtSigmaPipeline, use_additional_conditions=False)


def sd3() -> Any:
    """In the shape of 3.5: normed queries and keys, image self-attention in the first block."""
    denoiser = SD3Transformer2DModel(
        sample_size=SIDE, patch_size=2, in_channels=4, out_channels=4, num_layers=3,
        num_attention_heads=2, attention_head_dim=8, joint_attention_dim=2 * TEXT_WIDTH,
        caption_projection_dim=16, pooled_projection_dim=2 * TEXT_WIDTH, pos_embed_max_size=8,
        dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip
    return StableDiffusion3Pipeline(
        transformer=lively(denoiser), scheduler=flow(), vae=vae(shift_factor=0.06),
        text_encoder=clip(), tokenizer=tokenizer(), text_encoder_2=clip(), tokenizer_2=tokenizer(),
        text_encoder_3=t5(), tokenizer_3=t5_tokenizer(),
    )  # fmt: skip


def flux() -> Any:
    denoiser = FluxTransformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=T5_WIDTH, pooled_projection_dim=TEXT_WIDTH,
        guidance_embeds=True, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    return FluxPipeline(
        scheduler=flow(use_dynamic_shifting=True), vae=vae(shift_factor=0.1),
        text_encoder=clip(CLIPTextModel), tokenizer=tokenizer(), text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(), transformer=lively(denoiser),
    )  # fmt: skip


def gemma_tokenizer() -> GemmaTokenizer:
    """One token a letter; capitals and signs are unknown."""
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "▁", *(chr(n) for n in range(97, 123))]
    return GemmaTokenizer(vocab={word: n for n, word in enumerate(words)}, merges=[])


def sana() -> Any:
    denoiser = SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=3,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16,
        caption_channels=16, sample_size=SIDE,
    )  # fmt: skip
    gemma = Gemma2Model(
        Gemma2Config(
            vocab_size=len(gemma_tokenizer()), hidden_size=16, intermediate_size=32, head_dim=8,
            num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        )
    )  # fmt: skip
    autoencoder = AutoencoderDC(
        latent_channels=4, attention_head_dim=2, encoder_block_types=("ResBlock", "ResBlock"),
        decoder_block_types=("ResBlock", "ResBlock"), encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8), encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()), encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1), downsample_block_type="conv",
        upsample_block_type="interpolate", decoder_norm_types="rms_norm", decoder_act_fns="silu",
    )  # fmt: skip
    return SanaPipeline(
        tokenizer=gemma_tokenizer(), text_encoder=gemma, vae=autoencoder,
        transformer=lively(denoiser), scheduler=flow(),
    )  # fmt: skip


def bert_tokenizer() -> BertTokenizer:
    """One token a letter, and others inside words."""
    letters = [chr(n) for n in range(97, 123)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *("##" + a for a in letters)]
    return BertTokenizer(vocab={word: n for n, word in enumerate(words)})


def hunyuan() -> Any:
    denoiser = HunyuanDiT2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, patch_size=2, hidden_size=16,
        sample_size=SIDE, num_layers=4, cross_attention_dim=16, cross_attention_dim_t5=T5_WIDTH,
        pooled_projection_dim=16,
    )  # fmt: skip
    bert = BertModel(
        BertConfig(vocab_size=len(bert_tokenizer()), hidden_size=16, num_hidden_layers=2,
                   num_attention_heads=2, intermediate_size=32)
    )  # fmt: skip
    return HunyuanDiTPipeline(
        vae=vae(block_out_channels=(8,) * 4, down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4),
        text_encoder=bert, tokenizer=bert_tokenizer(), transformer=lively(denoiser),
        scheduler=scheduler(prediction_type="v_prediction"), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False, text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(),
    )  # fmt: skip


FAMILIES = {
    "sdxl": sdxl,
    "pixart_alpha": pixart_alpha,
    "pixart_sigma": pixart_sigma,
    "sana": sana,
    "hunyuan": hunyuan,
    "sd3": sd3,
    "flux": flux,
}


def save(folder: Path, family: str) -> Path:
    """A random-weight pipeline as a diffusers folder, the same at each call."""
    torch.manual_seed(1)
    FAMILIES[family]().save_pretrained(folder)
    if family == "flux":
        (folder / "nemo").mkdir()
        (folder / "nemo" / "generation.json").write_text(f'{{"side": {SIDE}}}')
    return folder


def options(family: str) -> dict[str, Any]:
    """What a pipeline must be told to draw as small as these models do, at once."""
    side = 8 * SIDE if family == "hunyuan" else 2 * SIDE
    told: dict[str, Any] = {"output_type": "np", "height": side, "width": side}
    if family.startswith("pixart") or family == "sana":
        told |= {"clean_caption": False, "use_resolution_binning": False}
    if family == "hunyuan":
        told |= {"use_resolution_binning": False}
    if family.startswith("pixart") or family in ("sd3", "flux"):
        told |= {"max_sequence_length": T5_TOKENS}
    return told


@torch.no_grad()
def raw(family: str, pipe: Any, noise: torch.Tensor, prompt: str, timestep: float) -> torch.Tensor:
    """The denoiser's prediction that tells prompts apart, through the pipeline's own functions."""
    times = torch.tensor([float(timestep)])
    if family == "sdxl":
        text, _, pooled, _ = pipe.encode_prompt(prompt, do_classifier_free_guidance=False)
        side = 2 * SIDE
        ids = torch.tensor([[side, side, 0, 0, side, side]])
        added = {"text_embeds": pooled, "time_ids": ids}
        return pipe.unet(noise, times, text, added_cond_kwargs=added).sample
    if family.startswith("pixart"):
        text, mask, _, _ = pipe.encode_prompt(
            prompt, do_classifier_free_guidance=False, max_sequence_length=T5_TOKENS
        )
        added = {"resolution": torch.tensor([[32.0, 32.0]]), "aspect_ratio": torch.ones(1, 1)}
        output = pipe.transformer(
            noise, text, times, encoder_attention_mask=mask, added_cond_kwargs=added
        ).sample
        return output[:, :4]
    if family == "sd3":
        text, _, pooled, _ = pipe.encode_prompt(
            prompt, None, None, do_classifier_free_guidance=False, max_sequence_length=T5_TOKENS
        )
        return pipe.transformer(noise, text, pooled, times).sample
    if family == "sana":
        chi = signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
        text, mask, _, _ = pipe.encode_prompt(
            prompt, do_classifier_free_guidance=False, complex_human_instruction=chi
        )
        return pipe.transformer(noise, text, times, encoder_attention_mask=mask).sample
    if family == "hunyuan":
        (text, _, mask, _), (t5, _, t5_mask, _) = (
            pipe.encode_prompt(
                prompt, do_classifier_free_guidance=False, text_encoder_index=number,
                device=torch.device("cpu"),
            )
            for number in (0, 1)
        )  # fmt: skip
        grid = (SIDE // 2,) * 2
        crop = get_resize_crop_region_for_grid(grid, 32)
        output = pipe.transformer(
            noise, times, text, mask, t5, t5_mask,
            torch.tensor([[1024.0, 1024.0, 8 * SIDE, 8 * SIDE, 0, 0]]), torch.tensor([0]),
            get_2d_rotary_pos_embed(8, crop, grid, output_type="pt"),
        ).sample[:, :4]  # fmt: skip
        kept = pipe.scheduler.alphas_cumprod[int(timestep)]
        return kept**0.5 * output + (1 - kept) ** 0.5 * noise  # predicts v
    assert family == "flux"
    text, pooled, places = pipe.encode_prompt(prompt, max_sequence_length=T5_TOKENS)
    half = SIDE // 2
    output = pipe.transformer(
        pipe._pack_latents(noise, 1, 4, SIDE, SIDE), text, pooled, times / 1000,
        pipe._prepare_latent_image_ids(1, half, half, "cpu", torch.float32), places,
        torch.tensor([3.5]),
    ).sample  # fmt: skip
    return pipe._unpack_latents(output, 2 * SIDE, 2 * SIDE, 2)
