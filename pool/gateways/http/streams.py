"""The stream of a running job as a response that grows with it.

It ends when the stream is whole. When its attempt fails, or is cancelled, the connection is closed without the last
chunk, so that no client takes a torn stream for a whole one; the next request gets the stream of the next attempt.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from pathlib import PurePath

from fastapi import Request
from loguru import logger
from starlette.responses import Response, StreamingResponse
from starlette.types import Send

from pool.gateways.downloads import disposition
from pool.gateways.http.desk import Desk, in_thread
from pool.gateways.http.tempfile import shown_type
from pool.spool.growing import Growth, StreamReader

_LOOK_S = 0.1
_BLOCK = 1 << 18  # bytes of one message
_RANGE = re.compile(r"bytes=(\d{1,18})-(\d{0,18})")  # one range, from the beginning


class _BrokenOff(Exception):
    """The stream ends here, but it is not whole."""


@dataclass(frozen=True)
class _Part:
    """What a client asks for. stop: None to the end of the stream, wherever that will be."""

    start: int = 0
    stop: int | None = None
    headers: tuple[tuple[str, str], ...] = ()
    status: int = 200


def grow(request: Request, desk: Desk, job_id: str, reader: StreamReader) -> Response:
    """The response for a stream that is open; it closes the reader."""
    tag = f'"{job_id}.{reader.attempt}"'
    part = _part(request, reader, tag)
    headers = {
        "Cache-Control": "no-store",
        "Content-Disposition": disposition("inline", PurePath(reader.path).name),
        "ETag": tag,
        "X-Accel-Buffering": "no",
        "X-Attempt": str(reader.attempt),
        **dict(part.headers),
    }
    media_type = shown_type(reader.path) or "application/octet-stream"
    if request.method == "HEAD" or part.status == 416:
        reader.close()
        return Response(status_code=part.status, headers=headers, media_type=media_type)
    source = _blocks(desk, job_id, reader, part)
    return _Growing(source, status_code=part.status, headers=headers, media_type=media_type)


def _part(request: Request, reader: StreamReader, tag: str) -> _Part:
    """Ranges as RFC 9110 has them. One that ends behind what there is waits for it, as RFC 8673 says; one without an
    end gives what there is. From 0 on without an end is the whole stream."""
    found = _RANGE.fullmatch(request.headers.get("range", "").strip())
    if found is None or request.headers.get("if-range", tag) != tag:
        return _Part()
    whole = reader.growth is Growth.WHOLE  # asked before the size
    size, start = reader.size, int(found[1])
    length = str(size) if whole else "*"
    if not found[2] and start == 0:
        return _Part()
    stop = int(found[2]) + 1 if found[2] else size
    stop = min(stop, size) if whole else stop
    if start >= stop:
        return _Part(headers=(("Content-Range", f"bytes */{size}"),), status=416)
    about = [("Content-Range", f"bytes {start}-{stop - 1}/{length}"), ("Accept-Ranges", "bytes")]
    if stop <= size:
        about.append(("Content-Length", str(stop - start)))
    return _Part(start, stop, tuple(about), 206)


async def _blocks(desk: Desk, job_id: str, reader: StreamReader, part: _Part) -> AsyncIterator[bytes]:
    """The bytes as they come. Raises _BrokenOff."""
    at = part.start
    try:
        while part.stop is None or at < part.stop:
            growth, block = await in_thread(partial(_more, reader, at, part.stop))
            if block:
                at += len(block)
                yield block
            elif growth is Growth.WHOLE:
                return
            elif growth is Growth.BROKEN or desk.leaving:
                logger.info("job {}: the stream of attempt {} breaks off after {} bytes", job_id, reader.attempt, at)
                raise _BrokenOff
            else:
                await asyncio.sleep(_LOOK_S)
    finally:
        reader.close()


def _more(reader: StreamReader, at: int, stop: int | None) -> tuple[Growth, bytes]:
    growth = reader.growth
    return growth, reader.read(at, _BLOCK if stop is None else min(_BLOCK, stop - at))


class _Growing(StreamingResponse):
    """Leaves the response unfinished when its source breaks off: the server then closes the connection."""

    async def stream_response(self, send: Send) -> None:
        try:
            await super().stream_response(send)
        except _BrokenOff:
            pass
