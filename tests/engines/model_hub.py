"""A hub of models on this machine: Range, ETag, the redirects of Hugging Face, ModelScope's list of files, faults."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


@dataclass
class Served:
    """One file. ``linked`` is the SHA-256 that the hub tells before it redirects, "" for none."""

    content: bytes
    etag: str = ""
    linked: str | None = None
    ranges: bool = True
    conditions: bool = True  #: whether If-Range is read
    length: int | None = None  #: told instead of the true one
    kind: str = "application/octet-stream"


Fault = Callable[["Handler", Served], bool]  #: whether the request is answered


@dataclass
class Hub:
    """What is served, what goes wrong next, and what was asked."""

    url: str = ""
    files: dict[str, Served] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    go: threading.Event = field(default_factory=threading.Event)

    def bodies(self) -> list[str]:
        """The Range of each request for a body, "" for the whole."""
        return [headers.get("range", "") for path, headers in self.asked if "/repo/files" not in path]


class Handler(BaseHTTPRequestHandler):
    """Answers for one Hub."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if parts.path.endswith("/repo/files"):
            self._list(parts.path.removesuffix("/repo/files"))
            return
        key = self.path if parts.query else parts.path
        self.hub.asked.append((key, {name.lower(): value for name, value in self.headers.items()}))
        served = self.hub.files.get(key.removeprefix("/cdn"))
        if served is None:
            self.answer(404)
        elif served.linked is not None and not key.startswith("/cdn"):
            self.answer(
                302,
                Location=f"/cdn{key}",
                ETag='"something else"',
                **{
                    "X-Linked-Etag": f'"{served.linked}"',
                    "X-Linked-Size": str(len(served.content)),
                    "X-Repo-Commit": "c0",
                },
            )
        elif not (self.hub.faults and self.hub.faults.pop(0)(self, served)):
            self.send(served)

    def _list(self, base: str) -> None:
        found = []
        for key, served in self.hub.files.items():
            if key.startswith(f"{base}/repo?"):
                path = parse_qs(urlsplit(key).query)["FilePath"][0]
                digest = hashlib.sha256(served.content).hexdigest() if served.linked is None else served.linked
                found.append({"Path": path, "Size": len(served.content), "Sha256": digest})
        body = json.dumps({"Code": 200, "Data": {"Files": found}}).encode()
        self.answer(200, body)

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send(self, served: Served, stop: int | None = None) -> None:
        """The file, or the part that is asked for, up to byte ``stop``."""
        content, total = served.content, served.length or len(served.content)
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        whole = served.conditions and self.headers.get("If-Range") not in (None, served.etag)
        start = int(asked[1]) if asked and served.ranges and not whole else 0
        if start >= total:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{total}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        if served.etag:
            self.send_header("ETag", served.etag)
        self.send_header("Content-Type", served.kind)
        self.send_header("Content-Length", str(total - start))
        self.end_headers()
        self.wfile.write(content[start:stop])
        self.wfile.flush()

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


def drop(at: int) -> Fault:
    """Send up to byte ``at``, then break the connection."""

    def fault(handler: Handler, served: Served) -> bool:
        handler.send(served, at)
        handler.close_connection = True
        return True

    return fault


def hold(at: int) -> Fault:
    """Send up to byte ``at``, then nothing until the test says go, then break the connection."""

    def fault(handler: Handler, served: Served) -> bool:
        handler.send(served, at)
        handler.hub.go.wait(60)
        handler.close_connection = True
        return True

    return fault


def fails(status: int, **headers: str) -> Fault:
    """Answer with an HTTP status."""

    def fault(handler: Handler, served: Served) -> bool:
        handler.answer(status, **headers)
        return True

    return fault


@contextmanager
def running() -> Iterator[Hub]:
    """A hub that is served at ``hub.url`` while the block runs."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OneHubsHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.go.set()
        server.shutdown()
        server.server_close()
        thread.join()
