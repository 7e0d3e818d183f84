"""Why an attempt failed, as every process of a pool says it. Knows nothing else of the pool but its stages."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from pool.stages import NO_STAGES, Stages, moved


class FailureKind(enum.Enum):
    """Who must act: the caller (input), the engine's author (engine), the operator (the rest)."""

    INPUT = "input"
    ENGINE = "engine"
    RESOURCE = "resource"
    INFRASTRUCTURE = "infrastructure"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    EXPIRED = "expired"  # not begun in time: the caller, or the operator, as one sees it
    DEPENDENCY = "dependency"  # a job whose result it needs did not complete: see that job's failure

    @classmethod
    def of(cls, text: object) -> FailureKind:
        """The kind of this name; ENGINE for an unknown name."""
        try:
            return cls(text)
        except ValueError:
            return cls.ENGINE


@dataclass(frozen=True)
class Failure:
    """Why one attempt failed. `message` is never empty.

    Attributes:
        stage: Where: boot, load, check, run, publish, or the status the engine last reported.
        cause: Why its process ended, when it did: "died", "stalled", "overdue", "memory" …
        limit: The one that was met: {"key", "value", "measured"}.
        exit_code: Of the process, when it died.
        signal: The same.
        stderr_tail: The end of what the worker wrote.
        attempts: In a terminal record, one Failure per attempt, this one included, in order.
        not_retried: In a terminal record, why there was no further attempt.
        started: When the attempt began, µs of the spool clock as `at`, its end; 0: it never began.
        stages: Which statuses the engine reported in it.
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
    started: int = 0
    stages: Stages = NO_STAGES

    def __post_init__(self) -> None:
        if not self.message.strip():
            object.__setattr__(self, "message", self.exception or self.signal or f"{self.kind} failure")

    def describe(self) -> str:
        """One line for people: what, where, which attempt."""
        where = f" in {self.stage}" if self.stage else ""
        text = f"{self.kind}{where}, attempt {self.attempt}: {self.message}"
        return f"{text} ({self.hint})" if self.hint else text

    def moved(self, by: int) -> Failure:
        """The same at another time: by, in µs, is added to each time that is known."""
        at, started = (moved(time, by) if time else 0 for time in (self.at, self.started))
        return replace(self, at=at, started=started, stages=self.stages.moved(by))

    def to_map(self) -> dict[str, Any]:
        """As it is stored: without empty fields, text that UTF-8 can hold."""
        full = asdict(self)
        full["attempts"] = [attempt.to_map() for attempt in self.attempts]
        full["message"] = self.message
        full["stages"] = self.stages.to_list() if self.stages else []
        said = {key: storable(value) for key, value in full.items() if value not in ("", None, [], 0)}
        if self.exit_code is not None:  # 0 says a lot about a process that should not have ended
            said["exit_code"] = self.exit_code
        return {**said, "attempt": self.attempt}


def storable(value: Any) -> Any:
    """Text with what UTF-8 cannot hold (a name from a foreign file system) replaced: a reason is never lost to that."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def earlier(notes: Iterable[Failure], attempt: int) -> tuple[Failure, ...]:
    """Failures of attempts before this one."""
    return tuple(replace(note, attempts=()) for note in notes if note.attempt < attempt)
