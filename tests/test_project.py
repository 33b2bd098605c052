"""The repository as a whole: files that must agree, and rules that every module keeps."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from nemo_kit import __version__, figures

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
ROOMS = ("nemo_kit", "benchmarks", "notebooks/course/checks")
MODULES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").rglob("*.ipynb"))
BOOKS = figures.read_all(ROOT / "notebooks")


def requirements(*extras: str) -> list[Requirement]:
    named = [*PROJECT["dependencies"], *(line for extra in extras for line in EXTRAS[extra])]
    return [r for r in map(Requirement, named) if r.name != PROJECT["name"]]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# pyproject, constraints, environment, Makefile


def test_every_dependency_is_pinned_to_a_version_it_allows() -> None:
    known = pins()
    for requirement in requirements(*EXTRAS):
        pinned = known.get(canonicalize_name(requirement.name))
        assert pinned, f"constraints.txt does not pin {requirement.name}"
        assert requirement.specifier.contains(pinned), requirement


def test_constraints_pin_exactly_all_that_an_install_brings() -> None:
    needed, todo = set(), requirements(*EXTRAS)
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        entry = (name, frozenset(requirement.extras))
        if entry in needed:
            continue
        needed.add(entry)
        todo += wanted_by(requirement)
    names = {name for name, _ in needed}
    known = set(pins())
    assert known - names == set()
    missing = {name for name in names - known if not gpu_only(name)}
    assert missing == set()


def wanted_by(requirement: Requirement) -> list[Requirement]:
    try:
        lines = distribution(requirement.name).requires or []
    except PackageNotFoundError:
        return []
    extras = requirement.extras or {""}
    found = map(Requirement, lines)
    return [
        r for r in found if not r.marker or any(r.marker.evaluate({"extra": e}) for e in extras)
    ]


def gpu_only(name: str) -> bool:
    """What only the GPU build of torch brings, which pins it itself."""
    return name.startswith(("nvidia-", "cuda-")) or name == "triton"


def test_pins_hold_for_every_build() -> None:
    assert all(re.fullmatch(r"[0-9][0-9a-z.]*", version) for version in pins().values())
    assert pins()["torch"] == "2.13.0"


def test_every_dependency_line_says_who_needs_it() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    block = text[text.index("dependencies = [") : text.index("[project.scripts]")]
    lines = [line.strip() for line in block.splitlines() if line.strip().startswith('"')]
    assert len(lines) == len(PROJECT["dependencies"]) + sum(map(len, EXTRAS.values()))
    assert all(re.search(r'",\s*# [a-z, ]+: \S', line) or "# notebooks are" in line
               or "# lint" in line or "# tests" in line for line in lines)  # fmt: skip


def test_environment_yml_installs_the_same() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == PROJECT["name"]
    python = next(d for d in environment["dependencies"] if str(d).startswith("python="))
    assert Requirement("python" + PROJECT["requires-python"]).specifier.contains(python[7:])
    [section] = [d["pip"] for d in environment["dependencies"] if isinstance(d, dict)]
    assert section == ["-c constraints.txt", "-e .[dev]"]
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"-c constraints.txt -e '\.\[dev\]'", makefile)


def test_the_version_is_one() -> None:
    assert PROJECT["version"] == __version__
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_git_and_so_the_wheel_carry_the_embedded_model() -> None:
    """hatchling packs what git does not ignore."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    lab = ("model/unet/diffusion_pytorch_model.safetensors", "model/nemo/calibration.json",
           "data/prompts.csv", "data/images/x.png", "data/descriptor.safetensors")  # fmt: skip
    paths = [f"nemo_kit/lab/{name}" for name in lab] + ["figures/lab/F1.png", "figures/lab/F1.csv"]
    done = subprocess.run(["git", "check-ignore", *paths], cwd=ROOT, capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert done.stdout == ""


def test_ci_runs_the_tests_and_the_linter() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert {"make test", "make lint"} <= set(script.read_text().splitlines())
    for target in ("figures", "test", "lint", "lab", "lab-up", "chromium", "bench",
                   "test-browser", "clean"):  # fmt: skip
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, check=False)
        assert done.returncode == 0, target


def test_make_says_when_python_is_too_old(tmp_path: Path) -> None:
    for name in ("python3", "python3.11", "python3.12", "python3.13", "python"):
        old = tmp_path / "bin" / name
        old.parent.mkdir(exist_ok=True)
        old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.8.10 && exit\nexit 1\n')
        old.chmod(0o755)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    path = f"{tmp_path / 'bin'}:/usr/bin:/bin"
    done = subprocess.run(
        ["make", "test"], cwd=tmp_path, env={"PATH": path}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "nemo_kit needs Python 3.11 or newer; found: Python 3.8.10" in done.stderr
    assert not (tmp_path / ".venv").exists()


# notebooks


@pytest.mark.parametrize("path", NOTEBOOKS, ids=relative)
def test_notebooks_are_committed_without_outputs(path: Path) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.parametrize("name", BOOKS)
def test_a_notebook_begins_with_its_question_and_ends_with_its_manifest(name: str) -> None:
    cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    assert cells[0]["cell_type"] == "markdown"
    assert f'figures.write_manifest(out, "{name}", globals()' in "".join(cells[-1]["source"])
    assert BOOKS[name].figures


def test_the_readme_says_what_figures_show_as_their_notebooks_do() -> None:
    told = re.findall(r"\| \*\*(\w+)\*\*: (.*) \|", (ROOT / "README.md").read_text("utf-8"))
    shows = {row.name: row.shows for row in figures.select(BOOKS)}
    assert told
    assert told == [(name, shows[name]) for name, _ in told]


# modules


def imported(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module or "")
    return names


def test_every_import_is_a_declared_dependency() -> None:
    distributions = packages_distributions()
    always = {canonicalize_name(r.name) for r in requirements()}
    training = always | {canonicalize_name(r.name) for r in requirements("train")}
    cluster = always | {canonicalize_name(r.name) for r in requirements("cluster")}
    for path in MODULES:
        room = relative(path).split("/")[1]
        allowed = {"lab": training, "store": cluster}.get(room, always)
        for module in imported(ast.parse(path.read_text(encoding="utf-8"))):
            top = module.split(".")[0]
            if top in sys.stdlib_module_names or top in {"nemo_kit", "benchmarks", "checks"}:
                continue
            found = {canonicalize_name(name) for name in distributions.get(top, [top])}
            assert found & allowed, f"{relative(path)} imports {module}"


def test_nothing_needs_torchvision() -> None:
    for path in MODULES:
        assert not any(
            name.split(".")[0] == "torchvision"
            for name in imported(ast.parse(path.read_text(encoding="utf-8")))
        ), relative(path)
    assert "torchvision" not in pins()


def mentions_planted(tree: ast.AST) -> bool:
    """Whether code reads the planted neurons: ``lab.planted`` or a column of that name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == "planted":
            return True
        if isinstance(node, ast.Name) and node.id == "planted":
            return True
        if isinstance(node, ast.Constant) and node.value == "planted":
            return True
    return False


def test_no_code_outside_the_lab_reads_planted_neurons() -> None:
    """The method must not see what evaluation compares it with."""
    readers = {relative(path) for path in MODULES
               if mentions_planted(ast.parse(path.read_text(encoding="utf-8")))}  # fmt: skip
    shown = {
        "nemo_kit/explorer/present.py",
        "nemo_kit/explorer/widget.py",  # on a click
        "benchmarks/__main__.py",  # beside what each search found
    }
    assert all(name.startswith("nemo_kit/lab/") for name in readers - shown)
    assert readers, "the check itself must find the lab's own reader"


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_modules_say_their_scope_and_stay_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), "a module says what it is for"
    assert text.count("\n") <= 450


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_public_functions_are_documented_and_annotated(path: Path) -> None:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"


def private(value: Any) -> bool:
    return bool(re.search(r"/(?:root|home|work|tmp|Users)/", str(value)))


def test_committed_manifests_are_complete_and_name_no_folder_of_a_machine() -> None:
    manifests = sorted((ROOT / "figures" / "lab").glob("*.manifest.json"))
    if not manifests:
        pytest.skip("the figures of the embedded model are not drawn yet: make figures PRESET=lab")
    for path in manifests:
        content = json.loads(path.read_text())
        assert content["preset"] == "lab"
        assert content["key"]
        assert not private(content)
        for names in content["files"].values():
            assert all((path.parent / name).is_file() for name in names)
