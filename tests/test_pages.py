"""What the pages tell: programs and commands that bind to the package, links, files, long lines.

Nothing is run here: programs of pages are read, names resolved and calls bound to signatures.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import books
import pytest
import typer
import yaml

import nemo_kit
from benchmarks.__main__ import app as bench
from nemo_kit import detectors, figures, groups, lab, metrics, mitigation, plots, study
from nemo_kit.cli import app
from nemo_kit.explorer.session import Session
from nemo_kit.models import DiffusionModel

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "NOTICE.md", "CHANGELOG.md", "nemo_kit/lab/CARD.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "notebooks" / "course").glob("*.md")),
]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LESSONS = sorted((ROOT / "notebooks" / "course").glob("*.ipynb"))
PRESENT = [path for path in (*PAGES, *NOTEBOOKS, *LESSONS) if path.name != "CHANGELOG.md"]
BOOKS = figures.read_all(ROOT / "notebooks")
#: What a page's words may begin with, beside modules of the package.
ROOTS: dict[str, Any] = {
    "nemo_kit": nemo_kit, "lab": lab, "metrics": metrics, "mitigation": mitigation,
    "detectors": detectors, "figures": figures, "groups": groups, "plots": plots, "study": study,
}  # fmt: skip
WIDE = {"CHANGELOG"}  # whose lines are longer
NOT_INSTALLED = {"dask_jobqueue"}  # the one package of a recipe that nemo_kit doesn't bring


def parameters(path: Path) -> set[str]:
    """The names in a notebook's parameters cell."""
    [source] = [source for source, given in books.cells(path) if given]
    return set(re.findall(r"^(\w+)(?:: .+)? = ", source, flags=re.M))


PARAMETERS = set().union(*(parameters(path) for path in NOTEBOOKS if path.stem != "explorer"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def text(path: Path) -> str:
    """A page's text, or that of a notebook's markdown cells."""
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    return "\n\n".join(source for kind, source in cells(path) if kind == "markdown")


def cells(path: Path) -> Iterator[tuple[str, str]]:
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        yield cell["cell_type"], "".join(cell["source"])


def blocks(path: Path, *languages: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```", text(path), flags=re.M | re.S)
    return [code for language, code in found if language in languages]


def plain(path: Path) -> str:
    """A page without its blocks."""
    return re.sub(r"^```.*?^```", "", text(path), flags=re.M | re.S)


def spans(path: Path) -> list[str]:
    """What stands in `backticks`."""
    return [" ".join(one.split()) for one in re.findall(r"`([^`]+)`", plain(path))]


# programs


class Thing(NamedTuple):
    """Some instance of a class."""

    of: type


class Program(ast.NodeVisitor):
    """Reads a program and asserts that its names are there and its calls bind."""

    def __init__(self, names: dict[str, Any]) -> None:
        self.names = names

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            bound = alias.asname or alias.name.split(".")[0]
            self.names[bound] = imported(alias.name if alias.asname else bound)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        module = imported(node.module or "")
        for alias in node.names:
            if isinstance(module, ModuleType) and not hasattr(module, alias.name):
                imported(f"{node.module}.{alias.name}")
            self.names[alias.asname or alias.name] = getattr(module, alias.name, None)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for decorator in node.decorator_list:
            self.value(decorator)
        own = node.args
        for one in (*own.posonlyargs, *own.args, *own.kwonlyargs):
            self.names[one.arg] = None
        for statement in node.body:
            self.visit(statement)
        self.names[node.name] = None

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for one in (*node.bases, *node.decorator_list):
            self.value(one)
        self.names[node.name] = None
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        value = self.value(node.value)
        for target in node.targets:
            self.bind(target, value if isinstance(target, ast.Name) else None)

    def visit_For(self, node: ast.For) -> None:
        self.value(node.iter)
        self.bind(node.target, None)
        for statement in node.body:
            self.visit(statement)

    def visit_With(self, node: ast.With) -> None:
        for item in node.items:
            self.value(item.context_expr)
            if item.optional_vars:
                self.bind(item.optional_vars, None)
        for statement in node.body:
            self.visit(statement)

    def bind(self, target: ast.AST, value: Any) -> None:
        for one in ast.walk(target):
            if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store):
                self.names[one.id] = value
            elif isinstance(one, ast.Attribute):
                self.value(ast.Attribute(one.value, one.attr, ast.Load()))

    def visit_Expr(self, node: ast.Expr) -> None:
        self.value(node.value)

    def value(self, node: ast.AST) -> Any:
        """What an expression is, as far as can be told without running it; else None."""
        if isinstance(node, ast.Name):
            assert node.id in self.names or hasattr(builtins, node.id), f"{node.id} is not defined"
            return self.names.get(node.id)
        if isinstance(node, ast.Attribute):
            return attribute(self.value(node.value), node.attr)
        if isinstance(node, ast.Call):
            return self.called(node)
        if isinstance(node, (ast.ListComp, ast.GeneratorExp, ast.SetComp, ast.DictComp)):
            for loop in node.generators:
                self.value(loop.iter)
                self.bind(loop.target, None)
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, (ast.expr_context, ast.Lambda)):
                self.value(child)
        return None

    def called(self, node: ast.Call) -> Any:
        function = self.value(node.func)
        for one in (*node.args, *(keyword.value for keyword in node.keywords)):
            self.value(one)
        if not callable(function) or not getattr(function, "__module__", "").startswith("nemo_kit"):
            return None
        bound_to(function, len(node.args), [k.arg for k in node.keywords if k.arg])
        returned = function if isinstance(function, type) else hints(function).get("return")
        return Thing(returned) if isinstance(returned, type) else None


def imported(name: str) -> Any:
    if name.split(".")[0] in NOT_INSTALLED:
        return None
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not name.startswith("nemo_kit") and error.name == name.split(".")[0]:
            pytest.fail(f"{name} is no package that nemo_kit brings")
        raise


def hints(function: Any) -> dict[str, Any]:
    try:
        return get_type_hints(function)
    except NameError:  # of what only a type checker imports
        return {}


def attribute(owner: Any, name: str) -> Any:
    """An attribute of a module or class, the method of an instance; None where it can't be told."""
    if isinstance(owner, Thing):
        if not owner.of.__module__.startswith("nemo_kit"):
            return None
        assert has(owner.of, name), f"{owner.of.__name__} has no {name}"
        method = inspect.getattr_static(owner.of, name, None)
        return method.__get__(object()) if inspect.isfunction(method) else None
    if owner is None or not (isinstance(owner, type) or inspect.ismodule(owner)):
        return None
    if inspect.ismodule(owner) and not hasattr(owner, name):
        return imported(f"{owner.__name__}.{name}")
    assert hasattr(owner, name), f"{owner.__name__} has no {name}"
    return getattr(owner, name)


def has(kind: type, name: str) -> bool:
    """Whether instances have an attribute: of the class, annotated, or set by a method."""
    own = [one for one in kind.__mro__ if one.__module__.startswith("nemo_kit")]
    return hasattr(kind, name) or any(
        name in vars(one).get("__annotations__", {}) or f"self.{name}" in inspect.getsource(one)
        for one in own
    )


def bound_to(function: Any, positional: int, keywords: list[str]) -> None:
    try:
        inspect.signature(function).bind_partial(*[None] * positional, **dict.fromkeys(keywords))
    except TypeError as error:
        pytest.fail(f"{function.__qualname__}: {error}")


def read(code: str, names: dict[str, Any]) -> None:
    for statement in ast.parse(code).body:
        Program(names).visit(statement)


@pytest.mark.parametrize("path", [p for p in PAGES if blocks(p, "python")], ids=relative)
def test_a_page_s_programs_name_what_there_is(path: Path) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}  # a program may go on from the one before
    for code in blocks(path, "python"):
        read(code, names)


@pytest.mark.parametrize("path", [p for p in NOTEBOOKS if blocks(p, "python")], ids=relative)
def test_a_notebook_s_examples_name_what_there_is(path: Path) -> None:
    names: dict[str, Any] = dict.fromkeys(("net", "made", "np"))
    for kind, source in cells(path):
        if kind == "code":
            names |= dict.fromkeys(re.findall(r"^(?:import .* as )?(\w+)\b", source, flags=re.M))
    for code in blocks(path, "python"):
        read(code, names)


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("from nemo_kit import detectt", "detectt"),
        ("from nemo_kit import load\nload('lab', devise='cpu')", "devise"),
        ("from nemo_kit import load\nload('lab').searcht", "has no searcht"),
        ("from nemo_kit import metrics\nmetrics.sscd_gone()", "sscd_gone"),
        ("from nemo_kit import explore, load\nexplore(load('lab')).save()\nx.y", "x is not"),
        ("import not_there", "no package"),
    ],
)
def test_a_program_with_a_fault_is_found(code: str, fault: str) -> None:
    with pytest.raises((AssertionError, ImportError, pytest.fail.Exception), match=fault):
        read(code, {})


@pytest.mark.parametrize("path", PRESENT, ids=relative)
def test_names_in_a_page_s_words_are_there(path: Path) -> None:
    kinds = {"session": Session, "model": DiffusionModel, "DiffusionModel": DiffusionModel}
    for span in spans(path):
        found = re.match(r"(\w+)((?:\.\w+)+)(?=$|[( ])", span)
        if not found or Path(span).suffix in {".csv", ".json", ".py", ".parquet", ".png", ".svg"}:
            continue
        root, rest = found[1], found[2].split(".")[1:]
        if root in kinds:
            assert has(kinds[root], rest[0]), span
        elif root in ROOTS:
            value = ROOTS[root]
            for name in rest:
                value = attribute(value, name)


# commands


def commands(path: Path) -> Iterator[list[str]]:
    """The commands of a page's blocks and words, one a line."""
    code = "\n".join(blocks(path, "sh", "")).replace("\\\n", " ")
    started = ("nemo-kit ", "make ", "python -m benchmarks", "papermill ")
    lines = [*code.splitlines(), *(one for one in spans(path) if one.startswith(started))]
    whole = re.sub(r"'\n?[^']*'", lambda found: found[0].replace("\n", "; "), "\n".join(lines))
    for line in whole.splitlines():
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # an apostrophe: no command
            continue
        for start in ("nemo-kit", "make", "python", "papermill"):
            if start in words:
                yield words[words.index(start) :]
                break


def options(command: Any) -> dict[str, Any]:
    return {name: one for one in command.params for name in (*one.opts, *one.secondary_opts)}


ALL = typer.main.get_command(app).commands  # type: ignore[attr-defined]
BENCH = options(typer.main.get_command(bench))


def check_options(words: list[str], known: dict[str, Any]) -> None:
    for word, value in zip(words, [*words[1:], ""], strict=True):
        if not word.startswith("--") or word == "--help":
            continue
        assert word in known, f"no option {word}"
        if word == "--set" and value.partition("=")[0] != "NAME":
            assert value.partition("=")[0] in PARAMETERS, value
        elif word == "--only" and re.fullmatch(r"\w+", value) and value.islower():
            assert figures.select(BOOKS, [value]), value
        elif get_origin(kind := known[word].type_descriptor.annotation) is Literal:
            assert value in get_args(kind) or "|" in value, f"{word} {value}"


def check_command(words: list[str]) -> None:
    program, *rest = words
    if program == "nemo-kit":
        name = next((one for one in rest if not one.startswith("-")), None)
        if name in ALL:
            check_options(rest, options(ALL[name]))
        else:
            assert name is None or not re.fullmatch(r"[a-z-]+", name), f"no command {name}"
    elif program == "make":
        makefile = (ROOT / "Makefile").read_text()
        for word in rest:
            pattern = rf"^{word.partition('=')[0]} \?=" if "=" in word else rf"^{word}:"
            assert re.search(pattern, makefile, flags=re.M), f"make {word}"
    elif program == "papermill":
        check_papermill(rest)
    elif rest[:2] == ["-m", "benchmarks"]:
        check_options(rest, BENCH)


def check_papermill(words: list[str]) -> None:
    known = parameters(ROOT / words[0])
    for word, value in zip(words, [*words[1:], ""], strict=True):
        if word == "-p":
            assert value in known, value
        elif word == "-y":
            given = yaml.safe_load(value if "{" in value else value.replace("; ", "\n"))
            assert set(given) <= known, value


@pytest.mark.parametrize("path", PRESENT, ids=relative)
def test_a_page_s_commands_have_these_options(path: Path) -> None:
    for words in commands(path):
        check_command(words)
    known = set(BENCH).union(*(options(one) for one in ALL.values()))
    for span in spans(path):
        if span.startswith("--") and "scheduler-file" not in span and "nthreads" not in span:
            assert span.split()[0].split("=")[0] in known | {"--lifetime", "--mem"}, span


@pytest.mark.parametrize(
    "line",
    ["nemo-kit figurs", "nemo-kit detect --prompt x", "nemo-kit localize --settings best 'a cat'",
     "nemo-kit export --set shwon=3", "make figure", "make figures PRESETS=lab",
     "papermill notebooks/plan.ipynb out.ipynb -p devises 2", "python -m benchmarks --counts 3",
     "papermill notebooks/plan.ipynb out.ipynb -y '{devises: 2}'"],
)  # fmt: skip
def test_a_command_with_a_fault_is_found(line: str) -> None:
    with pytest.raises(AssertionError):
        check_command(shlex.split(line))


# links, files, lines


def slugs(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", plain(path), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS, *LESSONS], ids=relative)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", plain(path)):
        if target.startswith(("http", "mailto")):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), target
        if anchor:
            assert anchor in slugs(there), target


@pytest.mark.parametrize("path", PRESENT, ids=relative)
def test_files_that_a_page_names_are_there(path: Path) -> None:
    rooms = ("nemo_kit/", "notebooks/", "docs/", "tests/", "training/", "figures/lab/")
    for span in spans(path):
        if span.startswith(rooms) and re.fullmatch(r"[\w./-]+", span) and "NAME" not in span:
            assert (ROOT / span).exists(), span


@pytest.mark.parametrize("path", [p for p in PAGES if p.stem not in WIDE], ids=relative)
def test_lines_of_a_page_are_short(path: Path) -> None:
    lines = plain(path).splitlines()
    long = [one for one in lines if len(one) > 100 and not one.lstrip().startswith(("|", "!["))]
    assert long == []


@pytest.mark.parametrize("path", PAGES, ids=relative)
def test_rows_of_a_table_have_the_cells_of_its_head(path: Path) -> None:
    head = 0
    for line in plain(path).splitlines():
        row = line.strip()
        if not row.startswith("|"):
            head = 0
            continue
        count = len(re.findall(r"(?<!\\)\|", row))
        head = head or count
        assert count == head, row
