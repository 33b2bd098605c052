"""A mitigation that prunes the feed-forward weights that a prompt uses most.

Source: Chavhan, Zong, Bohdal, Li, Hospedales, "Memorized Images in Diffusion Models share a
Subspace that can be Located and Deleted", 2024 (arXiv 2406.18566), and their `wanda.py`; the score
is that of Sun et al., "A Simple and Effective Pruning Approach for Large Language Models".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nemo_kit.checks import check_number, check_seeds, check_whole
from nemo_kit.hooks import Hook, hooked
from nemo_kit.mitigation.base import Mitigation

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nemo_kit.generation import Run
    from nemo_kit.models import DiffusionModel

VERSION = 1  # raised where results change (see nemo_kit.keys)
_LAYER = re.compile(r"transformer_blocks\.\d+\.ff\.net\.2")


@dataclass(frozen=True)
class WandaPruning(Mitigation):
    """Prune, in each feed-forward output layer, the weights that the prompt uses most.

    A weight's score is |W| times the norm of its input, over pixels and images. Pruned are the
    largest `share` of each row under the prompt that also exceed the score under the empty prompt,
    united over the first `steps` of a trajectory of `trajectory` DDIM steps. As it is a change of
    weights, it acts on both halves of a guided batch, whatever the run's `halves`.
    Parameters: `share`, in (0, 1]; `steps`; `trajectory`; `seeds`, of the images that are
    looked at, other than those evaluated.
    Raises ValueError for numbers out of range.
    Source: Chavhan et al.: the second linear layers, 1 %, the first 10 of 50 steps.
    """

    name: str = field(init=False, default="Wanda pruning")
    share: float = 0.01
    steps: int = 10
    trajectory: int = 50
    seeds: tuple[int, ...] = (1, 2, 3, 4)
    source: ClassVar[str] = "Chavhan et al., 2024 (arXiv 2406.18566)"
    permanent: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_number("share", self.share, 0.0)
        if not 0 < self.share <= 1:
            raise ValueError(f"share must lie in (0, 1], got {self.share}")
        check_whole("steps", self.steps, 1)
        check_whole("trajectory", self.trajectory, self.steps)
        object.__setattr__(self, "seeds", tuple(check_seeds(self.seeds, distinct=True)))

    @contextmanager
    def apply(self, run: Run) -> Iterator[Run]:
        """Prune for each sample's own prompt; the weights themselves stay as they are."""
        prompts = dict.fromkeys(run.prompts)
        known = run.memo.setdefault(self, {})
        for gone in set(known) - set(prompts):
            del known[gone]  # masks are as large as the weights
        for prompt in set(prompts) - set(known):
            known[prompt] = self.masks(run.model, prompt, run.guidance)
        rows = [*run.prompts] * (1 if run.empty is None else 2)
        with hooked(run.model.denoiser, _pruned(run.model, rows, known)):
            yield run

    def masks(
        self, model: DiffusionModel, prompt: str, guidance: float | None = None
    ) -> dict[str, Tensor]:
        """The weights pruned for a prompt: layer name -> bool [out, in].

        Parameters: `guidance` of the trajectory looked at, by default the model's own.
        """
        scale = model.guidance if guidance is None else guidance
        target = self._input_norms(model, prompt, scale)
        base = self._input_norms(model, "", 0)
        layers = feed_forward_layers(model.denoiser)
        return {
            name: wanda_mask(layer.weight, target[name], base[name], self.share)
            for name, layer in layers.items()
        }

    def gains(self, model: DiffusionModel, prompts: Sequence[str]) -> dict[str, Tensor]:
        """0 at the weights pruned for one of these prompts, 1 elsewhere: [out, in]."""
        found: dict[str, Tensor] = {}
        for prompt in prompts:
            for name, mask in self.masks(model, prompt).items():
                found[name] = found.get(name, 1.0) * ~mask.cpu()
        return found

    def _input_norms(
        self, model: DiffusionModel, prompt: str, guidance: float
    ) -> dict[str, Tensor]:
        """Norm of each input of each layer at each step, the prompt's half: name -> [steps, in]."""
        from nemo_kit.generation import Run, denoise

        count = len(self.seeds)
        text, empty = model.embed(prompt), model.embed("")
        run = Run(
            model=model, prompts=(prompt,) * count, texts=(prompt,) * count, seeds=self.seeds,
            noise=model.noise(self.seeds), embeddings=text.expand(count, -1, -1),
            empty=None if guidance in (0, 1) else empty,
            guidance=guidance, steps=self.trajectory, halves="both",
        )  # fmt: skip
        seen: dict[str, list[Tensor]] = {name: [] for name in feed_forward_layers(model.denoiser)}
        with hooked(
            model.denoiser, {name: _observer(norms, count) for name, norms in seen.items()}
        ):
            denoise(run, last=self.steps)
        return {name: torch.stack(norms) for name, norms in seen.items()}


def wanda_mask(weight: Tensor, target: Tensor, base: Tensor, share: float) -> Tensor:
    """Which weights are pruned.

    Returns bool [out, in].
    Parameters: `weight`, [out, in]; `target`, `base`, norms of the inputs under the prompt and
    under the empty prompt, [steps, in]; `share` of each row, at least one weight.
    Source: Chavhan et al.; S = |W| · ‖X‖₂.
    """
    size = weight.detach().float().abs()
    count = max(1, int(size.shape[1] * share))
    pruned = torch.zeros_like(size, dtype=torch.bool)
    for wanted, usual in zip(target, base, strict=True):
        score = size * wanted
        top = torch.zeros_like(pruned).scatter_(1, score.topk(count, dim=1).indices, True)
        pruned |= top & (score > size * usual)
    return pruned


def feed_forward_layers(denoiser: nn.Module) -> dict[str, nn.Linear]:
    """The second linear layer of each transformer block's feed-forward part, by name.

    Returns 16 of them for SD 1.x and 2.x, and for the embedded model.
    Raises ValueError where the denoiser has none.
    """
    found = {
        name: module
        for name, module in denoiser.named_modules()
        if _LAYER.search(name) and isinstance(module, nn.Linear)
    }
    if not found:
        raise ValueError(f"denoiser: no feed-forward layer found in {type(denoiser).__name__}")
    return found


def _observer(norms: list[Tensor], count: int) -> Hook:
    def observe(_module: nn.Module, inputs: tuple, _output: Tensor) -> None:
        seen = inputs[0][:count].detach().float()  # [count, pixels, in]; the prompt's half is first
        norms.append(seen.flatten(0, 1).norm(dim=0))

    return observe


def _pruned(
    model: DiffusionModel, rows: list[str], known: dict[str, dict[str, Tensor]]
) -> dict[str, Hook]:
    """A hook for each layer that computes its output anew, with each row's own weights."""
    places = {prompt: _places(rows, prompt) for prompt in dict.fromkeys(rows)}

    def pruner(name: str) -> Hook:
        def prune(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
            if len(output) != len(rows):
                raise ValueError(f"the batch must have {len(rows)} samples, got {len(output)}")
            result = torch.empty_like(output)
            for prompt, where in places.items():
                weight = module.weight.masked_fill(known[prompt][name], 0)
                result[where] = F.linear(inputs[0][where], weight, module.bias)
            return result

        return prune

    return {name: pruner(name) for name in feed_forward_layers(model.denoiser)}


def _places(rows: Iterable[str], prompt: str) -> list[int]:
    return [place for place, one in enumerate(rows) if one == prompt]
