"""What a process tells the one that waits for it: how far its work is, and which prompts failed.

Scope: tqdm's bar, whose numbers also go to a file; the file of failed prompts. Both lie in a folder
that `follow` names once, when the process starts: the runner of the figures does so in the kernels
that it waits for, and nobody else needs to. Without it nothing is written.
"""

import json
import os
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

WORK, FAILED = "work.json", "failed.jsonl"
EVERY = 30.0  # seconds between two lines of a log


def spoken(seconds: float) -> str:
    """A time in words: "50 s", "24 min", "1 h 6 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


@dataclass
class Followed:
    """Where this process reports to, and what it is to do as if each call were told so."""

    folder: Path | None = None
    retry_failed: bool = False  # prompts that failed before are tried again
    also: tuple[str, ...] = ()  # formats of each picture beside PNG


followed = Followed()


def follow(folder: str | Path, retry_failed: bool = False, also: Iterable[str] = ()) -> None:
    """Report to this folder from now on, and do what else the runner asks for."""
    followed.folder, followed.retry_failed, followed.also = Path(folder), retry_failed, tuple(also)


class Bar(tqdm):
    """tqdm's bar; while it is open, label, done, total and seconds left are in the file too."""

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        """Show the bar, and note its numbers."""
        _note(self.format_dict)
        return super().display(msg, pos)

    def close(self) -> None:
        """Close the bar; its numbers are no longer true."""
        shown = not self.disable
        super().close()
        if shown and followed.folder:
            (followed.folder / WORK).unlink(missing_ok=True)


class Seconds:
    """A bar that counts seconds, done and to come; in a log plain lines with date and time."""

    def __init__(self, log: bool) -> None:
        self.log, self._next = log, time.monotonic() + EVERY
        self.bar = tqdm(
            total=1, bar_format="{desc} {percentage:3.0f}%|{bar}| about {remaining} left{postfix}",
            disable=log, mininterval=0.2, maxinterval=2 * EVERY, smoothing=0, delay=1e-3,
        )  # fmt: skip

    def at(self, name: str, done: float, left: float, place: str) -> None:
        """What is worked on, and where it is, is shown, if that was long enough ago."""
        if not self.log:
            self.bar.total = done + left
            self.bar.set_description_str(name, refresh=False)
            self.bar.set_postfix_str(place, refresh=False)
            self.bar.update(done - self.bar.n)
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + EVERY
            self.say(f"{name}: about {spoken(left)} left in all, {place}")

    def say(self, text: str) -> None:
        """Something that stays."""
        if self.log:
            text = f"{datetime.now().astimezone().isoformat(' ', 'seconds')}  {text.strip()}"
        self.bar.write(text, file=sys.stderr)


def note_failed(prompts: Iterable[str]) -> None:
    """Name prompts that failed, a line of JSON each."""
    if followed.folder:
        with (followed.folder / FAILED).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(prompt) + "\n" for prompt in prompts)


def _note(numbers: dict[str, Any]) -> None:
    """Write by rename, so that a reader never sees half; progress is never worth a failure."""
    if not followed.folder:
        return
    done, total, elapsed = (numbers[name] for name in ("n", "total", "elapsed"))
    pace = numbers["rate"] or (done / elapsed if elapsed else None)
    left = (total - done) / pace if total is not None and pace else None
    told = {"label": numbers["prefix"], "done": done, "total": total, "left": left}
    part = followed.folder / f"{WORK}.part"
    with suppress(OSError):
        part.write_text(json.dumps(told), encoding="utf-8")
        os.replace(part, followed.folder / WORK)
