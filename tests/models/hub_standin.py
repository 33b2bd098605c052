"""A hub on this machine that serves repositories as the real one lists them, with small weights."""

from __future__ import annotations

import hashlib
import io
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from toys import tokenizer

COMMIT = "133a221b8aa7292a167afc5127cb63fb5005638b"
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_TOKENIZER = {
    "tokenizer/merges.txt": 524_619, "tokenizer/special_tokens_map.json": 472,
    "tokenizer/tokenizer_config.json": 806, "tokenizer/vocab.json": 1_059_962,
}  # fmt: skip
_COMMON = {
    ".gitattributes": 1_548, "README.md": 14_461, "model_index.json": 541,
    "feature_extractor/preprocessor_config.json": 342, "scheduler/scheduler_config.json": 313,
    "text_encoder/config.json": 592, "unet/config.json": 743, "vae/config.json": 551, **_TOKENIZER,
}  # fmt: skip
_SAFETY = {
    "safety_checker/config.json": 4_723, "safety_checker/model.safetensors": 1_215_981_830,
    "safety_checker/pytorch_model.bin": 1_216_061_799,
}  # fmt: skip


def _copies(part: str, plain: str, old: str, size: int, *variants: str) -> dict[str, int]:
    """A part's weights in safetensors and pickles, in full precision and as variants."""
    names = [f"{plain}{{}}.safetensors", f"{old}{{}}.bin"]
    return {
        f"{part}/{name.format(f'.{variant}' if variant else '')}": size // (1 + (variant == "fp16"))
        for name in names
        for variant in ("", *variants)
    }


def _all_copies(unet: int, encoder: int, *variants: str) -> dict[str, int]:
    model = "diffusion_pytorch_model"
    return {
        **_copies("text_encoder", "model", "pytorch_model", encoder, *variants),
        **_copies("unet", model, model, unet, *variants),
        **_copies("vae", model, model, 334_643_276, *variants),
    }


# Names and sizes of the repositories' files, as the hub lists them.
FILES: dict[str, dict[str, int]] = {
    "CompVis/stable-diffusion-v1-4": {
        **_COMMON, **_SAFETY, **_all_copies(3_438_167_536, 492_265_880, "fp16"),
    },
    "stable-diffusion-v1-5/stable-diffusion-v1-5": {
        **_COMMON, **_SAFETY, **_all_copies(3_438_167_536, 492_265_880, "fp16"),
        "unet/diffusion_pytorch_model.non_ema.safetensors": 3_438_167_536,
        "unet/diffusion_pytorch_model.non_ema.bin": 3_438_366_373,
        "v1-5-pruned-emaonly.ckpt": 4_265_380_512, "v1-5-pruned-emaonly.safetensors": 4_265_146_304,
        "v1-5-pruned.ckpt": 7_703_807_346, "v1-5-pruned.safetensors": 7_703_324_286,
        "v1-inference.yaml": 1_873,
    },
    "stabilityai/stable-diffusion-2-base": {
        **_COMMON, **_all_copies(3_463_726_504, 1_361_596_304, "fp16"),
        "512-base-ema.ckpt": 5_214_865_159, "512-base-ema.safetensors": 5_214_555_376,
    },
    "stabilityai/stable-diffusion-2-1": {
        **_COMMON, **_all_copies(3_463_726_504, 1_361_596_304, "fp16"),
        "v2-1_768-ema-pruned.ckpt": 5_214_865_159, "v2-1_768-nonema-pruned.ckpt": 5_214_865_159,
        "v2-1_768-ema-pruned.safetensors": 5_214_555_376,
    },
    "owner/pickles-alone": {  # a fine-tune of 2022: no safetensors, and a checkpoint beside
        **{n: s for n, s in _COMMON.items() if not n.startswith("feature_extractor")},
        "text_encoder/pytorch_model.bin": 492_307_041,
        "unet/diffusion_pytorch_model.bin": 3_438_354_725,
        "vae/diffusion_pytorch_model.bin": 334_707_217, "nitroDiffusion-v1.ckpt": 2_132_888_989,
    },
    "owner/half-alone": {  # a fine-tune saved with variant="fp16"
        **_COMMON, "text_encoder/model.fp16.safetensors": 246_144_352,
        "unet/diffusion_pytorch_model.fp16.safetensors": 1_719_125_304,
        "vae/diffusion_pytorch_model.fp16.safetensors": 167_335_342,
        "model_fp16.safetensors": 2_132_696_762,
    },
}  # fmt: skip
_SCHEDULERS: dict[str, dict[str, Any]] = {
    "CompVis/stable-diffusion-v1-4": {
        "_class_name": "PNDMScheduler", **BETAS, "num_train_timesteps": 1000,
        "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1,
        "trained_betas": None, "clip_sample": False,
    },
    "stabilityai/stable-diffusion-2-1": {
        "_class_name": "DDIMScheduler", **BETAS, "num_train_timesteps": 1000, "steps_offset": 1,
        "clip_sample": False, "prediction_type": "v_prediction", "set_alpha_to_one": False,
        "skip_prk_steps": True, "trained_betas": None,
    },
    "owner/half-alone": {
        "_class_name": "EulerAncestralDiscreteScheduler", **BETAS, "num_train_timesteps": 1000,
        "prediction_type": "epsilon", "steps_offset": 1, "timestep_spacing": "leading",
    },
}  # fmt: skip


def repository(name: str, toy: Path) -> dict[str, bytes]:
    """The content of each listed file: small weights of the toy, and nonsense elsewhere."""
    scheduler = _SCHEDULERS.get(name, _SCHEDULERS["CompVis/stable-diffusion-v1-4"])
    index = json.loads((toy / "model_index.json").read_text())
    index |= {
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "feature_extractor": ["transformers", "CLIPFeatureExtractor"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    }
    index.pop("image_encoder", None)  # older than it
    known = {
        "model_index.json": json.dumps(index).encode(),
        "scheduler/scheduler_config.json": json.dumps(scheduler).encode(),
        "tokenizer/vocab.json": json.dumps(tokenizer().get_vocab()).encode(),
        "tokenizer/merges.txt": b"#version: 0.2\n",
        "tokenizer/special_tokens_map.json": b"{}",
    }
    return {file: known.get(file) or _content(toy, file) for file in FILES[name]}


def _content(toy: Path, file: str) -> bytes:
    if (toy / file).is_file() and file.endswith(".json"):
        return (toy / file).read_bytes()
    part = file.split("/")[0]
    if part not in ("unet", "vae", "text_encoder"):
        return b"nothing that may be read"
    weights = load_file(next((toy / part).glob("*.safetensors")))
    if "fp16" in file:
        weights = {name: tensor.half() for name, tensor in weights.items()}
    if "non_ema" in file:
        weights = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    if file.endswith(".safetensors"):
        return save(weights, {"format": "pt"})
    pickled = io.BytesIO()
    torch.save(weights, pickled)
    return pickled.getvalue()


@contextmanager
def served(name: str, files: Mapping[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    """The address of a hub that holds this repository, and which of its files were fetched."""
    fetched: list[str] = []
    sizes = FILES.get(name) or {file: len(content) for file, content in files.items()}

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(False)

        def do_GET(self) -> None:
            self._answer(True)

        def _answer(self, body: bool) -> None:
            path = self.path.split("?")[0].lstrip("/")
            if path.startswith(f"api/models/{name}/tree"):
                tree = [{"type": "file", "path": f, "size": s, "oid": COMMIT}
                        for f, s in sizes.items()]  # fmt: skip
                return self._send(json.dumps(tree).encode(), body)
            if path.startswith(f"api/models/{name}"):
                listed = [{"rfilename": f, "size": s} for f, s in sizes.items()]
                about = {"id": name, "sha": COMMIT, "siblings": listed}
                return self._send(json.dumps(about).encode(), body)
            file = path.removeprefix(f"{name}/resolve/").partition("/")[2]
            if file not in files:
                self.send_error(404)
                return None
            if body:
                fetched.append(file)
            return self._send(files[file], body, file)

        def _send(self, content: bytes, body: bool, name: str = "") -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            digest = hashlib.sha1(name.encode() + content).hexdigest()  # each file its own
            self.send_header("ETag", f'"{digest}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", fetched
    finally:
        server.shutdown()
        server.server_close()
