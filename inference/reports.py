"""How an installation tells what it does: a bar on a terminal, plain lines elsewhere, JSON lines for machines."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import IO, Any, Protocol

STEP_PERCENT, STEP_S = 10.0, 10.0  #: between two plain lines
EVENT_S = 1.0  #: between two events of progress for machines


class Report(Protocol):
    """Takes what happens, one file at a time."""

    def say(self, line: str) -> None:
        """One thing that happened."""

    def begin(self, name: str, total: int, done: int = 0) -> None:
        """A download of ``total`` bytes begins, ``done`` of which are here already."""

    def at(self, done: int) -> None:
        """So many bytes are here now."""

    def end(self) -> None:
        """The download has ended, well or not."""

    def close(self) -> None:
        """Nothing more will come."""


class Lines:
    """A line each 10 % or each 10 s, and at the end."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._name, self._total, self._told, self._told_at = "", 1, 0.0, 0.0

    def say(self, line: str) -> None:
        """Write it."""
        self._write(line)

    def begin(self, name: str, total: int, done: int = 0) -> None:
        """Say so when a part is here already."""
        self._name, self._total = name, max(1, total)
        self._told, self._told_at = 100 * done / self._total, time.monotonic()
        if done:
            self._write(f"{name}: goes on at {megabytes(done)} of {megabytes(total)}")

    def at(self, done: int) -> None:
        """Say so now and then."""
        percent, now = 100 * done / self._total, time.monotonic()
        last = done >= self._total and self._told < 100
        if last or percent >= self._told + STEP_PERCENT or now >= self._told_at + STEP_S:
            self._told, self._told_at = percent, now
            self._write(f"{self._name}: {percent:.0f} % of {megabytes(self._total)}")

    def end(self) -> None:
        """Nothing to tell."""

    def close(self) -> None:
        """Nothing to close."""


class Silent(Lines):
    """Tells nobody."""

    def __init__(self) -> None:
        super().__init__(lambda _: None)


class Events:
    """One JSON object per line: ``{"event": "progress", "name": …, "bytes": …, "of": …}``, ``{"event": "note", …}``."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._name, self._total, self._told_at = "", 0, 0.0

    def say(self, line: str) -> None:
        """An event "note"."""
        self._write(event="note", text=line)

    def begin(self, name: str, total: int, done: int = 0) -> None:
        """An event "begin"."""
        self._name, self._total, self._told_at = name, total, time.monotonic()
        self._write(event="begin", name=name, bytes=done, of=total)

    def at(self, done: int) -> None:
        """An event "progress", at most one a second and one when all is here."""
        now = time.monotonic()
        if done == self._total or now >= self._told_at + EVENT_S:
            self._told_at = now
            self._write(event="progress", name=self._name, bytes=done, of=self._total)

    def end(self) -> None:
        """An event "end"."""
        self._write(event="end", name=self._name)

    def close(self) -> None:
        """Nothing to close."""

    def _write(self, **event: Any) -> None:
        print(json.dumps(event), file=self._stream, flush=True)


class Bar:
    """A bar in the last line of a terminal, what is said above it."""

    def __init__(self, stream: IO[str]) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.progress import TransferSpeedColumn as SpeedColumn

        self._console = Console(file=stream)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            DownloadColumn(),
            SpeedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._task: Any = None
        self._progress.start()

    def say(self, line: str) -> None:
        """Print it above the bar."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def begin(self, name: str, total: int, done: int = 0) -> None:
        """Show a bar."""
        self._task = self._progress.add_task(name, total=total, completed=done)

    def at(self, done: int) -> None:
        """Move it."""
        self._progress.update(self._task, completed=done)

    def end(self) -> None:
        """Take it away."""
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None

    def close(self) -> None:
        """Stop drawing."""
        self._progress.stop()


def make(stream: IO[str] | None = None, machine: bool = False) -> Report:
    """The report for this stream, by default stderr."""
    stream = stream or sys.stderr
    if machine:
        return Events(stream)
    if stream.isatty():
        return Bar(stream)
    return Lines(lambda line: print(line, file=stream, flush=True))


def megabytes(count: int) -> str:
    """A number of bytes in words: "2.3 kB", "145.2 MB", "3.40 GB"."""
    if count < 1e5:
        return f"{count / 1e3:.1f} kB"
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
