"""The gallery: what is there and nothing else, escaped, without any other host."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from tiny import notebook

from nemo_kit import notebooks
from nemo_kit.figures import gallery, read_all
from nemo_kit.files import write_json

EVIL = "<script>alert('x')</script>"


class Reader(HTMLParser):
    """Tags with their attributes, and whether each is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "img", "link", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def values(self, tag: str, name: str) -> list[Any]:
        """Values of one attribute of all tags of a kind."""
        return [attrs.get(name) for kind, attrs in self.tags if kind == tag]


@pytest.fixture
def books(tmp_path: Path) -> dict[str, notebooks.Notebook]:
    """Two notebooks: one with figures and a table, one that was not run."""
    cell = (
        'figures.save(f, a, "F2a", out, shows="a density")\n'
        'figures.save(f, b, "F13", out, shows="lost")\n'
        f'figures.save(None, c, "numbers", out, shows="of {EVIL}")\n'
    )
    notebook(tmp_path / "notebooks", cell, name="01_detection")
    notebook(
        tmp_path / "notebooks", cell.replace('"F', '"G').replace("numb", "nomb"), name="02_more"
    )
    return read_all(tmp_path / "notebooks")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The figures of the first, one of them lost, as a run leaves them."""
    out = tmp_path / "figs"
    out.mkdir()
    for name in ("F2a.csv", "F13.csv"):
        (out / name).write_text("metric,value\n")
    for name in ("F2a.png", "F2a.pdf"):
        (out / name).touch()
    (out / "numbers.csv").write_text(
        "metric,value\n" + "".join(f"{EVIL},{number / 7}\n" for number in range(20))
    )
    manifest = {
        "model": {"name": f"owner/{EVIL}", "revision": "abc123", "device": "cpu", "dtype": None},
        "parameters": {"memorized": None, "seeds": 10, "prompt_files": []},
        "versions": {"python": "3.11"}, "commit": "c0ffee", "finished": "2026",
        "preset": "lab", "seconds": 3,
        "files": {"F2a": ["F2a.png", "F2a.pdf", "F2a.csv"], "F13": ["F13.png", "F13.csv"],
                  "numbers": ["numbers.csv"]},
    }  # fmt: skip
    write_json(out / "01_detection.manifest.json", manifest)
    return out


def test_the_page_shows_what_is_there_with_number_data_and_provenance(
    folder: Path, books: Any
) -> None:
    path = gallery.write(folder, books)
    assert path == folder / "index.html"
    text = path.read_text(encoding="utf-8")
    page = Reader(text)
    assert page.open == []
    assert page.values("figure", "id") == ["F2a", "numbers"]  # F13 is lost
    assert "Figure 2a: a density" in text
    assert "<h2>What?</h2>" in text
    assert {"F2a.csv", "F2a.png", "F2a.pdf", "numbers.csv"} <= set(page.values("a", "href"))
    assert "nemo-kit figures --only F2a --preset lab</code>" in text
    for fact in ("abc123", "c0ffee", "memorized None, seeds 10", "python 3.11"):
        assert fact in text, fact
    assert all(page.values("img", "alt"))
    gallery.write(folder, books)
    assert path.read_text(encoding="utf-8") == text


def test_the_page_needs_no_other_host_and_no_script(folder: Path, books: Any) -> None:
    text = gallery.write(folder, books).read_text(encoding="utf-8")
    page = Reader(text)
    links = [*page.values("a", "href"), *page.values("img", "src")]
    assert all(link.startswith("#") or (folder / link).is_file() for link in links)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    assert "url(" not in text
    assert "@import" not in text
    assert "prefers-color-scheme: dark" in text


def test_what_others_wrote_is_text(folder: Path, books: Any) -> None:
    text = gallery.write(folder, books).read_text(encoding="utf-8")
    assert EVIL not in text
    assert "&lt;script&gt;" in text
    assert "More rows are in the file" in text
    body = text[text.index('id="numbers"') :]
    assert body[: body.index("</table>")].count("<tr>") == gallery.ROWS + 1
    assert '<td class="number">0.1429</td>' in body


def test_an_empty_folder_says_so(tmp_path: Path, books: Any) -> None:
    text = gallery.write(tmp_path / "new", books).read_text()
    assert "No figure is here yet" in text
    assert not re.search(r"<figure", text)
