"""One small object for a text-to-image model: embeds prompts, draws noise, predicts noise.

Scope: what all families share; what differs (conditioning, prediction, decoding) is a family's own
file. Source: "Finding NeMo" (arXiv 2406.02366), section 2 (the model's parts) and 4 (settings).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
import torch
from torch import Tensor, nn

from nemo_kit.calibration import Calibration
from nemo_kit.checks import HALF_PRECISION, check_choice, check_seeds
from nemo_kit.hooks import calling
from nemo_kit.layers import Projection
from nemo_kit.models import schedulers
from nemo_kit.models.lora import Lora
from nemo_kit.models.parts import open_part
from nemo_kit.settings import Noise

_IMAGES_AT_ONCE = 8


class DiffusionModel(ABC):
    """A text-to-image model behind the few operations the method needs; `load` makes one.

    A family is one file: it names its pipeline classes, the parts it needs of them and the settings
    of parts that it can't serve, and defines what is abstract here.
    Attributes: `value_layers`, `key_layers` (all), `searched` (value layers of down and mid),
    `calibration` (or None), `guidance` (of its images: 7 as in the paper, unless the folder says
    another), `samples_evaluated` (samples the denoiser has processed so far), `revision` (of a hub
    model), `config` (of a single file), `lora` (what was fused into the weights, or None).
    """

    pipelines: ClassVar[tuple[str, ...]]
    # name -> classes that model_index.json may say, the one that is opened first
    parts: ClassVar[Mapping[str, tuple[str, ...]]]
    # part -> setting -> what the part reads or gives where that is set, and no model here does
    foreign: ClassVar[Mapping[str, Mapping[str, str]]]

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
        lora: Lora | None = None,
        config: str | None = None,
    ) -> None:
        self.guidance = guidance
        self.name, self.revision, self.lora, self.config = name, revision, lora, config
        self.denoiser, self.text_encoder, self.vae = denoiser, text_encoder, vae
        self.tokenizer, self.scheduler = tokenizer, scheduler
        self.device, self.dtype = device, dtype
        self.calibration = calibration
        self.samples_evaluated = 0
        self.value_layers, self.key_layers, self.searched = self.find_layers(denoiser)
        for module in (denoiser, text_encoder, vae):
            module.eval().requires_grad_(False)

    def __repr__(self) -> str:
        fused = f", {self.lora}" if self.lora else ""
        return f"{type(self).__name__}({self.name!r}, {self.device}, {self.dtype}{fused})"

    @classmethod
    def open(cls, folder: Path, index: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
        """The parts of a diffusers folder by name, on the CPU; ValueError names what is wrong."""
        named = {part: entry[1] for part, entry in index.items() if part in cls.parts}
        return {
            part: open_part(folder, part, kinds[0], named.get(part), dtype, cls.check_config)
            for part, kinds in cls.parts.items()
        }

    @classmethod
    def check_config(cls, part: str, config: Mapping[str, Any]) -> None:
        """Raise ValueError for a part of another kind of model, by the setting that says so."""
        for name, what in cls.foreign.get(part, {}).items():
            value = config.get(name)
            if value is not None and value is not False:
                raise ValueError(f"{part}: {name} = {value!r:.40} means {what}; not supported")

    @classmethod
    @abstractmethod
    def pipeline(cls, parts: Mapping[str, Any]) -> Any:
        """A diffusers pipeline of these parts."""

    @classmethod
    @abstractmethod
    def check(cls, parts: Mapping[str, Any]) -> None:
        """Raise ValueError where the parts don't fit one another or the family."""

    @classmethod
    @abstractmethod
    def assemble(cls, parts: Mapping[str, Any], **about: Any) -> DiffusionModel:
        """The model of these parts."""

    @classmethod
    @abstractmethod
    def find_layers(cls, denoiser: nn.Module) -> tuple[tuple[Projection, ...], ...]:
        """All value projections, all key projections, and the value projections that are searched.

        Raises ValueError where the denoiser has none, or some that can't be placed.
        """

    @abstractmethod
    def embed(self, prompts: str | Sequence[str]) -> Tensor:
        """The text encoder's embeddings, padded or cut to its length; cutting is warned of.

        Returns [N, tokens, dim]. The empty prompt is allowed: it is the unconditional one.
        Raises TypeError where a prompt is no text, ValueError where there is none.
        """

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a latent."""
        size = self.denoiser.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return self.denoiser.config.in_channels, height, width

    def noise(self, seeds: Iterable[int], kind: Noise = "per seed") -> Tensor:
        """Initial noise x_T from generators on the CPU.

        Returns [N, C, H, W], float32, on the model's device, scaled as its scheduler wants it.
        Parameters: `kind`, "per seed" (a generator each: a seed's noise does not depend on the
        others) or "one generator" (one draw of all N from a generator with the first seed; the
        others number its draws, so they must follow it: 1, 2, … 10 is the released code's seed 1
        of localization; its pictures have seed 2).
        Raises ValueError for bad seeds, another kind, and seeds that do not follow one another.
        Source: the kinds are the paper's and the released code's.
        """
        check_choice("noise", kind, get_args(Noise))
        numbers = check_seeds(seeds)
        if kind == "per seed":
            drawn = torch.stack([_drawn(self.latent_shape, seed) for seed in numbers])
        elif numbers == list(range(numbers[0], numbers[0] + len(numbers))):
            drawn = _drawn((len(numbers), *self.latent_shape), numbers[0])
        else:
            raise ValueError(
                "seeds must follow one another (1, 2, 3, …) where all noise comes from one "
                f"generator, got {numbers!r:.80}"
            )
        return drawn.to(self.device) * self.scheduler.init_noise_sigma

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
        scaled = self.scheduler.scale_model_input(latents, timestep).to(self.dtype)
        with calling(self.denoiser):
            output = self._forward(
                scaled, torch.as_tensor(timestep, device=self.device), embeddings
            )
        self.samples_evaluated += len(latents)
        return output.float()

    @abstractmethod
    def _forward(self, latents: Tensor, timestep: Tensor, embeddings: Tensor) -> Tensor: ...

    def predict_noise(self, latents: Tensor, timestep: Tensor | int, embeddings: Tensor) -> Tensor:
        """The predicted noise ε_θ(x, t, y), also for models trained to predict v or x_0.

        Returns [N, C, H, W], float32; adds N to `samples_evaluated`.
        Parameters: `latents`, [N, C, H, W]; `timestep`, one or [N]; `embeddings`, [N, tokens, dim].
        Raises ValueError as `predict`.
        Source: section 2.
        """
        return self.as_noise(self.predict(latents, timestep, embeddings), latents, timestep)

    def as_noise(self, output: Tensor, latents: Tensor, timestep: Tensor | int) -> Tensor:
        """The noise ε behind an output of `predict` for these latents: [N, C, H, W]."""
        return schedulers.as_noise(self.scheduler, output, latents, timestep)

    def decode(self, latents: Tensor) -> np.ndarray:
        """Images of final latents: uint8 [N, H, W, 3].

        Raises ValueError where a latent is not finite.
        """
        if not torch.isfinite(latents).all():
            raise ValueError(f"latents must be finite, got NaN or infinity ({HALF_PRECISION})")
        with torch.no_grad():
            images = torch.cat([self._decode(part) for part in latents.split(_IMAGES_AT_ONCE)])
        pixels = ((images / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).cpu().numpy()

    @abstractmethod
    def _decode(self, latents: Tensor) -> Tensor:
        """Images [N, 3, H, W], float32, mostly in [-1, 1]."""

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


def _drawn(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))
