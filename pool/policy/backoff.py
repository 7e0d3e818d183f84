"""Delays that double, with jitter: before a slot starts again, before a failed job runs again. Pure."""

from __future__ import annotations

import random

JITTER = 0.2  # of every delay, either way: slots that died together do not come back together
NEVER_RETRIED = frozenset({"input", "cancelled"})
RETRY_FIRST_S = 1.0
RETRY_MAX_S = 60.0
RESOURCE_FIRST_S = 5.0  # memory or disk need a moment to come back


class Backoff:
    """Delays that double, with jitter."""

    def __init__(self, first_s: float, max_s: float, rng: random.Random) -> None:
        self._first_s, self._max_s, self._rng = first_s, max_s, rng
        self._level = 0

    def next(self) -> float:
        """The delay before the next try, in seconds."""
        delay = _doubled(self._first_s, self._max_s, self._level)
        self._level += 1
        return _jittered(delay, self._rng)

    def reset(self) -> None:
        """Start again with the shortest delay."""
        self._level = 0


def retry_delay(attempt: int, kind: str, rng: random.Random) -> float | None:
    """Seconds until a job runs again whose `attempt` (from 1) failed; None: another try cannot help.

    The first retry after a crash is immediate: more often than not the process was hit, not the job. Others
    wait 1 s, then 2, 4 … 60; a lack of memory or disk begins at 5 s.
    """
    if kind in NEVER_RETRIED:
        return None
    if kind == "infrastructure":
        if attempt <= 1:
            return 0.0
        attempt -= 1
    first = RESOURCE_FIRST_S if kind == "resource" else RETRY_FIRST_S
    return _jittered(_doubled(first, RETRY_MAX_S, attempt - 1), rng)


def _doubled(first: float, ceiling: float, level: int) -> float:
    return min(ceiling, first * 2.0 ** min(level, 30))


def _jittered(delay: float, rng: random.Random) -> float:
    return delay * rng.uniform(1 - JITTER, 1 + JITTER)
