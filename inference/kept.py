"""A folder of results that are costly to make: made once, kept by name, the ones not used for longest removed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

T = TypeVar("T")
POLL_S = 0.2
KEEP_BYTES = 2 << 30


@contextlib.contextmanager
def locked(path: Path, check: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock at ``path`` against every process; ``check`` is called while waiting for it and may raise."""
    lock = FileLock(str(path))
    while True:
        try:
            lock.acquire(timeout=POLL_S)
            break
        except Timeout:
            if check is not None:
                check()
    try:
        yield
    finally:
        lock.release()


def recall(path: Path, load: Callable[[Path], T]) -> T | None:
    """What is kept at ``path``, marked as used; None when there is nothing, or it is damaged or of another version."""
    try:
        known = load(path)
        with contextlib.suppress(OSError):
            os.utime(path)  # what was used last is pruned last
        return known
    except Exception:  # numpy and zipfile raise many kinds for a damaged file, which is simply made again
        return None


@dataclass(frozen=True)
class Shelf:
    """A folder of ``.npz`` files, and how many bytes of them stay."""

    folder: Path
    keep: int = KEEP_BYTES

    def prune(self) -> None:
        """Keep the files used last, ``keep`` bytes of them; a lock goes with its file."""
        # RACE: another process may remove or use a file meanwhile; one that is gone is simply made again.
        with contextlib.suppress(OSError):
            files = [(path.stat(), path) for path in self.folder.glob("*.npz")]
            total = 0
            for stat, path in sorted(files, key=lambda item: -item[0].st_mtime):
                total += stat.st_size
                if total > self.keep:
                    path.unlink(missing_ok=True)
                    path.with_suffix(".lock").unlink(missing_ok=True)
