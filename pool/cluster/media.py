"""Files by their SHA-256, in the object store of the cluster, kept for as long as somebody says why.

A *ref*, a key `<sha256>.<holder>` of a bucket, is such a reason. `put` writes it before it looks whether the object is
there, and marks an object that is there as seen; `sweep` deletes an object without refs only as it was before it read
the refs. So of a `put` and any number of sweepers at once, either the sweeper finds the ref, or it is late, or `put`
finds the object gone and sends it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import secrets
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js import errors as js_errors
from nats.js.kv import KeyValue

from pool.cluster import accounts, topology, wire
from pool.cluster.link import Link
from pool.cluster.mediacache import Cache, CacheFull, safe_name
from pool.cluster.objects import AWAY, Entry, Late, Objects, OtherContent, Torn, newest
from pool.cluster.wire import Blob
from pool.config.settings import ClusterConfig
from pool.errors import PoolError
from pool.spool import fsops
from pool.system import limits

__all__ = ["Cache", "CacheFull", "MediaChanged", "MediaError", "MediaGone", "MediaUnreachable", "Store", "safe_name"]

T = TypeVar("T")
PATIENCE_S = 60.0  # how long a transfer waits for the servers without any progress
MARK_S = 60  # how long the mark of a removed key stays
_TRANSFERS = 4  # at a time
_TRIES = 5  # of an upload that was cut off, or met others at work on the same object
_HOLDER = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\Z")
_SWEEPER = "sweeper"  # begins the keys that are no refs


class MediaError(PoolError):
    """A file that should travel does not. path: on this machine, may be empty. blob: in the store, if it is known."""

    def __init__(self, message: str, path: Path | str = "", blob: Blob | None = None) -> None:
        super().__init__(message)
        self.path, self.blob = str(path), blob


class MediaChanged(MediaError):
    """The file was written to, or removed, while it was read."""


class MediaGone(MediaError):
    """The object store does not have the file, or has it damaged."""


class MediaUnreachable(MediaError):
    """The servers did not answer, or had no room, for longer than a transfer waits; it can be tried again."""


class Store:
    """The media of a cluster. Its methods run on one event loop, at most four transfers at a time.

    patience_s: how long a call waits for servers that do not answer before it raises MediaUnreachable.
    """

    def __init__(self, js: JetStreamContext, objects: Objects, refs: KeyValue, patience_s: float = PATIENCE_S) -> None:
        self._js, self._objects, self._refs, self._patience_s = js, objects, refs, patience_s
        self._transfers = asyncio.Semaphore(_TRANSFERS)
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}  # sha -> lock, and how many hold it or wait for it

    @classmethod
    async def open(
        cls,
        js: JetStreamContext,
        replicas: int = 1,
        keep_s: float = 86400.0,
        *,
        patience_s: float = PATIENCE_S,
        max_payload: int = 1 << 20,
    ) -> Store:
        """Open the buckets, and make them when they are not there.

        js: best of a connection of its own: on a slow line whatever shares it waits behind some megabytes of chunks.
        replicas, keep_s: of `topology.streams`, which has the settings. max_payload: bytes that the server takes in one
        message.
        """
        try:
            await js.object_store(wire.MEDIA)
            refs = await js.key_value(wire.REFS)
        except js_errors.BucketNotFoundError:
            for config in topology.streams(replicas=replicas, max_waiting=1, result_s=keep_s, lease_s=1.0):
                if config.name in (accounts.MEDIA_STREAM, accounts.stream_of(wire.REFS)):
                    with contextlib.suppress(js_errors.BadRequestError):  # it exists, with other settings
                        await js.add_stream(config)
            refs = await js.key_value(wire.REFS)
        return cls(js, Objects(js, wire.MEDIA, max_payload), refs, patience_s)

    # ---- in

    async def put(self, path: Path, *, holder: str) -> Blob:
        """See that the store has the content of a file, and say that `holder` needs it.

        Raises MediaChanged when the file changes meanwhile, MediaUnreachable, MediaError when it cannot be read.
        """
        _check(holder)
        async with self._transfers:
            digest, size = await asyncio.to_thread(_digest, path)
            blob = Blob(digest, size, safe_name(path.name))
            await self.hold(holder, [digest])
            async with self._alone(digest):
                await self._store(blob, path)
        return blob

    async def hold(self, holder: str, shas: Iterable[str]) -> None:
        """Say (again) that a holder needs these contents."""
        _check(holder)
        for sha in shas:
            await self._again(lambda sha=sha: self._refs.put(f"{sha}.{holder}", b""), sha)  # type: ignore[misc]

    async def let_go(self, holder: str, shas: Iterable[str] | None = None) -> None:
        """Say that a holder needs these contents, or any, no longer."""
        _check(holder)
        if shas is None:
            shas = await self._again(lambda: self.held(holder), holder)
        for sha in shas:
            await self._again(lambda sha=sha: self._drop(f"{sha}.{holder}"), sha)  # type: ignore[misc]

    async def _drop(self, key: str) -> None:
        """Remove a key. What marks it as removed goes by itself: with a mark for every job of a month, each sweep would
        read millions."""
        try:
            await self._refs.purge(key, msg_ttl=MARK_S)
        except js_errors.BadRequestError:  # a bucket that another program made, without this
            await self._refs.purge(key)

    async def held(self, holder: str) -> list[str]:
        """The contents that a holder needs, as far as the server that answers knows."""
        stream, begin = accounts.stream_of(wire.REFS), f"$KV.{wire.REFS}."
        return [
            message.subject[len(begin) :].partition(".")[0]
            async for message in newest(self._js, stream, f"{begin}*.{holder}", headers_only=True)
            if not _is_dropped(message)
        ]

    async def _store(self, blob: Blob, path: Path) -> None:
        for _ in range(_TRIES):
            entry = await self._again(lambda: self._objects.look(blob.sha256), str(path))
            if entry is not None and await self._sound(entry, blob):
                if await self._seen(entry):
                    return
                continue
            try:
                await self._again(lambda entry=entry: self._send(blob, path, entry), str(path))  # type: ignore[misc]
                return
            except (Late, Torn):
                continue  # somebody else has sent it, or deleted it, meanwhile
        raise MediaUnreachable(f"{path} could not be sent whole in {_TRIES} tries: try again", path, blob)

    async def _send(self, blob: Blob, path: Path, before: Entry | None) -> None:
        try:
            sent = await self._objects.upload(blob.sha256, path, blob.sha256, blob.size)
        except OtherContent:
            raise MediaChanged(
                f"{path} changed while it was sent: submit it again when it is complete", path, blob
            ) from None
        except (ConnectionError, asyncio.TimeoutError):
            raise
        except OSError as error:
            raise MediaChanged(f"{path} cannot be read any more: {limits.sentence(error)}", path, blob) from None
        try:
            await self._objects.publish(sent, before.sequence if before else 0)
        except Late:
            now = await self._objects.look(blob.sha256)
            if now is None or now.nuid != sent.nuid:  # else it is ours: only the answer was lost
                with contextlib.suppress(*AWAY):
                    await self._objects.purge(sent.nuid)
                raise
        if before is not None and before.nuid != sent.nuid:
            with contextlib.suppress(*AWAY):  # what was damaged; else a sweeper does it
                await self._objects.purge(before.nuid)

    async def _sound(self, entry: Entry, blob: Blob) -> bool:
        """Whether an object is there with all its chunks."""
        if entry.deleted or (entry.digest, entry.size) != (blob.sha256, blob.size):
            return False
        return await self._again(lambda: self._objects.count(entry.nuid), blob.name) == entry.chunks

    async def _seen(self, entry: Entry) -> bool:
        """Publish an object's description again, so that every sweeper that looked before is late. False: it may have
        been deleted instead."""

        async def mark() -> bool:
            try:
                await self._objects.publish(entry, entry.sequence)
            except Late:
                now = await self._objects.look(entry.name)
                return now is not None and not now.deleted  # somebody else marked it, later than our ref
            return True

        return await self._again(mark, entry.name)

    # ---- out

    async def get(self, blob: Blob, path: Path, *, mode: int = 0o666, temp: Path | None = None) -> None:
        """Write a file, whole or not at all, over what is there.

        mode: of the file, less the umask. temp: where it is until it is complete, in the same file system; default: a
        hidden name beside it that is always the same for the same content and name. Raises MediaGone, MediaUnreachable,
        and OSError with the file's name when it cannot be written.
        """
        part = temp or path.with_name(f".{blob.sha256[:24]}.{safe_name(path.name)[-80:]}.part")
        async with self._transfers:
            try:
                await self._fetch(blob, part, mode)
                await asyncio.to_thread(_place, part, path)
            except BaseException as error:
                with contextlib.suppress(OSError):
                    fsops.unlink(str(part), missing_ok=True)
                if isinstance(error, OSError) and error.filename is None and not isinstance(error, AWAY):
                    error.filename = str(path)
                raise

    async def _fetch(self, blob: Blob, part: Path, mode: int) -> None:
        said = f"{blob.name or 'a file'} (SHA-256 {blob.sha256}, {blob.size} bytes)"
        for _ in range(_TRIES):
            entry = await self._again(lambda: self._objects.look(blob.sha256), said)
            if entry is None or entry.deleted:
                raise MediaGone(f"{said} is not in the media store (any more): submit the job again", "", blob)
            try:
                async with _Sink(part, mode) as sink:
                    async for chunks in self._objects.chunks(entry, self._patience_s):
                        await asyncio.to_thread(sink.write, chunks)
                    await asyncio.to_thread(sink.complete)
            except Torn:
                now = await self._again(lambda: self._objects.look(blob.sha256), said)
                if now is not None and now.nuid != entry.nuid:
                    continue  # it was sent anew meanwhile
            except AWAY as error:
                raise _unreachable(said, error) from None
            else:
                if (sink.digest, sink.size) == (blob.sha256, blob.size):
                    return
            with contextlib.suppress(Late, *AWAY):  # so that whoever has it can send it again
                await self._objects.remove(entry)
            break
        raise MediaGone(f"{said} is damaged in the media store: submit the job again", "", blob)

    # ---- away

    async def sweep(self, grace_s: float = 3600.0) -> int:
        """Delete the objects that nobody has referred to or sent for `grace_s`, and what uploads left that were cut
        off. How many objects. Any number of sweepers may run at once, beside any number of transfers."""
        entries = await self._again(self._objects.entries, "the sweep of media")
        found = await self._again(self._referred, "the sweep of media")
        if found is None:
            return 0
        now, referred = found
        begin = now - timedelta(seconds=grace_s)
        deleted = 0
        for entry in entries:
            if entry.at is None or entry.at > begin or entry.name in referred:
                continue
            with contextlib.suppress(Late):
                if entry.deleted:
                    await self._again(lambda entry=entry: self._objects.forget(entry), entry.name)  # type: ignore[misc]
                else:
                    await self._again(lambda entry=entry: self._objects.remove(entry), entry.name)  # type: ignore[misc]
                    deleted += 1
        for nuid in await self._again(self._objects.uploads, "the sweep of media"):
            await self._sweep_upload(nuid, begin)
        return deleted

    async def _sweep_upload(self, nuid: str, begin: datetime) -> None:
        """Remove the chunks of an upload that was cut off before `begin`."""
        sha = nuid[:64]
        if not re.fullmatch(r"[0-9a-f]{80}", nuid):
            return  # of another program
        at = await self._again(lambda: self._objects.last_chunk_at(nuid), sha)
        if at is None or at > begin:
            return
        entry = await self._again(lambda: self._objects.look(sha), sha)
        if entry is None or entry.deleted or entry.nuid != nuid:
            await self._again(lambda: self._objects.purge(nuid), sha)

    async def _referred(self) -> tuple[datetime, set[str]] | None:
        """(the time of the servers, the contents that have refs): every ref that was written before this call. None:
        the server that answered lags behind."""
        key = f"{_SWEEPER}.{secrets.token_hex(8)}"
        await self._refs.put(key, b"")
        now, names = None, set()
        stream, begin = accounts.stream_of(wire.REFS), f"$KV.{wire.REFS}."
        async for message in newest(self._js, stream, begin + ">", headers_only=True):
            if _is_dropped(message):
                continue
            name = message.subject[len(begin) :]
            if name == key:
                now = message.metadata.timestamp
            names.add(name.partition(".")[0])
        await self._drop(key)
        return None if now is None else (now, names)

    # ---- waiting

    async def _again(self, call: Callable[[], Awaitable[T]], what: str) -> T:
        """What a call returns that may be repeated, tried through short outages. Raises MediaUnreachable."""
        loop = asyncio.get_running_loop()
        deadline, pause = loop.time() + self._patience_s, 0.05
        while True:
            try:
                return await call()
            except AWAY as error:
                final = isinstance(error, js_errors.APIError) and (error.code or 0) < 500
                if final or loop.time() + pause > deadline:
                    raise _unreachable(what, error) from None
            await asyncio.sleep(pause)
            pause = min(2.0, 2 * pause)

    @contextlib.asynccontextmanager
    async def _alone(self, sha: str) -> AsyncIterator[None]:
        """One at a time for each content."""
        lock, users = self._locks.get(sha, (asyncio.Lock(), 0))
        self._locks[sha] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks.pop(sha)
            if users > 1:
                self._locks[sha] = (lock, users - 1)


class _Sink:
    """A file that is being written, and what was written."""

    def __init__(self, path: Path, mode: int) -> None:
        self._path, self._mode, self._hash, self.size = path, mode, hashlib.sha256(), 0

    async def __aenter__(self) -> _Sink:
        fsops.unlink(str(self._path), missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(self._path, flags, self._mode)
        return self

    async def __aexit__(self, *_: object) -> None:
        os.close(self._fd)

    def write(self, chunks: Iterable[bytes]) -> None:
        for chunk in chunks:
            self._hash.update(chunk)
            self.size += len(chunk)
            view = memoryview(chunk)
            while view:
                view = view[os.write(self._fd, view) :]

    def complete(self) -> None:
        fsops.sync_file(str(self._path))

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()


def _place(part: Path, path: Path) -> None:
    fsops.replace(str(part), str(path))
    fsops.sync_dir(str(path.parent))


def _digest(path: Path) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise MediaError(f"{path} is not a regular file: give the path of one", path)
            while chunk := os.read(fd, 1 << 20):
                digest.update(chunk)
                size += len(chunk)
        finally:
            os.close(fd)
    except OSError as error:
        raise MediaError(f"{path} cannot be read: {limits.sentence(error)}", path) from None
    return digest.hexdigest(), size


def _is_dropped(message: Msg) -> bool:
    """Whether the newest message of a key says that it has no value, or expired."""
    headers = message.headers or {}
    return headers.get("KV-Operation") in ("DEL", "PURGE") or "Nats-Marker-Reason" in headers


def _check(holder: str) -> None:
    if not _HOLDER.match(holder):
        raise ValueError(f"{holder!r} is not the name of a holder")


def _unreachable(what: str, error: BaseException) -> MediaUnreachable:
    if isinstance(error, js_errors.APIError):
        return MediaUnreachable(f"{what}: the servers of the cluster refuse it ({error.description or error})")
    why = str(error).removeprefix("nats: ") or type(error).__name__
    return MediaUnreachable(f"{what}: the servers of the cluster do not answer ({why}): try again")


async def open_store(link: Link, config: ClusterConfig) -> Store:
    """The media of the cluster that a connection leads to. Raises what JetStream raises."""
    return await Store.open(
        link.js,
        replicas=config.replicas,
        keep_s=config.result_hours * 3600,
        max_payload=link.client.max_payload or 1 << 20,
    )
