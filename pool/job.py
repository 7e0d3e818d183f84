"""What travels: jobs, failures, records, progress. Frozen, each with its map on disk."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import msgpack

from pool import codec
from pool.constants import MAX_JOB_BYTES, PROTOCOL
from pool.errors import JobRefused, ProtocolError
from pool.kept import NOTHING, Kept
from pool.moments import Given, SpoolTime
from pool.names import JobName, job_name
from pool.terms import Terms

_SAFE = Terms(durable=True)


class JobState(enum.Enum):
    """Where a job stands: the furthest-along directory that holds it."""

    QUEUED = "queued"  # ready/
    HELD = "held"  # held/: it waits for other jobs
    DEFERRED = "deferred"  # deferred/: it waits for its time, or for that of its next attempt
    RUNNING = "running"  # work/
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        return self in TERMINAL


TERMINAL = frozenset({JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED})
WAITING = frozenset({JobState.HELD, JobState.DEFERRED, JobState.QUEUED})


class FailureKind(enum.Enum):
    """Who must act: the caller (input), the engine's author (engine), the operator (the rest)."""

    INPUT = "input"
    ENGINE = "engine"
    RESOURCE = "resource"
    INFRASTRUCTURE = "infrastructure"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    EXPIRED = "expired"  # not begun in time: the caller, or the operator, as one sees it
    DEPENDENCY = "dependency"  # a job whose result it needs did not complete: whoever must act for that one

    @classmethod
    def of(cls, text: object) -> FailureKind:
        try:
            return cls(text)
        except ValueError:
            return cls.ENGINE


@dataclass(frozen=True)
class Job:
    """One job as its file holds it; immutable, so that its bytes never change after submit.

    params: for the engine. items: parameters of many small calls that travel as one job (`FilePool.map`).
    created: µs of the spool clock. terms: how it is to be run. reply: "json" asks for a JSON rendering of the record
    beside it. digest: of engine and parameters, set when the caller gave the id. rerun_of: the job this one repeats.
    """

    id: str
    engine: str
    params: Mapping[str, Any] = field(default_factory=dict)
    items: tuple[Mapping[str, Any], ...] | None = None
    created: int = 0
    terms: Terms = _SAFE
    source: str = ""
    reply: str = ""
    digest: str = ""
    rerun_of: str = ""

    @property
    def priority(self) -> int:
        return self.terms.priority

    @property
    def timeout_s(self) -> float | None:
        """Of one attempt; None: as the engine's configuration says."""
        return self.terms.timeout_s

    @property
    def durable(self) -> bool:
        return self.terms.durable is not False

    @property
    def not_before(self) -> int:
        """µs of the spool clock; 0: at once."""
        return _fixed(self.terms.not_before)

    @property
    def expires(self) -> int:
        """µs of the spool clock; 0: never."""
        return _fixed(self.terms.expires)

    @property
    def depends_on(self) -> tuple[str, ...]:
        """Ids of the jobs that must have completed before; their results may stand in `params`, see `pool.refs`."""
        found: tuple[str, ...] = self.terms.depends_on
        return found

    @property
    def waits_first(self) -> bool:
        """Whether it waits for its time, or for other jobs, before it waits for a worker."""
        return self.not_before > self.created or bool(self.depends_on)

    @property
    def file_name(self) -> JobName:
        """Of the file of a job that nobody has begun."""
        return job_name(self.priority, self.created, self.id)

    def to_map(self) -> dict[str, Any]:
        full: dict[str, Any] = {
            "protocol": PROTOCOL,
            "id": self.id,
            "engine": self.engine,
            "created": self.created,
            **self.terms.to_map(),
            "durable": self.durable,
        }
        for key in ("source", "reply", "digest", "rerun_of"):
            value = getattr(self, key)
            if value:
                full[key] = value
        full["params"] = self.params  # behind all that a list of jobs shows
        if self.items is not None:
            full["items"] = self.items
        return full

    @classmethod
    def from_map(cls, value: Any) -> Job:
        if not isinstance(value, dict) or value.get("protocol") != PROTOCOL:
            raise ProtocolError(f"not a job of protocol {PROTOCOL}")
        items = value.get("items")
        try:
            job = cls(
                value["id"],
                value["engine"],
                value["params"],
                tuple(items) if items is not None else None,
                value["created"],
                Terms.from_map(value),
                value.get("source", ""),
                value.get("reply", ""),
                value.get("digest", ""),
                value.get("rerun_of", ""),
            )
        except (KeyError, TypeError) as error:
            raise ProtocolError(f"job lacks {error}") from None
        job._check()
        return job

    def _check(self) -> None:
        """What a foreign hand may have got wrong; later it would end a worker, or the supervisor."""
        texts = type(self.id) is str and type(self.engine) is str and type(self.source) is str
        texts = texts and type(self.reply) is str and type(self.digest) is str and type(self.rerun_of) is str
        maps = type(self.params) is dict and all(type(item) is dict for item in self.items or ())
        if not (texts and type(self.created) is int and maps):
            raise ProtocolError("a field of the job has the wrong type")


def packed(job: Job, place: str = "") -> bytes:
    """The bytes of a job file. place: before the path of what is refused. JobRefused: it cannot be stored."""
    try:
        data = codec.encode(job.to_map())
    except ProtocolError as error:
        raise _refusal(error, place) from None
    if len(data) > MAX_JOB_BYTES:
        raise JobRefused(f"{len(data)} bytes of parameters: pass media by path, not by value", f"{place}params")
    return data


def _refusal(error: ProtocolError, place: str = "") -> JobRefused:
    reason = f"{error.reason}{f': {error.hint}' if error.hint else ''}"
    return JobRefused(reason, f"{place}{error.path or 'params'}")


def digest_of(engine: str, params: Mapping[str, Any], items: Any) -> str:
    """Identity of a job's content. JobRefused: it cannot be stored."""
    try:
        return hashlib.sha256(codec.encode([engine, _ordered(params), _ordered(items)])).hexdigest()
    except (ProtocolError, RecursionError):
        packed(Job("", engine, params, items))  # says where it is
        raise JobRefused("nested too deeply", "params") from None


def _ordered(value: Any) -> Any:
    if isinstance(value, Mapping):  # the only map there is afterwards, so that no list can pass for one
        return {"": [[key, _ordered(value[key])] for key in sorted(value, key=str)]}
    if isinstance(value, (list, tuple)):
        return [_ordered(item) for item in value]
    return value


def _fixed(moment: Given | None) -> int:
    if moment is None:
        return 0
    assert isinstance(moment, SpoolTime), "the terms of a job are fixed"
    return moment



@dataclass(frozen=True)
class Failure:
    """Why one attempt failed. `message` is never empty.

    stage: where (boot, load, check, run, publish, or the status the engine last reported).
    cause: why its process ended, when it did ("died", "stalled", "overdue", "memory" …); limit: the one that was met,
    {"key", "value", "measured"}. exit_code, signal: of the process, when it died. stderr_tail: the end of what the
    worker wrote.
    attempts: in a terminal record, one Failure per attempt, this one included, in order. not_retried: in a terminal
    record, why there was no further attempt.
    """

    kind: str
    message: str
    stage: str = ""
    attempt: int = 0
    exception: str = ""
    traceback: str = ""
    exit_code: int | None = None
    signal: str = ""
    stderr_tail: str = ""
    hint: str = ""
    worker: str = ""
    at: int = 0
    attempts: tuple[Failure, ...] = ()
    cause: str = ""
    limit: Mapping[str, Any] | None = None
    not_retried: str = ""

    def __post_init__(self) -> None:
        if not self.message.strip():
            object.__setattr__(self, "message", self.exception or self.signal or f"{self.kind} failure")

    def describe(self) -> str:
        """One line for people: what, where, which attempt."""
        where = f" in {self.stage}" if self.stage else ""
        text = f"{self.kind}{where}, attempt {self.attempt}: {self.message}"
        return f"{text} ({self.hint})" if self.hint else text

    def to_map(self) -> dict[str, Any]:
        full = asdict(self)
        full["attempts"] = [attempt.to_map() for attempt in self.attempts]
        full["message"] = self.message
        said = {key: _storable(value) for key, value in full.items() if value not in ("", None, [], 0)}
        if self.exit_code is not None:  # 0 says a lot about a process that should not have ended
            said["exit_code"] = self.exit_code
        return {**said, "attempt": self.attempt}

    @classmethod
    def from_map(cls, value: Any) -> Failure:
        if not isinstance(value, dict):
            raise ProtocolError("not a failure")
        known = {key: value[key] for key in cls.__dataclass_fields__ if key in value and key != "attempts"}
        try:
            attempts = tuple(cls.from_map(item) for item in value.get("attempts", ()))
            return cls(**{"kind": "infrastructure", "message": "", **known}, attempts=attempts)
        except (TypeError, AttributeError) as error:
            raise ProtocolError(f"not a failure: {error}") from None


def _storable(value: Any) -> Any:
    """Text with what UTF-8 cannot hold (a name from a foreign file system) replaced: a reason is never lost to that."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def earlier(notes: Iterable[Failure], attempt: int) -> tuple[Failure, ...]:
    """Failures of attempts before this one."""
    return tuple(replace(note, attempts=()) for note in notes if note.attempt < attempt)


@dataclass(frozen=True)
class Record:
    """The one terminal record of a job: out/<id>.msgpack.

    value: what the engine returned (a map), or one outcome per item for `items`.
    files: {"path", "size", "sha256"} of each file the job produced. times: µs of the spool clock.
    attempts: failures of the attempts before this one. cached: the value came from the result cache.
    kept: of the job itself: tags, note, parameters.
    """

    id: str
    engine: str
    state: JobState
    attempt: int
    created: int
    started: int
    finished: int
    worker: str = ""
    value: Any = None
    failure: Failure | None = None
    attempts: tuple[Failure, ...] = ()
    files: tuple[Mapping[str, Any], ...] = ()
    cached: bool = False
    source: str = ""
    kept: Kept = NOTHING

    def to_map(self) -> dict[str, Any]:
        full: dict[str, Any] = {
            "protocol": PROTOCOL,
            "id": self.id,
            "engine": self.engine,
            "state": self.state.value,
            "attempt": self.attempt,
            "created": self.created,
            "started": self.started,
            "finished": self.finished,
            "worker": self.worker,
            "cached": self.cached,
            **self.kept.to_map(),
            "value": self.value,
        }
        if self.failure is not None:
            full["failure"] = self.failure.to_map()
        if self.attempts:
            full["attempts"] = [attempt.to_map() for attempt in self.attempts]
        if self.files:
            full["files"] = [dict(file) for file in self.files]
        if self.source:
            full["source"] = self.source
        return full

    @classmethod
    def from_map(cls, value: Any) -> Record:
        if not isinstance(value, dict) or value.get("protocol") != PROTOCOL:
            raise ProtocolError(f"not a record of protocol {PROTOCOL}")
        failure = value.get("failure")
        if failure is None and value.get("state") != JobState.COMPLETED.value:
            raise ProtocolError("record of a job that did not complete, without a reason")
        try:
            return cls(
                value["id"],
                value["engine"],
                JobState(value["state"]),
                value["attempt"],
                value["created"],
                value["started"],
                value["finished"],
                value["worker"],
                value["value"],
                Failure.from_map(failure) if failure is not None else None,
                tuple(Failure.from_map(item) for item in value.get("attempts", ())),
                tuple(value.get("files", ())),
                value["cached"],
                value.get("source", ""),
                Kept.from_map(value),
            )
        except (KeyError, ValueError, TypeError) as error:
            raise ProtocolError(f"record is incomplete: {error}") from None


@dataclass(frozen=True)
class Progress:
    """The latest word of a job. percent: 0.0–100.0; at: µs of the spool clock; attempt 0 before the first."""

    status: str
    percent: float = 0.0
    message: str = ""
    attempt: int = 0
    at: int = 0

    def to_bytes(self) -> bytes:
        return bytes(msgpack.packb([self.status, self.percent, _storable(self.message), self.attempt, self.at]))

    @classmethod
    def from_bytes(cls, data: bytes) -> Progress:
        try:
            status, percent, message, attempt, at = msgpack.unpackb(data)
            return cls(str(status), float(percent), str(message), int(attempt), int(at))
        except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
            raise ProtocolError(f"not a progress file: {error}") from None
