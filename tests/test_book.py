"""The site of ``make book``: no warning, links that lead somewhere, no need of a network."""

from __future__ import annotations

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ["docs/*.md", "notebooks/[0-9pr]*.ipynb", "notebooks/course/*.ipynb"]


class Page(HTMLParser):
    """The anchors of a page, and what it links to or shows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.targets: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.anchors.add(value)
            elif name in ("href", "src") and value:
                self.targets.append(value)


def missing(folder: Path) -> list[str]:
    """The links inside a site that lead to no file, or to no place in a page."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in folder.rglob("*.html")}
    found = []
    for path, page in pages.items():
        for target in page.targets:
            url = urlsplit(target)
            if url.scheme or url.netloc:
                continue
            there = (path.parent / unquote(url.path)).resolve() if url.path else path
            anchors = pages[there].anchors if there in pages else {url.fragment}
            if not there.exists() or (url.fragment and url.fragment not in anchors):
                found.append(f"{path.relative_to(folder)}: {target}")
    return found


def test_a_link_to_nowhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<p id="x"><a href="b.html">b</a><a href="a.html#x">x</a>'
                                     '<a href="#y">y</a><img src="p.png"></p>')  # fmt: skip
    assert missing(tmp_path.resolve()) == ["a.html: b.html", "a.html: #y", "a.html: p.png"]


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_links_lead_somewhere(tmp_path: Path) -> None:
    site = tmp_path.resolve() / "book"
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "-c", "docs",
         ".", str(site)], cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for source in (path for pattern in SOURCES for path in ROOT.glob(pattern)):
        assert (site / source.relative_to(ROOT).with_suffix(".html")).is_file(), source
    assert missing(site) == []
    text = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.html"))
    assert 'src="http' not in text, "formulas and pictures are in the site"
    drawn = {path.read_bytes() for path in (ROOT / "figures" / "lab").glob("*.png")}
    drawn.add((ROOT / "figures" / "lab-flow" / "F1.png").read_bytes())
    assert {path.read_bytes() for path in (site / "_images").glob("*.png")} == drawn
