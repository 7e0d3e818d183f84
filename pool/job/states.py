"""Where a job stands."""

from __future__ import annotations

import enum


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
        """Whether the job is decided."""
        return self in TERMINAL


TERMINAL = frozenset({JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED})
WAITING = frozenset({JobState.HELD, JobState.DEFERRED, JobState.QUEUED})
