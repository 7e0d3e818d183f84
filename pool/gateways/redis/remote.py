"""Client of a temporary-file service at BASE_URL: upload and download in blocks, within limits of size and time."""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from email.message import Message
from pathlib import Path, PurePosixPath
from typing import Any

from pool.errors import JobRefused

_BLOCK = 1 << 18
_SILENT_S = 30.0  # longest wait for the next bytes
_WHOLE_S = 600.0  # longest transfer of one file
_MAX_ANSWER = 65536
_MAX_NAME = 255
_ESCAPED = str.maketrans({'"': "%22", "\r": "%0D", "\n": "%0A"})  # as browsers do (RFC 7578, section 5.1; WHATWG HTML)


class ServiceAway(Exception):
    """The service cannot be reached or answers with a temporary error: try again."""


class LoginRefused(JobRefused):
    """The service wants a token, or another one; it has not said whether it has the file."""


class Remote:
    """A client of one service. stopped: called between two blocks; True aborts the transfer with ServiceAway."""

    def __init__(self, base_url: str, token: str | None, stopped: Callable[[], bool]) -> None:
        self._base, self._token, self._stopped = base_url, token, stopped

    def download(self, file_id: str, target: str, max_bytes: int) -> str:
        """Write a file to `target`, which must not exist; returns its name, "" when the service gives none. Raises
        JobRefused (no such file, too large), LoginRefused, ServiceAway."""
        with self._open(self._request(f"download/{urllib.parse.quote(file_id, safe='')}")) as answer:
            declared = answer.headers.get("Content-Length", "")
            if declared.isdigit() and int(declared) > max_bytes:
                raise JobRefused(f"file {file_id} has {declared} bytes, more than {max_bytes}")
            with open(target, "xb") as out:
                done = self._copy(answer, out.write, max_bytes)
            if declared.isdigit() and done != int(declared):
                raise ServiceAway(f"{self._base} closed the connection after {done} of {declared} bytes")
            return _file_name(answer.headers)

    def upload(self, path: Path, name: str, media_type: str) -> str:
        """Upload a file; returns its id. Raises JobRefused when the service refuses it, ServiceAway, OSError."""
        boundary = uuid.uuid4().hex
        shown = name.encode("utf-8", "replace").decode().translate(_ESCAPED)
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{shown}"\r\n'
            f"Content-Type: {media_type}\r\n\r\n"
        ).encode()
        tail = f"\r\n--{boundary}--\r\n".encode()
        with open(path, "rb") as source:
            request = self._request("upload", method="POST")
            request.data = self._body(head, source.read, tail)
            request.add_header("Content-Type", f"multipart/form-data; boundary={boundary}")
            request.add_header("Content-Length", str(len(head) + os.fstat(source.fileno()).st_size + len(tail)))
            with self._open(request) as answer:
                return self._file_id(answer.read(_MAX_ANSWER))

    def _request(self, route: str, method: str = "GET") -> urllib.request.Request:
        request = urllib.request.Request(f"{self._base}/api/tempfile/{route}", method=method)
        if self._token:
            request.add_unredirected_header("Authorization", f"Bearer {self._token}")
        return request

    def _open(self, request: urllib.request.Request) -> Any:
        try:
            return urllib.request.urlopen(request, timeout=_SILENT_S)
        except urllib.error.HTTPError as error:
            with error:
                if error.code >= 500 or error.code in (408, 429):
                    raise ServiceAway(f"{self._base} answered {error.code}") from None
                if error.code in (401, 403):
                    raise LoginRefused(
                        f"{self._base} answered {error.code}{_reason(error)}: set BASE_URL_TOKEN to its token"
                    ) from None
                raise JobRefused(f"{self._base} answered {error.code}{_reason(error)}") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ServiceAway(f"{self._base} cannot be reached: {getattr(error, 'reason', error)}") from None

    def _copy(self, answer: Any, write: Callable[[bytes], object], max_bytes: int) -> int:
        done, deadline = 0, time.monotonic() + _WHOLE_S
        while True:
            try:
                block = answer.read(_BLOCK)
            except (OSError, http.client.HTTPException) as error:
                raise ServiceAway(f"{self._base} broke the connection: {error}") from None
            if not block:
                return done
            done += len(block)
            if done > max_bytes:
                raise JobRefused(f"the file has more than {max_bytes} bytes")
            if self._stopped() or time.monotonic() > deadline:
                raise ServiceAway(f"download from {self._base} aborted after {done} bytes")
            write(block)

    def _body(self, head: bytes, read: Callable[[int], bytes], tail: bytes) -> Iterator[bytes]:
        deadline = time.monotonic() + _WHOLE_S
        yield head
        while block := read(_BLOCK):
            if self._stopped() or time.monotonic() > deadline:
                raise ServiceAway(f"upload to {self._base} aborted")
            yield block
        yield tail

    def _file_id(self, data: bytes) -> str:
        try:
            answer = json.loads(data)
            if answer["success"] and isinstance(answer["file_id"], str):
                return str(answer["file_id"])
        except (ValueError, KeyError, TypeError):
            pass
        raise JobRefused(f"{self._base} did not store the file: {data[:200].decode('utf-8', 'replace')}")


def _reason(error: urllib.error.HTTPError) -> str:
    """ ": " and the service's error message, "" when it gives none."""
    try:
        said = json.loads(error.read(_MAX_ANSWER))
        text = said.get("error") or said.get("message") or said.get("detail")
    except (ValueError, AttributeError, OSError, http.client.HTTPException):
        return ""
    return f": {text if isinstance(text, str) else json.dumps(text)}"[:300] if text else ""


def _file_name(headers: Message) -> str:
    """The last part of the name in Content-Disposition, in whichever of its forms; "" without one."""
    return PurePosixPath((headers.get_filename() or "").replace("\\", "/")).name[-_MAX_NAME:]
