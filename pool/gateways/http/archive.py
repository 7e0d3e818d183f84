"""The results of some jobs as one ZIP archive, written while it is sent: it is nowhere as a whole."""

from __future__ import annotations

import io
import os
import secrets
import threading
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

from pool.errors import PoolError

_CHUNK = 1 << 20
_KEPT, _KEPT_S = 200, 3600.0  # archives that can be fetched, and for how long
_NEVER = (1980, 1, 1, 0, 0, 0)  # the first time that a ZIP can name


@dataclass(frozen=True)
class Entry:
    """One file of an archive: a file of this machine, or a text. size: bytes. at: seconds since 1970."""

    name: str
    size: int
    at: float
    path: Path | None = None
    text: bytes = b""


class Archives:
    """Archives that were asked for, by their keys; the oldest goes when there are too many. For several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, tuple[float, tuple[Entry, ...]]] = {}

    def put(self, entries: Sequence[Entry]) -> str:
        """Remember an archive; its key."""
        key = secrets.token_urlsafe(18)
        with self._lock:
            now = time.monotonic()
            fresh = {one: kept for one, kept in self._known.items() if kept[0] > now - _KEPT_S}
            self._known = dict(list(fresh.items())[-(_KEPT - 1) :]) | {key: (now, tuple(entries))}
        return key

    def get(self, key: str) -> tuple[Entry, ...] | None:
        """Its entries; None when it is not known, or no longer."""
        with self._lock:
            at, entries = self._known.get(key, (0.0, None))
        return entries if entries is not None and at > time.monotonic() - _KEPT_S else None


def distinct(entries: Sequence[Entry]) -> list[Entry]:
    """The entries with names that differ, also where upper and lower case are the same: `talk.mp4`, `talk (2).mp4`."""
    taken: set[str] = set()
    found = []
    for entry in entries:
        name, number = entry.name, 1
        while name.casefold() in taken:
            number += 1
            place = PurePosixPath(entry.name)
            name = f"{place.stem} ({number}){place.suffix}"
        taken.add(name.casefold())
        found.append(Entry(name, entry.size, entry.at, entry.path, entry.text))
    return found


def stream(entries: Sequence[Entry]) -> Iterator[bytes]:
    """The archive in pieces of about 1 MiB. Media is stored as it is, texts are compressed. Raises Vanished."""
    pipe = _Pipe()
    with zipfile.ZipFile(cast(Any, pipe), "w") as archive:
        for entry in entries:
            about = zipfile.ZipInfo(entry.name, _date(entry.at))
            about.external_attr = 0o644 << 16
            about.file_size = entry.size
            if entry.path is None:
                about.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(about, entry.text)
            else:
                for _ in _copy(archive, about, entry.path):
                    yield pipe.taken()
        yield pipe.taken()
    yield pipe.taken()


class Vanished(PoolError):
    """A file has gone, or grown or shrunk, since the archive was asked for."""


def _copy(archive: zipfile.ZipFile, about: zipfile.ZipInfo, path: Path) -> Iterator[None]:
    left = about.file_size
    try:
        with open(path, "rb", buffering=0) as source, archive.open(about, "w", force_zip64=left > 1 << 31) as target:
            while left > 0 and (chunk := source.read(min(_CHUNK, left))):
                target.write(chunk)
                left -= len(chunk)
                yield
    except OSError as error:
        raise Vanished(f"{about.filename}: {error.strerror}") from None
    if left:
        raise Vanished(f"{about.filename} is {left} bytes shorter than before")


def _date(at: float) -> tuple[int, int, int, int, int, int]:
    moment = time.localtime(at)
    return max(_NEVER, cast(tuple[int, int, int, int, int, int], tuple(moment[:6])))


class _Pipe(io.RawIOBase):
    """What zipfile has written and nobody has taken yet. It cannot be sought, so sizes follow their files."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        piece = bytes(data)
        self._pieces.append(piece)
        return len(piece)

    def taken(self) -> bytes:
        """All of it, and forget it."""
        found = b"".join(self._pieces)
        self._pieces.clear()
        return found


def text_entry(name: str, text: str, at: float) -> Entry:
    """An entry that is a text."""
    data = text.encode("utf-8", "replace")
    return Entry(name, len(data), at, text=data)


def file_entry(name: str, path: Path) -> Entry:
    """An entry that is a file. Raises OSError."""
    info = os.stat(path)
    return Entry(name, info.st_size, info.st_mtime, path)
