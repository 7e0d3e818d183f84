"""The first part of a job file or record: all that a list of jobs shows, without the parameters and the value."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from typing import Any

import msgpack

from pool.constants import MAX_RESULT_BYTES, PROTOCOL
from pool.errors import ProtocolError
from pool.job import JobState, decode_failure
from pool.job.terms import Terms

_REASON_CHARS = 300
_RECORD_ENDS = "value"  # what a list shows of a completed job stands before it, of another one it is null
_SMALL = 32 * 1024
_UNREADABLE = frozenset({errno.ELOOP, errno.EACCES, errno.EPERM, errno.ENXIO, errno.EIO})


@dataclass(frozen=True)
class Head:
    """What a list shows of a job. Times in µs of the spool clock, 0: not yet. stamp: which file it was read from.

    kind, reason: of a failure, the reason in one line. items: how many calls a map job has, 0 of others.
    """

    id: str
    engine: str
    state: str
    created: int
    attempt: int = 0
    started: int = 0
    finished: int = 0
    worker: str = ""
    tags: tuple[str, ...] = ()
    note: str = ""
    kind: str = ""
    reason: str = ""
    items: int = 0
    rerun_of: str = ""
    stamp: str = ""

    @property
    def key(self) -> str:
        """Sorts by age; no two jobs have the same."""
        return key_of(self.created, self.id)


def key_of(created: int, job_id: str) -> str:
    """The middle of a job file's name, up to the attempts."""
    return f"{created:016d}.{job_id}."


def stamp_of(path: str) -> str:
    """Which file has this name now. FileNotFoundError."""
    return _stamp(os.lstat(path))


def read_record(path: str, job_id: str) -> Head:
    """Head of out/<id>.msgpack; of a damaged one, a failure that says so. FileNotFoundError: there is none."""
    stamp = ""
    try:
        value, stamp = _read(path, _RECORD_ENDS)
        return _of_record(value, job_id, stamp)
    except ProtocolError as error:
        what = f"its record is damaged: {error}"
    except OSError as error:
        if error.errno not in _UNREADABLE:
            raise
        what = f"its record cannot be read: {error.strerror}"
    return Head(
        job_id,
        "",
        JobState.FAILED.value,
        0,
        kind="infrastructure",
        reason=what[:_REASON_CHARS],
        stamp=stamp or stamp_of(path),
    )


def read_job(path: str, state: JobState, attempt: int, worker: str = "") -> Head:
    """Head of a job file. FileNotFoundError: it has moved on. ProtocolError."""
    value, stamp = _read(path, "params")
    if "created" not in value:  # an earlier version wrote the parameters first
        value, stamp = _read(path, "")
    try:
        terms = Terms.from_map(value)
        return Head(
            str(value["id"]),
            str(value["engine"]),
            state.value,
            int(value["created"]),
            attempt,
            worker=worker,
            tags=terms.tags,
            note=terms.note,
            items=value.get("items") or 0,
            rerun_of=str(value.get("rerun_of", "")),
            stamp=stamp,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f"job lacks {error}") from None


def _of_record(value: dict[str, Any], job_id: str, stamp: str) -> Head:
    try:
        state = JobState(value["state"])
        if value["id"] != job_id or value["protocol"] != PROTOCOL or not state.terminal:
            raise ProtocolError("it is not the record of this job")
        failure = None if state is JobState.COMPLETED else decode_failure(value.get("failure"))
        numbers = [value[key] for key in ("created", "attempt", "started", "finished")]
        texts = [value["engine"], value["worker"], value.get("note", ""), value.get("rerun_of", "")]
        tags = tuple(value.get("tags", ()))
        if any(type(n) is not int or not 0 <= n < 10**16 for n in numbers):
            raise ProtocolError("a number in it is wrong")
        if any(type(text) is not str for text in (*texts, *tags)):
            raise ProtocolError("a text in it is wrong")
    except (KeyError, ValueError, TypeError) as error:
        raise ProtocolError(f"record is incomplete: {error}") from None
    created, attempt, started, finished = numbers
    items = value.get("items")
    return Head(
        job_id,
        texts[0],
        state.value,
        created,
        attempt,
        started,
        finished,
        texts[1],
        tags,
        texts[2],
        failure.kind if failure else "",
        first_line(failure.message) if failure else "",
        items if type(items) is int else 0,
        texts[3],
        stamp,
    )


def _read(path: str, end: str) -> tuple[dict[str, Any], str]:
    """The map in a file, up to the key `end`; of `items` only their number. And the stamp of the file."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise ProtocolError("not a regular file")
        if info.st_size > MAX_RESULT_BYTES:
            raise ProtocolError(f"{info.st_size} bytes, more than {MAX_RESULT_BYTES}")
        with os.fdopen(fd, "rb", buffering=0, closefd=False) as stream:
            return _decode(stream, info.st_size, end), _stamp(info)
    finally:
        os.close(fd)


def _decode(stream: Any, size: int, end: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    try:
        if size <= _SMALL:
            unpacker = msgpack.Unpacker(raw=False, strict_map_key=False, max_buffer_size=_SMALL)
            unpacker.feed(stream.read(_SMALL))
        else:
            unpacker = msgpack.Unpacker(stream, raw=False, strict_map_key=False, read_size=_SMALL, max_buffer_size=size)
        for _ in range(unpacker.read_map_header()):
            key = unpacker.unpack()
            if key == end and (end != _RECORD_ENDS or found.get("state") == JobState.COMPLETED.value):
                if end == "params" and "created" in found:
                    found.update(_items(unpacker))
                return found
            if key in ("params", "value"):
                unpacker.skip()
            elif key == "items" and end != _RECORD_ENDS:
                found["items"] = unpacker.read_array_header()
                for _ in range(found["items"]):
                    unpacker.skip()
            else:
                found[key] = unpacker.unpack()
    except (ValueError, TypeError, OverflowError, MemoryError, msgpack.UnpackException) as error:
        raise ProtocolError(f"not valid msgpack: {str(error) or type(error).__name__}") from None
    return found


def _items(unpacker: Any) -> dict[str, int]:
    """How many items follow the parameters, which a map job does not have."""
    try:
        if unpacker.unpack() == {} and unpacker.unpack() == "items":
            return {"items": unpacker.read_array_header()}
    except msgpack.OutOfData:
        pass
    return {}


def _stamp(info: os.stat_result) -> str:
    return f"{info.st_ino}:{info.st_mtime_ns}:{info.st_size}"


def first_line(text: str) -> str:
    """The first line that says something, cut to what a list shows."""
    return next((line.strip() for line in str(text).splitlines() if line.strip()), "")[:_REASON_CHARS]
