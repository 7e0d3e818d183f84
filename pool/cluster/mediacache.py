"""Media on the disk of a node: each content once, under the names that jobs give it, the least recently used go first.

    <folder>/<sha256>/.bytes      the content
    <folder>/<sha256>/<name>      hard links to it: a suffix matters to those who read
    <folder>/.in-<owner>…         on its way; swept when its process is dead
    <folder>/.out-<owner>…        being removed

Whoever uses a content holds a shared lock on `.bytes`, which the kernel takes back when the process ends: processes may
share a folder, and no crash leaves a content pinned.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from pool.cluster.wire import Blob
from pool.errors import SpoolFull
from pool.spool import fsops, owner
from pool.system import limits

_BYTES = ".bytes"
_IN, _OUT = ".in-", ".out-"
_SHA = re.compile(r"[0-9a-f]{64}\Z")
_MODE = 0o400  # an engine that opens its input for writing would change it for all
_TRIES = 100


class CacheFull(SpoolFull):
    """The disk of the media cache has no room, although everything that no job uses was removed."""


class Source(Protocol):
    """Where media come from: `pool.cluster.media.Store`."""

    async def get(self, blob: Blob, path: Path, *, mode: int = ..., temp: Path | None = ...) -> None:
        """Write the content to a file."""


def safe_name(name: str) -> str:
    """A file name with which no program does anything strange, at most 120 bytes, with the suffix of `name`."""
    base = name.replace("\\", "/").rpartition("/")[2]
    kept = "".join(letter if letter.isalnum() or letter in "._- +()" else "_" for letter in base)
    kept = kept.encode("utf-8", "replace").decode().strip(". ").lstrip("-")
    stem, dot, suffix = kept.rpartition(".")
    if not dot or not 0 < len(suffix) <= 16 or not suffix.isascii():
        stem, suffix = kept, ""
    room = 120 - len(suffix) - len(dot)
    stem = stem.encode()[:room].decode("utf-8", "ignore").strip(". ") or "media"
    return f"{stem}.{suffix}" if suffix else stem


class Cache:
    """The media in one folder. max_bytes: what contents that no job uses may take together with the others.

    One event loop uses it. Make it before the jobs that a restart finds again are taken up, and `have` their media
    before any others.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self._max_bytes = Path(os.path.abspath(folder)), max_bytes
        self._fetching: dict[str, asyncio.Lock] = {}
        for parent in [*reversed(self.folder.parents), self.folder]:
            if not parent.is_dir():
                fsops.make_dir(str(parent))
        self._sweep()

    @contextlib.asynccontextmanager
    async def have(self, store: Source, blobs: Iterable[Blob]) -> AsyncIterator[Mapping[Blob, Path]]:
        """The files, fetched where they are not here; they stay as long as the context does.

        Raises what `Store.get` does, CacheFull with the folder, OSError.
        """
        with contextlib.ExitStack() as pins:
            paths: dict[Blob, Path] = {}
            try:
                for blob in dict.fromkeys(blobs):
                    pins.enter_context(await self._pinned(store, blob))
                    paths[blob] = self._name(blob)
                yield paths
            finally:
                pins.close()
                await asyncio.to_thread(self._shrink, 0)

    def arriving(self) -> Path:
        """A name in the folder for a file that is about to come; what a killed process leaves there is swept."""
        return self.folder / f"{_IN}{owner.fresh()}"

    async def adopt(self, path: Path, blob: Blob) -> None:
        """Take over a file at a name from `arriving`, complete and synced, as the content that it is."""
        async with self._fetching.setdefault(blob.sha256, asyncio.Lock()):
            await asyncio.to_thread(self._shrink, blob.size)
            try:
                pin = self._settle(path, blob)
            finally:
                fsops.unlink(str(path), missing_ok=True)
            if pin is not None:
                pin.close()

    def inside(self, value: Any) -> Iterator[Blob]:
        """What of the cache is named in a value, such as the parameters of a job."""
        if isinstance(value, str):
            folder, _, name = value.rpartition("/")
            sha = folder.removeprefix(f"{self.folder}/")
            if _SHA.match(sha):
                with contextlib.suppress(OSError):
                    yield Blob(sha, os.stat(value).st_size, name)
        elif isinstance(value, (list, tuple)):
            for item in value:
                yield from self.inside(item)
        elif isinstance(value, Mapping):
            for item in value.values():
                yield from self.inside(item)

    # ---- one content

    async def _pinned(self, store: Source, blob: Blob) -> _Pin:
        lock = self._fetching.setdefault(blob.sha256, asyncio.Lock())
        async with lock:
            for _ in range(_TRIES):
                pin = self._pin(blob) or await self._fetch(store, blob)
                if pin is not None:
                    return pin
                await asyncio.sleep(0.02)
        raise CacheFull(f"{self.folder / blob.sha256} is in use by another process, and damaged: remove it")

    def _pin(self, blob: Blob) -> _Pin | None:
        """A hold on a content that is here."""
        path = self.folder / blob.sha256 / _BYTES
        pin = _Pin.take(path)
        if pin is None:
            return None
        if pin.size != blob.size:  # a file system that lost the end of it
            pin.close()
            self._remove(path.parent)
            return None
        with contextlib.suppress(OSError):
            os.utime(path.parent)  # its last use; engines know a file again by the times of the file
        return pin

    async def _fetch(self, store: Source, blob: Blob) -> _Pin | None:
        await asyncio.to_thread(self._shrink, blob.size)
        arriving = self.arriving()
        try:
            await self._get(store, blob, arriving)
            return self._settle(arriving, blob)
        finally:
            fsops.unlink(str(arriving), missing_ok=True)

    def _settle(self, arrived: Path, blob: Blob) -> _Pin | None:
        """Give a complete file its place; None when another process was first, or removes what is there."""
        pin = _Pin.take(arrived)  # before it can be seen, and removed
        if pin is None:
            return None
        try:
            fsops.make_dir(str(self.folder / blob.sha256))
            fsops.rename_noreplace(str(arrived), str(self.folder / blob.sha256 / _BYTES))
        except (FileNotFoundError, FileExistsError):
            # RACE: another process removed the folder, or had the content sooner. What is there is not replaced: who
            # holds its lock decides on it.
            pin.close()
            return None
        except BaseException:
            pin.close()
            raise
        return pin

    async def _get(self, store: Source, blob: Blob, path: Path) -> None:
        temp = self.arriving()
        try:
            await store.get(blob, path, mode=_MODE, temp=temp)
        except OSError as error:
            if error.errno not in fsops.NO_SPACE:
                raise
            await asyncio.to_thread(self._shrink, self._max_bytes)  # all that can go
            try:
                await store.get(blob, path, mode=_MODE, temp=temp)
            except OSError as again:
                if again.errno not in fsops.NO_SPACE:
                    raise
                raise CacheFull(
                    f"{self.folder} has no room for {blob.name or 'a file'} ({blob.size} bytes): "
                    f"{limits.sentence(again)}; free space on its disk"
                ) from None

    def _name(self, blob: Blob) -> Path:
        """The path of a pinned content under its name."""
        content = self.folder / blob.sha256 / _BYTES
        path = self.folder / blob.sha256 / safe_name(blob.name)
        for _ in range(_TRIES):
            try:
                fsops.link(str(content), str(path))
            except FileExistsError:
                if os.path.samefile(content, path):
                    break
                fsops.unlink(str(path), missing_ok=True)  # of a content that was damaged
            else:
                break
        return path

    # ---- room

    def _shrink(self, needed: int) -> None:
        """Remove contents that nobody uses until `needed` bytes more fit."""
        found = sorted(self._contents())
        total = sum(size for _, size, _ in found)
        for _, size, path in found:
            if total + needed <= self._max_bytes:
                return
            if self._remove(path):
                total -= size

    def _contents(self) -> Iterator[tuple[int, int, Path]]:
        """(last use in ns, bytes, folder) of each."""
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if _SHA.match(entry.name):
                    with contextlib.suppress(OSError):
                        size = os.stat(f"{entry.path}/{_BYTES}").st_size
                        yield os.stat(entry.path).st_mtime_ns, size, Path(entry.path)

    def _remove(self, path: Path) -> bool:
        pin = _Pin.take(path / _BYTES, alone=True)
        if pin is None:
            return False
        with pin:
            gone = self.folder / f"{_OUT}{owner.fresh()}"
            try:
                fsops.rename(str(path), str(gone))
            except OSError:
                return False
            fsops.remove_tree(str(gone))
        return True

    def _sweep(self) -> None:
        """Remove what dead processes left half done."""
        for name in os.listdir(self.folder):
            begin = next((begin for begin in (_IN, _OUT) if name.startswith(begin)), None)
            if begin is not None and not owner.alive(name[len(begin) :].partition(".")[0]):
                path = str(self.folder / name)
                if begin == _IN:
                    fsops.unlink(path, missing_ok=True)
                else:
                    fsops.remove_tree(path)
            elif _SHA.match(name):
                fsops.remove_dir(str(self.folder / name))  # only if it is empty


class _Pin:
    """A lock on a content."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd, self.size = fd, size

    @classmethod
    def take(cls, path: Path, *, alone: bool = False) -> _Pin | None:
        """None when the file is not there, or is being removed; alone: also when anybody else has one."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return None
        try:
            fcntl.flock(fd, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            about = os.fstat(fd)
            # RACE: between opening and locking it may have been removed, or replaced
            if os.path.samestat(about, os.stat(path)):
                return cls(fd, about.st_size)
        except OSError:
            pass
        os.close(fd)
        return None

    def close(self) -> None:
        """Let go."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> _Pin:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
