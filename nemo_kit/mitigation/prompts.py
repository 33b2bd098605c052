"""Mitigations that rewrite the prompt: words inserted at random places.

Each image has a draw of its own, which follows from the mitigation's seed, the prompt and the
image's seed. The insertions are made one after the other, as in the released code, so a later one
may fall beside an earlier one.
Source: Somepalli et al., "Understanding and Mitigating Copying in Diffusion Models", NeurIPS 2023
(arXiv 2305.20086), and their `sd_mitigation.py`.
"""

from dataclasses import dataclass

import numpy as np

from nemo_kit.checks import check_whole
from nemo_kit.mitigation.base import Found, Mitigation, numbers
from nemo_kit.models.base import DiffusionModel

VERSION = 1  # raised where results change (see nemo_kit.keys)
_MOST_TOKEN = 49400  # of Stable Diffusion's 49,408; the last eight are left out there


@dataclass(frozen=True)
class Insertion(Mitigation):
    """Insert words at random boundaries of the prompt: the base of the others here.

    Parameters: `count`, how many; `seed`, of the draws. Raises ValueError for other numbers, as
    the others do.
    """

    count: int = 4
    seed: int = 0
    source = "Somepalli et al., NeurIPS 2023 (arXiv 2305.20086)"

    def __post_init__(self) -> None:
        check_whole("count", self.count, 1)
        check_whole("seed", self.seed, 0)

    def rewrite(self, model: DiffusionModel, prompt: str, seed: int) -> str:
        """The prompt with `count` words more, each put where it may fall beside an earlier one."""
        draw, own = numbers(self.name, self.seed, prompt, seed), prompt.split()
        words = list(own)
        for _ in range(self.count):
            place = int(draw.integers(len(words) + 1))
            words.insert(place, self.word(model, draw, own))
        return " ".join(words)

    def word(self, model: DiffusionModel, draw: np.random.Generator, own: list[str]) -> str:
        """One word to insert; `own` are those of the prompt."""
        raise NotImplementedError(f"{type(self).__name__} must say what it inserts")


@dataclass(frozen=True)
class RandomTokens(Insertion):
    """Insert random tokens of the vocabulary.

    Source: Somepalli et al., random token addition (table 1: 1, 4, 10): ids below 49400, decoded.
    """

    name = "random tokens"
    place = 5

    @classmethod
    def rows(cls, found: Found, seed: int) -> dict[str, Mitigation]:
        """Table 1's three."""
        return {f"{n} random token{'s' * (n > 1)}": cls(n, seed) for n in (1, 4, 10)}

    def word(self, model: DiffusionModel, draw: np.random.Generator, own: list[str]) -> str:
        """A token's text; special tokens, blanks and parts of a letter are never drawn."""
        tokenizer = model.tokenizer
        while True:
            number = int(draw.integers(min(_MOST_TOKEN, len(tokenizer))))
            text = tokenizer.decode([number]).strip()
            if number not in tokenizer.all_special_ids and text and "\ufffd" not in text:
                return text


@dataclass(frozen=True)
class RandomNumbers(Insertion):
    """Insert random numbers below 100,000.

    Source: Somepalli et al., random number addition, four of them.
    """

    name = "random numbers"
    place = 10

    def word(self, model: DiffusionModel, draw: np.random.Generator, own: list[str]) -> str:
        """A number."""
        return str(draw.integers(100_000))


@dataclass(frozen=True)
class WordRepetition(Insertion):
    """Repeat words of the prompt at other places.

    Source: Somepalli et al., caption word repetition, four times.
    """

    name = "word repetition"
    place = 11

    def word(self, model: DiffusionModel, draw: np.random.Generator, own: list[str]) -> str:
        """One of the prompt's own words."""
        return str(draw.choice(own))
