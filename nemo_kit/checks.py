"""Checks of what callers give: each error names the parameter, what is allowed, and what came.

Scope: texts, seeds, numbers, choices; used by every room above. What no input can help is a
`MachineError`, which ends a run over many inputs.
"""

import difflib
import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any

ROUNDING = 1e-6  # of a quantity's size: what float32 arithmetic leaves where nothing is said
HALF_PRECISION = 'in half precision? then dtype="float32" (--dtype float32) helps'
_PLAIN = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}


class MachineError(RuntimeError):
    """This process can't do its work, whatever it is given: no fault of the input."""


class UnsupportedError(ValueError):
    """What was asked is not defined for this kind of model, whatever the prompt."""


class UninformativeError(MachineError, ValueError):
    """The model's prediction can't tell prompts apart, so no score of it means anything."""


def check_texts(prompts: object, empty_allowed: bool = False) -> list[str]:
    """The prompts as a list of texts.

    Raises TypeError where one is no text, ValueError where there is none or one is empty.
    """
    texts = [prompts] if isinstance(prompts, str) else prompts
    if not isinstance(texts, Iterable):
        raise TypeError(f"prompts must be a text or a list of texts, got {type(texts).__name__}")
    texts = list(texts)
    if not texts:
        raise ValueError("prompts must hold at least one prompt, got none")
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"prompts must be texts, got {text!r} ({type(text).__name__})")
        if not empty_allowed and not text.strip():
            raise ValueError(f"prompts must not be empty, got {text!r}")
    return texts


def check_text(prompt: object) -> str:
    """One text that is not empty; raises as `check_texts`."""
    if not isinstance(prompt, str):
        raise TypeError(f"prompt must be one text, got {prompt!r:.80} ({type(prompt).__name__})")
    return check_texts(prompt)[0]


def check_seeds(seeds: object, least: int = 1, distinct: bool = False) -> list[int]:
    """The seeds as a list of integers from 0.

    Parameters: `least`, how many there must be; `distinct`, whether they must all differ.
    Raises ValueError otherwise.
    """
    found = list(seeds) if isinstance(seeds, Iterable) and not isinstance(seeds, str) else [seeds]
    if not all(is_whole(seed) and operator.index(seed) >= 0 for seed in found):
        raise ValueError(f"seeds must be integers from 0, got {found!r:.80}")
    if len(found) < least:
        raise ValueError(f"seeds must hold at least {least}, got {len(found)}")
    numbers = [operator.index(seed) for seed in found]
    if distinct and len(set(numbers)) < len(numbers):
        raise ValueError(f"seeds must differ from one another, got {numbers!r:.80}")
    return numbers


def check_seeds_apart(evaluation: Iterable[int], detection: Iterable[int]) -> list[int]:
    """The evaluation seeds, none of which detection used: neurons suit the noise of theirs.

    Raises ValueError, with the seeds, where some are in both, and as `check_seeds` where two are
    the same.
    """
    used, seeds = check_seeds(detection, least=0), check_seeds(evaluation, distinct=True)
    if both := sorted(set(seeds) & set(used)):
        shown = ", ".join(map(str, both[:5])) + (", …" if len(both) > 5 else "")
        raise ValueError(
            f"evaluation seeds must differ from detection seeds, but {shown} "
            f"{'is' if len(both) == 1 else 'are'} in both; start the pictures above {max(used)}"
        )
    return seeds


def is_whole(value: object) -> bool:
    """Whether the value is an integer (numpy's too) and no truth value."""
    return hasattr(value, "__index__") and type(value).__name__ not in ("bool", "bool_")


def check_whole(name: str, value: object, least: int) -> None:
    """Raise ValueError unless the value is an integer of at least `least`."""
    if not is_whole(value) or operator.index(value) < least:  # type: ignore[arg-type]
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")


def check_number(name: str, value: object, least: float = -math.inf, finite: bool = True) -> None:
    """Raise ValueError unless the value is a number of at least `least`."""
    try:
        number = math.nan if isinstance(value, (bool, str)) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not number >= least or (finite and not math.isfinite(number)):
        bound = "" if least == -math.inf else f" of at least {least:g}"
        kind = "a finite number" if finite else "a number"
        raise ValueError(f"{name} must be {kind}{bound}, got {value!r}")


def check_finite(what: str, values: Any, error: type[Exception] = ValueError) -> None:
    """Raise the error unless all numbers of a tensor are finite."""
    if not values.isfinite().all():
        raise error(f"{what} became NaN or infinite ({HALF_PRECISION})")


def check_kind(name: str, value: object, kind: type) -> None:
    """Raise TypeError unless the value is of this class, or None."""
    if value is not None and not isinstance(value, kind):
        raise TypeError(f"{name} must be {kind.__name__}, got {value!r:.80}")


def check_columns(name: str, frame: Any, *columns: str) -> None:
    """Raise ValueError unless the frame has these columns."""
    if missing := [column for column in columns if column not in frame]:
        has = ", ".join(map(str, frame)) or "none"
        raise ValueError(f"{name} lacks {', '.join(missing)}; it has {has}")


def check_choice(name: str, value: object, allowed: Iterable[object]) -> None:
    """Raise ValueError unless the value is one of those allowed; it names what may be meant."""
    if value not in (known := list(allowed)):
        hint = alike(str(value), map(str, known))
        raise ValueError(f"{name} must be one of {', '.join(map(str, known))}; got {value!r}{hint}")


def alike(wrong: str, names: Iterable[str]) -> str:
    """A question after the names that someone may have meant, as "; did you mean F14a, F14b?"."""
    known = {name.casefold(): name for name in names}
    holding = [name for name in known if wrong and wrong.casefold() in name]
    found = holding or difflib.get_close_matches(wrong.casefold(), known, 3, 0.6)
    return f"; did you mean {', '.join(known[name] for name in found[:4])}?" if found else ""


def listed(names: Sequence[str]) -> str:
    """The first three of some names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def fits(value: Any, kind: str) -> bool:
    """Whether a value is of a type, given as "float | None" or "list[int]"."""
    kind, _, none = kind.partition(" | ")
    if isinstance(value, list):
        return kind.startswith("list[") and all(fits(one, kind[5:-1]) for one in value)
    return bool(none) if value is None else type(value) in _PLAIN.get(kind, ())
