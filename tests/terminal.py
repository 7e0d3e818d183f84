"""A program on a terminal of its own: what a person sees, and what a person types."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_CONTROLS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def on_terminal(
    argv: Sequence[str], typed: Sequence[tuple[str, str | Callable[[], object]]] = (), *, cwd: Path, seconds: float = 60
) -> tuple[int, str]:
    """Exit code and text. typed: (what must have appeared, what is typed then, or called), in order; "\\x03" is
    Ctrl-C."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        list(argv),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=cwd,
        env=env,
        start_new_session=True,
        preexec_fn=_take_terminal,
    )
    os.close(theirs)
    shown, mark, todo = "", 0, list(typed)
    deadline = time.monotonic() + seconds
    try:
        while time.monotonic() < deadline:
            if select.select([ours], [], [], 0.05)[0]:
                try:
                    data = os.read(ours, 65536)
                except OSError:  # EIO: the other side is closed
                    data = b""
                if not data:
                    return process.wait(5), shown
                shown += _CONTROLS.sub("", data.decode("utf-8", "replace")).replace("\r", "\n")
            if todo and re.search(todo[0][0], shown[mark:]):
                mark = len(shown)
                then = todo.pop(0)[1]
                if isinstance(then, str):
                    os.write(ours, then.encode())
                else:
                    then()
        raise AssertionError(f"not over after {seconds:g} s, waiting for {todo}; it showed:\n{shown[-3000:]}")
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        process.wait(5)
        os.close(ours)


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
