"""Standard descriptors and the streams on them: where they lead, a copy to come back to, a new one for a closed one."""

from __future__ import annotations

import fcntl
import io
import os
from typing import Any

_HIGH = 64  # copies of the standard descriptors are above what careless code closes


def file_of(fd: int) -> tuple[int, int] | None:
    """Which file a descriptor leads to; None when it is closed."""
    try:
        stat = os.fstat(fd)
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def mode_of(fd: int) -> int | None:
    """How a descriptor was opened; None when it is closed. A third of the cost of asking which file it leads to."""
    try:
        return fcntl.fcntl(fd, fcntl.F_GETFL)
    except OSError:
        return None


def duplicate(fd: int) -> int | None:
    """A copy of a descriptor with a high number, closed on exec; None when there is no such descriptor."""
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH)
    except OSError:
        return None


def usable(stream: Any) -> bool:
    """Whether a text stream can be written or read: None, or open."""
    try:
        return stream is None or not stream.closed
    except Exception:  # detached
        return False


def text_stream(fd: int) -> Any:
    """A new sys.stdin, sys.stdout or sys.stderr in place of one that was closed."""
    raw = io.FileIO(fd, "r" if fd == 0 else "w", closefd=False)
    if fd == 0:
        return io.TextIOWrapper(io.BufferedReader(raw), errors="surrogateescape")
    return io.TextIOWrapper(io.BufferedWriter(raw), errors="backslashreplace", line_buffering=True)
