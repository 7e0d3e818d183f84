"""Request bodies, read within limits of size and time: JSON as a whole, files as a stream.

A file is never in memory as a whole: blocks go from the socket to the disk. A client that is too slow, or sends too
much, gets an error at once.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from anyio import fail_after, to_thread
from fastapi import Request, Response
from fastapi.routing import APIRoute
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from pool.constants import MAX_DROP_BYTES
from pool.errors import ProtocolError
from pool.format import codec
from pool.gateways.kinds import HEAD_BYTES, kind_of
from pool.gateways.tempfiles import Tempfile, Tempfiles

JSON_BODY_S = 30.0  # for a whole JSON body
_BLOCK_S = 30.0  # for the next block of a file
_WRITE_BYTES = 1 << 20  # collected before a write
_MAX_FIELD_BYTES = 65536
_MAX_PARTS = 64
_OVERHEAD_BYTES = 1 << 20  # headers and fields beside the file


class JsonRequest(Request):
    """A request whose body is one small JSON document."""

    async def body(self) -> bytes:
        """The body, at most MAX_DROP_BYTES, read within JSON_BODY_S. Raises HTTPException 400, 408, 413, 415."""
        if not hasattr(self, "_body"):
            data = bytearray()
            try:
                with fail_after(JSON_BODY_S):
                    async for block in self.stream():
                        data += block
                        if len(data) > MAX_DROP_BYTES:
                            raise HTTPException(413, f"the body is longer than {MAX_DROP_BYTES} bytes: upload files")
            except TimeoutError:
                raise HTTPException(408, f"the body did not arrive within {JSON_BODY_S:g} s") from None
            except ClientDisconnect:
                raise HTTPException(400, "the client disconnected before the end of the body") from None
            if data and not _is_json(self.headers.get("content-type", "")):
                raise HTTPException(415, "the body must be JSON: send Content-Type: application/json")
            self._body = bytes(data)
        return self._body

    async def json(self) -> Any:
        """The decoded body. Raises HTTPException."""
        try:
            return codec.decode_json(await self.body())
        except ProtocolError as error:
            raise HTTPException(400, str(error)) from None


class JsonRoute(APIRoute):
    """Routes whose bodies are read by JsonRequest."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler of the route, called with a JsonRequest."""
        handle = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            return await handle(JsonRequest(request.scope, request.receive))

        return bounded


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


@dataclass
class Form:
    """A parsed multipart body: the file, and the other fields as text. A repeated field keeps all its values. digest:
    SHA-256 of the file, in hexadecimal."""

    file: Tempfile | None = None
    digest: str = ""
    fields: dict[str, list[str]] = field(default_factory=dict)

    def one(self, name: str) -> str:
        """The last value of a field, "" when it is missing."""
        return self.fields[name][-1] if self.fields.get(name) else ""


async def read_form(request: Request, store: Tempfiles, *, max_bytes: int, timeout_s: float) -> Form:
    """Read a multipart body; its part "file" becomes an uploaded file.

    max_bytes: of the file. timeout_s: for the whole body. Raises HTTPException 400, 408, 413, 415, OSError; then no
    partial file stays behind.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise HTTPException(415, 'send multipart/form-data with a part "file"')
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > max_bytes + _OVERHEAD_BYTES:
        raise HTTPException(413, f"the upload is longer than {max_bytes >> 20} MiB")
    reader = _Reader(store, max_bytes)
    try:
        parser = MultipartParser(options[b"boundary"], reader.callbacks())  # type: ignore[arg-type]
        with fail_after(timeout_s):
            async for block in _blocks(request):
                parser.write(block)
                if reader.pending >= _WRITE_BYTES:
                    await to_thread.run_sync(reader.flush)
            parser.finalize()
        if not reader.complete:
            raise HTTPException(400, "the multipart body ends before its last boundary")
        return await to_thread.run_sync(reader.finish)
    except TimeoutError:
        raise HTTPException(408, "the upload is too slow") from None
    except ClientDisconnect:
        raise HTTPException(400, "the client disconnected before the end of the upload") from None
    except FormParserError as error:
        raise HTTPException(400, f"the multipart body cannot be read: {error}") from None
    finally:
        reader.close()


async def _blocks(request: Request) -> AsyncIterator[bytes]:
    """The blocks of the body. Raises TimeoutError when the next one takes longer than _BLOCK_S."""
    stream = request.stream()
    while True:
        try:
            with fail_after(_BLOCK_S):
                block = await anext(stream)
        except StopAsyncIteration:
            return
        yield block


class _Reader:
    """Handles the parser's events; writes the file to a .part in the store."""

    def __init__(self, store: Tempfiles, max_bytes: int) -> None:
        self._store, self._max_bytes = store, max_bytes
        self._form = Form()
        self._headers: dict[bytes, bytes] = {}
        self._name = self._value = b""
        self._parts = self._size = 0
        self._field = ""
        self._text = bytearray()
        self._writing = False  # the current part is the file
        self._path, self._file_name, self._head = "", "", b""
        self._output: BinaryIO | None = None
        self._buffer = bytearray()
        self._hash = hashlib.sha256()
        self.complete = False

    @property
    def pending(self) -> int:
        return len(self._buffer)

    def callbacks(self) -> dict[str, Callable[..., None]]:
        names = ("part_begin", "part_data", "part_end", "header_field", "header_value", "header_end", "end")
        found = {f"on_{name}": getattr(self, f"_{name}") for name in names}
        return {**found, "on_headers_finished": self._begin}

    def _part_begin(self) -> None:
        self._parts += 1
        if self._parts > _MAX_PARTS:
            raise HTTPException(400, f"more than {_MAX_PARTS} parts")
        self._headers, self._text = {}, bytearray()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def _begin(self) -> None:
        disposition, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        if disposition != b"form-data" or b"name" not in options:
            raise HTTPException(400, "a part has no name")
        self._field = options[b"name"].decode("utf-8", "replace")
        self._writing = self._field == "file"
        if not self._writing:
            if b"filename" in options:
                raise HTTPException(400, f'the file must be the part "file", not {self._field!r:.60}')
            return
        if self._path:
            raise HTTPException(400, "send one file per request")
        self._file_name = options.get(b"filename", b"").decode("utf-8", "replace")
        self._path = self._store.part()

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if not self._writing:
            self._text += data[start:end]
            if len(self._text) > _MAX_FIELD_BYTES:
                raise HTTPException(413, f"the field {self._field!r:.60} is longer than {_MAX_FIELD_BYTES} bytes")
            return
        self._size += end - start
        if self._size > self._max_bytes:
            raise HTTPException(413, f"the file is longer than {self._max_bytes >> 20} MiB")
        self._buffer += data[start:end]

    def _part_end(self) -> None:
        if not self._writing:
            self._form.fields.setdefault(self._field, []).append(self._text.decode("utf-8", "replace"))
        self._writing = False

    def _end(self) -> None:
        self.complete = True

    def flush(self) -> None:
        """Write the buffered bytes to the disk. Raises OSError, and HTTPException 415 for an unknown format."""
        if not self._path:
            return
        if self._output is None:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            self._output = open(descriptor, "wb", buffering=0)  # noqa: SIM115 - closed by close()
        if len(self._head) < HEAD_BYTES:
            self._head += bytes(self._buffer[: HEAD_BYTES - len(self._head)])
            if len(self._head) == HEAD_BYTES:
                self._detect()  # refuse an unknown format before the rest arrives
        self._hash.update(self._buffer)
        view = memoryview(self._buffer)
        while view:
            view = view[self._output.write(view) :]
        view.release()
        self._buffer = bytearray()

    def _detect(self) -> str:
        kind = kind_of(self._head, self._file_name)
        if kind is None:
            name = f"{self._file_name!r:.80}" if self._file_name else "the file"
            raise HTTPException(415, f"{name} is not a known image, audio or video format")
        return kind

    def finish(self) -> Form:
        """The complete form, its file stored under an id. Raises HTTPException, OSError."""
        if self._path:
            self.flush()
            if not self._size:
                raise HTTPException(400, "the file is empty")
            kind = self._detect()
            self.close(keep=True)
            self._form.digest = self._hash.hexdigest()
            self._form.file = self._store.keep(self._path, kind, self._file_name)
            self._path = ""
        return self._form

    def close(self, *, keep: bool = False) -> None:
        """Close the file. keep: do not remove it."""
        if self._output is not None:
            self._output.close()
            self._output = None
        if self._path and not keep:
            self._store.discard(self._path)
            self._path = ""
