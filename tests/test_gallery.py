"""The gallery: what is there and nothing else, escaped, without any other host, stable."""

from __future__ import annotations

import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from nemo_kit.figures import gallery, registry
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
def folder(tmp_path: Path) -> Path:
    """The figures of one notebook, one of them lost, as a run leaves them."""
    rows = [row for row in registry.FIGURES if row.notebook == "01_detection"]
    for row in rows:
        for name in row.files:
            (tmp_path / name).write_text(f"metric,value\n{EVIL},0.123456\n")
    (tmp_path / "F13.png").unlink()
    (tmp_path / "detection.csv").write_text(
        "metric,value\n" + "".join(f"{EVIL},{number / 7}\n" for number in range(20))
    )
    (tmp_path / "F2a.pdf").touch()
    files = {row.name: list(row.files) for row in rows}
    files["F2a"].append("F2a.pdf")
    manifest = {
        "model": {"name": f"owner/{EVIL}", "revision": "abc123", "device": "cpu", "dtype": "f32"},
        "parameters": {"memorized": None, "seeds": 10, "prompt_files": []},
        "versions": {"python": "3.11"}, "commit": "c0ffee", "finished": "2026", "files": files,
        "preset": "lab", "seconds": 3,
    }  # fmt: skip
    write_json(tmp_path / "01_detection.manifest.json", manifest)
    return tmp_path


def test_the_page_shows_what_is_there_with_number_data_and_provenance(folder: Path) -> None:
    text = gallery.write(folder).read_text(encoding="utf-8")
    page = Reader(text)
    assert page.open == []
    ids = page.values("figure", "id")
    assert {"F2a", "ROC", "detection", "calibration"} <= set(ids)
    assert not {"F13", "F4a"} & set(ids)  # lost, and never drawn
    assert "Figure 2a: density of the pairwise score" in text
    for name in ("F2a.csv", "F2a.png", "F2a.pdf", "detection.csv"):
        assert name in page.values("a", "href")
    assert "nemo-kit figures --only F2a --preset lab --model &#39;owner/&lt;script" in text
    for fact in ("abc123", "c0ffee", "memorized all, seeds 10", "python 3.11"):
        assert fact in text, fact
    assert all(page.values("img", "alt"))


def test_the_page_needs_no_other_host_and_no_script(folder: Path) -> None:
    text = gallery.page(folder)
    page = Reader(text)
    links = [*page.values("a", "href"), *page.values("img", "src")]
    assert all(link.startswith("#") or (folder / link).is_file() for link in links)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    assert "url(" not in text
    assert "@import" not in text
    assert "prefers-color-scheme: dark" in text


def test_what_others_wrote_is_text(folder: Path) -> None:
    text = gallery.page(folder)
    assert EVIL not in text
    assert "&lt;script&gt;" in text
    assert "More rows are in the file" in text
    body = text[text.index('id="detection"') :]
    assert body[: body.index("</table>")].count("<tr>") == gallery.ROWS + 1


def test_the_page_stays_as_it_is_where_nothing_changed(folder: Path) -> None:
    path = gallery.write(folder)
    before = path.stat().st_mtime_ns
    assert gallery.write(folder).stat().st_mtime_ns == before
    manifest = json.loads((folder / "01_detection.manifest.json").read_text())
    write_json(folder / "01_detection.manifest.json", manifest | {"commit": "decaf"})
    assert "decaf" in gallery.write(folder).read_text()


def test_an_empty_folder_says_so(tmp_path: Path) -> None:
    text = gallery.write(tmp_path / "new").read_text()
    assert "No figure is here yet" in text
    assert not re.search(r"<figure", text)


def test_the_command_of_another_model_names_all_that_it_was_drawn_from(folder: Path) -> None:
    path = folder / "01_detection.manifest.json"
    manifest = json.loads(path.read_text())
    manifest["model"]["name"] = "owner/model"
    manifest["parameters"] |= {
        "revision": "abc123", "prompt_files": ["/my data/p.csv", "/q.csv"],
        "training_images": "/images", "seeds": 4, "bootstrap": 200,
    }  # fmt: skip
    options = gallery._options("01_detection", manifest)
    assert options == (
        " --preset lab --model owner/model --revision abc123 --prompts '/my data/p.csv' "
        "--prompts /q.csv --training-images /images --set seeds=4 --set bootstrap=200"
    )
    write_json(path, manifest)
    assert f"--only F2a{options}</code>" in unescape(gallery.page(folder))


def test_a_setting_is_written_as_the_command_reads_it() -> None:
    from nemo_kit.cli.figures import _settings

    for value in ("a b", "3", "null", "x/y.pt", 3, 0.5, None, [1, 2], []):
        assert _settings([f"name={gallery._typed(value)}"]) == {"name": value}
