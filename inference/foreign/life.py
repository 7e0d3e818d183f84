"""What a guest shows of itself: what it does, its processes, what it prints, and whether it still lives."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

LOAD_S, STALL_S, GRACE_S, CHILD_S = 540.0, 90.0, 2.0, 15.0  #: shorter than the pool's own, which know less
KEPT_LINES = 30
LOG_BYTES = 4 << 20  #: the guest's own log is emptied beyond that; all of it went on to ours


@dataclass(frozen=True)
class Patience:
    """Seconds. How long the host waits before it ends a guest."""

    load: float = LOAD_S
    stall: float = STALL_S  #: without any sign of life during a job
    child: float = CHILD_S  #: the same, once a process of the SDK has died with an error
    cancel: float = GRACE_S  #: for the SDK to end a cancelled job by itself; 0: it cannot


@dataclass(frozen=True)
class Child:
    """A process that the SDK started with `multiprocessing`."""

    name: str
    pid: int
    end: str  #: "" while it lives, else "exit code 1" or "SIGKILL"

    @property
    def failed(self) -> bool:
        """Whether it ended with an error."""
        return self.end not in ("", "exit code 0")

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid}) with {self.end}" if self.end else f"{self.name} (pid {self.pid})"


@dataclass(frozen=True)
class Signs:
    """What an SDK shows of itself."""

    doing: str
    children: tuple[Child, ...]

    @property
    def words(self) -> str:
        """What it was doing, to follow "it"."""
        return f"was at: {self.doing}" if self.doing else "had not said what it does"


class Life:
    """Whether a guest that works on a job still lives."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._signs: Signs | None = None
        self._at = time.monotonic()

    def over(self, signs: Signs, alive: bool) -> str:
        """Why the wait is over, "" while it is not. alive: whether anything else was seen since the last call."""
        now = time.monotonic()
        if alive or signs != self._signs:
            self._signs, self._at = signs, now
        silent = now - self._at
        dead = [str(child) for child in signs.children if child.failed]
        if dead and silent > self._patience.child:
            return f"waits for a process that is dead: {', '.join(dead)}; last it {signs.words}"
        if silent > self._patience.stall:
            living = ", ".join(str(child) for child in signs.children if not child.end)
            about = f"; its processes: {living}" if living else ""
            return f"hangs: no sign of life for {silent:.0f} s, last it {signs.words}{about}"
        return ""


class Talk:
    """What a guest prints: handed on to our stderr as it comes, its end kept for messages."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._offset = 0

    def read(self, path: Path) -> bool:
        """What was printed since the last call; whether there was anything."""
        try:
            with open(path, "rb") as stream:
                stream.seek(self._offset)
                data = stream.read()
        except OSError:
            return False
        if data:
            self._offset += len(data)
            sys.stderr.write(data.decode("utf-8", "backslashreplace"))
            sys.stderr.flush()
            self._lines.extend(data.decode("utf-8", "replace").splitlines())
        return bool(data)

    def trim(self, path: Path) -> None:
        """Empty a log that has grown long. Between jobs: what is printed between a read and this is lost."""
        if self._offset > LOG_BYTES and not self.read(path):
            os.truncate(path, 0)
            self._offset = 0

    def end(self) -> str:
        """The last lines."""
        return "\n".join(line for line in self._lines if line.strip())
