"""Standard streams of a command: no state of them ends a command with a traceback.

    stdout   closed             like /dev/null
             reader has gone    the command ends silently with 141, as a shell reports a program ended by SIGPIPE
             full, or broken    one line on stderr, exit code 1
    stderr   closed or broken   messages are discarded; the command goes on
    stdin    closed             like /dev/null

A closed descriptor is opened on /dev/null. Otherwise the next file to be opened would get its number, and receive
whatever a library prints.
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
    """Writing to stdout failed. Not an OSError, so that no handler takes it for an error of a file in the spool."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"stdout: {error.strerror or error}")
        self.unread = error.errno == errno.EPIPE


class _Sink(io.FileIO):
    """A descriptor that discards everything after its first failure. raises: whether that failure raises
    OutputFailed."""

    def __init__(self, descriptor: int, *, raises: bool) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self._raises, self._failed = raises, False

    def write(self, data: Any, /) -> int:
        if not self._failed:
            try:
                while (count := super().write(data)) is None:  # another process that shares it made it non-blocking
                    select.select([], [self], [])
                return count
            except OSError as error:
                self._failed = True
                if self._raises:
                    raise OutputFailed(error) from None
        return memoryview(data).nbytes


def settle() -> None:
    """Make the standard streams of this process safe to use. Streams that other code has replaced stay."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - for the process's life
    if sys.stdout is sys.__stdout__:
        sys.stdout = _stream(1, sys.stdout, raises=True)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _stream(2, sys.stderr, raises=False)


def _stream(descriptor: int, before: TextIO | None, *, raises: bool) -> TextIO:
    """A stream like the interpreter's, but over a _Sink, and with "?" for characters that it cannot encode."""
    if before is not None:
        before.flush()
    terminal = os.isatty(descriptor)
    return io.TextIOWrapper(
        io.BufferedWriter(_Sink(descriptor, raises=raises)),
        encoding=getattr(before, "encoding", None) or "utf-8",
        errors="replace",
        newline="\n",
        line_buffering=terminal or descriptor == 2,
        write_through=bool(getattr(before, "write_through", False)),
    )
