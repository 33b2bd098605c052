"""The families' files as they are published: vocabularies, LoRAs, repositories, checkpoints."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pipelines
import pytest
import sentencepiece
import torch
from conftest import TOY_PROMPTS, TOY_SIMILARITY
from diffusers import DiffusionPipeline
from hub_standin import COMMIT, served
from huggingface_hub import constants
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save, save_file
from test_cli import call
from test_hub import go_online
from torch import Tensor
from toys import tokenizer

from nemo_kit.localization import calibrate
from nemo_kit.models import DiffusionModel, load
from nemo_kit.store.work import ModelRef, model_key

Folder = Callable[[str], Path]
TEXTS = ["a red cup", "", "  two   cups\nof tea ", "ﬁne Café ①", "日本 7!"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Where a family's small pipeline is saved."""
    place = tmp_path_factory.mktemp("families")
    return cache(lambda family: pipelines.save(place / family, family))


# -------------------------------------------------------------------------------- vocabularies


@pytest.fixture(scope="module")
def spiece() -> bytes:
    """A vocabulary of SentencePiece with the places of T5's special tokens."""
    held = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a red cup of tea, two cups", "a dog by the sea", "fine café 1 7"]),
        model_writer=held, vocab_size=80, hard_vocab_limit=False, minloglevel=2,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
    )  # fmt: skip
    return held.getvalue()


@pytest.mark.parametrize(
    ("family", "part"),
    [
        ("pixart_alpha", "tokenizer"),
        ("pixart_sigma", "tokenizer"),
        ("hunyuan", "tokenizer_2"),
        ("sd3", "tokenizer_3"),
        ("flux", "tokenizer_2"),
    ],
)
def test_t5_s_vocabulary_may_be_a_file_of_sentencepiece(
    family: str, part: str, folder: Folder, spiece: bytes, tmp_path: Path
) -> None:
    place = Path(shutil.copytree(folder(family), tmp_path / "model"))
    own = sentencepiece.SentencePieceProcessor(model_proto=spiece)
    names = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    more = [f"<extra_id_{number}>" for number in range(10)]
    told = {"tokenizer_class": "T5Tokenizer", "model_max_length": pipelines.T5_TOKENS,
            "extra_ids": 10, "additional_special_tokens": more, "sp_model_kwargs": {}}  # fmt: skip
    shutil.rmtree(place / part)
    (place / part).mkdir()
    (place / part / "spiece.model").write_bytes(spiece)
    for name, content in (
        ("tokenizer_config", names | told),
        ("special_tokens_map", names | {"additional_special_tokens": more}),
        ("added_tokens", {token: len(own) + n for n, token in enumerate(reversed(more))}),
    ):
        (place / part / f"{name}.json").write_text(json.dumps(content), "utf-8")
    model = load(str(place), device="cpu")
    found = [model.tokenizers[part](text).input_ids for text in TEXTS]
    assert found == [[*own.encode(text), own.eos_id()] for text in TEXTS]
    tokens = model.predict_compared(model.noise([1, 1]), 900, model.embed(["a red cup", "a dog"]))
    assert not torch.allclose(*tokens, atol=1e-4)


# ---------------------------------------------------------------------------------------- LoRA

ENCODERS = {
    "sdxl": ("text_encoder", "text_encoder_2"),
    "sd3": ("text_encoder", "text_encoder_2"),
    "flux": ("text_encoder",),
    "sana": (),
}


@pytest.fixture(params=list(ENCODERS))
def trained(request: pytest.FixtureRequest, folder: Folder, tmp_path: Path) -> Any:
    """A family, a LoRA of it as diffusers saves one, and what it adds to each weight."""
    family, added = request.param, {}
    pipe = DiffusionPipeline.from_pretrained(folder(family))
    denoising = "unet" if family == "sdxl" else "transformer"
    aimed = {denoising: ["to_k", "to_v", "add_v_proj"]}
    aimed |= {part: ["q_proj", "out_proj"] for part in ENCODERS[family]}
    held: dict[str, Any] = {}
    for part, names in aimed.items():
        module = getattr(pipe, part)
        told = LoraConfig(r=2, lora_alpha=6, init_lora_weights=False, target_modules=names)
        module.add_adapter(told)
        weights = get_peft_model_state_dict(module)
        held[f"{part}_lora_layers"] = weights
        held[f"{part}_lora_adapter_metadata"] = told.to_dict()
        for name in [n for n in weights if ".lora_A." in n]:
            up = weights[name.replace(".lora_A.", ".lora_B.")]
            where = name.removesuffix(".lora_A.weight")
            added[part, f"{where}.weight"] = 3 * up @ weights[name]  # alpha / rank
    pipe.save_lora_weights(tmp_path, weight_name="a.safetensors", **held)
    return family, tmp_path / "a.safetensors", added


def changes(model: DiffusionModel, base: DiffusionModel) -> dict[tuple[str, str], Tensor]:
    """What was added to each weight, by part and name, where it was."""
    parts = {model.denoising: (model.denoiser, base.denoiser)}
    names = [name for name in base.text_encoder if name in model.text_encoder]
    parts |= {name: (model.text_encoder[name], base.text_encoder[name]) for name in names}
    found = {}
    for part, (module, before) in parts.items():
        own, old = module.state_dict(), before.state_dict()
        assert own.keys() == old.keys()
        found |= {(part, n): own[n] - old[n] for n in own if not torch.equal(own[n], old[n])}
    return found


def test_a_lora_is_fused_into_denoiser_and_text_encoders(trained: Any, folder: Folder) -> None:
    family, file, added = trained
    base = load(str(folder(family)), device="cpu")
    model = load(str(folder(family)), device="cpu", lora=f"{file}:0.5")
    found = changes(model, base)
    assert found.keys() == added.keys()
    for name, change in found.items():
        torch.testing.assert_close(change, added[name] / 2, rtol=1e-4, atol=1e-5)
    assert [one.name for one in model.value_layers] == [one.name for one in base.value_layers]


def test_a_lora_counts_in_keys_and_has_its_own_calibration(
    trained: Any, folder: Folder, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], tmp_path: Path,
) -> None:  # fmt: skip
    family, file, _ = trained
    place = Path(shutil.copytree(folder(family), tmp_path / "model"))
    base = load(str(place), device="cpu")
    calibrate(base, TOY_PROMPTS[:5], [1, 2, 3], similarity=TOY_SIMILARITY).save(place / "nemo")
    model = load(str(place), device="cpu", lora=file)
    assert load(str(place), device="cpu").calibration
    assert model.calibration is None
    key = model_key(model)
    assert key["lora"] == model.lora.sha256
    assert key["weights"] != model_key(base)["weights"]
    with ModelRef.of(model, "cpu").borrow() as opened:
        assert model_key(opened) == key
    monkeypatch.chdir(tmp_path)
    words = ["detect", "a red cup", "--model", str(place), "--seeds", "3", "--lora", str(file)]
    capsys.readouterr()
    assert call(monkeypatch, *words) == 2
    assert "has no threshold" in capsys.readouterr().err
    (tmp_path / "held.txt").write_text("\n".join(TOY_PROMPTS[:5]), "utf-8")
    assert call(monkeypatch, *words, "--hold-out", "held.txt", "--json") == 0
    assert json.loads(capsys.readouterr().out)["prompt"] == "a red cup"


@pytest.mark.parametrize("family", ["pixart_alpha", "pixart_sigma", "hunyuan"])
def test_a_lora_is_refused_where_diffusers_reads_none(
    family: str, folder: Folder, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], tmp_path: Path,
) -> None:  # fmt: skip
    name = "transformer.transformer_blocks.0.attn2.to_v"
    pair = {f"{name}.lora_A.weight": torch.ones(1, 24), f"{name}.lora_B.weight": torch.ones(24, 1)}
    save_file(pair, tmp_path / "a.safetensors")
    words = [
        "detect",
        "x",
        "--model",
        str(folder(family)),
        "--lora",
        str(tmp_path / "a.safetensors"),
    ]
    capsys.readouterr()
    assert call(monkeypatch, *words) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "lora: diffusers reads none into a " in line


def kohya(family: str, model: DiffusionModel) -> tuple[dict[str, Tensor], dict[Any, Tensor]]:
    """A LoRA as kohya-ss names it, some of several layers in one; and what it adds."""
    draw = torch.Generator().manual_seed(0)
    aimed = {
        "sdxl": {
            "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_v": [
                ("unet", "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v")
            ],
            "lora_te1_text_model_encoder_layers_0_self_attn_out_proj": [
                ("text_encoder", "encoder.layers.0.self_attn.out_proj")
            ],
            "lora_te2_text_model_encoder_layers_1_self_attn_out_proj": [
                ("text_encoder_2", "text_model.encoder.layers.1.self_attn.out_proj")
            ],
        },
        "flux": {
            "lora_unet_double_blocks_0_txt_attn_qkv": [
                ("transformer", f"transformer_blocks.0.attn.add_{x}_proj") for x in "qkv"
            ],
            "lora_unet_double_blocks_1_img_attn_proj": [
                ("transformer", "transformer_blocks.1.attn.to_out.0")
            ],
            "lora_te1_text_model_encoder_layers_0_self_attn_out_proj": [
                ("text_encoder", "encoder.layers.0.self_attn.out_proj")
            ],
        },
    }[family]
    parts = {model.denoising: model.denoiser, **model.text_encoder}
    tensors, added = {}, {}
    for name, places in aimed.items():
        shapes = [parts[part].get_submodule(layer).weight.shape for part, layer in places]
        down = torch.randn(2, shapes[0][1], generator=draw)
        up = torch.randn(sum(shape[0] for shape in shapes), 2, generator=draw)
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up,
                    f"{name}.alpha": torch.tensor(1.0)}  # fmt: skip
        pieces = (up @ down / 2).split([shape[0] for shape in shapes])
        for (part, layer), piece in zip(places, pieces, strict=True):
            added[part, f"{layer}.weight"] = piece
    return tensors, added


@pytest.mark.parametrize("family", ["sdxl", "flux"])
def test_a_lora_of_kohya_s_is_fused_whole_or_refused(
    family: str, folder: Folder, tmp_path: Path
) -> None:
    base = load(str(folder(family)), device="cpu")
    tensors, added = kohya(family, base)
    file = tmp_path / "k.safetensors"
    save_file({name: one.contiguous() for name, one in tensors.items()}, file)
    found = changes(load(str(folder(family)), device="cpu", lora=file), base)
    assert found.keys() == added.keys()
    for name, change in found.items():
        torch.testing.assert_close(change, added[name], rtol=1e-4, atol=1e-5)
    lost = "lora_te3_encoder_block_0_layer_0_SelfAttention_q"  # what diffusers leaves out
    pair = {
        f"{lost}.lora_down.weight": torch.ones(2, 32),
        f"{lost}.lora_up.weight": torch.ones(8, 2),
    }
    save_file(tensors | pair, file)
    with pytest.raises(ValueError, match=r"lora: .*k\.safetensors"):
        load(str(folder(family)), device="cpu", lora=file)


# ------------------------------------------------------------------------- hub and single files

CLIP = ["merges.txt", "special_tokens_map.json", "tokenizer_config.json", "vocab.json"]
T5 = ["special_tokens_map.json", "spiece.model", "tokenizer.json", "tokenizer_config.json"]
ONNX = ["model.onnx", "model.onnx_data", "openvino_model.bin", "openvino_model.xml"]


def shards(stem: str, count: int, variant: str = "") -> list[str]:
    """File names of weights in parts, with their index."""
    names = [f"{stem}{variant}-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
    return [*names, f"{stem}.safetensors.index{variant}.json"]


# What the hub lists: of each folder the files that are needed, and those that are not.
PUBLISHED: dict[str, tuple[str, dict[str, tuple[list[str], list[str]]]]] = {
    "stabilityai/stable-diffusion-xl-base-1.0": ("sdxl", {
        "": (["model_index.json"], [
            ".gitattributes", "01.png", "LICENSE.md", "README.md", "comparison.png", "pipeline.png",
            "sd_xl_base_1.0.safetensors", "sd_xl_base_1.0_0.9vae.safetensors",
            "sd_xl_offset_example-lora_1.0.safetensors",
        ]),
        "scheduler": (["scheduler_config.json"], []),
        "text_encoder": (["config.json", "model.safetensors"], [
            "flax_model.msgpack", "model.fp16.safetensors", *ONNX,
        ]),
        "text_encoder_2": (["config.json", "model.safetensors"], [
            "flax_model.msgpack", "model.fp16.safetensors", *ONNX,
        ]),
        "tokenizer": (CLIP, []),
        "tokenizer_2": (CLIP, []),
        "unet": (["config.json", "diffusion_pytorch_model.safetensors"], [
            "diffusion_flax_model.msgpack", "diffusion_pytorch_model.fp16.safetensors", *ONNX,
        ]),
        "vae": (["config.json", "diffusion_pytorch_model.safetensors"], [
            "diffusion_flax_model.msgpack", "diffusion_pytorch_model.fp16.safetensors",
        ]),
        "vae_1_0": ([], ["config.json", "diffusion_pytorch_model.fp16.safetensors",
                         "diffusion_pytorch_model.safetensors"]),
        "vae_decoder": ([], ["config.json", *ONNX]),
        "vae_encoder": ([], ["config.json", *ONNX]),
    }),
    "stabilityai/stable-diffusion-3.5-medium": ("sd3", {
        "": (["model_index.json"], [
            ".gitattributes", "LICENSE.md", "README.md", "SD3.5M_example_workflow.json",
            "mmdit-x.png", "sd3.5_medium.safetensors", "sd3_medium_demo.jpg",
        ]),
        "scheduler": (["scheduler_config.json"], []),
        "text_encoder": (["config.json", "model.safetensors"], ["model.fp16.safetensors"]),
        "text_encoder_2": (["config.json", "model.safetensors"], ["model.fp16.safetensors"]),
        "text_encoder_3": (["config.json", *shards("model", 2)], shards("model", 2, ".fp16")),
        "text_encoders": ([], ["clip_g.safetensors", "clip_l.safetensors",
                               "t5xxl_fp16.safetensors", "t5xxl_fp8_e4m3fn.safetensors"]),
        "tokenizer": (CLIP, []),
        "tokenizer_2": (CLIP, []),
        "tokenizer_3": (T5, []),
        "transformer": (["config.json", "diffusion_pytorch_model.safetensors"], []),
        "vae": (["config.json", "diffusion_pytorch_model.safetensors"], []),
    }),
    "black-forest-labs/FLUX.1-dev": ("flux", {
        "": (["model_index.json"], [
            ".gitattributes", "LICENSE.md", "README.md", "ae.safetensors", "dev_grid.jpg",
            "flux1-dev.safetensors",
        ]),
        "nemo": (["generation.json"], []),  # ours: of small latents
        "scheduler": (["scheduler_config.json"], []),
        "text_encoder": (["config.json", "model.safetensors"], []),
        "text_encoder_2": (["config.json", *shards("model", 2)], []),
        "tokenizer": (CLIP, []),
        "tokenizer_2": (T5, []),
        "transformer": (["config.json", *shards("diffusion_pytorch_model", 3)], []),
        "vae": (["config.json", "diffusion_pytorch_model.safetensors"], []),
    }),
}  # fmt: skip


def weights_as(folder: Path, names: list[str]) -> dict[str, bytes]:
    """A part's weights under these names, over several files where their index is one of them."""
    held = load_file(next(folder.glob("*.safetensors")))
    found: dict[str, bytes] = {}
    for index in [name for name in names if ".index" in name]:
        variant = ".fp16" if "fp16" in index else ""
        own = [name for name in names if f"{variant}-0" in name and name != index]
        own = [name for name in own if ("fp16" in name) == bool(variant)]
        places = {tensor: own[n % len(own)] for n, tensor in enumerate(sorted(held))}
        told = {"metadata": {"total_size": 1}, "weight_map": places}
        found[index] = json.dumps(told).encode()
        for name in own:
            part = {tensor: held[tensor] for tensor in held if places[tensor] == name}
            found[name] = save(part, {"format": "pt"})
    plain = [name for name in names if name.endswith(".safetensors") and name not in found]
    return found | {name: save(held, {"format": "pt"}) for name in plain if "fp16" not in name}


def as_published(name: str, place: Path) -> dict[str, bytes]:
    """The content of each listed file; nonsense in those that are not needed."""
    _, parts = PUBLISHED[name]
    files = {}
    for part, (needed, others) in parts.items():
        there = place / part
        known = {file.name: file.read_bytes() for file in there.iterdir() if file.is_file()} \
            if there.is_dir() else {}  # fmt: skip
        if any(name.endswith(".safetensors") for name in needed):
            known |= weights_as(there, needed)
        if "merges.txt" in needed:
            vocabulary = json.dumps(tokenizer().get_vocab()).encode()
            known |= {"vocab.json": vocabulary, "merges.txt": b"#version: 0.2\n"}
        known |= {
            "special_tokens_map.json": b"{}",
            "spiece.model": b"not asked for beside the rest",
        }
        files |= {f"{part}/{file}".lstrip("/"): known[file] for file in needed}
        files |= {f"{part}/{file}".lstrip("/"): b"nothing that may be read" for file in others}
    return files


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_repository_s_needed_files_are_fetched_and_open_offline(
    name: str, folder: Folder, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], tmp_path: Path,
) -> None:  # fmt: skip
    family, parts = PUBLISHED[name]
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    files = as_published(name, folder(family))
    capsys.readouterr()
    with served(name, files) as (address, fetched), monkeypatch.context() as online:
        go_online(online, address)
        first = load(name, device="cpu")
    needed = {f"{part}/{file}".lstrip("/") for part, (own, _) in parts.items() for file in own}
    assert sorted(fetched) == sorted(needed)
    assert capsys.readouterr().err.startswith(f"downloading {name} (commit {COMMIT[:12]}): ")
    again, plain = load(name, device="cpu"), load(str(folder(family)), device="cpu")
    assert again.revision == first.revision == COMMIT
    given = plain.noise([1]), plain.timesteps(50)[1]
    wanted = plain.predict_compared(*given, plain.embed("a red cup"))
    for model in (first, again):
        found = model.predict_compared(*given, model.embed("a red cup"))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("tensor", "named"),
    [
        ("conditioner.embedders.0.transformer.text_model.final_layer_norm.bias", "Diffusion XL"),
        ("model.diffusion_model.joint_blocks.0.context_block.attn.qkv.weight", "Diffusion 3"),
        ("double_blocks.0.img_attn.qkv.weight", "FLUX"),
        ("model.diffusion_model.double_blocks.0.img_attn.qkv.weight", "FLUX"),
        ("blocks.0.cross_attn.kv_linear.weight", "PixArt or Sana"),
        ("blocks.0.attn2.kv_proj.weight", "HunyuanDiT"),
    ],
)
def test_a_checkpoint_of_another_family_is_refused_by_its_name(
    tensor: str, named: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], tmp_path: Path,
) -> None:  # fmt: skip
    file = tmp_path / "x.safetensors"
    unet = "model.diffusion_model.input_blocks.0.0.weight"  # of XL too
    save_file({tensor: torch.zeros(1), unet: torch.zeros(1)}, file)
    for more in ([], ["--config", "owner/model"]):
        assert call(monkeypatch, "detect", "x", "--model", str(file), *more) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert f"a checkpoint of {'' if 'Diff' not in named else 'Stable '}{named}, which" in line
