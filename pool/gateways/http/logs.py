"""Routes for the logs of workers and supervisor: which there are, and one of them as it grows."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi import Path as InPath
from starlette.exceptions import HTTPException
from starlette.responses import Response, StreamingResponse

from pool.gateways.http.desk import Desk, in_thread
from pool.gateways.http.errors import json_response
from pool.gateways.http.events import HEARTBEAT, HEARTBEAT_S, text_of
from pool.gateways.http.shapes import Failed, Log, Logs, responses
from pool.spool.store import Spool
from pool.system import logs

_LOOK_S = 0.3
_MOST_LINES = 5000
_MOST_BYTES = 1 << 20  # of one event, and of the lines before the first one
_LINE_BYTES = 64 << 10  # a longer one is told before its end


def make_routes(desk: Desk) -> APIRouter:
    """The routes below /logs."""
    router = APIRouter(prefix="/logs", tags=["pool"])

    @router.get("", summary="The logs that there are", response_model=Logs, responses=responses(Failed, 403))
    async def listed() -> Response:
        """Of each slot, and of the supervisor. Logs of a cluster's nodes are on the nodes."""
        found = await in_thread(lambda: Logs(logs=[Log(name=n, bytes=s) for n, s in _there(desk.pool.spool).items()]))
        return json_response(found.model_dump())

    @router.get(
        "/{name}",
        summary="Follow a log",
        response_class=StreamingResponse,
        responses={
            200: {
                "content": {"text/event-stream": {"schema": {"type": "string"}}},
                "description": "Server-sent events",
            },
            **responses(Failed, 403, 404, 422),
        },
    )
    async def follow(
        name: Annotated[str, InPath(max_length=200, description="a slot such as `transcribe-0`, or `supervisor`")],
        *,
        lines: Annotated[int, Query(ge=0, le=_MOST_LINES, description="how many of its last lines come first")] = 200,
        once: Annotated[bool, Query(alias="end", description="end after these lines")] = False,
    ) -> Response:
        """Events `lines` {lines, skipped}: whole lines as they are written, without colours and carriage returns.
        `skipped`: how many bytes before them are left out, because the log grows faster than it is sent. Clients on
        other machines get no paths of this one."""
        if name not in await in_thread(lambda: _there(desk.pool.spool)):
            raise HTTPException(404, f"there is no log {name!r:.100}: GET /logs lists them")
        source = _stream(desk, Tail(_folder(desk.pool.spool) / f"{name}.log", lines), once)
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return StreamingResponse(source, media_type="text/event-stream", headers=headers)

    return router


def _folder(spool: Spool) -> Path:
    return spool.root / "run" / "logs"


def _there(spool: Spool) -> dict[str, int]:
    return {path.stem: logs.mark(path) for path in sorted(_folder(spool).glob("*.log"))}


async def _stream(desk: Desk, tail: Tail, once: bool) -> AsyncIterator[str]:
    news = await in_thread(tail.read)  # before the first byte: what is written after it comes as an event
    sent_at = time.monotonic()
    yield "retry: 1000\n\n"
    while not desk.leaving:
        if news is not None:
            sent_at = time.monotonic()
            yield text_of("lines", {"lines": news.lines, "skipped": news.skipped})
        elif time.monotonic() - sent_at >= HEARTBEAT_S:
            sent_at = time.monotonic()
            yield HEARTBEAT
        if once:
            return
        await desk.rest(_LOOK_S)
        news = await in_thread(tail.read)


@dataclass(frozen=True)
class News:
    """What was written to a log since the last look. skipped: bytes before the lines that are left out."""

    lines: list[str]
    skipped: int


class Tail:
    """Reads a log as it grows, over its rotations. lines: how many of those that are there come first."""

    def __init__(self, path: Path, lines: int) -> None:
        self._path, self._first = path, lines
        self._file = 0  # inode
        self._place = -1  # bytes that were read; -1 before the first look

    def read(self) -> News | None:
        """The whole lines since the last call, None when there are none."""
        try:
            with open(self._path, "rb", buffering=0) as stream:
                about = os.fstat(stream.fileno())
                begins = self._place < 0
                if about.st_ino != self._file or about.st_size < self._place:  # another file, or cut to nothing
                    self._file, self._place = about.st_ino, 0
                begin = max(self._place, about.st_size - _MOST_BYTES)
                stream.seek(begin)
                data = stream.read(about.st_size - begin) or b""
        except OSError:  # RACE: it is being rotated
            return None
        skipped = begin - self._place
        if skipped:
            cut = data.find(b"\n") + 1  # the rest of a line whose beginning is left out
            data, skipped = data[cut:], skipped + cut
            begin += cut
        end = data.rfind(b"\n") + 1
        if not end and len(data) > _LINE_BYTES:
            end = len(data)
        self._place = begin + end
        found = logs.shown(data[:end]) if end else []
        if begins:
            found, skipped = (found[-self._first :] if self._first else []), 0
        return News(found, skipped) if found or skipped else None
