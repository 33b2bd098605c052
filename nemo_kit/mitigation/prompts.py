"""Mitigations that rewrite the prompt: words inserted at random places.

Each image has a draw of its own, which follows from the mitigation's seed, the prompt and the
image's seed. The insertions are made one after the other, as in the released code, so a later one
may fall beside an earlier one.
Source: Somepalli et al., "Understanding and Mitigating Copying in Diffusion Models", NeurIPS 2023
(arXiv 2305.20086), and their `sd_mitigation.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from nemo_kit.checks import check_whole
from nemo_kit.mitigation.base import Mitigation
from nemo_kit.mitigation.draws import numbers

if TYPE_CHECKING:
    from nemo_kit.models import DiffusionModel

_SOURCE = "Somepalli et al., NeurIPS 2023 (arXiv 2305.20086)"
_MOST_TOKEN = 49400  # of Stable Diffusion's 49,408; the last eight are left out there


@dataclass(frozen=True)
class RandomTokens(Mitigation):
    """Insert random tokens of the vocabulary.

    Parameters: `count`, how many (table 1: 1, 4, 10); `seed`, of the draws.
    Raises ValueError for other numbers.
    Source: Somepalli et al., random token addition: ids below 49400, decoded.
    """

    name: str = field(init=False, default="random tokens")
    count: int = 4
    seed: int = 0
    source: ClassVar[str] = _SOURCE

    def __post_init__(self) -> None:
        _check(self.count, self.seed)

    def rewrite(self, model: DiffusionModel, prompt: str, seed: int) -> str:
        """The prompt with `count` tokens in it."""
        return insert(prompt, self.count, partial(_token, model.tokenizer), self, seed)


@dataclass(frozen=True)
class RandomNumbers(Mitigation):
    """Insert random numbers below 100,000.

    Parameters: `count`, how many; `seed`, of the draws. Raises ValueError for other numbers.
    Source: Somepalli et al., random number addition, four of them.
    """

    name: str = field(init=False, default="random numbers")
    count: int = 4
    seed: int = 0
    source: ClassVar[str] = _SOURCE

    def __post_init__(self) -> None:
        _check(self.count, self.seed)

    def rewrite(self, model: DiffusionModel, prompt: str, seed: int) -> str:
        """The prompt with `count` numbers in it."""
        return insert(prompt, self.count, lambda draw, _: str(draw.integers(100_000)), self, seed)


@dataclass(frozen=True)
class WordRepetition(Mitigation):
    """Repeat words of the prompt at other places.

    Parameters: `count`, how many; `seed`, of the draws. Raises ValueError for other numbers.
    Source: Somepalli et al., caption word repetition, four times.
    """

    name: str = field(init=False, default="word repetition")
    count: int = 4
    seed: int = 0
    source: ClassVar[str] = _SOURCE

    def __post_init__(self) -> None:
        _check(self.count, self.seed)

    def rewrite(self, model: DiffusionModel, prompt: str, seed: int) -> str:
        """The prompt with `count` of its words once more in it."""
        return insert(prompt, self.count, lambda draw, words: str(draw.choice(words)), self, seed)


Word = Callable[[np.random.Generator, list[str]], str]


def insert(prompt: str, count: int, word: Word, mitigation: Mitigation, seed: int) -> str:
    """The prompt's words with `count` more, each drawn by `word` and put at a random boundary."""
    own = (mitigation.name, mitigation.seed)  # type: ignore[attr-defined]
    draw = numbers(*own, prompt, seed)
    own_words = prompt.split()
    words = list(own_words)
    for _ in range(count):
        words.insert(int(draw.integers(len(words) + 1)), word(draw, own_words))
    return " ".join(words)


def _token(tokenizer: object, draw: np.random.Generator, _words: list[str]) -> str:
    """A token's text; special tokens, blanks and parts of a letter are never drawn."""
    special = set(tokenizer.all_special_ids)  # type: ignore[attr-defined]
    most = min(_MOST_TOKEN, len(tokenizer))  # type: ignore[arg-type]
    while True:
        number = int(draw.integers(most))
        text = tokenizer.decode([number]).strip()  # type: ignore[attr-defined]
        if number not in special and text and "\ufffd" not in text:
            return text


def _check(count: int, seed: int) -> None:
    check_whole("count", count, 1)
    check_whole("seed", seed, 0)
