"""Limits of the system, when they are met: what to say about them, and saying it once."""

from __future__ import annotations

import errno
import sys
import threading
import warnings
from collections.abc import Callable

from pool.errors import PoolWarning, SpoolError

DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE})
STARVED = DESCRIPTORS | {errno.ENOMEM}  # what may be better at the next look
_told: set[str] = set()


def sentence(error: OSError) -> str:
    """What is used up, and how to raise it."""
    if error.errno == errno.EMFILE:
        return f"this process has no file descriptor left (ulimit -n is {_most_files()}): close files, or raise it"
    if error.errno == errno.ENFILE:
        return "this machine has no file descriptor left (fs.file-max): close files, or raise it"
    return f"{error.strerror or error}"


def start_thread(target: Callable[[], None], name: str) -> threading.Thread:
    """A running daemon thread. SpoolError when the system has none left."""
    thread = threading.Thread(target=target, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise SpoolError(f"{error}: raise the limit of processes and threads (ulimit -u)") from None
    return thread


def warn_once(text: str) -> None:
    """A PoolWarning, the first time in this process."""
    if text not in _told:
        _told.add(text)
        warnings.warn(text, PoolWarning, stacklevel=_depth_of_caller())


def _depth_of_caller() -> int:
    """How far up the stack, counted from `warn_once`, the first line is that is not the pool's own."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "pool":
        level, frame = level + 1, frame.f_back
    return level


def _most_files() -> int:
    try:
        import resource
    except ImportError:  # pragma: no cover - other platforms
        return 0
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
