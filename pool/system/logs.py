"""Logs: the supervisor's own, and those that workers write through descriptors we gave them.

A worker's stdout and stderr are one file opened with O_APPEND, shared with all that it starts. It is turned
over in two ways. `rotate`, between two processes of a slot: a rename, no process writes. `trim`, while one does:
copy, then cut to nothing; its next line lands at the new end, because of O_APPEND.

    run/logs/transcribe-0.log    being written
    run/logs/transcribe-0.log.1  the one before, .2 the one before that …

RACE: what is written between the copy and the cut of `trim` is lost: lines of a log that is being flooded.
Nothing that decides anything is read from a log.
"""

from __future__ import annotations

import io
import logging
import os
import re
import sys
from pathlib import Path

_CHUNK = 1 << 20
_UNSEEN = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\0")  # terminal controls
_FORMAT = "{time:YYYY-MM-DD HH:mm:ss.SSS} {level: <7} {message}"


def rotate(path: Path, keep: int, *, over: int = 0) -> bool:
    """Move a log out of the way before a process starts: log → .1 → .2; beyond `keep` the oldest goes.

    over: leave a log of at most this many bytes where it is, to be appended to. Returns whether it moved.
    """
    if mark(path) <= over:
        return False
    _shift(path, keep)
    if keep:
        path.replace(_older(path, 1))
    else:
        path.unlink(missing_ok=True)
    return True


def trim(path: Path, max_bytes: int, keep: int) -> bool:
    """Rotate a log that a process is writing, when it is longer than `max_bytes`; returns whether it was.

    Only its last `max_bytes` are kept, none on a full disk: the cut is what matters then.
    """
    size = mark(path)
    if size <= max_bytes:
        return False
    with open(path, "r+b", buffering=0) as source:
        if keep:
            _shift(path, keep)
            source.seek(size - max_bytes)
            try:
                _copy(source, _older(path, 1), max_bytes)
            except OSError:
                _older(path, 1).unlink(missing_ok=True)
        source.truncate(0)
    return True


def mark(path: Path) -> int:
    """Where the log ends now: what a process writes that starts at this moment comes after."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def tail(path: Path, lines: int = 40, max_bytes: int = 16384, *, since: int = 0) -> str:
    """The last lines written after `since` (a `mark`), out of at most `max_bytes`; "" when there are none.

    Bytes that are no UTF-8 become "�", colours go, of a progress bar only what it showed last remains.
    """
    try:
        with open(path, "rb", buffering=0) as stream:
            end = os.fstat(stream.fileno()).st_size
            begin = since if since <= end else 0  # cut meanwhile: all of it is newer
            start = max(begin, end - max_bytes)
            stream.seek(start)
            data = stream.read(min(max_bytes, end - start)) or b""
    except OSError:
        return ""
    if start > begin:  # in the middle of a line, perhaps of a character
        cut = data.find(b"\n") + 1
        data = data[cut:] if cut else data
    return "\n".join(shown(data)[-lines:]) if lines > 0 else ""


def shown(data: bytes) -> list[str]:
    """The lines of a part of a log, as `tail` gives them."""
    text = _UNSEEN.sub("", data.decode("utf-8", "replace")).replace("\r\n", "\n")
    return [line.rstrip("\r").rpartition("\r")[2] for line in text.rstrip().split("\n")]


def setup_logging(
    level: str = "INFO",
    file: Path | None = None,
    *,
    max_bytes: int = 10 << 20,
    keep: int = 3,
    console: bool = True,
) -> None:
    """Send loguru, and what libraries say through `logging`, to stderr and to a file that is turned over.

    console: False when stderr leads into that file already. Written in the calling thread (no queue, no second
    process), without values of variables in tracebacks.
    """
    from loguru import logger

    logger.remove()
    if console and sys.stderr is not None:
        logger.add(sys.stderr, level=level, format=_FORMAT, backtrace=False, diagnose=False)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        logger.add(
            file,
            level=level,
            format=_FORMAT,
            rotation=max_bytes,
            retention=keep,
            encoding="utf-8",
            backtrace=False,
            diagnose=False,
            opener=_private,
        )
    logging.basicConfig(handlers=[_Forward()], level=logging.WARNING, force=True)


class _Forward(logging.Handler):
    """Hands records of the standard library's `logging` (watchdog speaks there) to loguru."""

    def emit(self, record: logging.LogRecord) -> None:
        from loguru import logger

        try:
            level: str | int = logger.level(record.levelname).name
        except ValueError:
            level = record.levelno
        logger.opt(exception=record.exc_info).log(level, "{}: {}", record.name, record.getMessage())


def _copy(source: io.FileIO, target: Path, count: int) -> None:
    with open(target, "wb", buffering=0, opener=_private) as copy:
        while count > 0 and (chunk := source.read(min(_CHUNK, count))):
            view = memoryview(chunk)
            while view:  # a raw write may be short
                view = view[copy.write(view) :]
            count -= len(chunk)


def _shift(path: Path, keep: int) -> None:
    """Free the name .1: what is .1 becomes .2, and so on; nothing beyond .keep stays."""
    for number in range(max(1, keep), 0, -1):
        older = _older(path, number)
        if number >= keep:
            older.unlink(missing_ok=True)
        elif older.exists():
            older.replace(_older(path, number + 1))
    # A smaller `keep` than last time leaves more behind.
    for stale in path.parent.glob(f"{path.name}.*"):
        number_text = stale.name[len(path.name) + 1 :]
        if number_text.isdigit() and int(number_text) > keep:
            stale.unlink(missing_ok=True)


def _older(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def _private(name: str, flags: int) -> int:
    return os.open(name, flags, 0o600)
