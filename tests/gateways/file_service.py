"""A temporary-file service as others run one, for jobs whose files are not on this disk."""

from __future__ import annotations

import contextlib
import json
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote


class Service:
    """The two routes of the contract, ids of its own making, and troubles on request."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.names: dict[str, str] = {}
        self.trouble = 0  # so many requests are answered with 503
        self.tokens: set[str] = set()
        self.held = threading.Event()  # a download of "held" has begun
        self.release = threading.Event()
        handler = type("Handler", (_Handler,), {"service": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.base = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def put(self, content: bytes, name: str = "", *, original: str = "") -> str:
        file_id = name or uuid.uuid4().hex
        self.files[file_id], self.names[file_id] = content, original
        return file_id

    def close(self) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    service: Service

    def do_GET(self) -> None:
        file_id = self.path.removeprefix("/api/tempfile/download/")
        if self._in_trouble():
            return
        if file_id.startswith("held"):
            self.service.held.set()
            self.service.release.wait(60)
        content = self.service.files.get(file_id)
        if content is None:
            self._answer(404, {"success": False, "error": "File not found or expired"})
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        if original := self.service.names[file_id]:
            self.send_header("Content-Disposition", f"attachment; filename*=UTF-8''{quote(original)}")
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(content)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self._in_trouble():
            return
        boundary = self.headers["Content-Type"].partition("boundary=")[2].encode()
        part = body.split(b"--" + boundary)[1]
        head, _, content = part.partition(b"\r\n\r\n")
        assert b'name="file"; filename="' in head
        name = head.partition(b'filename="')[2].partition(b'"')[0].decode()
        file_id = self.service.put(content.removesuffix(b"\r\n"), original=name)
        self._answer(200, {"success": True, "file_id": file_id, "file_type": "video", "original_name": name})

    def _in_trouble(self) -> bool:
        self.service.tokens.add(self.headers.get("Authorization", ""))
        if self.service.trouble > 0:
            self.service.trouble -= 1
            self._answer(503, {"error": "busy"})
            return True
        return False

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Silence."""
