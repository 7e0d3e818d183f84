"""When a slot starts again, is benched or recycled. Policy only; delays are in `backoff`.

Nothing here reads a clock, a file or a process: times are floats (seconds of one monotonic clock) that the
supervisor passes in, and jitter comes from a random.Random that it passes in.

Life of a slot, `Seat`:

    WAITING  --started-->  RUNNING  --exited-->  WAITING | BENCHED
    WAITING  --bench-->    BENCHED
    RUNNING  --bench-->    ENDING   --exited-->  BENCHED       (ENDING: the supervisor must end the process)
    BENCHED  --started, after bench_s-->  RUNNING on probation
    BENCHED  --recover, by the operator-->  WAITING
    any      --retire-->   OFF      --recover-->  WAITING, or RUNNING when its process still lives

What an end means, in the order in which it is asked:

    planned         we ended it on purpose (cancel, recycle, drain, a job over its deadline or memory limit):
                    started again at once, not counted
    exit 4          configuration: benched at once, unless it came in the middle of a job: then it is a crash
    exit 0, 5, 8    drained, recycled, orphaned: at once, not counted. Only believed of one that finished
                    a job: an engine that calls exit(0) while loading has crashed
    running a job   at once, not counted: a job that ends its worker is no fault of the slot; only failed starts wait
    anything else   a failed start (exit 3, a crash while booting, loading, warming or idle): backoff, and one
                    of `start_limit`

Start limit: `start_limit` failed starts within `window_s` bench the slot. Those that never became ready count
however long they took, so a model that fails to load after ten minutes cannot go on for ever.

Backoff: 1 s doubling to 60 s, ±20 %; back to its beginning after a finished job, or when the process had been
ready for `window_s`.

Sick slot: decided by `blame`, which knows what is held against a slot; here it is only benched.

Bench: for `bench_s`, then on probation: the next failed start benches at once, a finished job ends it.
"""

from __future__ import annotations

import enum
import random
from dataclasses import dataclass

from pool.constants import EXIT_CONFIG, EXIT_DRAINED, EXIT_MEANING, EXIT_MISSING, EXIT_ORPHAN, EXIT_RECYCLE
from pool.policy.backoff import Backoff
from pool.supervise.judge import Limit


class Seat(enum.Enum):
    """Where a slot is in its life."""

    WAITING = "waiting"
    RUNNING = "running"
    ENDING = "ending"
    BENCHED = "benched"
    OFF = "off"


STARTABLE = frozenset({Seat.WAITING, Seat.BENCHED})
OCCUPIED = frozenset({Seat.RUNNING, Seat.ENDING})

_NEXT = {
    Seat.WAITING: frozenset({Seat.RUNNING, Seat.BENCHED, Seat.OFF}),
    Seat.RUNNING: frozenset({Seat.WAITING, Seat.ENDING, Seat.BENCHED, Seat.OFF}),
    Seat.ENDING: frozenset({Seat.BENCHED, Seat.RUNNING, Seat.OFF}),
    Seat.BENCHED: frozenset({Seat.RUNNING, Seat.WAITING, Seat.OFF}),
    Seat.OFF: frozenset({Seat.WAITING, Seat.RUNNING}),
}


class BenchReason(enum.Enum):
    """Why a slot is benched."""

    CONFIG = "config"  # the engine said that the configuration is wrong
    MISSING = "missing"  # a library, package or program is not installed
    START_LIMIT = "start_limit"  # too many failed starts
    PROBATION = "probation"  # it failed again after a bench
    SICK = "sick"  # jobs that failed here complete in other slots


@dataclass(frozen=True)
class Bench:
    """Why, in facts. count: failed starts, or jobs that accuse the slot. span_s: within which the starts failed.
    exit_code, signal: of the last process."""

    reason: BenchReason
    count: int = 0
    span_s: float = 0.0
    exit_code: int | None = None
    signal: str = ""

    def __str__(self) -> str:
        how = f"killed by {self.signal}" if self.signal else _exit_words(self.exit_code)
        if self.reason is BenchReason.CONFIG:
            return f"{how}: see the slot's log, correct config.json"
        if self.reason is BenchReason.MISSING:
            return f"{how}: see the slot's log, install it"
        if self.reason is BenchReason.START_LIMIT:
            return f"{self.count} starts failed within {self.span_s:.0f} s, the last one with: {how}"
        if self.reason is BenchReason.PROBATION:
            return f"failed again after it was benched: {how}"
        return f"{self.count} different jobs failed here in a row and completed elsewhere; a restart did not help"


class End(enum.Enum):
    """What the end of a process means for its slot."""

    PLANNED = "planned"
    CONFIG = "config"
    MISSING = "missing"
    CRASHED_JOB = "crashed-job"
    FAILED_START = "failed-start"


_UNCURABLE = {EXIT_CONFIG: End.CONFIG, EXIT_MISSING: End.MISSING}  # by another start


@dataclass(frozen=True)
class Limits:
    """The numbers of one engine, from config.json."""

    start_limit: int = 5  # failed starts …
    window_s: float = 300.0  # … within this: longer than one model load
    bench_s: float = 900.0
    backoff_s: float = 1.0
    backoff_max_s: float = 60.0


class SlotPolicy:
    """The history of one slot, as far as it decides when its next process starts."""

    def __init__(self, limits: Limits, rng: random.Random, now: float = 0.0) -> None:
        self.limits = limits
        self.seat = Seat.WAITING
        self.next_start_at = now  # of a benched slot: when its probation begins
        self.benched: Bench | None = None
        self.starts = 0
        self._rng = rng
        self._backoff = Backoff(limits.backoff_s, limits.backoff_max_s, rng)
        self._failed_starts: list[tuple[float, bool]] = []  # when, and whether it had become ready
        self._probation = False
        self._ready_at: float | None = None  # of this process
        self._finished = 0  # jobs of this process

    # -- questions

    def due(self, now: float) -> bool:
        """Whether a process should be started now (the one before must be dead)."""
        return self.seat in STARTABLE and now >= self.next_start_at

    @property
    def failing(self) -> bool:
        """Whether its last starts failed, and no job has completed since."""
        return bool(self._failed_starts) or self.seat in (Seat.BENCHED, Seat.ENDING)

    # -- what happens to it

    def started(self, now: float) -> None:
        """A process was started."""
        if self.seat is Seat.BENCHED:
            self._probation = True
        self._move(Seat.RUNNING)
        self.benched = None
        self.starts += 1
        self._ready_at = None
        self._finished = 0

    def adopted(self, now: float) -> None:
        """A process that an earlier supervisor started goes on."""
        self._move(Seat.RUNNING)
        self._ready_at = None
        self._finished = 0

    def ready(self, now: float) -> None:
        """Its engine is loaded and warm. Calling it again changes nothing."""
        if self._ready_at is None:
            self._ready_at = now
            self._failed_starts = [(at, True) for at, _ in self._failed_starts]

    def exited(
        self,
        now: float,
        code: int | None,
        signal: str | None = None,
        *,
        planned: bool = False,
        job_id: str | None = None,
    ) -> End:
        """Its process is proven dead. `planned`: we ended it on purpose; `job_id`: the job it was running."""
        end = self._meaning(code, planned, job_id)
        if self.seat is Seat.ENDING:
            self._move(Seat.BENCHED)
            return end
        if self.seat is Seat.OFF:
            return end
        if self._ready_at is not None and now - self._ready_at >= self.limits.window_s:
            self._backoff.reset()
        if end in (End.PLANNED, End.CRASHED_JOB):
            self._wait_until(now)
        elif end in (End.CONFIG, End.MISSING):
            self._bench(now, Bench(BenchReason(end.value), exit_code=code, signal=signal or ""))
        else:
            self._failed_start(now, code, signal or "")
        return end

    def finished_job(self, now: float) -> None:
        """A job completed here: whatever was wrong is over."""
        self._backoff.reset()
        self._failed_starts.clear()
        self._probation = False
        self._finished += 1

    def bench(self, now: float, reason: Bench) -> None:
        """Take no jobs for a while; the seat of a process that lives is ENDING until it is dead."""
        if self.seat is Seat.RUNNING:
            self.benched, self.next_start_at = reason, now + self.limits.bench_s
            self._move(Seat.ENDING)
        elif self.seat is Seat.WAITING:
            self._bench(now, reason)

    def adjust(self, limits: Limits) -> None:
        """Other numbers from now on."""
        if limits != self.limits:
            self.limits = limits
            self._backoff = Backoff(limits.backoff_s, limits.backoff_max_s, self._rng)

    def recover(self, now: float, *, alive: bool = False) -> None:
        """The operator wants it back: a clean slate, started at once. alive: there is a process in it."""
        if self.seat in (Seat.BENCHED, Seat.OFF):
            self._move(Seat.RUNNING if alive else Seat.WAITING)
        elif self.seat is Seat.ENDING:
            self._move(Seat.RUNNING)
        self.benched = None
        self._probation = False
        self._backoff.reset()
        self._failed_starts.clear()
        if self.seat is Seat.WAITING:
            self.next_start_at = now

    def retire(self) -> None:
        """No more processes here: the pool drains or the slot was taken out of the configuration."""
        if self.seat is not Seat.OFF:
            self._move(Seat.OFF)

    # -- inside

    def _meaning(self, code: int | None, planned: bool, job_id: str | None) -> End:
        if planned:
            return End.PLANNED
        if code in _UNCURABLE and job_id is None:
            return _UNCURABLE[code]
        if code in (EXIT_DRAINED, EXIT_RECYCLE, EXIT_ORPHAN) and job_id is None and self._finished:
            return End.PLANNED
        return End.FAILED_START if job_id is None else End.CRASHED_JOB

    def _failed_start(self, now: float, code: int | None, signal: str) -> None:
        kept = [(at, ready) for at, ready in self._failed_starts if not ready or now - at < self.limits.window_s]
        self._failed_starts = [*kept, (now, self._ready_at is not None)]
        count = len(self._failed_starts)
        if self._probation:
            self._bench(now, Bench(BenchReason.PROBATION, exit_code=code, signal=signal))
        elif count >= self.limits.start_limit:
            span = now - self._failed_starts[0][0]
            self._bench(now, Bench(BenchReason.START_LIMIT, count, span, code, signal))
        else:
            self._wait_until(now + self._backoff.next())

    def _bench(self, now: float, reason: Bench) -> None:
        self._move(Seat.BENCHED)
        self.benched = reason
        self.next_start_at = now + self.limits.bench_s

    def _wait_until(self, at: float) -> None:
        self._move(Seat.WAITING)
        self.next_start_at = at

    def _move(self, seat: Seat) -> None:
        if seat not in _NEXT[self.seat]:
            raise AssertionError(f"a slot cannot go from {self.seat.value} to {seat.value}")
        self.seat = seat


class Recycle:
    """When one process has served long enough. One object per process: the jitter is drawn once.

    `max_jobs` is lowered by up to a tenth, so that slots which started together are not replaced together.
    Memory growth is counted from the level after warm-up.
    """

    def __init__(
        self,
        rng: random.Random,
        *,
        max_jobs: int | None = None,
        growth_bytes: int | None = None,
        gpu_bytes: int | None = None,
    ) -> None:
        self.max_jobs = None if max_jobs is None else max_jobs - rng.randint(0, max_jobs // 10)
        self._growth_bytes, self._gpu_bytes = growth_bytes, gpu_bytes

    def met(self, jobs: int, *, warm_rss: int = 0, rss: int = 0, gpu_bytes: int = 0) -> Limit | None:
        """The limit for which this process should be replaced between two jobs; None while it may stay."""
        if self.max_jobs is not None and jobs >= self.max_jobs:
            return Limit("recycle.max_jobs", self.max_jobs, jobs)
        if self._growth_bytes is not None and rss - warm_rss > self._growth_bytes:
            return Limit("recycle.memory_growth_mb", self._growth_bytes >> 20, (rss - warm_rss) >> 20)
        if self._gpu_bytes is not None and gpu_bytes > self._gpu_bytes:
            return Limit("recycle.gpu_memory_mb", self._gpu_bytes >> 20, gpu_bytes >> 20)
        return None


def _exit_words(code: int | None) -> str:
    meaning = f" ({EXIT_MEANING[code]})" if code in EXIT_MEANING else ""
    return "an unknown end" if code is None else f"exit code {code}{meaning}"
