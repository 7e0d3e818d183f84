"""Files at shared URLs, `s3://…`, for engines that read and write files of their machine: fetched into the cache of the
node before the job, sent there after it, by fsspec.

A cached copy is used again as long as the file system says that the file is the same (fsspec's `ukey`: of ETag, size
and time, as far as it has them).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import posixpath
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path
from typing import Any

from pool.cluster.landing import Landed, told
from pool.cluster.mediacache import Cache, safe_name
from pool.cluster.wire import Blob
from pool.errors import PoolError, ProtocolError
from pool.job import Record
from pool.spool import fsops, owner

_KNOWN = "urls"  # folder in the cache: <sha256 of a URL> -> what it was when it was fetched
_NOTES = 10_000
_BLOCK = 1 << 20
#: A file is there whole or not at all when it is put, and moving it would copy it.
_OBJECT_STORES = frozenset(
    {"s3", "s3a", "gs", "gcs", "abfs", "az", "adl", "oss", "tos", "oci", "memory", "http", "https"}
)


class SharedError(PoolError):
    """A file at a shared URL cannot be read or written. missing: there is none."""

    def __init__(self, url: str, error: BaseException, doing: str) -> None:
        self.url, self.missing = url, isinstance(error, FileNotFoundError)
        nothing = "there is no such file" if doing == "read" else "there is no such bucket or folder"
        why = nothing if self.missing else f"{str(error) or type(error).__name__}"
        super().__init__(f"{url} cannot be {doing} from this machine: {why}")


@contextlib.asynccontextmanager
async def fetched(urls: Iterable[str], cache: Cache) -> AsyncIterator[Mapping[str, Path]]:
    """The files at these URLs, on this machine for as long as the context lasts. Raises SharedError, CacheFull,
    OSError."""
    sources = {url: _Url(url, cache) for url in urls}
    async with contextlib.AsyncExitStack() as stack:
        paths = {}
        for url, source in sources.items():
            blob = await source.describe()
            paths[url] = (await stack.enter_async_context(cache.have(source, [blob])))[blob]
        yield paths


async def send(path: Path, url: str) -> None:
    """Write a file to a URL: whole or not at all where the file system can do that. Raises SharedError."""
    await _in_thread(_send, url, "written", path, url)


def sent(record: Record, urls: Mapping[Path, str]) -> Record:
    """The record with URLs in place of the files that were sent there."""
    by_path = {str(path): url for path, url in urls.items()}
    return told(
        record, [Landed(file, None, by_path.get(str(file["path"]), str(file["path"]))) for file in record.files]
    )


class _Url:
    """One URL, as a source of the cache."""

    def __init__(self, url: str, cache: Cache) -> None:
        self._url, self._cache = url, cache
        self._note = cache.folder / _KNOWN / hashlib.sha256(url.encode("utf-8", "replace")).hexdigest()

    async def describe(self) -> Blob:
        """What is there now; fetched, unless that is known."""
        key = await _in_thread(_key, self._url, "read", self._url)
        known = self._known(key)
        if known is not None:
            return known
        path = self._cache.arriving()
        try:
            blob = await self._download(path)
            await self._cache.adopt(path, blob)
        finally:
            fsops.unlink(str(path), missing_ok=True)
        body = json.dumps({"key": key, **blob.to_map()}).encode()
        if not fsops.make_dir(str(self._note.parent)) and len(os.listdir(self._note.parent)) >= _NOTES:
            fsops.remove_tree(str(self._note.parent))  # what is still of use is noted again
            fsops.make_dir(str(self._note.parent))
        fsops.put(str(self._note.with_name(f".{owner.fresh()}")), str(self._note), [body], sync=False)
        return blob

    async def get(self, blob: Blob, path: Path, *, mode: int = 0o400, temp: Path | None = None) -> None:
        """For the cache, when the copy is gone."""
        part = temp or path
        try:
            found = await self._download(part, mode)
            if found != blob:
                raise SharedError(self._url, ValueError("it changed while it was read"), "read")
            fsops.replace(str(part), str(path))
        except BaseException:
            fsops.unlink(str(part), missing_ok=True)
            raise

    async def _download(self, path: Path, mode: int = 0o400) -> Blob:
        digest, size = await _in_thread(_download, self._url, "read", self._url, path, mode)
        return Blob(digest, size, safe_name(posixpath.basename(self._url)))

    def _known(self, key: str) -> Blob | None:
        try:
            value = json.loads(fsops.read_bounded(self._note, 65536))
            return Blob.from_map(value) if value.get("key") == key else None
        except (OSError, ValueError, AttributeError, ProtocolError):
            return None


async def _in_thread(call: Any, url: str, doing: str, *args: Any) -> Any:
    """What a call of fsspec returns. Whatever it raises, which depends on the file system, is a SharedError; but for
    errors of this machine's disk."""
    try:
        return await asyncio.to_thread(call, *args)
    except _Disk as error:
        raise error.error from None
    except Exception as error:
        raise SharedError(url, error, doing) from error


class _Disk(Exception):
    """An error of this machine's disk, not of the file system of a URL."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


def _key(url: str) -> str:
    fs, path = _open(url)
    with contextlib.suppress(AttributeError):
        fs.invalidate_cache()
    return str(fs.ukey(path))


def _download(url: str, path: Path, mode: int) -> tuple[str, int]:
    fs, there = _open(url)
    digest, size = hashlib.sha256(), 0
    with fs.open(there, "rb") as source:
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
        except OSError as error:
            raise _Disk(error) from None
        try:
            while chunk := source.read(_BLOCK):
                digest.update(chunk)
                size += len(chunk)
                _write(fd, chunk, path)
        finally:
            os.close(fd)
    fsops.sync_file(str(path))
    return digest.hexdigest(), size


def _write(fd: int, chunk: bytes, path: Path) -> None:
    view = memoryview(chunk)
    try:
        while view:
            view = view[os.write(fd, view) :]
    except OSError as error:
        error.filename = str(path)
        raise _Disk(error) from None


def _send(path: Path, url: str) -> None:
    fs, there = _open(url)
    if url.partition("://")[0] in _OBJECT_STORES:
        fs.put_file(str(path), there)
        return
    folder, name = posixpath.split(there)
    part = posixpath.join(folder, f".{owner.fresh()}.part")
    try:
        fs.put_file(str(path), part)
        fs.mv(part, posixpath.join(folder, name))
    except BaseException:
        with contextlib.suppress(Exception):
            fs.rm_file(part)
        raise


def _open(url: str) -> tuple[Any, str]:
    import fsspec

    fs, path = fsspec.core.url_to_fs(url)
    return fs, str(path)
