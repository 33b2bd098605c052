"""HTML of the explorer: every text that comes from outside is escaped here.

Scope: texts, numbers and pictures in, HTML out; no model and no widget. Colours are JupyterLab's
variables, so that light and dark themes both fit; charts have a clear ground and are inverted in a
dark theme, photographs are not.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape

STYLE = """<style>
.nemo-explorer { max-width: 1060px; padding: 2px 14px 14px; box-sizing: border-box;
  color: var(--jp-ui-font-color1, #222); border: 1px solid var(--jp-border-color2, #ccc);
  border-radius: 6px; background: var(--jp-layout-color1, #fff); overflow: hidden; }
.nemo-explorer .widget-html-content { line-height: 1.35; align-self: stretch; }
.nemo-explorer .widget-html { height: auto; min-height: 0; max-width: 100%; margin: 2px; }
.nemo-explorer .widget-html-content > p { margin: 6px 0; }
.nemo-explorer h3 { font-size: 14px; font-weight: 600; margin: 10px 0 2px; padding-top: 10px;
  border-top: 1px solid var(--jp-border-color2, #ccc); color: var(--jp-ui-font-color1, #222); }
.nemo-explorer h3 small { font-weight: 400; font-size: 12px; margin-left: 8px;
  color: var(--jp-ui-font-color2, #555); }
.nemo-explorer .nemo-first h3 { border-top: 0; padding-top: 0; margin-top: 0; }
.nemo-explorer img { max-width: 100%; height: auto; display: block; }
.nemo-explorer .nemo-strip img { width: 100%; image-rendering: pixelated; border-radius: 3px; }
[data-jp-theme-light="false"] .nemo-explorer {
  --jp-widgets-dropdown-arrow: url("data:image/svg+xml,\
%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 18 18'%3E\
%3Cpath fill='%23ddd' d='M4.5 6.5h9L9 12z'/%3E%3C/svg%3E"); }
[data-jp-theme-light="false"] .nemo-chart { filter: invert(0.9) hue-rotate(180deg); }
.nemo-tiles { display: flex; flex-wrap: wrap; gap: 8px; }
.nemo-tile { flex: 1 1 130px; padding: 6px 10px; border-radius: 4px;
  background: var(--jp-layout-color2, #f3f3f3); }
.nemo-tile b { display: block; font-size: 19px; font-weight: 600;
  font-variant-numeric: tabular-nums; color: var(--jp-ui-font-color1, #222); }
.nemo-tile span { font-size: 12px; color: var(--jp-ui-font-color2, #555); }
.nemo-badge { display: inline-block; margin: 2px 4px 2px 0; padding: 2px 9px;
  border-radius: 10px; font-weight: 600;
  font-size: 12px; color: #fff; background: #5f6368; }
.nemo-badge.nemo-yes { background: #b34700; }
.nemo-badge.nemo-off { background: #00745a; }
.nemo-quiet { color: var(--jp-ui-font-color2, #555); font-size: 12px; }
.nemo-prompt { font-style: italic; overflow-wrap: anywhere; }
.nemo-error { padding: 7px 10px; border-radius: 4px; border: 1px solid #b00020;
  background: rgba(176, 0, 32, 0.09); overflow-wrap: anywhere; }
.nemo-error b { color: var(--jp-error-color1, #b00020); }
.nemo-stale { opacity: 0.4; }
.nemo-facts { font-size: 12px; }
.nemo-facts td { padding: 1px 10px 1px 0; vertical-align: top; overflow-wrap: anywhere; }
.nemo-facts td:first-child { white-space: nowrap; color: var(--jp-ui-font-color2, #555); }
.nemo-explorer .widget-toggle-button.nemo-chip { height: 24px; line-height: 24px;
  padding: 0 4px; margin: 0; font-size: 11.5px; font-variant-numeric: tabular-nums;
  border-radius: 3px; }
.nemo-explorer .nemo-chip.mod-active { background: #00745a; color: #fff; box-shadow: none; }
.nemo-explorer .jupyter-widgets:focus-visible, .nemo-explorer button:focus-visible {
  outline: 2px solid var(--jp-brand-color1, #1976d2); outline-offset: 1px; }
.nemo-layer { font-size: 12px; line-height: 26px; white-space: nowrap;
  color: var(--jp-ui-font-color2, #555); }
.nemo-explorer textarea { font-family: var(--jp-code-font-family, monospace); font-size: 12px; }
.nemo-explorer a.nemo-link { color: var(--jp-content-link-color, #1565c0); font-size: 13px;
  line-height: 28px; text-decoration: underline; }
</style>"""


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
