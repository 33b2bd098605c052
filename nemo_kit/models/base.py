"""One small object for a text-to-image model: embeds prompts, draws noise, predicts noise.

Scope: what all families share; what differs (parts, conditioning, the denoiser's call, its value
layers) is a family's own file.
Source: "Finding NeMo" (arXiv 2406.02366), section 2 (the model's parts) and 4 (settings).
"""

import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
import torch
from torch import Tensor, nn

from nemo_kit.calibration import Calibration
from nemo_kit.checks import check_choice, check_finite, check_seeds, check_texts
from nemo_kit.hooks import calling, capture
from nemo_kit.layers import Projection, key_layers, searched, value_layers
from nemo_kit.memory import BatchSize
from nemo_kit.models import schedulers
from nemo_kit.models.lora import Lora
from nemo_kit.models.parts import check_pairs, check_words, files_of, open_part, plain, read_json
from nemo_kit.models.quiet import quiet
from nemo_kit.settings import Noise

_IMAGES_AT_ONCE = 8
_TEXTS_AT_ONCE = 64
_PART = re.compile("scheduler|unet|transformer|vae|(text_encoder|tokenizer)(_[23])?")
STANDARDIZED = {"latents_mean": "latents that are standardized by channel"}  # a VAE's
_ACTIVATION_SEED = 0  # of the noise under which values are read that depend on the image


class DiffusionModel(ABC):
    """A text-to-image model behind the few operations the method needs; `load` makes one.

    A family is one file: it names its pipeline classes, of which the first says its parts, and the
    settings of parts that it can't serve, and defines what is abstract here.
    Attributes: `value_layers`, `key_layers` (all), `searched` (the value layers in which NeMo
    looks, the first n; may be set), `calibration` (or None), `guidance` (of its images: what the
    folder says, else the family's), `settings` (others that results depend on), `samples_evaluated`
    (samples the denoiser has processed so far), `revision` (of a hub model), `config` (of a single
    file), `lora` (what was fused into the weights, or None).
    """

    pipelines: ClassVar[tuple[str, ...]]
    # part -> setting -> what the part reads or gives where that is set, and no model here does
    foreign: ClassVar[Mapping[str, Mapping[str, str]]] = {"vae": STANDARDIZED}
    optional: ClassVar[frozenset[str]] = frozenset()  # parts that a folder may lack
    denoising: ClassVar[str] = "transformer"  # the part that denoises
    # setting of that part -> "part.setting" of another, or some joined by " + ", that it equals
    fits: ClassVar[Mapping[str, str]] = {}
    packed: ClassVar[int] = 1  # channels of its input for each of a latent
    # its value projections: see `layers.value_layers`; without any it is a U-Net
    blocks: ClassVar[tuple[str, ...]] = ()
    flow: ClassVar[bool] = False  # whether it is trained on a rectified flow, not as DDIM runs it
    usual_guidance: ClassVar[float] = 7.0  # of the paper; else of the family's own pipeline
    adjustable: ClassVar[frozenset[str]] = frozenset()  # settings that nemo/generation.json may say
    # whether values follow from the text alone; else they are read in a denoiser call
    values_of_text: ClassVar[bool] = True
    # whether attn2 attends to CLIP's tokens alone, of which the first is BOS
    clip_attention: ClassVar[bool] = False
    beside: ClassVar[tuple[str, ...]] = ()  # what the denoiser needs of a text besides its tokens
    kept_off: ClassVar[tuple[str, ...]] = ()  # large encoders, on the device only while they embed
    offloads: ClassVar[bool] = True  # whether each module's weights are used inside it alone
    half: ClassVar[torch.dtype] = torch.float16  # the number type by default on a GPU

    def __init__(
        self,
        parts: Mapping[str, Any],
        *,
        name: str,
        device: torch.device,
        dtype: torch.dtype,
        revision: str | None = None,
        guidance: float = 7.0,
        lora: Lora | None = None,
        config: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.guidance, self.settings = guidance, dict(settings or {})
        self.name, self.revision, self.lora, self.config = name, revision, lora, config
        there = {part: one for part, one in parts.items() if one is not None}
        self.denoiser, self.vae = there[self.denoising], there["vae"]
        encoders = {part: one for part, one in there.items() if part.startswith("text_encoder")}
        self.text_encoder: nn.Module = nn.ModuleDict(encoders)
        self.tokenizers = {part: one for part, one in there.items() if part.startswith("tokenizer")}
        self.tokenizer, self.scheduler = self.tokenizers["tokenizer"], there["scheduler"]
        self.device, self.dtype = device, dtype
        self.calibration: Calibration | None = None
        self.samples_evaluated = 0
        self.value_layers = value_layers(self.denoiser, *self.blocks)
        self.key_layers = key_layers(self.denoiser, *self.blocks)
        self._searched = searched(self.value_layers)
        if "searched" in self.settings:
            self.searched = self.value_layers[: self.settings["searched"]]
        self.offloaded: dict[str, Tensor] = {}  # the denoiser's weights, where it doesn't hold them
        for module in (self.denoiser, self.text_encoder, self.vae):
            module.eval().requires_grad_(False)

    def __repr__(self) -> str:
        fused = f", {self.lora}" if self.lora else ""
        return f"{type(self).__name__}({self.name!r}, {self.device}, {self.dtype}{fused})"

    @classmethod
    def kind(cls) -> Any:
        """The class of its pipelines in diffusers, whose import would tell of what it lacks."""
        with quiet():
            import diffusers

            return getattr(diffusers, cls.pipelines[0])

    @classmethod
    def parts(cls) -> dict[str, str]:
        """What is fetched and opened of such a pipeline, and as which classes: its own say so."""
        told = signature(cls.kind().__init__, eval_str=True).parameters
        kinds = {name: get_args(one.annotation) or [one.annotation] for name, one in told.items()}
        return {n: plain(kinds[n][0].__name__) for n in kinds if _PART.fullmatch(n)}

    @classmethod
    def open(cls, folder: Path, index: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
        """The parts of a diffusers folder by name, on the CPU; ValueError names what is wrong."""
        named = {part: index[part][1] for part in cls.parts_in(index) if part in index}
        parts: dict[str, Any] = dict.fromkeys(cls.parts())
        for part, kind in named.items():
            if part == "scheduler":
                files_of(folder, part)
                config = read_json(folder / part / "scheduler_config.json")
                parts[part] = cls.schedule(config, kind)
            else:
                foreign = cls.foreign.get(part, {})
                parts[part] = open_part(folder, part, plain(kind), dtype, foreign)
        return parts

    @classmethod
    def parts_in(cls, index: Mapping[str, Any]) -> list[str]:
        """The parts that a pipeline has, by its model_index.json: all, or those not optional."""
        lacking = {part for part in cls.optional if index.get(part) in (None, [None, None])}
        return [part for part in cls.parts() if part not in lacking]

    @classmethod
    def schedule(cls, config: Mapping[str, Any], named: str | None) -> Any:
        """What a scheduler's folder says; ValueError for another noise process than the family's.

        Parameters: `config`, its scheduler_config.json; `named`, the class by model_index.json.
        """
        if cls.flow:
            from nemo_kit.models import flow

            return flow.read(config, named)
        return schedulers.read(config, named)

    @classmethod
    def pipeline(cls, parts: Mapping[str, Any]) -> Any:
        """A diffusers pipeline of these parts."""
        kind = cls.kind()
        given = dict.fromkeys(kind._optional_components) | dict(parts)
        if "requires_safety_checker" in signature(kind.__init__).parameters:
            given["requires_safety_checker"] = False
        if cls.flow:
            given["scheduler"] = parts["scheduler"].plain()
        return kind(**given)

    @classmethod
    def check(cls, parts: Mapping[str, Any]) -> None:
        """Raise ValueError where the parts don't fit one another or the family."""
        own, latents = parts[cls.denoising].config, parts["vae"].config.latent_channels
        pairs = {"in_channels": (own.in_channels, cls.packed * latents)}
        for name, others in cls.fits.items():
            settings = [other.split(".") for other in others.split(" + ")]
            if all(parts[part] is not None for part, _ in settings):
                there = sum(getattr(parts[part].config, setting) for part, setting in settings)
                pairs[name] = getattr(own, name), there
        check_pairs(cls.denoising, pairs)
        check_words(parts)

    @property
    def searched(self) -> tuple[Projection, ...]:
        """The value layers in which NeMo looks: the first n."""
        return self._searched

    @searched.setter
    def searched(self, layers: Sequence[Projection]) -> None:
        chosen = tuple(layers)
        if not chosen or chosen != self.value_layers[: len(chosen)]:
            raise ValueError(
                f"searched must be the first of the {len(self.value_layers)} value layers, one at "
                f"least, got {[getattr(one, 'index', one) for one in chosen]!r:.80}"
            )
        self._searched, self.settings["searched"] = chosen, len(chosen)

    def embed(self, prompts: str | Sequence[str]) -> Tensor:
        """The text encoders' embeddings, padded or cut to their length; cutting is warned of.

        Returns [N, tokens, dim], a `Conditioning` where the denoiser needs more of a text than
        that. The empty prompt is allowed: it is the unconditional one.
        Raises TypeError where a prompt is no text, ValueError where there is none.
        """
        texts = check_texts(prompts, empty_allowed=True)
        parts = [texts[i : i + _TEXTS_AT_ONCE] for i in range(0, len(texts), _TEXTS_AT_ONCE)]
        with torch.no_grad():
            return torch.cat([self._embed(part) for part in parts])

    @abstractmethod
    def _embed(self, texts: list[str]) -> Tensor: ...

    def _tokens(self, which: str, texts: list[str], length: int | None = None) -> Any:
        """The tokens of a tokenizer ("", "_2", …), padded or cut to a length, by default its own.

        Returns `input_ids` and `attention_mask`, [N, length] each; cutting is warned of.
        """
        tokenizer = self.tokenizers[f"tokenizer{which}"]
        length = tokenizer.model_max_length if length is None else length
        if any(len(ids) > length for ids in tokenizer(texts, verbose=False).input_ids):
            told = f"prompts of more than the text encoder's {length} tokens are cut to them"
            warnings.warn(told, RuntimeWarning, stacklevel=2)  # one text: shown once, not a prompt
        options = {"padding": "max_length", "max_length": length, "truncation": True}
        return tokenizer(texts, return_tensors="pt", **options).to(self.device)

    def _clips(self, texts: list[str]) -> tuple[Tensor, list[Tensor]]:
        """Both CLIPs' states before their last layers, side by side; the pooled output of each."""
        states, pooled = [], []
        for which in ("", "_2"):
            encoder = self.text_encoder[f"text_encoder{which}"]
            found = encoder(self._tokens(which, texts).input_ids, output_hidden_states=True)
            states.append(found.hidden_states[-2])
            pooled.append(found.text_embeds if "text_embeds" in found else found.pooler_output)
        return torch.cat(states, dim=-1), pooled

    def _encoded(
        self, which: str, texts: list[str], length: int, masked: bool = True
    ) -> tuple[Tensor, Tensor]:
        """An encoder's last states, [N, length, dim], and the tokens' mask, bool [N, length].

        Parameters: `masked`, whether padding is hidden from the encoder itself.
        """
        tokens = self._tokens(which, texts, length)
        encoder, mask = self.text_encoder[f"text_encoder{which}"], tokens.attention_mask
        home = next(encoder.parameters()).device
        encoder.to(self.device)  # while it runs
        try:
            found = encoder(tokens.input_ids, attention_mask=mask if masked else None)[0]
        finally:
            encoder.to(home)
        return found, mask.bool()

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a latent."""
        size = self.denoiser.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return self.denoiser.config.in_channels, height, width

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of an image in pixels."""
        factor = getattr(self.vae, "spatial_compression_ratio", None)
        if factor is None:
            factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        return self.latent_shape[1] * factor, self.latent_shape[2] * factor

    def noise(self, seeds: Iterable[int], kind: Noise = "per seed") -> Tensor:
        """Initial noise x_T from generators on the CPU.

        Returns [N, C, H, W], float32, on the model's device.
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
        return drawn.to(self.device)

    def timesteps(self, steps: int) -> Tensor:
        """The scheduler's timesteps for that many DDIM steps, noisiest first: [steps]."""
        self.scheduler.set_timesteps(steps)
        return self.scheduler.timesteps

    def predict(self, latents: Tensor, timestep: Tensor | int, embeddings: Tensor) -> Tensor:
        """One denoiser call: its raw output (ε, v or x_0, as it was trained), float32.

        Returns [N, C, H, W]; adds N to `samples_evaluated`.
        Raises ValueError for unequal numbers of latents and embeddings, other latent shapes, and
        embeddings that lack what the denoiser needs besides tokens.
        """
        more = getattr(embeddings, "beside", {})
        if lacking := [name for name in self.beside if name not in more]:
            raise ValueError(
                f"embeddings: {type(self).__name__} needs {', '.join(lacking)} besides the tokens, "
                "which embed() gives, and which picking, joining and adding keep, nothing else"
            )
        if latents.shape[1:] != self.latent_shape or len(latents) != len(embeddings):
            raise ValueError(
                f"latents must be [N, {', '.join(map(str, self.latent_shape))}] for N embeddings, "
                f"got {list(latents.shape)} for {len(embeddings)}"
            )
        with calling(self.denoiser):
            output = self._forward(
                latents.to(self.dtype),
                torch.as_tensor(timestep, device=self.device),
                getattr(embeddings, "tokens", embeddings).to(self.device, self.dtype),
                **{name: more[name].to(self.device) for name in self.beside},
            )
        self.samples_evaluated += len(latents)
        return output.float()

    def _forward(
        self, latents: Tensor, timestep: Tensor, tokens: Tensor, **beside: Tensor
    ) -> Tensor:
        """The denoiser's output, without a variance that it learned beside it."""
        timesteps = timestep.expand(len(latents))
        given = {"timestep": timesteps, **self._arguments(latents, timesteps, **beside)}
        call = self.denoiser(latents, encoder_hidden_states=tokens, return_dict=False, **given)
        return call[0][:, : latents.shape[1]]

    def _arguments(self, latents: Tensor, timesteps: Tensor, **beside: Tensor) -> dict[str, Any]:
        """What the denoiser is called with besides latents, tokens and `timesteps`, [N], as is."""
        return {}

    def predict_compared(
        self, latents: Tensor, timestep: Tensor | int, embeddings: Tensor
    ) -> Tensor:
        """The prediction that tells prompts apart, of which noise differences and gaps are taken.

        Returns [N, C, H, W], as `predict_noise`: the predicted noise ε; of a rectified flow its
        velocity v = ε − x_0, since ε predicted at σ = 1 is x_T whatever the prompt. There v − x_T
        is −x_0; where ᾱ_T is small, ε − x_T is that up to scale.
        """
        return self.as_compared(self.predict(latents, timestep, embeddings), latents, timestep)

    def as_compared(self, output: Tensor, latents: Tensor, timestep: Tensor | int) -> Tensor:
        """What `predict_compared` gives, of an output of `predict` for these latents."""
        return output if self.flow else self.as_noise(output, latents, timestep)

    def predict_noise(self, latents: Tensor, timestep: Tensor | int, embeddings: Tensor) -> Tensor:
        """The predicted noise ε_θ(x, t, y), also for models trained to predict v or x_0.

        Returns [N, C, H, W], float32; adds N to `samples_evaluated`.
        Parameters: `latents`, [N, C, H, W]; `timestep`, one or [N]; `embeddings`, [N, tokens, dim].
        Raises ValueError as `predict`.
        Source: section 2.
        """
        return self.as_noise(self.predict(latents, timestep, embeddings), latents, timestep)

    def as_noise(self, output: Tensor, latents: Tensor, timestep: Tensor | int) -> Tensor:
        """The noise ε behind an output of `predict` for these latents: [N, C, H, W].

        Source: with a = ᾱ_t, ε = √a·v + √(1−a)·x, and ε = (x − √a·x_0)/√(1−a); of a flow's
        velocity, ε = x + (1 − σ)·v, which at σ = 1 is x whatever the text.
        """
        kind = self.scheduler.config.prediction_type
        if kind == "epsilon":
            return output
        if self.flow:
            return latents.float() + (1 - self.scheduler.sigma(timestep, output)) * output
        places = torch.as_tensor(timestep).long().cpu().reshape(-1, 1, 1, 1)
        kept = self.scheduler.alphas_cumprod[places].to(output)  # [1 or N, 1, 1, 1]
        if kind == "v_prediction":
            return kept**0.5 * output + (1 - kept) ** 0.5 * latents.float()
        return (latents.float() - kept**0.5 * output) / (1 - kept) ** 0.5

    def decode(self, latents: Tensor) -> np.ndarray:
        """Images of final latents: uint8 [N, H, W, 3].

        Raises FloatingPointError where a latent is not finite.
        """
        check_finite("latents", latents, FloatingPointError)
        shift = getattr(self.vae.config, "shift_factor", None) or 0
        scaled = latents.to(self.device, self.vae.dtype) / self.vae.config.scaling_factor + shift
        with torch.no_grad():
            found = [self.vae.decode(one).sample.float() for one in scaled.split(_IMAGES_AT_ONCE)]
        pixels = ((torch.cat(found) / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).cpu().numpy()

    def encode(self, pixels: Tensor) -> Tensor:
        """The mean latents of images as the denoiser sees them: [N, C, h, w].

        Parameters: `pixels`, [N, 3, H, W] in [-1, 1], of `image_size`.
        """
        with torch.no_grad():
            found = self.vae.encode(pixels.to(self.device, self.vae.dtype))
        mean = found.latent_dist.mean if hasattr(found, "latent_dist") else found.latent
        shift = getattr(self.vae.config, "shift_factor", None) or 0
        return (mean.float() - shift) * self.vae.config.scaling_factor

    def value_activations(
        self, embeddings: Tensor, layers: Iterable[Projection] | None = None
    ) -> dict[int, Tensor]:
        """Outputs of the value projections, as a hook in the running denoiser sees them.

        Returns layer -> [N, tokens, width], float32. Where values follow from the text alone, no
        denoiser call is made; else they are those of a call at the second of 50 timesteps, with the
        noise of seed 0 for all.
        Parameters: `embeddings`, from `embed`; `layers`, by default all value layers.
        Source: Algorithm 2 needs only the text, since `attn2.to_v` reads nothing else; the call is
        ours.
        """
        chosen = self.value_layers if layers is None else tuple(layers)
        if not self.values_of_text:
            return self._values_in_calls(embeddings, chosen)
        with torch.no_grad():
            inputs = self._value_inputs(embeddings)
            return {p.index: self.denoiser.get_submodule(p.name)(inputs).float() for p in chosen}

    def _value_inputs(self, embeddings: Tensor) -> Tensor:
        """What the value projections read, where that follows from the text: [N, tokens, dim]."""
        return embeddings.to(self.device, self.dtype)

    def _values_in_calls(
        self, embeddings: Tensor, chosen: Sequence[Projection]
    ) -> dict[int, Tensor]:
        noise, timestep = self.noise([_ACTIVATION_SEED]), self.timesteps(50)[1]

        def values(part: slice) -> dict[int, Tensor]:
            texts = embeddings[part]
            with capture(self.denoiser, chosen) as seen, torch.no_grad():
                self.predict(noise.expand(len(texts), -1, -1, -1), timestep, texts)
            return {layer: one.float() for layer, one in seen.items()}

        parts = BatchSize(_IMAGES_AT_ONCE).run(values, len(embeddings))
        return {p.index: torch.cat([part[p.index] for part in parts]) for p in chosen}

    def weights(self) -> list[dict[str, Tensor]]:
        """All weights as they are in memory: of the denoiser, the text encoders and the VAE."""
        parts = [dict(part.state_dict()) for part in (self.denoiser, self.text_encoder, self.vae)]
        return [self.offloaded or parts[0], *parts[1:]]


def _drawn(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))
