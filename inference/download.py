"""A file from an address: resumed where it stopped, checked against what the other side says of it.

What has arrived lies in ``.<name>.part`` beside the target, with a note of where it came from in
``.<name>.part.json``. Both stay when the download ends early, however it ends, and the next one asks for the
rest (``Range``, and ``If-Range`` where the address is the same). A broken connection is tried again, slower
each time, for as long as bytes come; 429 and 5xx wait for as long as ``Retry-After`` says.

Hubs say what a file is: Hugging Face in the headers ``X-Linked-Etag`` (SHA-256 of a large file) and
``ETag`` (the git name of a small one), ModelScope in its list of files.
"""

from __future__ import annotations

import contextlib
import email.utils
import errno
import http.client
import json
import os
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from email.message import Message
from http.client import HTTPMessage
from pathlib import Path
from typing import IO, Any

from inference.fetch import WeightError
from inference.manifest import HUGGINGFACE, MODELSCOPE, Weight
from inference.reports import Report, megabytes

CHUNK = 1 << 20  #: bytes per read at most
TIMEOUT_S = 60.0  #: without a byte from the other side
TRIES = 5  #: in a row without a byte gained, once a connection has been made
TRIES_UNCONNECTED = 2  #: … before
LONGEST_PAUSE_S = 30.0  #: between two tries
LONGEST_WAIT_S = 300.0  #: that the other side may ask for
RESERVE = 64 << 20  #: bytes left free on the disk
AGAIN = {408, 425, 429, 500, 502, 503, 504}  #: HTTP statuses that pass
MEANING = {
    401: "the address wants somebody who has logged in",
    403: "the address is forbidden from here",
    404: "there is nothing at this address",
    410: "there is nothing at this address any more",
}


class Refused(WeightError):
    """This address will not do; another one may."""


class DiskFull(WeightError):
    """No address will do."""


class _Broken(Exception):
    """The connection, not the file; worth another try."""

    def __init__(self, reason: str, wait_s: float | None = None, connected: bool = True) -> None:
        super().__init__(reason)
        self.wait_s, self.connected = wait_s, connected


@dataclass(frozen=True)
class Promise:
    """What the other side says of the whole file."""

    size: int | None = None  #: bytes
    sha256: str | None = None
    blob: str | None = None  #: git's name of the content


@dataclass
class _Note:
    """Where the bytes of a part came from."""

    address: str
    etag: str = ""  #: strong, or none
    sha256: str = ""  #: of the whole file, by the manifest or the hub

    def suits(self, address: str, sha256: str | None) -> bool:
        """Whether the part may be the beginning of that file."""
        return self.sha256 == sha256 if sha256 and self.sha256 else self.address == address

    def contradicts(self, other: _Note) -> bool:
        """Whether the two were taken of different files."""
        if self.sha256 and other.sha256:
            return self.sha256 != other.sha256
        return self.address == other.address and bool(self.etag and other.etag) and self.etag != other.etag


@dataclass
class Download:
    """One file from one address into a part."""

    weight: Weight
    address: str
    part: Path
    report: Report
    pause: Callable[[float], None] = time.sleep
    resumed: bool = field(default=False, init=False)  #: whether bytes of an earlier download are in it
    _promise: Promise = field(default_factory=Promise, init=False)

    def run(self) -> Promise:
        """Bring all of it. Raises :class:`Refused` or :class:`DiskFull`; the part stays."""
        self._promise = _listed(self.address) if self.weight.sha256 is None else Promise()
        note = _read_note(self.part)
        digest = self.weight.sha256 or self._promise.sha256
        if note is None or not note.suits(self.address, digest) or not (note.sha256 or note.etag):
            discard(self.part)  # nothing would tell whether the rest belongs to it
        self.resumed = _size(self.part) > 0
        failures = 0
        while True:
            before = _size(self.part)
            try:
                self._attempt()
                return self._promise
            except _Broken as broken:
                failures = 1 if _size(self.part) > before else failures + 1
                if failures >= (TRIES if broken.connected else TRIES_UNCONNECTED):
                    raise Refused(f"{broken} ({failures} times)") from broken
                self._wait(broken, failures)
            finally:
                self.report.end()

    def _wait(self, broken: _Broken, failures: int) -> None:
        wait_s = min(2.0 ** (failures - 1), LONGEST_PAUSE_S) if broken.wait_s is None else broken.wait_s
        if wait_s > LONGEST_WAIT_S:
            raise Refused(f"{broken}: wants {wait_s:.0f} s of patience", hint="try again later") from broken
        here = _size(self.part)
        at = f" at {megabytes(here)} of {megabytes(self.weight.size)}" if here else ""
        self.report.say(f"{self.weight.name}: {broken}{at}; again in {wait_s:.0f} s")
        self.pause(wait_s)

    def _attempt(self) -> None:
        have = _size(self.part)
        try:
            with self._open(have) as answer:
                self._take(answer, have)
        except urllib.error.HTTPError as error:
            self._failed(error, have)
        except urllib.error.URLError as error:
            self._unreachable(error)
        except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
            raise _Broken(f"the connection broke ({_words(error)})") from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise DiskFull(
                    f"{self.part.parent} has no room for {megabytes(self.weight.size)}: {error.strerror}",
                    hint="free some space and run the command again: it goes on where it stopped",
                ) from error
            raise _Broken(f"the connection broke ({_words(error)})") from error

    def _open(self, have: int) -> Any:
        headers = {"User-Agent": "filepool-weights", "Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
            note = _read_note(self.part)
            if note is not None and note.etag and note.address == self.address:
                headers["If-Range"] = note.etag
        self._said = Message()
        opener = urllib.request.build_opener(_Redirects(self._said))
        return opener.open(urllib.request.Request(self.address, headers=headers), timeout=TIMEOUT_S)

    def _take(self, answer: Any, have: int) -> None:
        """Write the body behind what is here, or in its place."""
        start, total = _extent(answer, have)
        if start not in (0, have):
            discard(self.part)
            raise _Broken(f"the other side sent bytes from {start} on instead of {have}")
        self._promise = _promised(answer.headers, self._said, self._promise, total)
        self._check_promise(answer.headers)
        note = _Note(self.address, _strong(answer.headers), self.weight.sha256 or self._promise.sha256 or "")
        known = _read_note(self.part)
        if start and known is not None and known.contradicts(note):
            discard(self.part)
            raise _Broken("the file there is another one than at the first try")
        total = self._promise.size
        self._check_disk((total or self.weight.size) - start)
        _write_note(self.part, note)
        self.report.begin(self.weight.name, total or self.weight.size, start)
        # Without a buffer: what has come is there, whatever ends this process.
        with self.part.open("ab" if start else "wb", buffering=0) as out:
            got = self._copy(answer, out, start, total)
        if total is not None and got < total:
            raise _Broken("the connection ended early")

    def _copy(self, answer: Any, out: IO[bytes], got: int, total: int | None) -> int:
        most = total if total is not None else self.weight.size if self.weight.exact else None
        while chunk := answer.read1(CHUNK):
            rest = memoryview(chunk)
            while rest:
                rest = rest[out.write(rest) :]
            got += len(chunk)
            if most is not None and got > most:
                raise Refused(f"the answer is larger than the {most} bytes expected")
            self.report.at(got)
        os.fsync(out.fileno())
        return got

    def _check_promise(self, headers: Message) -> None:
        weight, promise = self.weight, self._promise
        if weight.exact and promise.size is not None and promise.size != weight.size:
            raise Refused(f"the file there has {promise.size} bytes instead of {weight.size}: another version")
        if weight.sha256 and promise.sha256 and promise.sha256 != weight.sha256:
            raise Refused(
                f"the file there has SHA-256 {promise.sha256[:12]}… instead of {weight.sha256[:12]}…: another version"
            )
        if headers.get("Content-Encoding", "identity") != "identity":
            raise Refused(f"the answer is encoded as {headers['Content-Encoding']}, which was not asked for")
        if headers.get_content_type() == "text/html" and not weight.name.endswith((".html", ".htm")):
            raise Refused("the answer is a page, not the file")

    def _check_disk(self, missing: int) -> None:
        free = shutil.disk_usage(self.part.parent).free
        if free < missing + RESERVE:
            raise DiskFull(
                f"{self.part.parent} has {megabytes(free)} free; {self.weight.name} needs {megabytes(missing)} more",
                hint="free some space, or name another folder with FILEPOOL_WEIGHTS",
            )

    def _failed(self, error: urllib.error.HTTPError, have: int) -> None:
        with contextlib.closing(error):
            if error.code == 416 and have:
                whole = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
                if whole and int(whole[1]) == have:
                    self._promise = _promised(error.headers, self._said, self._promise, have)
                    return
                discard(self.part)
                raise _Broken("what is here is not the beginning of the file there")
            if error.code in AGAIN:
                raise _Broken(f"HTTP {error.code} {error.reason}", _retry_after(error.headers)) from error
            raise Refused(f"HTTP {error.code}: {MEANING.get(error.code, error.reason)}") from error

    def _unreachable(self, error: urllib.error.URLError) -> None:
        reason = error.reason
        if isinstance(reason, WeightError):
            raise reason from error
        passing = isinstance(reason, (ConnectionError, TimeoutError)) or "resolution" in str(reason)
        if passing and not self.address.startswith("file:"):
            raise _Broken(f"not reachable ({_words(reason)})", connected=False) from error
        raise Refused(f"not reachable ({_words(reason)})") from error


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows as hubs redirect, and keeps what they say of the file on the way."""

    def __init__(self, said: Message) -> None:
        self._said = said

    def redirect_request(  # noqa: PLR0917  # as the base class has it
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        """Raise Refused where the way leads from https to something else."""
        for name in ("X-Linked-Etag", "X-Linked-Size", "X-Repo-Commit"):
            if name in headers and name not in self._said:
                self._said[name] = headers[name]
        old, new = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(newurl)
        if new.scheme not in ("http", "https") or (old.scheme == "https" and new.scheme != "https"):
            raise urllib.error.URLError(Refused(f"{old.netloc} leads to {new.scheme}://{new.netloc}, not to https"))
        # 308 means the same as 307 for a GET; Python 3.10 does not know it.
        return super().redirect_request(req, fp, 307 if code == 308 else code, msg, headers, newurl)

    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302


def address_at(url: str) -> str:
    """The address, at the mirror of its hub that ``HF_ENDPOINT`` or ``MODELSCOPE_ENDPOINT`` names."""
    for hub, variable in ((HUGGINGFACE, "HF_ENDPOINT"), (MODELSCOPE, "MODELSCOPE_ENDPOINT")):
        endpoint = os.environ.get(variable, "").strip().rstrip("/")
        if endpoint and url.startswith(hub + "/"):
            return endpoint + url.removeprefix(hub)
    return url


def discard(part: Path) -> None:
    """Forget a part and its note."""
    for path in (part, _note_of(part)):
        path.unlink(missing_ok=True)


def finish(part: Path, target: Path) -> None:
    """The part becomes the file."""
    os.replace(part, target)
    discard(part)


def _extent(answer: Any, have: int) -> tuple[int, int | None]:
    """Where the body begins, and how long the whole file is."""
    headers = answer.headers
    if answer.status == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", "").strip())
        if found is None:
            raise Refused(f"HTTP 206 with Content-Range {headers.get('Content-Range')!r}")
        return int(found[1]), None if found[2] == "*" else int(found[2])
    length = headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _promised(headers: Message, said: Message, listed: Promise, total: int | None) -> Promise:
    """What the answer, the redirects before it and the hub's list say together."""
    linked = _bare(str(said.get("X-Linked-Etag") or headers.get("X-Linked-Etag", "")))
    size = str(said.get("X-Linked-Size") or headers.get("X-Linked-Size", ""))
    is_hub = "X-Repo-Commit" in said or "X-Repo-Commit" in headers
    name = linked or (_bare(str(headers.get("ETag", ""))) if is_hub else "")
    return Promise(
        int(size) if size.isdigit() else total if total is not None else listed.size,
        name if re.fullmatch("[0-9a-f]{64}", name) else listed.sha256,
        name if re.fullmatch("[0-9a-f]{40}", name) else None,
    )


def _listed(address: str) -> Promise:
    """What ModelScope's list of files says of the file at one of its addresses."""
    base, _, query = address.partition("/repo?")
    if not base.startswith(address_at(f"{MODELSCOPE}/api/v1/models/")):
        return Promise()
    asked = dict(urllib.parse.parse_qsl(query))
    path = asked.get("FilePath", "")
    where = {"Revision": asked.get("Revision", "master"), "Recursive": "False"}
    if "/" in path:
        where["Root"] = path.rpartition("/")[0]
    try:
        with urllib.request.urlopen(f"{base}/repo/files?{urllib.parse.urlencode(where)}", timeout=TIMEOUT_S) as answer:
            files = json.load(answer)["Data"]["Files"]
        entry = next(each for each in files if each["Path"] == path)
        return Promise(int(entry["Size"]), str(entry["Sha256"]) or None)
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError, StopIteration):
        return Promise()


def _bare(etag: str) -> str:
    return etag.strip().removeprefix("W/").strip('"')


def _strong(headers: Message) -> str:
    etag = str(headers.get("ETag", ""))
    return "" if etag.startswith("W/") else etag


def _retry_after(headers: Message) -> float | None:
    said = str(headers.get("Retry-After", ""))
    if said.isdigit():
        return float(said)
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(said).timestamp() - time.time())
    return None


def _words(error: object) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _note_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_note(part: Path) -> _Note | None:
    try:
        return _Note(**json.loads(_note_of(part).read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _write_note(part: Path, note: _Note) -> None:
    _note_of(part).write_text(json.dumps(vars(note)), "utf-8")
