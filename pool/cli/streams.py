"""Standard streams of a command: what a shell may have done with them must end no command in a traceback.

    stdout   closed             like /dev/null: nobody wants it
             nobody reads       the command ends quietly with 141, what a shell says of a program that SIGPIPE ended
             full, or broken    one line on stderr, exit code 1
    stderr   closed or broken   what would be said there is not said; the command goes on
    stdin    closed             like /dev/null

A descriptor that is closed is taken by /dev/null, because otherwise the next file that is opened would get its number,
and with it whatever a library prints.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from typing import Any, TextIO

EXIT_UNREAD = 141  # 128 + SIGPIPE


class OutputFailed(Exception):
    """Writing to stdout failed. No OSError, so that nobody takes it for one of the spool's files."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"stdout: {error.strerror or error}")
        self.unread = error.errno == errno.EPIPE


class _Sink(io.FileIO):
    """A descriptor whose first failure is told once and after which everything is discarded. told: by OutputFailed,
    or not at all."""

    def __init__(self, descriptor: int, *, told: bool) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self._told, self._failed = told, False

    def write(self, data: Any, /) -> int:
        if not self._failed:
            try:
                while (count := super().write(data)) is None:  # somebody who shares it made it non-blocking
                    select.select([], [self], [])
                return count
            except OSError as error:
                self._failed = True
                if self._told:
                    raise OutputFailed(error) from None
        return memoryview(data).nbytes


def settle() -> None:
    """Make the standard streams of this process safe to use. Streams that somebody has put in their place stay."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, which is this one
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - for the process's life
    if sys.stdout is sys.__stdout__:
        sys.stdout = _stream(1, sys.stdout, told=True)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _stream(2, sys.stderr, told=False)


def _stream(descriptor: int, before: TextIO | None, *, told: bool) -> TextIO:
    """As the interpreter made it, but that a terminal without "→" gets "?" and that failures are ours."""
    if before is not None:
        before.flush()
    terminal = os.isatty(descriptor)
    return io.TextIOWrapper(
        io.BufferedWriter(_Sink(descriptor, told=told)),
        encoding=getattr(before, "encoding", None) or "utf-8",
        errors="replace",
        newline="\n",
        line_buffering=terminal or descriptor == 2,
        write_through=bool(getattr(before, "write_through", False)),
    )
