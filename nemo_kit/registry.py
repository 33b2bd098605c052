"""What is registered under a name: a function, and the options that comparisons give it."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from nemo_kit.checks import check_choice

Kind = TypeVar("Kind")


class Registered:
    """A function with its options, as detectors and localization methods are."""

    function: Callable[..., Any]
    options: Mapping[str, Any]

    @property
    def defaults(self) -> dict[str, Any]:
        """Its options, with the values that comparisons give them."""
        given = inspect.signature(self.function).parameters.values()
        own = {one.name: one.default for one in given if one.default is not one.empty}
        return {**own, **self.options}

    @property
    def source(self) -> str:
        """What the function's docstring says behind "Source:"."""
        return " ".join((inspect.getdoc(self.function) or "").partition("Source:")[2].split())


def find(word: str, kind: type[Kind], known: Mapping[str, Kind], which: Any) -> Kind:
    """A registered one by its name, or any function as one of its kind; `word` is for errors."""
    if isinstance(which, str):
        check_choice(word, which, known)
        return known[which]
    if isinstance(which, kind):
        return which
    if not callable(which):
        raise TypeError(f"{word} must be a name or a function, got {which!r:.80}")
    return kind(getattr(which, "__name__", word), which)  # type: ignore[call-arg]


def check_takes(what: str, function: Callable[..., Any], given: str, **options: Any) -> None:
    """Raise TypeError for a function that doesn't take (model, prompt, …) and the options alone."""
    try:
        named = dict.fromkeys(given.split(", ")[2:])
        inspect.signature(function).bind(None, None, **(named | options))
    except TypeError as error:
        raise TypeError(
            f"{what} must take ({given}): {error}; other parameters need defaults"
        ) from error
