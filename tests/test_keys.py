"""Equal questions have equal keys; code from outside the package counts with its source."""

from __future__ import annotations

import functools
import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from IPython.core.interactiveshell import InteractiveShell

from nemo_kit.keys import plain, value_digest
from nemo_kit.localization.methods import METHODS
from nemo_kit.mitigation import AttentionScaling, NeMo, WandaPruning
from nemo_kit.models import DiffusionModel
from nemo_kit.neurons import NeuronSet
from nemo_kit.store import generate_all, run

MINE = """
from contextlib import contextmanager
from dataclasses import dataclass, field
from nemo_kit.mitigation import Mitigation

@dataclass(frozen=True)
class Mine(Mitigation):
    {doc}
    name: str = field(init=False, default="mine")
    {fields}

    def rewrite(self, model, prompt, seed):
        return {rewritten}

    @contextmanager
    def apply(self, run):
        yield {run}
"""
PLAIN = {"doc": "'''Words.'''", "fields": "n: int = 1", "rewritten": "prompt", "run": "run"}


class Notebook:
    """Cells run one after the other in a real IPython shell."""

    def __init__(self) -> None:
        self.shell = InteractiveShell()

    def __call__(self, text: str) -> None:
        self.shell.run_cell(text, store_history=True).raise_error()

    def __getitem__(self, name: str) -> Any:
        return self.shell.user_ns[name]

    def key(self, expression: str) -> str:
        """The key of what an expression gives in this notebook."""
        self(f"_value = {expression}")
        return value_digest(self["_value"])


@pytest.fixture
def cell() -> Iterator[Notebook]:
    main = sys.modules["__main__"]
    yield Notebook()
    sys.modules["__main__"] = main


def mine(**changes: str) -> str:
    return MINE.format(**PLAIN | changes)


def test_an_edited_cell_gives_new_pictures(
    cell: Notebook, toy_model: DiffusionModel, tmp_path: Path
) -> None:
    def pictures() -> np.ndarray:
        made = generate_all(
            toy_model, ["a cat"], [5], store=tmp_path, progress=False, steps=2,
            mitigation=cell["Mine"](),
        )  # fmt: skip
        return made["image"][0]

    cell(mine())
    first = pictures()
    cell(mine(rewritten="prompt + ' in a red cup'"))
    second = pictures()
    assert (first != second).any()
    toy_model.samples_evaluated = 0
    cell(mine(doc="'''Other words.'''  # and a remark"))
    np.testing.assert_array_equal(pictures(), first)
    assert toy_model.samples_evaluated == 0


@pytest.mark.parametrize(
    "changed",
    [
        {"rewritten": "prompt + 'x'"},
        {"run": "(run)[0]"},
        {"fields": "n: int = 2"},
        {"fields": "n: int = 1; strong = True"},
        {"rewritten": "[word for word in prompt][0]"},
    ],
)
def test_what_makes_a_class_of_a_cell_another(cell: Notebook, changed: dict[str, str]) -> None:
    cell(mine())
    before = cell.key("Mine()")
    cell(mine(**changed))
    assert cell.key("Mine()") != before
    cell("# something else\n" + mine())
    assert cell.key("Mine()") == before


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("S = 2\ndef f(x): return x * S", "S = 3", False),
        ("S = 2\ndef f(x): return x * S", "T = 3", True),
        ("def g(x): return x\ndef f(x): return g(x)", "def g(x): return -x", False),
        ("def g(x): return x\ndef f(x): return (lambda y: g(y))(x)", "def g(x): return -x", False),
        ("def f(x, by=2): return x * by", "def f(x, by=3): return x * by", False),
        ("def f(x): return x", "def f(x):\n    'Words.'\n    return x  # remark", True),
        ("def m(k):\n  def f(x): return x * k\n  return f\nf = m(1)", "f = m(2)", False),
        ("import math\ndef f(x): return math.sin(x)", "import math\nimport re", True),
        ("f, other = lambda x: 1, lambda x: 2", "f, other = other, f", False),
        ("f = lambda x: 1", "n = 3; f = lambda x: (1)", True),
        ("class C:\n  @property\n  def p(self): return 1\ndef f(x): return C().p",
         "class C:\n  @property\n  def p(self): return 2", False),
        ("class B:\n  def p(self): return 1\nclass C(B): pass\ndef f(x): return C().p()",
         "class B:\n  def p(self): return 2\nclass C(B): pass", False),
        ("from functools import cache\n@cache\ndef f(x): return 1",
         "@cache\ndef f(x): return 2", False),
        ("def f(x): return f(x - 1) if x else 0", "y = 1", True),
        ("class W:\n  def __init__(self, n): self.n = n\n  def __call__(self, x): pass\nf = W(1)",
         "f = W(2)", False),
        ("def f(x):\n  try:\n    a()\n    b()\n  except E: pass",
         "def f(x):\n  try: a()\n  except E: pass\n  else: b()", False),
        ("def f(x): return x == 1", "def f(x): return x == True", False),
        ("def f(x):\n  return x", "def f(x):\n\n  return (\n    x)", True),
        ("d = {'x': 1}\nf = d.get", "d = {'x': 2}\nf = d.get", False),
        ("import numpy as np\nA = np.arange(3)\ndef f(x): return A", "A = A + 1", False),
    ],
)  # fmt: skip
def test_what_a_function_of_a_cell_needs_counts(
    cell: Notebook, first: str, second: str, same: bool
) -> None:
    cell(first)
    before = cell.key("f")
    cell(second)
    assert (cell.key("f") == before) is same


def test_code_without_a_source_needs_a_stated_version() -> None:
    function: Callable[[str], Any] = eval("lambda item: {'prompt': item}")
    with pytest.raises(TypeError, match=r"source of .*<lambda> can't be read.*\(version=…\)"):
        plain(function)
    assert value_digest(function, 1) == value_digest(function, 1)
    assert value_digest(function, 1) != value_digest(function, 2)


def test_what_has_no_plain_form_is_named(cell: Notebook) -> None:
    cell("import threading\nlock = threading.Lock()\ndef g(x): lock\ndef f(x): return g(x)")
    with pytest.raises(TypeError, match=r"f uses 'g': g uses 'lock': .*lock.*version=…"):
        plain(cell["f"])


def test_a_class_of_one_s_own_may_have_a_name_of_the_package_s(cell: Notebook) -> None:
    cell("class DiffusionModel:\n  def __init__(self, n): self.n = n\n  def f(self): return 1")
    assert cell.key("DiffusionModel(1)") != cell.key("DiffusionModel(2)")


def test_a_model_counts_by_its_weights(toy_model: DiffusionModel) -> None:
    def scored(prompt: str) -> float:
        return float(toy_model.embed(prompt).mean())

    before = value_digest(scored)
    weight = next(toy_model.denoiser.parameters())
    kept = weight.clone()
    try:
        weight.view(-1)[0] += 1
        assert value_digest(scored) != before
    finally:
        weight.copy_(kept)
    assert value_digest(scored) == before


def test_a_stated_version_counts_beside_the_source(cell: Notebook) -> None:
    cell("def f(x): return 1")
    first = cell["f"]
    cell("def f(x): return 2")
    assert value_digest(first, 1) != value_digest(cell["f"], 1)
    assert value_digest(first, 1) != value_digest(first, 2)


def test_run_knows_an_edited_function(cell: Notebook, tmp_path: Path) -> None:
    def rows() -> list[int]:
        found = run(cell["f"], ["a", "bb"], tmp_path, {}, name="rows", progress=False)
        return list(found.frame["n"])

    cell("def f(text): return {'prompt': text, 'n': len(text)}")
    assert rows() == [1, 2]
    cell("def f(text): return {'prompt': text, 'n': -len(text)}")
    assert rows() == [-1, -2]
    function = eval("lambda text: {'prompt': text, 'n': 7}")
    with pytest.raises(TypeError, match="version="):
        run(function, ["a"], tmp_path, {}, name="rows", progress=False)
    stated = run(function, ["a"], tmp_path, {}, name="rows", progress=False, version=1)
    assert list(stated.frame["n"]) == [7]


def own_module(folder: Path, name: str, text: str) -> ModuleType:
    (folder / f"{name}.py").write_text(text)
    importlib.invalidate_caches()
    sys.modules.pop(name, None)
    return importlib.import_module(name)


def test_a_module_of_the_user_s_counts(
    cell: Notebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    own_module(tmp_path, "own_below", "def g(x): return x\n")
    own_module(tmp_path, "own_helpers", "from own_below import g\ndef h(x): return g(x)\n")
    found = []
    for text in ("def g(x): return x\n", "def g(x): return -x  # another\n"):
        own_module(tmp_path, "own_below", text)
        sys.modules.pop("own_helpers")
        cell("import own_helpers\ndef f(x): return own_helpers.h(x)")
        found.append((cell.key("f"), cell.key("own_helpers.h")))
    assert found[0][0] != found[1][0]
    assert found[0][1] != found[1][1]


def test_a_file_edited_after_its_import_is_not_what_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    module = own_module(tmp_path, "own_edited", "def f(x):\n    return x * 0.5\n")
    (tmp_path / "own_edited.py").write_text("def f(x):\n    return x * 0.75\n")
    old = value_digest(module.f)
    new = value_digest(own_module(tmp_path, "own_edited", "def f(x):\n    return x * 0.75\n").f)
    assert old != new


def test_what_the_package_has_counts_by_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    from nemo_kit import keys

    ways = [AttentionScaling(), NeMo(NeuronSet({1: [0]})), WandaPruning()]
    before = [value_digest(way) for way in ways]
    raised = keys.versions() | {"mitigation.wanda": 9, "mitigation.nemo": 2}
    monkeypatch.setattr(keys, "_all_versions", lambda: raised)
    after = [value_digest(way) for way in ways]
    assert [one == two for one, two in zip(before, after, strict=True)] == [True, False, False]


def test_a_key_is_the_same_in_every_process(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import own_sets\n"
        "from nemo_kit.keys import value_digest; print(value_digest(own_sets.f))"
    )
    (tmp_path / "own_sets.py").write_text("def f(x): return x in {'a', 'b', 'c'}, {'d', 'e'}\n")
    found = {
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, check=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout
        for seed in "12"
    }  # fmt: skip
    assert len(found) == 1


def test_partials_and_methods() -> None:
    def scaled(x: float, by: float) -> float:
        return x * by

    assert value_digest(functools.partial(scaled, by=1)) != value_digest(
        functools.partial(scaled, by=2)
    )
    assert plain(np.sin) == plain(np.sin)
    assert plain("a".upper) != plain(np.cos)


def test_a_function_behind_a_decorator_of_a_library_counts_with_its_version() -> None:
    found = [plain(METHODS[name].function) for name in ("patching", "gradient × activation")]
    assert found == [
        [f"nemo_kit.localization.methods.{n}.{n}", 1] for n in ("patching", "gradient")
    ]
