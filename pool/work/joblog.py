"""The lines that a worker itself writes into the log of its slot.

Written straight to descriptor 2, in one piece: an engine may have closed, replaced or filled sys.stderr.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time

from pool.work import log_fields


def say(text: str) -> None:
    """One line with the time in front, and the fields of the job behind; lost when there is no descriptor 2."""
    flush()
    line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}{log_fields.suffix()}\n".encode("utf-8", "backslashreplace")
    with contextlib.suppress(OSError):
        os.write(2, line)


def flush() -> None:
    """Flush what the engine printed, so that it stands before the next line."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with contextlib.suppress(Exception):  # closed, detached, or an object of the engine's own
                stream.flush()
