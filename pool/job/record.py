"""The end of a job as out/<id>.msgpack holds it, and how far a job is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgpack

from pool.constants import PROTOCOL
from pool.errors import ProtocolError
from pool.failure import Failure, storable
from pool.job.kept import NOTHING, Kept
from pool.job.states import JobState
from pool.stages import NO_STAGES, Stages, is_time


def decode_failure(value: Any) -> Failure:
    """A Failure from its map. Raises ProtocolError."""
    if not isinstance(value, dict):
        raise ProtocolError("not a failure")
    known = {key: value[key] for key in Failure.__dataclass_fields__ if key in value and key != "attempts"}
    try:
        attempts = tuple(decode_failure(item) for item in value.get("attempts", ()))
        if not all(is_time(known.get(key, 0)) for key in ("at", "started")):
            raise ValueError("a time in it is none")
        if "stages" in known:
            known["stages"] = Stages.from_list(known["stages"])
        return Failure(**{"kind": "infrastructure", "message": "", **known}, attempts=attempts)
    except (TypeError, AttributeError, ValueError) as error:
        raise ProtocolError(f"not a failure: {error}") from None


@dataclass(frozen=True)
class Record:
    """The one terminal record of a job: out/<id>.msgpack.

    Times are µs of the spool clock. `started` is when the attempt began in which the job ended; 0 when it ended while
    it waited: cancelled, expired or refused before its first attempt, or between two.

    Attributes:
        value: What the engine returned (a map), or one outcome per item for `items`.
        files: {"path", "size", "sha256"} of each file the job produced.
        attempts: Failures of the attempts before this one.
        cached: The value came from the result cache.
        kept: Of the job itself: tags, note, parameters.
        stages: Which statuses the engine reported in the attempt that completed it; of others the failure has them.
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
    stages: Stages = NO_STAGES

    def to_map(self) -> dict[str, Any]:
        """As it is stored."""
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
        if self.stages:
            full["stages"] = self.stages.to_list()
        return full

    @classmethod
    def from_map(cls, value: Any) -> Record:
        """From its map. Raises ProtocolError."""
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
                decode_failure(failure) if failure is not None else None,
                tuple(decode_failure(item) for item in value.get("attempts", ())),
                tuple(value.get("files", ())),
                value["cached"],
                value.get("source", ""),
                Kept.from_map(value),
                Stages.from_list(value["stages"]) if "stages" in value else NO_STAGES,
            )
        except (KeyError, ValueError, TypeError) as error:
            raise ProtocolError(f"record is incomplete: {error}") from None


@dataclass(frozen=True)
class Progress:
    """The latest word of a job. percent: 0.0–100.0; at: µs of the spool clock; attempt 0 before the first.
    stages: of this attempt so far."""

    status: str
    percent: float = 0.0
    message: str = ""
    attempt: int = 0
    at: int = 0
    stages: Stages = NO_STAGES

    def to_bytes(self) -> bytes:
        """The content of a progress file."""
        word = [self.status, self.percent, storable(self.message), self.attempt, self.at]
        return bytes(msgpack.packb([*word, self.stages.to_list()] if self.stages else word))

    @classmethod
    def from_bytes(cls, data: bytes) -> Progress:
        """From the content of a progress file. Raises ProtocolError."""
        try:
            status, percent, message, attempt, at, *more = msgpack.unpackb(data)
            stages = Stages.from_list(more[0]) if more else NO_STAGES
            return cls(str(status), float(percent), str(message), int(attempt), int(at), stages)
        except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
            raise ProtocolError(f"not a progress file: {error}") from None
