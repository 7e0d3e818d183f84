"""Shows the progress of a job: a live bar on a terminal, plain lines elsewhere, or only failures.

All output goes to stderr: stdout is for the result.
"""

from __future__ import annotations

import time
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.text import Text

from pool.cli.outcome import attempt_line, part_line
from pool.cli.text import one_line
from pool.client.follow import Event, Notice, Part, Setback
from pool.job import Progress

_PLAIN_STEP = 10.0  # percent between two plain lines
_PLAIN_PAUSE_S = 10.0  # or seconds


class View(Protocol):
    """Shows events of one job."""

    def show(self, event: Event) -> None:
        """Print one event."""

    def pause(self) -> None:
        """Stop drawing, so that the terminal can ask a question."""

    def resume(self) -> None:
        """Draw again."""

    def close(self) -> None:
        """Stop drawing for good."""


class LiveView:
    """A progress bar in the last line, everything else above it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.parts: list[str] = []
        self._bar = Bar(
            SpinnerColumn(),
            TextColumn("{task.fields[status]}", style="bold"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("{task.description}", style="dim", markup=False),
            console=console,
            transient=True,
        )
        self._line = self._bar.add_task("", total=100.0, status="queued")
        self._bar.start()

    def show(self, event: Event) -> None:
        """Print one event."""
        if isinstance(event, Progress):
            message = one_line(event.message)
            if event.attempt > 1:
                message = f"attempt {event.attempt} {message}".rstrip()
            self._bar.update(self._line, completed=event.percent, status=event.status, description=message)
        elif isinstance(event, Part):
            self.parts.append(part_line(event.record))
            self._console.print(Text(self.parts[-1]))
        elif isinstance(event, Setback):
            self.parts.clear()
            self._console.print(_setback(event))
        else:
            self._console.print(_notice(event))

    def pause(self) -> None:
        """Hide the bar."""
        self._bar.stop()

    def resume(self) -> None:
        """Show the bar again."""
        self._bar.start()

    def close(self) -> None:
        """Remove the bar."""
        self._bar.stop()


class PlainView:
    """Lines for a log: each change of status, each 10 %, each notice."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.parts: list[str] = []
        self._begun = time.monotonic()
        self._last = Progress("")
        self._printed_at = 0.0

    def show(self, event: Event) -> None:
        """Print one event."""
        if isinstance(event, Progress):
            self._progress(event)
        elif isinstance(event, Part):
            self.parts.append(part_line(event.record))
            self._print(Text(self.parts[-1]))
        elif isinstance(event, Setback):
            self.parts.clear()
            self._print(_setback(event))
        else:
            self._print(_notice(event))

    def _progress(self, progress: Progress) -> None:
        last, now = self._last, time.monotonic()
        news = progress.status != last.status or progress.attempt != last.attempt
        moved = abs(progress.percent - last.percent) >= _PLAIN_STEP
        if news or moved or now - self._printed_at >= _PLAIN_PAUSE_S:
            self._last, self._printed_at = progress, now
            percent = f" {progress.percent:3.0f} %" if progress.percent or progress.status != "queued" else ""
            attempt = f" attempt {progress.attempt}" if progress.attempt > 1 else ""
            line = f"{now - self._begun:6.1f} s  {progress.status}{percent}{attempt}  {one_line(progress.message)}"
            self._print(Text(line.rstrip()))

    def _print(self, text: Text) -> None:
        self._console.print(text, soft_wrap=True)

    def pause(self) -> None:
        """Do nothing: lines need no pause."""

    def resume(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class SilentView(PlainView):
    """Prints notices and failed attempts only."""

    def show(self, event: Event) -> None:
        """Print one event, unless it is progress or a partial result."""
        if isinstance(event, (Notice, Setback)):
            super().show(event)


def make_view(console: Console, *, quiet: bool) -> LiveView | PlainView:
    """The view for this stderr. quiet: notices and failed attempts only."""
    if quiet:
        return SilentView(console)
    return LiveView(console) if console.is_terminal and not console.is_dumb_terminal else PlainView(console)


def _setback(event: Setback) -> Text:
    failure = event.failure
    return Text(f"! attempt {failure.attempt} failed: {attempt_line(failure)}; trying again", style="yellow")


def _notice(event: Notice) -> Text:
    return Text(f"! {one_line(event.text)}", style="yellow")
