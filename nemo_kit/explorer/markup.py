"""HTML of the explorer: every text that comes from outside is escaped here.

Scope: texts, numbers and pictures in, HTML out; no model and no widget. Colours (`style.css`) are
JupyterLab's variables, so that light and dark themes both fit; charts have a clear ground and are
inverted in a dark theme, photographs are not.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

STYLE = f"<style>\n{Path(__file__).with_name('style.css').read_text('utf-8')}</style>"


def text(value: object) -> str:
    """Any text as HTML that shows it and runs nothing."""
    return escape(str(value), quote=True)


def heading(title: str, aside: str = "") -> str:
    """A section's title with a few words beside it."""
    small = f"<small>{text(aside)}</small>" if aside else ""
    return f"<h3>{text(title)}{small}</h3>"


def image(png: bytes, alternative: str, kind: str = "photo") -> str:
    """A PNG picture with its text alternative; `kind` "chart" follows the theme."""
    source = b64encode(png).decode("ascii")
    return (
        f'<img class="nemo-{kind}" alt="{text(alternative)}" src="data:image/png;base64,{source}">'
    )


def tiles(entries: Iterable[tuple[str, str]]) -> str:
    """Numbers with what they are."""
    boxes = (
        f'<div class="nemo-tile"><b>{text(number)}</b><span>{text(meaning)}</span></div>'
        for number, meaning in entries
    )
    return f'<div class="nemo-tiles">{"".join(boxes)}</div>'


def badge(words: str, kind: str = "") -> str:
    """A short verdict; `kind` "yes", "off" or none."""
    return f'<span class="nemo-badge{f" nemo-{kind}" if kind else ""}">{text(words)}</span>'


def quiet(words: str) -> str:
    """Words of less weight."""
    return f'<span class="nemo-quiet">{text(words)}</span>'


def prompt(words: str) -> str:
    """A prompt, as it is written."""
    return f'<span class="nemo-prompt">{text(words)}</span>'


def error(message: str) -> str:
    """An error where the user looks; nothing for an empty message."""
    if not message:
        return ""
    return f'<div class="nemo-error" role="alert"><b>That did not work.</b> {text(message)}</div>'


def status(words: str, finished: int = 0) -> str:
    """What is going on, also for screen readers; `finished` counts the jobs that ended."""
    look = f'class="nemo-quiet nemo-status" data-finished="{finished:d}"'
    return f'<div role="status" aria-live="polite" {look}>{text(words)}</div>'


def table(rows: Sequence[tuple[str, str]]) -> str:
    """Names and their already safe HTML, as a table."""
    cells = (f"<tr><td>{text(name)}</td><td>{value}</td></tr>" for name, value in rows)
    return f'<table class="nemo-facts">{"".join(cells)}</table>'


def download(content: str, name: str, words: str) -> str:
    """A link that saves a text as a file, without asking the server."""
    source = b64encode(content.encode("utf-8")).decode("ascii")
    href = f"data:application/json;base64,{source}"
    return f'<a class="nemo-link" download="{text(name)}" href="{href}">{text(words)}</a>'


def stack(pieces: Iterable[str], stale: bool = False) -> str:
    """Pieces of HTML below each other, pale where they are out of date."""
    return f'<div class="nemo-strip{" nemo-stale" if stale else ""}">{"".join(pieces)}</div>'
