"""What a notebook says of itself, read without running it: parameters, figures, presets, place.

Scope: parameters and their types from the cell tagged ``parameters``; figures from the calls
``figures.save(fig, frame, "F2a", folder, shows="…")``; from the metadata ``nemo_kit`` what no cell
can say: ``seconds`` to expect by preset, the ``role`` of prompts it can't do without, ``statistics:
false`` where it needs none. A preset is a file ``presets/NAME.toml`` with what differs from the
notebooks' own defaults, which are the preset ``quick``; the text "None" stands for None.
"""

import ast
import json
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_kit.checks import alike, check_choice, fits
from nemo_kit.files import named_path
from nemo_kit.keys import value_digest
from nemo_kit.provenance import root

PLACES = {"out", "store", "device"}  # where and on what it ran: no part of what was computed
_KIND = re.compile(r"(?:int|float|str|bool|list\[(?:int|float|str|bool)\])(?: \| None)?")


@dataclass(frozen=True)
class Figure:
    """One figure or table: its name, the notebook that draws it, and what it shows."""

    name: str
    notebook: str
    shows: str

    @property
    def paper(self) -> str:
        """Its number in the paper in words, as "Figure 2a"; empty where it has none."""
        word = {"F": "Figure", "T": "Table"}.get(self.name[0])
        return f"{word} {self.name[1:]}" if re.fullmatch(r"[FT]\d+[a-d]?", self.name) else ""


@dataclass(frozen=True)
class Notebook:
    """One notebook: its file, its question, its parameters, what it draws, and what it needs."""

    path: Path
    title: str
    defaults: dict[str, Any]
    kinds: dict[str, str]  # types of the parameters, as "int | None"
    figures: list[Figure]
    about: dict[str, Any]  # its metadata nemo_kit
    digest: str  # of its code cells; the parameters count by their values

    def values(
        self, preset: str = "quick", settings: Mapping[str, str] | None = None, **given: Any
    ) -> dict[str, Any]:
        """All parameters under a preset, those given in place of its own.

        Parameters: `settings`, further ones as text, as `--set` gives them.
        Raises ValueError for an unknown preset, and for a name or type that the notebook refuses.
        """
        check_choice("preset", preset, known := presets(self.path.parent))
        own = {k: _typed(v, self.kinds.get(k, "")) for k, v in (settings or {}).items()}
        chosen = self.defaults | known[preset].get(self.path.stem, {}) | given | own
        for name, value in chosen.items():
            check_choice(f"a parameter of {self.path.stem}", name, self.kinds)
            chosen[name] = None if value == "None" and fits(None, self.kinds[name]) else value
            if not fits(chosen[name], kind := self.kinds[name]):
                raise ValueError(f"{name} of {self.path.stem} must be {kind}, got {value!r}")
        return chosen


def _typed(text: str, kind: str) -> Any:
    """A value from text: JSON where that has the type, an existing path from here, or the text."""
    with suppress(ValueError):
        if fits(value := json.loads(text), kind):
            return value
    return str(named_path(text) or text)


def place(given: str | Path) -> Path:
    """A path that a notebook names, from the notebook's own folder, wherever its kernel runs.

    Returns it absolute. The folder is the one that Jupyter tells, else the kernel's where notebooks
    are, else that of the clone.
    """
    told, home = Path(os.environ.get("JPY_SESSION_NAME", "")), Path.cwd()
    if told.is_file():
        home = told.parent
    elif not any(home.glob("*.ipynb")) and (root() / "notebooks").is_dir():
        home = root() / "notebooks"
    return (home / given).resolve()


def read_all(folder: Path) -> dict[str, Notebook]:
    """The notebooks of a folder that save figures, by name.

    Raises FileNotFoundError where there is none, ValueError unless in each one cell is tagged
    ``parameters`` and holds literals alone, and each figure has a literal name and ``shows=``.
    """
    paths = sorted(folder.glob("*.ipynb"))
    drawing = [path for path in paths if "figures.save(" in path.read_text(encoding="utf-8")]
    books = {path.stem: read(path) for path in drawing}
    if not books:
        raise FileNotFoundError(f"no notebook that draws figures is in {folder}: run in a clone, "
                                "or where a folder notebooks is")  # fmt: skip
    names = [row.name.casefold() for book in books.values() for row in book.figures]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"figures.save is called twice with the name {twice[0]!r} in {folder}")
    return books


def read(path: Path) -> Notebook:
    """What one notebook says; raises as `read_all`."""
    content = json.loads(path.read_text(encoding="utf-8"))
    texts: dict[str, list[str]] = {"parameters": [], "code": [], "markdown": [path.stem], "raw": []}
    for cell in content["cells"]:
        tagged = "parameters" in cell["metadata"].get("tags", ())
        texts["parameters" if tagged else cell["cell_type"]].append("".join(cell["source"]))
    figures = [figure for text in texts["code"] for figure in _figures(path, text)]
    if len(given := texts["parameters"]) != 1:
        raise ValueError(f"{path.name} needs one cell tagged 'parameters', it has {len(given)}")
    rows = [_parameter(path, line) for line in ast.parse(given[0]).body]
    defaults, kinds = {n: v for n, v, _ in rows}, {n: kind for n, _, kind in rows}
    title = texts["markdown"][:2][-1].partition("\n")[0].strip("# ")
    about = content["metadata"].get("nemo_kit", {})
    digest = value_digest(texts["code"])
    return Notebook(path.resolve(), title, defaults, kinds, figures, about, digest)


def presets(folder: Path) -> dict[str, dict[str, Any]]:
    """The presets of a folder of notebooks: what each sets, by notebook, and its ``minutes``."""
    files = sorted((folder / "presets").glob("*.toml"))
    found = {path.stem: tomllib.loads(path.read_text("utf-8")) for path in files}
    for name, section in ((name, one) for name, told in found.items() for one in told):
        if section != "minutes" and not (folder / f"{section}.ipynb").is_file():
            raise ValueError(f"presets/{name}.toml names {section}, but there is no such notebook")
    return {"quick": {}, **found}


def select(books: dict[str, Notebook], only: Iterable[str] = ()) -> list[Figure]:
    """Figures by name, number in the paper, or notebook; all of them when none is named.

    Returns them in the order of the notebooks. Raises ValueError that names those most alike.
    """
    rows = [row for book in books.values() for row in book.figures]
    known = {name.casefold(): name for row in rows for name in (row.name, row.notebook)}
    wanted = set()
    for name in only:
        whole = re.sub(r"^(f\d+)[a-d]$", r"\1", name.casefold())  # F8a is a part of F8
        if not (found := [n for n in (name.casefold(), whole) if n in known]):
            raise ValueError(f"--only must name a figure or a notebook (--list shows them), got "
                             f"{name!r}{alike(name, known.values())}")  # fmt: skip
        wanted.add(found[0])
    return [r for r in rows if not wanted or {r.name.casefold(), r.notebook.casefold()} & wanted]


def _parameter(path: Path, line: Any) -> tuple[str, Any, str]:
    """Name, value and type of one line of the parameters cell."""
    try:
        target = line.targets[0] if isinstance(line, ast.Assign) else line.target
        value = ast.literal_eval(line.value)
        inner = {type(one).__name__ for one in value} if isinstance(value, list) else ()
        seen = f"list[{max(inner, key=len)}]" if inner else type(value).__name__  # float over int
        kind = ast.unparse(line.annotation) if isinstance(line, ast.AnnAssign) else seen
        if _KIND.fullmatch(kind) and fits(value, kind):
            return target.id, value, kind
    except (AttributeError, TypeError, ValueError):
        pass
    raise ValueError(f"{path.name}: a line of the parameters cell must give a name a literal, with "
                     "its type where that can't be seen (seeds: int | None = None), got "
                     f"{ast.unparse(line)}")  # fmt: skip


def _figures(path: Path, text: str) -> Iterator[Figure]:
    """The figures that a cell saves; its lines for IPython alone are left out."""
    try:
        plain = re.sub(r"^(\s*)[%!?].*", r"\1pass", text, flags=re.MULTILINE)
        tree = ast.parse(plain if "figures.save(" in text else "")
    except SyntaxError as error:
        raise ValueError(f"{path.name}: a cell that saves a figure: {error}") from error
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    saves = [call for call in calls if ast.unparse(call.func) == "figures.save"]
    for call in sorted(saves, key=lambda call: call.lineno):
        given = dict(zip(("fig", "frame", "name"), call.args, strict=False))
        given |= {keyword.arg: keyword.value for keyword in call.keywords}
        name, shows = (getattr(given.get(key), "value", None) for key in ("name", "shows"))
        if not (isinstance(name, str) and isinstance(shows, str)):
            raise ValueError(f"{path.name}: figures.save needs name and shows= as literal texts, "
                             f"got {ast.unparse(call)}")  # fmt: skip
        yield Figure(name, path.stem, shows)
