"""One small object for a text-to-image model: embeds prompts, draws noise, predicts noise.

Scope: Stable Diffusion 1.x and 2.x, and the embedded model `lab`, each a diffusers folder or hub
id. Models are opened with `from_pretrained` alone, never with custom pipelines or remote code.
Source: "Finding NeMo" (arXiv 2406.02366), section 2 (the model's parts) and section 4 (settings).
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nemo_kit import hub
from nemo_kit.calibration import CALIBRATION_FILE, Calibration, published
from nemo_kit.checks import HALF_PRECISION, check_choice, check_seeds, check_texts
from nemo_kit.layers import Projection, key_layers, searched, value_layers

VERSION = 1  # raised where results change (see nemo_kit.keys)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_ALLOWED = 'name must be "lab", a folder with a diffusers model, or a hub id "owner/model"'
GENERATION_FILE = "generation.json"
DTYPES = ("auto", "float32", "float16", "bfloat16")
_TEXTS_AT_ONCE = 64
_IMAGES_AT_ONCE = 8


class DiffusionModel:
    """A text-to-image model behind the few operations the method needs.

    Parameters: the parts of a pipeline, all on `device`; see `load`, which makes one.
    Attributes: `value_layers`, `key_layers` (all), `searched` (value layers of down and mid),
    `calibration` (or None), `guidance` (of its images: 7 as in the paper, unless the folder says
    another), `samples_evaluated` (samples the denoiser has processed so far), `compiled` (None, or
    what `predict` calls in place of the denoiser: see `nemo_kit.compilation`).
    """

    def __init__(
        self,
        *,
        name: str,
        denoiser: nn.Module,
        text_encoder: nn.Module,
        tokenizer: Any,
        vae: nn.Module,
        scheduler: Any,
        device: torch.device,
        dtype: torch.dtype,
        revision: str | None = None,
        calibration: Calibration | None = None,
        guidance: float = 7.0,
    ) -> None:
        self.guidance = guidance
        self.name, self.revision = name, revision
        self.denoiser, self.text_encoder, self.vae = denoiser, text_encoder, vae
        self.tokenizer, self.scheduler = tokenizer, scheduler
        self.device, self.dtype = device, dtype
        self.calibration = calibration
        self.samples_evaluated = 0
        self.compiled: Callable[..., Any] | None = None
        self.value_layers = value_layers(denoiser)
        self.key_layers = key_layers(denoiser)
        self.searched: tuple[Projection, ...] = searched(self.value_layers)
        for module in (denoiser, text_encoder, vae):
            module.eval().requires_grad_(False)

    def __repr__(self) -> str:
        return f"DiffusionModel({self.name!r}, {self.device}, {self.dtype})"

    def embed(self, prompts: str | Sequence[str]) -> Tensor:
        """The text encoder's embeddings, padded or cut to its length; cutting is warned of.

        Returns [N, tokens, dim]. The empty prompt is allowed: it is the unconditional one.
        Raises TypeError where a prompt is no text, ValueError where there is none.
        """
        texts = check_texts(prompts, empty_allowed=True)
        parts = [texts[i : i + _TEXTS_AT_ONCE] for i in range(0, len(texts), _TEXTS_AT_ONCE)]
        length = min(self.tokenizer.model_max_length, self._config.max_position_embeddings)
        if any(len(ids) > length for ids in self.tokenizer(texts, verbose=False).input_ids):
            told = f"prompts of more than the text encoder's {length} tokens are cut to them"
            warnings.warn(told, RuntimeWarning, stacklevel=2)  # one text: shown once, not a prompt
        with torch.no_grad():
            return torch.cat([self._embed(part, length) for part in parts])

    def _embed(self, texts: list[str], length: int) -> Tensor:
        tokens = self.tokenizer(
            texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).to(self.device)
        mask = tokens.attention_mask if getattr(self._config, "use_attention_mask", False) else None
        return self.text_encoder(tokens.input_ids, attention_mask=mask)[0]

    @property
    def _config(self) -> Any:
        return self.text_encoder.config

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a latent."""
        size = self.denoiser.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return self.denoiser.config.in_channels, height, width

    def noise(self, seeds: Iterable[int]) -> Tensor:
        """Initial noise x_T, one generator on the CPU for each seed.

        Returns [N, C, H, W], float32, on the model's device, scaled as its scheduler wants it.
        Raises ValueError where there is no seed or one is no integer.
        """
        drawn = []
        for seed in check_seeds(seeds):
            generator = torch.Generator("cpu").manual_seed(seed)
            drawn.append(torch.randn(self.latent_shape, generator=generator))
        return torch.stack(drawn).to(self.device) * self.scheduler.init_noise_sigma

    def timesteps(self, steps: int) -> Tensor:
        """The scheduler's timesteps for that many DDIM steps, noisiest first: [steps]."""
        self.scheduler.set_timesteps(steps)
        return self.scheduler.timesteps

    def predict(self, latents: Tensor, timestep: Tensor | int, embeddings: Tensor) -> Tensor:
        """One denoiser call: its raw output (ε, v or x_0, as it was trained), float32.

        Returns [N, C, H, W]; adds N to `samples_evaluated`.
        Raises ValueError for unequal numbers of latents and embeddings, or other latent shapes.
        """
        if latents.shape[1:] != self.latent_shape or len(latents) != len(embeddings):
            raise ValueError(
                f"latents must be [N, {', '.join(map(str, self.latent_shape))}] for N embeddings, "
                f"got {list(latents.shape)} for {len(embeddings)}"
            )
        scaled = self.scheduler.scale_model_input(latents, timestep)
        output = (self.compiled or self.denoiser)(
            scaled.to(self.dtype),
            torch.as_tensor(timestep, device=self.device),
            encoder_hidden_states=embeddings.to(self.dtype),
            return_dict=False,
        )[0]
        self.samples_evaluated += len(latents)
        return output.float()

    def predict_noise(self, latents: Tensor, timestep: Tensor | int, embeddings: Tensor) -> Tensor:
        """The predicted noise ε_θ(x, t, y), also for models trained to predict v or x_0.

        Returns [N, C, H, W], float32; adds N to `samples_evaluated`.
        Parameters: `latents`, [N, C, H, W]; `timestep`, one or [N]; `embeddings`, [N, tokens, dim].
        Raises ValueError as `predict`.
        Source: section 2; with a = ᾱ_t, ε = √a·v + √(1−a)·x, and ε = (x − √a·x_0)/√(1−a).
        """
        output = self.predict(latents, timestep, embeddings)
        kind = self.scheduler.config.prediction_type
        if kind == "epsilon":
            return output
        places = torch.as_tensor(timestep).long().cpu().reshape(-1, 1, 1, 1)
        kept = self.scheduler.alphas_cumprod[places].to(output)  # [1 or N, 1, 1, 1]
        if kind == "v_prediction":
            return kept**0.5 * output + (1 - kept) ** 0.5 * latents.float()
        return (latents.float() - kept**0.5 * output) / (1 - kept) ** 0.5

    def decode(self, latents: Tensor) -> np.ndarray:
        """Images of final latents: uint8 [N, H, W, 3].

        Raises ValueError where a latent is not finite.
        """
        if not torch.isfinite(latents).all():
            raise ValueError(f"latents must be finite, got NaN or infinity ({HALF_PRECISION})")
        with torch.no_grad():
            parts = [self._decode(part) for part in latents.split(_IMAGES_AT_ONCE)]
        return torch.cat(parts).permute(0, 2, 3, 1).cpu().numpy()

    def _decode(self, latents: Tensor) -> Tensor:
        scaled = latents.to(self.device, self.vae.dtype) / self.vae.config.scaling_factor
        image = self.vae.decode(scaled, return_dict=False)[0].float()
        return ((image / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)

    def value_activations(
        self, embeddings: Tensor, layers: Iterable[Projection] | None = None
    ) -> dict[int, Tensor]:
        """Outputs of the value projections, from the text side alone: no denoiser call.

        Returns layer -> [N, tokens, width], float32, as a hook in the running denoiser sees them.
        Parameters: `embeddings`, from `embed`; `layers`, by default all value layers.
        Source: Algorithm 2 needs only these, since `attn2.to_v` reads nothing but the text.
        """
        chosen = self.value_layers if layers is None else tuple(layers)
        inputs = embeddings.to(self.device, self.dtype)
        with torch.no_grad():
            return {p.index: self.denoiser.get_submodule(p.name)(inputs).float() for p in chosen}


def load(
    name: str = "lab",
    device: str = "auto",
    dtype: torch.dtype | str | None = "auto",
    revision: str | None = None,
) -> DiffusionModel:
    """Open a model.

    Returns a `DiffusionModel`; a folder `nemo` beside its parts is read as its calibration.
    Parameters: `name`, "lab" (embedded), a diffusers folder, or a hub id; `device`, "auto", "cpu",
    "cuda" or another of torch's; `dtype`, one of torch's or "float32", "float16", "bfloat16";
    "auto" (or None) is float16 on cuda, float32 elsewhere;
    `revision`, the hub's commit, which a published result should name. A hub model that is not on
    this machine is downloaded, after a line that says how large it is.
    Raises ValueError for an unknown name, device or dtype, for models of another shape, and where
    the hub can't be reached.
    """
    path = resolve(name)
    place = _device(device)
    kind = _dtype(dtype, place)
    if isinstance(path, str):
        path, revision = hub.fetch(path, revision)
    parts = _open(name, path, kind)
    _check_parts(parts)
    from diffusers import DDIMScheduler

    return DiffusionModel(
        name=name,
        denoiser=_cast(parts.unet, place, kind),
        text_encoder=_cast(parts.text_encoder, place, kind),
        tokenizer=parts.tokenizer,
        vae=_cast(parts.vae, place, kind),
        scheduler=DDIMScheduler.from_config(parts.scheduler.config),
        device=place,
        dtype=kind,
        revision=revision,
        calibration=_calibration(name, path),
        guidance=_guidance(path),
    )


def resolve(name: str) -> str | Path:
    """The folder (a path) or hub id (a text) a name means; raises ValueError for other names."""
    if not isinstance(name, str) or not name:
        raise ValueError(f"{_ALLOWED}; got {name!r}")
    if name == "lab":
        folder = Path(str(files("nemo_kit"))) / "lab" / "model"
        if not (folder / "model_index.json").is_file():
            raise ValueError(f"name: the embedded model is missing from {folder}; run `make lab`")
        return folder
    if Path(name).is_dir():
        if not (Path(name) / "model_index.json").is_file():
            raise ValueError(f"{_ALLOWED}; the folder {name!r} has no model_index.json")
        return Path(name)
    if not _HUB_ID.fullmatch(name):
        raise ValueError(f"{_ALLOWED}; got {name!r}")
    return name


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f'device must be "auto", "cpu" or "cuda", got {device!r}') from error
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {device!r}, but torch sees no CUDA device here")
    return place


def default_dtype(device: torch.device) -> torch.dtype:
    """The number type that "auto" means on a device."""
    return torch.float16 if device.type == "cuda" else torch.float32


def _dtype(dtype: torch.dtype | str | None, place: torch.device) -> torch.dtype:
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
        return dtype
    dtype = "auto" if dtype is None else dtype
    check_choice("dtype", dtype, DTYPES)
    if dtype == "auto":
        return default_dtype(place)
    return getattr(torch, dtype)  # type: ignore[call-overload]


def _open(name: str, path: Path, dtype: torch.dtype) -> Any:
    """The pipeline's parts; no safety checker, since images are analysed, not shown around."""
    with _quiet():
        from diffusers import StableDiffusionPipeline

        try:
            return StableDiffusionPipeline.from_pretrained(
                path, dtype=dtype, safety_checker=None, requires_safety_checker=False
            )
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{_ALLOWED}; {name!r} could not be opened: {error}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the loaders' hints and progress bars."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    loggers = (diffusers_logging, transformers_logging)
    before = [(log, log.get_verbosity(), log.is_progress_bar_enabled()) for log in loggers]
    try:
        for log in loggers:
            log.set_verbosity_error()
            log.disable_progress_bar()
        yield
    finally:
        for log, verbosity, shown in before:
            log.set_verbosity(verbosity)
            if shown:
                log.enable_progress_bar()


def _cast(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    return module.to(device) if module.dtype == dtype else module.to(device, dtype)


def _check_parts(parts: Any) -> None:
    config = parts.unet.config
    if any(getattr(config, key, None) for key in ("encoder_hid_dim_type", "addition_embed_type")):
        raise ValueError(
            "name: this denoiser transforms the text embeddings; Stable Diffusion 1.x and 2.x don't"
        )
    if config.in_channels != parts.vae.config.latent_channels:
        raise ValueError(
            f"name: the denoiser takes {config.in_channels} channels, the latents have "
            f"{parts.vae.config.latent_channels}; inpainting and depth models are not supported"
        )


def _calibration(name: str, path: Path) -> Calibration | None:
    folder = path / "nemo"
    if (folder / CALIBRATION_FILE).is_file():
        found = Calibration.load(folder)
        return replace(found, source=found.source or str(folder))
    return published(name)


def _guidance(path: Path) -> float:
    """What `nemo/generation.json` in the folder says, else the paper's 7."""
    file = path / "nemo" / GENERATION_FILE
    if not file.is_file():
        return 7.0
    try:
        return float(json.loads(file.read_text("utf-8"))["guidance"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f'{file} must hold {{"guidance": number}}: {error!r}') from error
