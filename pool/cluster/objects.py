"""Files in a JetStream object store, in the messages that every client of NATS knows, with bounded memory.

    $O.<bucket>.C.<nuid>          the chunks of one upload, in order
    $O.<bucket>.M.<name, base64>  what the object is: its size, digest, and the nuid of its chunks

An object is there from the moment when its description is published, which names the description that it follows: of
two clients that change one object at once, one learns that it was late. <nuid> begins with the name of the object, so
that chunks whose upload was cut off lead to it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import secrets
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import nats.errors
from nats.aio.msg import Msg
from nats.js import JetStreamContext, api
from nats.js import errors as js_errors

CHUNK = 512 * 1024  # bytes; half of what a server takes in one message unless it is told otherwise
WINDOW = 8  # chunks on their way at a time, in either direction
_SILENCE_S = 15.0  # without an answer, or a chunk, of several on their way: a slow line gives one of them sooner
_FETCH_S, _AGAIN_S = 2.0, 0.2
_PAUSED_S = 600.0  # an upload that stood still for longer begins again: a sweeper may have taken its chunks
_NEVER = "0001-01-01T00:00:00Z"  # the time of an object is that of its message
_LATE = (10071, 10164)  # the server's numbers for "wrong last sequence"

#: What may be better in a moment: a connection that is being made again, a leader that is being elected. No OSError of
#: a disk.
AWAY = (nats.errors.Error, asyncio.TimeoutError, ConnectionError)


class Late(Exception):
    """Another client has changed the object in between."""


class Torn(Exception):
    """The chunks on the servers are not those that were sent."""


class OtherContent(Exception):
    """The file is not what its digest and size say."""


@dataclass(frozen=True)
class Entry:
    """The description of an object. sequence: of its message; at: when the server stored that."""

    name: str
    nuid: str
    size: int
    chunks: int
    digest: str  # hexadecimal SHA-256
    deleted: bool = False
    sequence: int = 0
    at: datetime | None = None

    @classmethod
    def decode(cls, data: bytes, sequence: int, at: datetime | None) -> Entry | None:
        """None when it is not a description."""
        try:
            value = json.loads(data)
            digest = str(value.get("digest") or "").partition("=")[2]
            return cls(
                str(value["name"]),
                str(value["nuid"]),
                int(value.get("size") or 0),
                int(value.get("chunks") or 0),
                base64.urlsafe_b64decode(digest + "=" * (-len(digest) % 4)).hex(),
                bool(value.get("deleted")),
                sequence,
                at,
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            return None

    def encode(self, bucket: str) -> bytes:
        """As it is published."""
        digest = "" if self.deleted else "SHA-256=" + base64.urlsafe_b64encode(bytes.fromhex(self.digest)).decode()
        value: dict[str, Any] = {
            "name": self.name,
            "bucket": bucket,
            "nuid": self.nuid,
            "size": self.size,
            "mtime": _NEVER,
            "chunks": self.chunks,
            "digest": digest,
            "options": {"max_chunk_size": CHUNK},
        }
        if self.deleted:
            value["deleted"] = True
        return json.dumps(value).encode()


class Objects:
    """The objects of one bucket, which exists. Whatever the connection raises comes through, see AWAY."""

    def __init__(self, js: JetStreamContext, bucket: str, max_payload: int) -> None:
        self._js, self.bucket, self.stream = js, bucket, f"OBJ_{bucket}"
        self._chunk = min(CHUNK, max(1024, max_payload // 2))

    # ---- descriptions

    async def look(self, name: str) -> Entry | None:
        """What the leader knows of an object, deleted ones included."""
        try:
            message = await self._js.get_last_msg(self.stream, self._subject(name))
        except js_errors.NotFoundError:
            return None
        return Entry.decode(message.data or b"", message.seq or 0, message.time)

    async def publish(self, entry: Entry, after: int) -> None:
        """Store a description in place of that with the sequence `after` (0: there is none). Raises Late."""
        headers = {"Nats-Rollup": "sub", "Nats-Expected-Last-Subject-Sequence": str(after)}
        payload = entry.encode(self.bucket)
        try:
            await self._js.publish(
                self._subject(entry.name), payload, timeout=_SILENCE_S, stream=self.stream, headers=headers
            )
        except js_errors.APIError as error:
            if error.err_code in _LATE:
                raise Late from None
            raise

    async def remove(self, entry: Entry) -> None:
        """Delete an object as it was looked at, chunks included. Raises Late when it has changed since."""
        await self.publish(replace(entry, deleted=True, size=0, chunks=0, digest=""), entry.sequence)
        await self.purge(entry.nuid)

    async def forget(self, entry: Entry) -> None:
        """Drop the description of an object that is deleted, unless there is a newer one."""
        await self._js.purge_stream(self.stream, seq=entry.sequence + 1, subject=self._subject(entry.name))

    async def entries(self) -> list[Entry]:
        """All descriptions, as far as the server that answers knows."""
        found = []
        async for message in newest(self._js, self.stream, f"$O.{self.bucket}.M.>"):
            meta = message.metadata
            entry = Entry.decode(message.data, meta.sequence.stream, meta.timestamp)
            if entry is not None:
                found.append(entry)
        return found

    def _subject(self, name: str) -> str:
        return f"$O.{self.bucket}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"

    # ---- chunks

    async def count(self, nuid: str) -> int:
        """How many chunks of an upload the leader has."""
        subject = f"$O.{self.bucket}.C.{nuid}"
        state = (await self._js.stream_info(self.stream, subjects_filter=subject)).state
        return int((state.subjects or {}).get(subject, 0))

    async def uploads(self) -> list[str]:
        """The nuid of every upload that has chunks, up to 100,000."""
        begin = f"$O.{self.bucket}.C."
        state = (await self._js.stream_info(self.stream, subjects_filter=begin + ">")).state
        return [subject[len(begin) :] for subject in state.subjects or {}]

    async def last_chunk_at(self, nuid: str) -> datetime | None:
        """When the newest chunk of an upload was stored; None: there is none."""
        try:
            return (await self._js.get_last_msg(self.stream, f"$O.{self.bucket}.C.{nuid}")).time
        except js_errors.NotFoundError:
            return None

    async def purge(self, nuid: str) -> None:
        """Remove the chunks of an upload."""
        await self._js.purge_stream(self.stream, subject=f"$O.{self.bucket}.C.{nuid}")

    async def upload(self, name: str, path: Path, digest: str, size: int) -> Entry:
        """Send the content of a file. What comes back has to be published for the object to be there.

        Raises OtherContent when the file has another digest or size by now, Torn when it cannot have arrived in order.
        """
        nuid = name + secrets.token_hex(8)
        try:
            chunks = await self._send(f"$O.{self.bucket}.C.{nuid}", path, digest, size)
            if await self.count(nuid) != chunks:
                raise Torn
        except BaseException:
            with contextlib.suppress(*AWAY):  # else a sweeper does it
                await self.purge(nuid)
            raise
        return Entry(name, nuid, size, chunks, digest)

    async def _send(self, subject: str, path: Path, digest: str, size: int) -> int:
        """The number of chunks."""
        loop = asyncio.get_running_loop()
        sent: deque[asyncio.Task[api.PubAck]] = deque()
        chunks = last = 0
        heard = loop.time()
        source, gaps = _Source(path, self._chunk), self._gaps
        try:
            while True:
                data = await asyncio.to_thread(source.read)
                if data:
                    chunks += 1
                    publish = self._js.publish(subject, data, timeout=_PAUSED_S, stream=self.stream)
                    sent.append(asyncio.ensure_future(publish))
                while sent and (not data or len(sent) >= WINDOW):
                    ack = await self._acknowledged(sent[0], gaps)
                    sent.popleft()
                    if ack.seq <= last or loop.time() - heard > _PAUSED_S:
                        raise Torn
                    last, heard = ack.seq, loop.time()
                if not data:
                    break
        except Exception:
            if sent:  # or one that the server has not stored yet comes behind the purge
                await asyncio.wait(sent, timeout=_FETCH_S)
            raise
        finally:
            for task in sent:
                task.cancel()
            await asyncio.gather(*sent, return_exceptions=True)
            source.close()
        if (source.digest, source.size) != (digest, size):
            raise OtherContent
        return chunks

    @property
    def _gaps(self) -> int:
        """How often the connection was made again."""
        return int(self._js._nc.stats["reconnects"])

    async def _acknowledged(self, task: asyncio.Task[api.PubAck], gaps: int) -> api.PubAck:
        """An answer, which does not come when there was a gap in the connection. Raises ConnectionError for one, and
        TimeoutError."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        while not task.done():
            await asyncio.wait({task}, timeout=_AGAIN_S)
            if not task.done() and self._gaps != gaps:
                raise ConnectionResetError("the connection broke")
            if not task.done() and loop.time() - begun > _SILENCE_S:
                raise asyncio.TimeoutError("no answer")
        return task.result()

    async def chunks(self, entry: Entry, patience_s: float) -> AsyncIterator[list[bytes]]:
        """The content of an object, some chunks at a time. Waits through outages shorter than `patience_s`; a longer
        one raises what is in AWAY. Raises Torn when the servers do not have it all."""
        loop = asyncio.get_running_loop()
        subject, done, last, heard = f"$O.{self.bucket}.C.{entry.nuid}", 0, 0, loop.time()
        if entry.chunks and await self.count(entry.nuid) < entry.chunks:
            raise Torn
        while done < entry.chunks:
            try:
                async with _consumer(self._js, self.stream, subject, after=last) as consumer:
                    while done < entry.chunks:
                        messages = await self._pulled(consumer, min(WINDOW, entry.chunks - done))
                        done, last = done + len(messages), messages[-1].metadata.sequence.stream
                        yield [message.data for message in messages]
                        heard = loop.time()
            except AWAY:
                if loop.time() - heard > patience_s:
                    raise
                await asyncio.sleep(_AGAIN_S)
                with contextlib.suppress(*AWAY):
                    if await self.count(entry.nuid) < entry.chunks:
                        raise Torn from None

    async def _pulled(self, consumer: JetStreamContext.PullSubscription, most: int) -> list[Msg]:
        """Some messages, at least one. Raises what is in AWAY."""
        loop = asyncio.get_running_loop()
        begun, gaps = loop.time(), self._gaps
        while True:
            try:
                messages = await consumer.fetch(most, timeout=_FETCH_S)
            except (nats.errors.TimeoutError, asyncio.TimeoutError):
                messages = []
            if messages:
                return messages
            if loop.time() - begun > _SILENCE_S or self._gaps != gaps:
                raise asyncio.TimeoutError("no chunk came")


class _Source:
    """A file, read by a thread, with what was read of it so far."""

    def __init__(self, path: Path, chunk: int) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        self._chunk, self._hash, self.size = chunk, hashlib.sha256(), 0

    def read(self) -> bytes:
        data = os.read(self._fd, self._chunk)
        self._hash.update(data)
        self.size += len(data)
        return data

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def close(self) -> None:
        os.close(self._fd)


async def newest(js: JetStreamContext, stream: str, subject: str, *, headers_only: bool = False) -> AsyncIterator[Msg]:
    """The newest message of every subject that matches, as far as the server that answers knows."""
    async with _consumer(js, stream, subject, newest=True, headers_only=headers_only) as consumer:
        left = int((await consumer.consumer_info()).num_pending or 0)
        while left > 0:
            for message in await consumer.fetch(min(left, 256), timeout=_FETCH_S):
                left = message.metadata.num_pending
                yield message


@contextlib.asynccontextmanager
async def _consumer(
    js: JetStreamContext, stream: str, subject: str, *, after: int = 0, newest: bool = False, headers_only: bool = False
) -> AsyncIterator[JetStreamContext.PullSubscription]:
    """A consumer of one's own that keeps nothing. after: the sequence behind which it begins, 0: at the first one."""
    config = api.ConsumerConfig(
        name=secrets.token_hex(12),
        filter_subject=subject,
        ack_policy=api.AckPolicy.NONE,
        headers_only=headers_only,
        mem_storage=True,
        num_replicas=1,
        inactive_threshold=60.0,
    )
    if newest:
        config.deliver_policy = api.DeliverPolicy.LAST_PER_SUBJECT
    elif after:
        config.deliver_policy, config.opt_start_seq = api.DeliverPolicy.BY_START_SEQUENCE, after + 1
    await js.add_consumer(stream, config)
    consumer = await js.pull_subscribe_bind(consumer=config.name, stream=stream)
    try:
        yield consumer
    finally:
        with contextlib.suppress(*AWAY):
            await consumer.unsubscribe()
            await js.delete_consumer(stream, config.name or "")
