"""Takes the paths of this machine out of answers that go to other machines."""

from __future__ import annotations

import json
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pool.constants import MAX_DROP_BYTES
from pool.gateways.http.desk import in_thread
from pool.gateways.http.prefix import route_path
from pool.gateways.paths import PathFilter

_LARGE = 256 * 1024  # bytes of an answer that takes a thread of its own
_AS_THEY_ARE = ("/openapi.json", "/docs", "/static/", "/v1/models")


class Private:
    """ASGI middleware. always: every client may be on another machine; else only those that a proxy announces.

    JSON is filtered as a whole, server-sent events one by one, plain text in the pieces in which it comes. Transcripts
    as plain text and files pass as they are.
    """

    def __init__(self, app: ASGIApp, paths: PathFilter, *, always: bool) -> None:
        self._app, self._paths, self._always = app, paths, always

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; filter its answer when its client is on another machine."""
        if scope["type"] != "http" or self._passes(scope):
            await self._app(scope, receive, send)
            return
        path = route_path(scope)
        said = _Said(receive) if "json" in Headers(scope=scope).get("content-type", "") else None
        answer = _Answer(send, self._paths, said, plain=not path.startswith("/v1/"))
        await self._app(scope, said.receive if said else receive, answer.send)

    def _passes(self, scope: Scope) -> bool:
        """Whether the answer stays as it is."""
        path, local = route_path(scope), not self._always and "x-forwarded-for" not in Headers(scope=scope)
        return local or path == "/" or path.startswith(_AS_THEY_ARE)


class _Said:
    """Listens to a small JSON body, and returns it as one text without escapes."""

    def __init__(self, receive: Receive) -> None:
        self._receive, self._body = receive, bytearray()

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request" and len(self._body) <= MAX_DROP_BYTES:
            self._body += message.get("body", b"")
        return message

    def __str__(self) -> str:
        try:
            return json.dumps(json.loads(self._body), ensure_ascii=False)
        except (ValueError, RecursionError):
            return ""


class _Answer:
    """Filters one answer. plain: texts, too."""

    def __init__(self, send: Send, paths: PathFilter, said: _Said | None, *, plain: bool) -> None:
        self._send, self._paths, self._said, self._plain = send, paths, said, plain
        self._start: Message | None = None
        self._body = bytearray()
        self._change: Callable[[bytes], bytes] | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._begin(message)
        elif message["type"] != "http.response.body":
            await self._send(message)
        elif self._start is not None:
            await self._collect(message)
        elif self._change is not None:
            await self._send({**message, "body": self._change(message.get("body", b""))})
        else:
            await self._send(message)

    async def _begin(self, message: Message) -> None:
        kind = Headers(raw=message.get("headers", [])).get("content-type", "").partition(";")[0]
        if kind == "application/json":
            self._start = message
            return
        if kind == "text/event-stream":
            self._change = self._events
        elif kind == "text/plain" and self._plain:
            self._change = self._text
            del MutableHeaders(raw=message["headers"])["content-length"]
        await self._send(message)

    async def _collect(self, message: Message) -> None:
        self._body += message.get("body", b"")
        if message.get("more_body"):
            return
        assert self._start is not None
        body = bytes(self._body)
        data = await in_thread(lambda: self._json(body)) if len(body) > _LARGE else self._json(body)
        headers = MutableHeaders(raw=list(self._start["headers"]))
        if "content-length" in headers:
            headers["content-length"] = str(len(data))
        await self._send({**self._start, "headers": headers.raw})
        await self._send({**message, "body": data})

    def _json(self, data: bytes) -> bytes:
        if b"/" not in data:
            return data
        said = "" if self._said is None else str(self._said)
        return json.dumps(self._paths.document(json.loads(data), said)).encode()

    def _events(self, block: bytes) -> bytes:
        if b"/" not in block:
            return block
        lines = block.split(b"\n")
        for at, line in enumerate(lines):
            if line.startswith(b"data: "):
                try:
                    lines[at] = b"data: " + self._json(line.removeprefix(b"data: "))
                except ValueError:
                    lines[at] = self._text(line)
        return b"\n".join(lines)

    def _text(self, block: bytes) -> bytes:
        return self._paths.text(block.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")
