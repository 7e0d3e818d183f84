"""Requests that wait for a job, so that one that is asked again finds the job of the first time.

A request is known by its Idempotency-Key header, else by its content, per client address. One file each, in a folder
beside the uploads, so that the next gateway knows them too:

    <key>      {"job", "content", "file", "lasting", "alone"}; its mtime is when a client last waited

It goes when the answer has been given (with an Idempotency-Key: when uploads of that age go). A request that no
client waits for any longer is abandoned: nobody else knows its job.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from fastapi import Request

from pool.errors import Conflict, JobRefused
from pool.gateways.http.prefix import route_path
from pool.spool import fsops, owner

FOLDER = "asks"
_HEADER = "idempotency-key"
_MAX_KEY = 255
_MAX_BYTES = 65536


@dataclass(frozen=True)
class Ask:
    """One request. job: the id of its job; content: a hash of what was asked; file: the id of its upload, or "".
    lasting: known by an Idempotency-Key. alone: its job is cancelled when its client does not return."""

    job: str
    content: str
    file: str = ""
    lasting: bool = False
    alone: bool = False


class Asks:
    """The requests of one folder. now: the spool clock in µs. life_s: seconds until one is forgotten."""

    def __init__(self, folder: Path, now: Callable[[], int], life_s: float) -> None:
        self._folder, self._now, self._life_us = folder, now, int(life_s * 1e6)

    def open(self, key: str, ask: Ask) -> Ask:
        """The request of this key: `ask`, unless one is there. Raises Conflict when that one asks for other content,
        OSError."""
        path, part = self._folder / key, f"{self._folder}/{owner.fresh()}.part"
        fsops.write_new(part, [json.dumps(asdict(ask)).encode()], sync=False)
        try:
            fsops.rename_noreplace(part, str(path))
            return ask
        except FileExistsError:
            found = self._read(path)
            if found is None:  # RACE: answered at this moment; or damaged
                fsops.replace(part, str(path))
                return ask
        finally:
            fsops.unlink(part, missing_ok=True)
        if found.content != ask.content:
            raise key_taken(found.job)
        self.awaited(key)
        return found

    def awaited(self, key: str) -> None:
        """Note that a client waits for it."""
        with suppress(FileNotFoundError):
            os.utime(self._folder / key, ns=(self._now() * 1000, self._now() * 1000))

    def answered(self, key: str) -> None:
        """Forget a request whose answer was given, unless it is lasting. Raises OSError."""
        found = self._read(self._folder / key) if key else None
        if found is not None and not found.lasting:
            self.forget(key)

    def forget(self, key: str) -> None:
        """Forget a request; a missing one is no error. Raises OSError."""
        fsops.unlink(f"{self._folder}/{key}", missing_ok=True)

    def idle(self, seconds: float) -> Iterator[tuple[str, Ask]]:
        """The requests that no client has waited for in so many seconds; those past their life go. Raises OSError."""
        for name in os.listdir(self._folder):
            path = self._folder / name
            with suppress(FileNotFoundError):  # RACE: answered at this moment
                idle_us = self._now() - path.stat().st_mtime_ns // 1000
                if "." in name:
                    if not owner.alive(name.split(".", 1)[0]):
                        fsops.unlink(str(path), missing_ok=True)
                    continue
                found = self._read(path)
                if found is None or idle_us > self._life_us:
                    self.forget(name)
                elif idle_us > seconds * 1e6:
                    yield name, found

    def _read(self, path: Path) -> Ask | None:
        try:
            return Ask(**json.loads(fsops.read_bounded(path, _MAX_BYTES)))
        except (OSError, ValueError, TypeError):
            return None


def given_key(request: Request) -> str:
    """The Idempotency-Key of a request, "" without one. Raises JobRefused."""
    key = request.headers.get(_HEADER, "")
    if len(key) > _MAX_KEY:
        raise JobRefused(f"has more than {_MAX_KEY} characters", "Idempotency-Key")
    return key


def key_of(request: Request, content: str) -> str:
    """The name of a request: of its client, its route, and its Idempotency-Key or else its content."""
    client = request.client.host if request.client else ""
    return digest(client, route_path(request.scope), given_key(request) or f" {content}")[:48]


def id_of(request: Request) -> str | None:
    """The id for the job of a request that has an Idempotency-Key, else None. Raises JobRefused."""
    key = given_key(request)
    return f"key-{key_of(request, '')[:40]}" if key else None


def key_taken(job_id: str) -> Conflict:
    """The error for an Idempotency-Key that came with other content before."""
    return Conflict(
        f"Idempotency-Key: belongs to another request, that of job {job_id}: send another key, or the same request "
        "to get the same job"
    )


def digest(*parts: object) -> str:
    """SHA-256 of texts, numbers and maps of these, in hexadecimal."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
