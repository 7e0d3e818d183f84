"""One ffmpeg process with a pipe to or from it.

Its stderr is read by a thread all the time, since a full pipe there would stop ffmpeg; the last lines are
kept for messages. The process ends by ``close``, or when its object is garbage-collected.
"""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import IO

KEPT_LINES = 40
PIPE_BYTES = 1 << 20  #: asked of the kernel; its default of 64 KB means 20 switches per frame of 720p
POLL_S = 0.1

_DECORATION = re.compile(r"^(\[[^\]]*@ 0x[0-9a-f]+\] )+")


class Process:
    """A running ffmpeg. ``direction``: "read" its stdout, "write" its stdin, or "wait" for it only."""

    def __init__(self, arguments: Sequence[str], direction: str) -> None:
        self._process: subprocess.Popen[bytes] = subprocess.Popen(
            list(arguments),
            stdin=subprocess.PIPE if direction == "write" else subprocess.DEVNULL,
            stdout=subprocess.PIPE if direction == "read" else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            bufsize=0,
        )
        self._talk: deque[str] = deque(maxlen=KEPT_LINES)
        self._finalizer = weakref.finalize(self, _end, self._process)
        pipe = self._process.stdin or self._process.stdout
        if pipe is not None:
            _widen(pipe)
        self._listener = threading.Thread(
            target=_listen, args=(self._process.stderr, self._talk), name="ffmpeg-stderr", daemon=True
        )
        self._listener.start()

    @property
    def stdin(self) -> IO[bytes]:
        """Its standard input, without a buffer; for "write" only."""
        assert self._process.stdin is not None
        return self._process.stdin

    @property
    def stdout(self) -> io.RawIOBase:
        """Its standard output, without a buffer; for "read" only."""
        raw = self._process.stdout
        assert isinstance(raw, io.RawIOBase)  # as it is without a buffer
        return raw

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return not self._finalizer.alive

    @property
    def lines(self) -> list[str]:
        """The last lines of its stderr."""
        return list(self._talk)

    @property
    def said(self) -> str:
        """The last lines of its stderr, without decoration and repetition, as one line."""
        lines = (_DECORATION.sub("", line).strip() for line in self.lines)
        return "; ".join(dict.fromkeys(line for line in lines if line))[-600:]

    def read_into(self, buffer: memoryview) -> int:
        """Fill the buffer from stdout; less than its length only at the end of the stream."""
        stdout, got = self.stdout, 0
        while got < len(buffer):
            more = stdout.readinto(buffer[got:])
            if not more:
                break
            got += more
        return got

    def finish(self, check: Callable[[], None] | None = None) -> int:
        """Close stdin, wait for the end, give the exit code; ``check`` is called meanwhile and may raise."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        while self._listener.is_alive():  # its stderr ends with it, and says so at once; `wait` looks every 50 ms
            self._listener.join(POLL_S)
            if check is not None:
                check()
        return self._process.wait()

    def close(self) -> None:
        """End it at once if it still runs; safe to call twice."""
        self._finalizer()
        if threading.current_thread() is not self._listener:
            self._listener.join(timeout=5)


def _listen(pipe: IO[bytes], talk: deque[str]) -> None:
    with pipe:
        for line in pipe:
            talk.append(line.decode("utf-8", "replace").rstrip())


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    process.wait()


def _widen(pipe: IO[bytes]) -> None:
    if sys.platform == "linux":
        import fcntl

        with contextlib.suppress(OSError, AttributeError):  # over the user's limit; 64 KB work too
            fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
