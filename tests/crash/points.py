"""Where a process dies: armed from inside, so that it is killed when it comes to a certain operation on the disk."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Union

from pool.spool import fsops

#: Which operation a process is killed at: the n-th from 1; the first whose name and path hold a text; 0: none. Or
#: what else shall be called before each.
At = Union[int, str, Callable[[str, str], None]]  # noqa: UP007 - when it is imported


def kill_at(at: At, note: Path) -> None:
    """Arm this process: SIGKILL at that durable operation from here, with a word about where."""
    numbers = itertools.count(1)

    def hook(operation: str, path: str) -> None:
        number = next(numbers)
        if number == at or (isinstance(at, str) and at in f"{operation} {path}"):
            note.write_text(f"operation {number}, {operation} {path}")
            os.kill(os.getpid(), signal.SIGKILL)

    fsops.hook = at if callable(at) else hook if at else None
