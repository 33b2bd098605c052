"""What makes a stored result stale: digests of plain values, versions of the package, code.

Scope: a value as JSON (`plain`) and its SHA-256 (`value_digest`). What the package computes counts
with the `VERSION` of its file, raised by hand where results change. Functions and classes from
elsewhere (a notebook cell, a script) count with what Python made of their source, so that words and
layout change nothing, nor does a file that was edited since its import. With them counts what they
use of their surroundings: defaults, closures, globals, their own modules.
"""

import builtins
import dis
import functools
import hashlib
import inspect
import json
import linecache
import re
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType, GetSetDescriptorType, MemberDescriptorType, ModuleType
from typing import Any

PACKAGE = Path(__file__).resolve().parent
FORMS: dict[str, Callable[[Any], Any]] = {}  # module.class -> its plain form, from rooms above
_STATED = re.compile(r"^VERSION = (\d+)\b", re.MULTILINE)
_SHIPPED = tuple({sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib")})
_LOADS = ("LOAD_GLOBAL", "LOAD_NAME")
_NOT_MADE = (MemberDescriptorType, GetSetDescriptorType)  # in a class's body, but by Python


@cache
def _all_versions() -> dict[str, int]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if match := _STATED.search(path.read_text(encoding="utf-8")):
            parts = path.relative_to(PACKAGE).with_suffix("").parts
            found[".".join(part for part in parts if part != "__init__")] = int(match[1])
    return found


def versions(*rooms: str) -> dict[str, int]:
    """The `VERSION` of each file of the package that states one: "localization.detection" -> 1.

    Parameters: `rooms`, modules or packages below `nemo_kit`, by default all.
    Raises KeyError for a room in which no file states a version.
    """
    found = {}
    for room in rooms or ("",):
        if not (own := _within(room)):
            raise KeyError(f"no file of nemo_kit.{room} states a VERSION")
        found |= own
    return found


def _within(room: str) -> dict[str, int]:
    start = f"{room}." if room else ""
    return {name: v for name, v in _all_versions().items() if f"{name}.".startswith(start)}


def value_digest(value: Any, version: Any = None) -> str:
    """SHA-256 of a value made plain by `plain`: equal values have equal digests."""
    text = json.dumps(plain(value, version), sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def plain(value: Any, version: Any = None) -> Any:
    """A value as JSON holds it: dataclasses, neuron sets, tensors by digest, code by source.

    Parameters: `version`, stated by hand, counts beside the sources and stands for those that
    can't be had.
    Raises TypeError for what has no plain form, so that nothing enters a key by its address.
    """
    made = _Plain(version)
    found = made(value)
    return [found, "version", made(version)] if version is not None else found


class _Plain:
    """Makes one value plain; code that was seen before is named only."""

    def __init__(self, version: Any) -> None:
        self.version, self.seen = version, set[int]()

    def __call__(self, value: Any) -> Any:
        if value is None or isinstance(value, (bool, int, str)):
            return value
        if isinstance(value, float):
            return value if value == value and abs(value) != float("inf") else str(value)
        if isinstance(value, Mapping):
            return {str(name): self(part) for name, part in value.items()}
        if isinstance(value, (list, tuple, range)):
            return [self(part) for part in value]
        if isinstance(value, ModuleType):
            return self._module(value)
        if isinstance(value, type):
            return self._once(value, self._class)
        if callable(value) and (found := self._callable(value)) is not None:
            return found
        return self._object(value)

    def _object(self, value: Any) -> Any:
        if form := next((FORMS[n] for n in map(_name, type(value).__mro__) if n in FORMS), None):
            return self(form(value))
        if is_dataclass(value):
            held = {field.name: self(getattr(value, field.name)) for field in fields(value)}
            return {"__class__": type(value).__name__, **self._of_class(value), **held}
        if hasattr(value, "to_json"):  # a NeuronSet
            return json.loads(value.to_json())
        if isinstance(value, (set, frozenset)):
            return sorted((self(part) for part in value), key=repr)
        if isinstance(value, Path) or type(value).__module__ == "torch":  # torch.dtype, .device
            return _plain_tensor(value) if hasattr(value, "detach") else str(value)
        if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:  # a NumPy number
            return self(value.item())
        if hasattr(value, "tobytes"):  # a NumPy array
            digest = hashlib.sha256(value.tobytes()).hexdigest()
            return [str(value.dtype), list(value.shape), digest]
        if hasattr(value, "state_dict"):
            return [_name(type(value)), self(dict(value.state_dict()))]
        if _origin(type(value).__module__) == "own" and hasattr(value, "__dict__"):
            return {"__class__": type(value).__name__, **self._of_class(value), **self(vars(value))}
        if _origin(type(value).__module__) == "library" and getattr(value, "__dict__", None):
            return [_name(type(value)), self(vars(value))]  # as torch.no_grad around a function
        return self._refused(value, f"a key must be made of plain values, got {_name(type(value))}")

    def _of_class(self, value: Any) -> dict[str, Any]:
        """Versions or source of a value's class; nothing for one that only holds values."""
        code = self(type(value))
        return {} if isinstance(code, str) else {"__code__": code}

    def _callable(self, value: Any) -> Any:
        """A function, or None for what is called but is an object of its own."""
        if isinstance(value, FunctionType):
            return self._once(value, self._function)
        if isinstance(value, functools.partial):
            return ["partial", self(value.func), self(value.args), self(value.keywords)]
        if hasattr(value, "__func__"):  # a bound method
            return [self(value.__func__), self(value.__self__)]
        if hasattr(value, "__wrapped__"):  # functools.cache
            return self(value.__wrapped__)
        kind = type(value).__module__
        if kind != "builtins" and not kind.startswith("numpy"):
            return None
        if _origin(getattr(value, "__module__", None) or "builtins") == "own":
            return self._refused(value, f"what {_name(value)} does can't be read")
        owner = getattr(value, "__self__", None)  # of a method made of C
        known = owner is None or isinstance(owner, ModuleType)
        return _name(value) if known else [_name(value), self(owner)]

    def _once(self, value: Any, make: Callable[[Any], Any]) -> Any:
        if id(value) in self.seen:
            return _name(value)
        self.seen.add(id(value))
        return make(value)

    def _function(self, value: FunctionType) -> Any:
        code = value.__code__
        origin, module = _origin_of_file(code.co_filename), _origin(value.__module__ or "")
        if origin != "own" and module != "own":
            known = "package" in (origin, module)  # also behind a decorator of a library
            return _with_version(value) if known else _name(value)
        cells = zip(code.co_freevars, value.__closure__ or (), strict=True)
        held = self._used(value, {n: one.cell_contents for n, one in cells if n != "__class__"})
        if origin != "own":  # a wrapper around a function from elsewhere
            return [code.co_qualname, held]
        linecache.checkcache(code.co_filename)
        if not linecache.getlines(code.co_filename):
            return self._refused(value, f"the source of {_name(value)} can't be read")
        used = self._used(value, {name: value.__globals__[name] for name in _globals(value)})
        given = [self(value.__defaults__), self(value.__kwdefaults__)]
        return {"code": _said(code), "defaults": given, "closure": held, "globals": used}

    def _used(self, function: FunctionType, held: Mapping[str, Any]) -> dict[str, Any]:
        found = {}
        for name, value in held.items():
            try:
                found[name] = self(value)
            except TypeError as error:
                raise TypeError(f"{function.__qualname__} uses {name!r}: {error}") from None
        return found

    def _class(self, value: type) -> Any:
        origin = _origin(value.__module__)
        if origin == "package":
            kinds = [k for k in value.__mro__ if _origin(k.__module__) == "package"]
            found = [_with_version(kind) for kind in kinds]
            return found if any(isinstance(one, list) for one in found) else _name(value)
        if origin == "library":
            return _name(value)
        held = {
            name: [None if one is MISSING else self(one) for one in (f.default, f.default_factory)]
            for name, f in value.__dict__.get("__dataclass_fields__", {}).items()
        }
        members = {name: self._member(one) for name, one in _members(value)}
        bases = [self(base) for base in value.__bases__]
        return {"name": value.__qualname__, "bases": bases, "fields": held, "members": members}

    def _member(self, value: Any) -> Any:
        if isinstance(value, property):
            return [self(value.fget), self(value.fset)]
        if isinstance(value, functools.cached_property):
            return self(value.func)
        return self(getattr(value, "__func__", value))  # a classmethod's or staticmethod's

    def _module(self, value: ModuleType) -> Any:
        origin = _origin(value.__name__)
        if origin == "package":
            return _within(value.__name__.partition(".")[2])
        if origin == "library":
            return value.__name__
        return self._once(value, self._own_module)

    def _own_module(self, value: ModuleType) -> Any:
        """Its text, and the functions, classes and modules it has from outside the package."""
        file = getattr(value, "__file__", None) or ""
        linecache.checkcache(file)
        if not (lines := linecache.getlines(file)):
            return self._refused(value, f"the source of {value.__name__} can't be read")
        kinds = (FunctionType, type, ModuleType)
        held = {name: one for name, one in vars(value).items() if isinstance(one, kinds)}
        return ["".join(lines), self(held)]

    def _refused(self, value: Any, why: str) -> Any:
        if self.version is None:
            raise TypeError(
                f"{why}; so results of one version of it could be taken for another's: define it "
                "in a file or a notebook cell, or state its version yourself (version=…)"
            )
        return ["stated", _name(value if hasattr(value, "__qualname__") else type(value))]


def is_own(value: Any) -> bool:
    """Whether a function, or an object that is called, is from outside the package."""
    if isinstance(value, FunctionType):
        return _origin_of_file(value.__code__.co_filename) == "own"
    return _origin(type(value).__module__) != "package"


def _name(value: Any) -> str:
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", type(value).__name__)
    return f"{getattr(value, '__module__', None) or 'builtins'}.{name}"


def _with_version(value: Any) -> Any:
    """Name of a function or class of the package, with its file's version where it states one."""
    version = versions().get(value.__module__.partition(".")[2])
    return _name(value) if version is None else [_name(value), version]


def _origin(module: str) -> str:
    """Where a module is from: "package", "library" or "own"."""
    if module.partition(".")[0] == PACKAGE.name:
        return "package"
    file = getattr(sys.modules.get(module), "__file__", None)
    if module == "__main__" or file is not None:
        return "own" if module == "__main__" else _origin_of_file(file)
    return "library" if module in sys.modules else "own"  # made of C, or of a module that is gone


def _origin_of_file(file: str) -> str:
    path = Path(file)
    if path.is_relative_to(PACKAGE):
        return "package"
    installed = {"site-packages", "dist-packages"} & set(path.parts)
    if installed or file.startswith("<frozen") or any(path.is_relative_to(p) for p in _SHIPPED):
        return "library"
    return "own"


def _members(value: type) -> Iterator[tuple[str, Any]]:
    """What a class's body made: functions and values, without what Python or `dataclass` adds."""
    for name, one in sorted(value.__dict__.items()):
        code = getattr(inspect.unwrap(one) if callable(one) else one, "__code__", None)
        written = is_dataclass(value) and code is not None and code.co_filename == "<string>"
        added = name[:2] == name[-2:] == "__" and code is None and not hasattr(one, "__func__")
        if not (written or added or isinstance(one, _NOT_MADE) or name == "_abc_impl"):
            yield name, one


def _inner(code: CodeType) -> Iterator[dis.Instruction]:
    """Its instructions, and those of the functions inside it."""
    for one in dis.get_instructions(code):
        yield one
        if isinstance(one.argval, CodeType):
            yield from _inner(one.argval)


def _globals(function: FunctionType) -> list[str]:
    """Names of its module that a function uses."""
    known = function.__globals__
    loads = (one for one in _inner(function.__code__) if one.opname in _LOADS)
    names = {one.argval for one in loads if one.argval in known}
    return sorted(name for name in names if known[name] is not getattr(builtins, name, known))


def _said(code: CodeType) -> str:
    """Digest of what a function does: its instructions, with names, constants and handlers."""
    said = [[one.opname, _constant(one.argval)] for one in _inner(code)]
    return hashlib.sha256(json.dumps([_constant(code), said]).encode()).hexdigest()


def _constant(value: Any) -> str:
    if isinstance(value, CodeType):  # its instructions come by themselves
        counts = value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount
        return repr([counts, value.co_varnames, value.co_exceptiontable])
    if isinstance(value, tuple):
        return repr([_constant(one) for one in value])
    return repr(sorted(map(repr, value)) if isinstance(value, frozenset) else value)


def _plain_tensor(value: Any) -> Any:
    import torch

    flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return [str(value.dtype), list(value.shape), hashlib.sha256(flat.numpy()).hexdigest()]
