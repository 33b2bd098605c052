"""What every mitigation is: a value that changes one batch of a generation.

Scope: the base class. A mitigation may rewrite the prompt, change its embedding or the initial
noise, and act on attention, neurons or weights while the block is open; it leaves nothing behind.
Source: each subclass names its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

    from nemo_kit.generation import Run
    from nemo_kit.models import DiffusionModel

VERSION = 1  # raised where results change (see nemo_kit.keys)


@dataclass(frozen=True)
class Mitigation:
    """Nothing is changed; the base of all others.

    A mitigation is a frozen dataclass of plain values and neuron sets, so that equal ones have
    equal digests (`keys.value_digest`). What it does to an image depends on that image's prompt
    and seed, and where its protocol says so on all seeds of the prompt, never on the batch.
    Attributes: `name`, as tables call it; `source`, who proposed it; `protocol`, what its authors'
    code does where papers or codes differ, in words for results; `permanent`, whether it can be
    written into the weights (`mitigation.export`).
    """

    name: str = field(init=False, default="none")
    source: ClassVar[str] = "the model as it is"
    protocol: ClassVar[str] = ""
    permanent: ClassVar[bool] = False

    def rewrite(self, model: DiffusionModel, prompt: str, seed: int) -> str:
        """The text that is embedded in place of the prompt, for the image of this seed."""
        return prompt

    @contextmanager
    def apply(self, run: Run) -> Iterator[Run]:
        """Change a batch: `with m.apply(run) as run:` gives the one to denoise inside the block.

        Whatever is hooked to the model is removed on leaving, whatever raises.
        """
        yield run

    def gains(self, model: DiffusionModel, prompts: Sequence[str]) -> dict[str, Tensor]:
        """What the weights are multiplied by where the mitigation is written into them.

        Returns the name of each changed module of the denoiser -> a tensor that broadcasts to its
        weight, [out, in] or [out, 1]; the changes of all prompts together.
        Parameters: `prompts`, those it is to hold for.
        Raises ValueError where the mitigation is not permanent.
        """
        raise ValueError(f"mitigation: {self.name!r} can't be written into the weights")


@dataclass(frozen=True)
class NoMitigation(Mitigation):
    """The model as it is: the row "default" of table 1."""
