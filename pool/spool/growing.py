"""A file that grows while a job runs, for those who want to watch: run/scratch/<id>.<attempt>/stream/<name>.

It goes with the scratch folder of its attempt, whoever removes that. The writer makes it read-only when it is whole.
Who has it open can tell so after it was removed, too, since that is a property of the file and not of its name.
"""

from __future__ import annotations

import enum
import mimetypes
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pool.spool import fsops
from pool.spool.attempts import scratch_dir
from pool.spool.tree import Tree

KEY = "stream"  # of the partial record that tells of one
_FOLDER = "stream"  # in the scratch folder
_OPEN, _WHOLE = 0o600, 0o400  # permissions while it grows, and afterwards


class Growth(enum.Enum):
    """What becomes of a stream."""

    GOING = "going"  #: more may come
    WHOLE = "whole"  #: nothing more comes
    BROKEN = "broken"  #: nothing more comes, and it is not whole: its attempt failed, or the disk was full


class StreamWriter:
    """The end of the engine. begun: called once, when there is something to read. Raises OSError for a full disk."""

    def __init__(self, path: Path, begun: Callable[[], None]) -> None:
        self.path = path
        self._begun: Callable[[], None] | None = begun
        fsops.make_dir(str(path.parent))
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _OPEN)

    def write(self, data: bytes) -> None:
        """Append; readers see it at once. A full disk may leave a part of it: drop the stream then."""
        left = memoryview(data)
        while left:
            left = left[os.write(self._fd, left) :]
        if self._begun is not None and data:
            begun, self._begun = self._begun, None
            begun()

    def finish(self) -> None:
        """It is whole. What follows is ignored."""
        if self._fd >= 0:
            os.fchmod(self._fd, _WHOLE)
        self.close()

    def drop(self) -> None:
        """It will not be whole: remove it, so that nobody waits for more."""
        if self._fd >= 0:
            fsops.unlink(str(self.path), missing_ok=True)
        self.close()

    def close(self) -> None:
        """Free the descriptor; safe to call twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class StreamReader:
    """The newest stream of a job, open. attempt: whose it is. media_type: as its name says, "" for an unknown one."""

    def __init__(self, path: str, attempt: int) -> None:
        self.path, self.attempt = path, attempt
        self.media_type = mimetypes.guess_type(path)[0] or ""
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    @property
    def growth(self) -> Growth:
        """Ask first, then read to the end: what was there when it became whole is then read, too."""
        info = os.fstat(self._fd)
        if not info.st_mode & (_OPEN & ~_WHOLE):
            return Growth.WHOLE
        try:
            there = os.stat(self.path)
        except FileNotFoundError:
            return Growth.BROKEN
        return Growth.GOING if (there.st_ino, there.st_dev) == (info.st_ino, info.st_dev) else Growth.BROKEN

    @property
    def size(self) -> int:
        """Bytes so far."""
        return os.fstat(self._fd).st_size

    def read(self, offset: int, most: int) -> bytes:
        """At most that many bytes from an offset on, b"" where there are none yet."""
        return os.pread(self._fd, most, offset)

    def close(self) -> None:
        """Free the descriptor; safe to call twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def stream_path(scratch: Path, name: str) -> Path:
    """Where the stream of an attempt with this scratch folder grows."""
    return scratch / _FOLDER / name


def open_newest(spool: Tree, job_id: str, only: int | None = None) -> StreamReader | None:
    """The stream of the last attempt that has one, or of one attempt; None when there is none. Close it."""
    for attempt in sorted(_attempts(spool, job_id), reverse=True):
        if only not in (None, attempt):
            continue
        folder = scratch_dir(spool, job_id, attempt) / _FOLDER
        try:
            for name in sorted(os.listdir(folder)):
                reader = StreamReader(f"{folder}/{name}", attempt)
                if reader.size:
                    return reader
                reader.close()  # RACE: its first bytes come in a moment
        except (FileNotFoundError, NotADirectoryError):
            pass  # RACE: the attempt is over
    return None


def _attempts(spool: Tree, job_id: str) -> list[int]:
    names = (entry.rpartition(".") for entry in os.listdir(spool.root / "run" / "scratch"))
    return [int(number) for found, _, number in names if found == job_id and number.isdecimal()]


def told(path: Path, attempt: int) -> dict[str, Any]:
    """The partial record that tells of a stream."""
    media_type = mimetypes.guess_type(str(path))[0] or ""
    return {KEY: {"path": str(path), "media_type": media_type, "attempt": attempt}}


def without_path(record: Any, reason: str) -> Any:
    """The record for another machine, where the path means nothing; any other record unchanged."""
    about = record.get(KEY) if isinstance(record, Mapping) else None
    if not isinstance(about, Mapping):
        return record
    return {KEY: {"media_type": about.get("media_type", ""), "attempt": about.get("attempt", 0), "not_here": reason}}
