"""Following one job from the outside: progress, partial results, attempts that failed, and why nothing happens.

`Follower.poll` looks once and returns what is new; it never waits, so that a Ctrl-C finds the caller and not a
generator half-way. A look at a spool with a long queue costs more, so looks get rarer by themselves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pool.client.status import PoolStatus
from pool.constants import STARTING
from pool.errors import ProtocolError, UnknownJob
from pool.job import Failure, Progress
from pool.spool import lookup
from pool.spool.attempts import partial_path, read_partials

if TYPE_CHECKING:
    from pool.client.filepool import FilePool
    from pool.client.future import JobFuture

_LOOK_S = 0.1
_WHERE_S = 1.0  # while a worker is at it, only its progress file is read in between
_POOL_S = 1.0  # while the job waits, the workers are looked at
_SHARE = 10  # a look that took t is not repeated before 10 t have passed
_STARTING = frozenset(phase.label for phase in STARTING)


@dataclass(frozen=True)
class Part:
    """A partial result, as the engine sent it."""

    record: Any


@dataclass(frozen=True)
class Setback:
    """An attempt failed; the job goes on."""

    failure: Failure


@dataclass(frozen=True)
class Notice:
    """Something that the person who waits should know, said once."""

    text: str


Event = Progress | Part | Setback | Notice


class Follower:
    """Looks after one job. `stuck`: why no worker will take it until an operator acts, "" while one may.

    status: where the state of the pool comes from; one look serves many followers.
    """

    def __init__(self, pool: FilePool, future: JobFuture, status: Callable[[], PoolStatus] | None = None) -> None:
        self.future = future
        self.stuck = ""
        self._pool, self._spool = pool, pool.spool
        self._status = status or pool.status
        self._word = Progress("queued")
        self._shown: tuple[str, float, str] | None = None
        self._attempt, self._offset = 1, 0
        self._failed = 0  # attempts whose failure was reported
        self._where_at = self._pool_at = 0.0
        self._waiting_for = ""
        self._said: set[str] = set()

    @property
    def over(self) -> bool:
        """Whether the job is done."""
        return self.future.done()

    def poll(self) -> list[Event]:
        """What is new since the last call, in the order in which people want to read it."""
        over = self.over  # asked first: what is written before the end is then read, too
        record = self.future.record if over else None
        if over:
            attempt = record.attempt if record is not None else self._attempt
            earlier = record.attempts if record is not None else ()
            events = list(self._new(failure for failure in earlier if failure.attempt < attempt))
        else:
            self._look()
            attempt = self._word.attempt
            events = list(self._setbacks(attempt))
        events += self._parts(attempt)
        if not over:
            events += self._notices()
            events += self._progress()
        return events

    def wait(self) -> None:
        """Sleep until the next look is due, less when the job ends."""
        self._pool.wait_for(self.future, _LOOK_S)

    # ---- the job

    def _look(self) -> None:
        now = time.monotonic()
        running = self._word.status != "queued"
        if now < self._where_at:
            word = lookup.progress(self._spool, self.future.id) if running else None
            if word is not None and word.attempt >= self._word.attempt:
                self._word = word
            return
        try:
            word = lookup.progress_now(self._spool, self.future.id)
        except (UnknownJob, ProtocolError, FileNotFoundError):
            return  # RACE: it moves, or another client consumed its record
        if word.attempt < self._word.attempt and word.status not in ("queued", "completed", "failed", "cancelled"):
            word = Progress("processing", 0.0, "", self._word.attempt)  # the last message of a worker that died
        self._word = word
        pause = _WHERE_S if word.status != "queued" else _LOOK_S
        self._where_at = now + max(pause, _SHARE * (time.monotonic() - now))

    def _progress(self) -> Iterator[Event]:
        word = self._word
        if word.status == "queued" and self._waiting_for:
            word = replace(word, message=f"{word.message} · {self._waiting_for}".strip(" ·"))
        shown = (word.status, word.percent, word.message)
        if shown != self._shown:
            self._shown = shown
            yield word

    def _setbacks(self, attempt: int) -> Iterator[Event]:
        begun = attempt if self._word.status == "queued" else attempt - 1
        if begun > self._failed:
            yield from self._new(self._spool.notes(self.future.id, begun))

    def _new(self, failures: Iterable[Failure]) -> Iterator[Event]:
        """Those that were not reported before."""
        for failure in failures:
            if failure.attempt > self._failed:
                self._failed = failure.attempt
                yield Setback(failure)

    def _parts(self, attempt: int) -> Iterator[Event]:
        if attempt > self._attempt:
            self._attempt, self._offset = attempt, 0
        path = partial_path(self._spool, self.future.id, self._attempt)
        try:
            records, self._offset = read_partials(path, self._offset)
        except ProtocolError:
            return
        for record in records:
            yield Part(record)

    # ---- the pool

    def _notices(self) -> Iterator[Event]:
        """Why the job waits: a model that is loading is worth a word, a slot that cannot start is worth a line."""
        now = time.monotonic()
        if self._word.status != "queued":
            self._waiting_for, self.stuck = "", ""
            return
        if now < self._pool_at:
            return
        status = self._status()
        self._pool_at = now + max(_POOL_S, _SHARE * (time.monotonic() - now))
        slots = status.of(self.future.engine)
        loading = [f"{slot.slot} is {slot.phase}" for slot in slots if slot.phase in _STARTING]
        served = any(slot.serving for slot in slots)
        self._waiting_for = "" if served else ", ".join(loading)
        benched = False
        for slot in slots:
            if slot.trouble and slot.seat in ("benched", "off", "waiting"):
                benched = True
                about = slot.error["message"] if slot.error else slot.last_death or slot.why
                yield from self._once(f"{slot.slot} {slot.seat} {about}", f"{slot.slot} {slot.trouble}")
        expected = self._pool.prospect_of(self.future.id, self.future.engine)
        self.stuck = expected.sentence() if expected.hopeless else ""
        if self.stuck and not benched:  # else it was said, slot by slot
            yield from self._once("stuck", f"{self.stuck} ({expected.hint})")

    def _once(self, key: str, text: str) -> Iterator[Event]:
        if text and key not in self._said:
            self._said.add(key)
            yield Notice(text)
