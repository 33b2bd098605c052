"""A mitigation that prunes the feed-forward weights that a prompt uses most.

Source: Chavhan, Zong, Bohdal, Li, Hospedales, "Memorized Images in Diffusion Models share a
Subspace that can be Located and Deleted", 2024 (arXiv 2406.18566), and their `wanda.py`; the score
is that of Sun et al., "A Simple and Effective Pruning Approach for Large Language Models".
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nemo_kit.checks import UnsupportedError, check_number, check_seeds, check_texts, check_whole
from nemo_kit.hooks import hooked
from nemo_kit.mitigation.base import Mitigation
from nemo_kit.models.base import DiffusionModel
from nemo_kit.sampling import Run, denoise

VERSION = 2  # raised where results change (see nemo_kit.keys)
_LAYER = re.compile(r"transformer_blocks\.\d+\.ff\.net\.2")


@dataclass(frozen=True)
class WandaPruning(Mitigation):
    """Prune, in each feed-forward output layer, the weights that the prompts of a group use most.

    A weight's score is |W| times the norm of its input over all rows: pixels of both guidance
    halves, images, and prompts of the group, each row scaled to unit length before. Pruned are the
    largest `share` of each row of W that also exceed the score under as many empty prompts, united
    over the first `steps` of a guided trajectory of `trajectory` DDIM steps. As it is a change of
    weights, it acts on both halves of a guided batch, whatever the run's `halves`.
    Parameters: `share`, in (0, 1]; `steps`; `trajectory`; `seeds`, of the images that are
    looked at, other than those evaluated; `guidance` of these; `group`, the prompts pooled for
    every image, by default each image's prompt alone (the released groups hold about ten).
    Raises ValueError for numbers out of range.
    Source: Chavhan et al.: the second linear layers, 1 %, the first 10 of 50 steps, seed 0,
    guidance 7.5.
    """

    name = "Wanda pruning"
    place = 14
    share: float = 0.01
    steps: int = 10
    trajectory: int = 50
    seeds: tuple[int, ...] = (0,)
    guidance: float = 7.5
    group: tuple[str, ...] = ()
    source = "Chavhan et al., 2024 (arXiv 2406.18566)"
    protocol = "unit rows of both guidance halves, a group's prompts pooled"
    permanent = True

    def __post_init__(self) -> None:
        check_number("share", self.share, 0.0)
        if not 0 < self.share <= 1:
            raise ValueError(f"share must lie in (0, 1], got {self.share}")
        check_whole("steps", self.steps, 1)
        check_whole("trajectory", self.trajectory, self.steps)
        check_number("guidance", self.guidance, 0.0)
        object.__setattr__(self, "seeds", tuple(check_seeds(self.seeds, distinct=True)))
        object.__setattr__(self, "group", tuple(check_texts(self.group)) if self.group else ())

    @contextmanager
    def apply(self, run: Run) -> Iterator[Run]:
        """Prune for each sample's own group; the weights themselves stay as they are."""
        rows = [self.group or (prompt,) for prompt in run.prompts]
        rows *= 1 if run.empty is None else 2
        known = run.memo.setdefault(self, {})
        for gone in set(known) - set(rows):
            del known[gone]  # masks are as large as the weights
        for group in set(rows) - set(known):
            known[group] = self.masks(run.model, group)
        hooks = {
            name: partial(_pruned, rows, {row: known[row][name] for row in rows})
            for name in feed_forward_layers(run.model.denoiser)
        }
        with hooked(run.model.denoiser, hooks):
            yield run

    def masks(self, model: DiffusionModel, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The weights pruned for these prompts together: layer name -> bool [out, in]."""
        texts = list(dict.fromkeys(prompts))
        target = self._input_norms(model, texts)
        base = self._input_norms(model, [""])
        base = {name: norms * len(texts) ** 0.5 for name, norms in base.items()}
        layers = feed_forward_layers(model.denoiser)
        return {
            name: wanda_mask(layer.weight, target[name], base[name], self.share)
            for name, layer in layers.items()
        }

    def gains(self, model: DiffusionModel, prompts: Sequence[str]) -> dict[str, Tensor]:
        """0 at the weights pruned for the group, or these prompts together, 1 elsewhere."""
        if not (texts := self.group or prompts):
            raise ValueError(f"prompts: {self.name!r} needs those it is to hold for, got none")
        masks = self.masks(model, texts)
        return {name: (~mask.cpu()).float() for name, mask in masks.items()}

    def _input_norms(self, model: DiffusionModel, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Norm of each input of each layer at each step, over all rows: name -> [steps, in]."""
        layers = feed_forward_layers(model.denoiser)
        squares: dict[str, Any] = dict.fromkeys(layers, 0.0)
        for prompt in prompts:
            run = Run.of(model, prompt, self.seeds, self.trajectory, self.guidance)
            seen: dict[str, list[Tensor]] = {name: [] for name in layers}
            with hooked(
                model.denoiser, {name: partial(_observe, one) for name, one in seen.items()}
            ):
                denoise(run, last=self.steps)
            squares = {name: squares[name] + torch.stack(one) for name, one in seen.items()}
        return {name: found.sqrt() for name, found in squares.items()}


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
        raise UnsupportedError(
            f"denoiser: no feed-forward layer found in {type(denoiser).__name__}"
        )
    return found


def unit_squares(rows: Tensor) -> Tensor:
    """Squared column norms of rows scaled to unit length: [in] from [..., in]."""
    return F.normalize(rows.float().flatten(0, -2), dim=1).square().sum(dim=0)


def _observe(squares: list[Tensor], _module: nn.Module, inputs: tuple, _output: Tensor) -> None:
    squares.append(unit_squares(inputs[0].detach()))  # the GEGLU's output, both halves


def _pruned(
    rows: list[tuple[str, ...]], masks: Mapping[tuple[str, ...], Tensor],
    module: nn.Module, inputs: tuple, output: Tensor,
) -> Tensor:  # fmt: skip
    """A layer's output computed anew, each sample's with the weights that its group keeps."""
    if len(output) != len(rows):
        raise ValueError(f"the batch must have {len(rows)} samples, got {len(output)}")
    result = torch.empty_like(output)
    for group, mask in masks.items():
        where = [place for place, row in enumerate(rows) if row == group]
        result[where] = F.linear(inputs[0][where], module.weight.masked_fill(mask, 0), module.bias)
    return result
