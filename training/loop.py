"""One resumable training loop for all networks of the embedded model.

Every random draw of a step comes from a generator seeded with (seed, stage, step), so a run that
was interrupted and resumed draws what an uninterrupted one would have drawn.
"""

from __future__ import annotations

import json
import math
import os
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from tqdm import tqdm


@dataclass(frozen=True)
class Schedule:
    """How long and how fast one network trains."""

    steps: int
    learning_rate: float
    warmup: int = 100  # steps; longer ones changed nothing
    flat: float = 0.0  # share of the steps before the rate begins to fall
    final_share: float = 0.03  # of the learning rate, reached by a cosine
    weight_decay: float = 0.01
    ema: float = 0.999  # of the weights that are kept; ramped up so that early steps are forgotten
    clip: float = 1.0  # gradient norm
    save_every: int = 250  # steps
    save_seconds: float = 300.0  # at the latest, on a machine that others use too

    def rate(self, step: int) -> float:
        """Learning rate at ``step``."""
        rise = min(1.0, (step + 1) / self.warmup)
        past = (step / self.steps - self.flat) / (1 - self.flat)
        fall = 0.5 * (1 + math.cos(math.pi * min(max(past, 0.0), 1.0)))
        return self.learning_rate * rise * (self.final_share + (1 - self.final_share) * fall)


def generator(seed: int, stage: str, step: int) -> np.random.Generator:
    """The random generator of one step."""
    return np.random.default_rng([seed, zlib.crc32(stage.encode()), step])


class Run:
    """Trains ``module`` by ``loss(step, rng) -> scalar tensor`` and keeps an average of its
    weights; `after_step` may write into the module, `watch` sees the run after each step."""

    def __init__(
        self,
        stage: str,
        module: nn.Module,
        schedule: Schedule,
        folder: Path,
        seed: int,
        after_step: Callable[[], None] = lambda: None,
        watch: Callable[[Run], None] = lambda _run: None,
    ) -> None:
        self.stage, self.module, self.schedule, self.seed = stage, module, schedule, seed
        self.file = Path(folder) / f"{stage}.pt"
        self.after_step, self.watch = after_step, watch
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=schedule.learning_rate,
            weight_decay=schedule.weight_decay,
            fused=True,
        )
        self.average = [p.detach().clone() for p in self.parameters]
        self.step, self.seconds, self.history = 0, 0.0, []
        if self.file.exists():
            self._resume()

    def _resume(self) -> None:
        state = torch.load(self.file, weights_only=True, map_location="cpu")
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average = [a.to(p) for a, p in zip(state["average"], self.parameters, strict=True)]
        self.step, self.seconds, self.history = state["step"], state["seconds"], state["history"]

    def save(self) -> None:
        """Write the checkpoint so that a kill at any moment leaves a whole one; the first process
        does."""
        if dist.is_initialized() and dist.get_rank():
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "step": self.step,
            "seconds": self.seconds,
            "history": self.history,
        }
        partial = self.file.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.file)
        self.file.with_suffix(".json").write_text(
            json.dumps({"step": self.step, "seconds": self.seconds, "history": self.history})
        )

    def train(self, loss: Callable[[int, np.random.Generator], torch.Tensor]) -> nn.Module:
        """Train to the end of the schedule; return the module with its averaged weights, in eval
        mode."""
        self.module.train()
        quiet = dist.is_initialized() and dist.get_rank() > 0
        bar = tqdm(
            total=self.schedule.steps,
            initial=self.step,
            desc=self.stage,
            unit="step",
            disable=quiet,
        )
        window: list[float] = []
        saved = time.monotonic()
        while self.step < self.schedule.steps:
            begun = time.perf_counter()
            window.append(self._one_step(loss))
            self.seconds += time.perf_counter() - begun
            bar.update()
            if len(window) == 50:
                self.history.append((self.step, float(np.mean(window))))
                bar.set_postfix(loss=f"{np.mean(window):.4f}")
                window = []
            late = time.monotonic() - saved >= self.schedule.save_seconds
            if late or self.step % self.schedule.save_every == 0:
                self.save()
                saved = time.monotonic()
        bar.close()
        self.save()
        return self.averaged()

    def _one_step(self, loss: Callable[[int, np.random.Generator], torch.Tensor]) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate(self.step)
        torch.manual_seed(zlib.crc32(f"{self.seed} {self.stage} {self.step}".encode()))
        value = loss(self.step, generator(self.seed, self.stage, self.step))
        if not torch.isfinite(value):
            raise FloatingPointError(
                f"loss of stage {self.stage} is {value.item()} at step {self.step}"
            )
        self.optimizer.zero_grad(set_to_none=True)
        value.backward()
        self._share_gradients()
        nn.utils.clip_grad_norm_(self.parameters, self.schedule.clip)
        self.optimizer.step()
        self.after_step()
        self.step += 1
        decay = min(self.schedule.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.parameters, 1 - decay)
        self.watch(self)
        return value.item()

    def _share_gradients(self) -> None:
        """The mean of all processes' gradients, where there are several."""
        if dist.is_initialized():
            gradients = [p.grad for p in self.parameters]
            flat = torch.cat([g.flatten() for g in gradients])
            dist.all_reduce(flat)
            parts = (flat / dist.get_world_size()).split([g.numel() for g in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))

    @torch.no_grad()
    def averaged(self) -> nn.Module:
        """The module with the averaged weights in place, in eval mode."""
        for parameter, mean in zip(self.parameters, self.average, strict=True):
            parameter.copy_(mean)
        return self.module.eval()
