"""What is new about a job since the last look: its progress, its partial results.

A look never waits: the loop around it does, in its own way (`JobFuture` sleeps, `AsyncJobFuture` lets its event loop
go on). `over`: nothing will be new any more.
"""

from __future__ import annotations

from typing import Any, Protocol

from pool.errors import EngineUnavailable, UnknownJob
from pool.job import Progress, Record
from pool.spool import lookup
from pool.spool.attempts import partial_path, read_partials
from pool.spool.store import Spool


class Followed(Protocol):
    """What a look needs of a future."""

    id: str

    def done(self) -> bool:
        """Whether the record is in."""

    def status(self) -> Progress:
        """Status, percent and message now."""

    @property
    def record(self) -> Record | None:
        """The terminal record, None before the end."""

    @property
    def unavailable(self) -> EngineUnavailable | None:
        """Why waiting ended although the job goes on."""


class ProgressLook:
    """Every change of status, percent or message, the last one included."""

    def __init__(self, future: Followed) -> None:
        self._future = future
        self._last: tuple[str, float, str] | None = None
        self.over = False

    def __call__(self) -> list[Progress]:
        """What changed since the last call, [] when nothing did. Raises UnknownJob."""
        over = self._future.done()
        try:
            word = _final(self._future) if over else self._future.status()
        except UnknownJob:
            if not self._future.done():
                raise
            return []  # RACE: it ended while we looked, and its record was consumed; the next look knows
        self.over = over
        shown = (word.status, word.percent, word.message)
        if shown == self._last:
            return []
        self._last = shown
        return [word]


class PartialLook:
    """Partial records as the engine sends them. After a failed attempt they begin anew with the next one.

    Raises EngineUnavailable when no worker can run the job."""

    def __init__(self, spool: Spool, future: Followed) -> None:
        self._spool, self._future = spool, future
        self._attempt, self._offset = 1, 0
        self.over = False

    def __call__(self) -> list[Any]:
        """Partial records since the last call. Raises EngineUnavailable."""
        over, record = self._future.done(), self._future.record
        newest = self._attempt if record is None else record.attempt
        if not over:
            word = lookup.progress(self._spool, self._future.id)
            newest = max(self._attempt, word.attempt if word else 0)
        if newest != self._attempt:
            self._attempt, self._offset = newest, 0
        path = partial_path(self._spool, self._future.id, self._attempt)
        records, self._offset = read_partials(path, self._offset)
        self.over = over and not records
        if self.over and (error := self._future.unavailable) is not None:
            raise error
        return records


def _final(future: Followed) -> Progress:
    record = future.record
    if record is None and (error := future.unavailable) is not None:
        return Progress("queued", 0.0, str(error))
    if record is None:  # the pool was closed while the job goes on
        return Progress("queued", 0.0, "the pool was closed; attach to the job again to follow it")
    reason = record.failure.describe() if record.failure else ""
    percent = 100.0 if record.failure is None else 0.0
    return Progress(record.state.value, percent, reason, record.attempt, record.finished)
