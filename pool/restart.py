"""When a slot starts again, is benched or recycled. Policy only; delays are in `backoff`.

Nothing here reads a clock, a file or a process: times are floats (seconds of one monotonic clock) that the
supervisor passes in, and jitter comes from a random.Random that it passes in.

Life of a slot, `Seat`:

    WAITING  --started-->  RUNNING  --exited-->  WAITING | BENCHED
    WAITING  --sick-->     BENCHED
    RUNNING  --sick-->     ENDING   --exited-->  BENCHED       (ENDING: the supervisor must end the process)
    BENCHED  --started, after bench_s-->  RUNNING on probation
    BENCHED  --recover, by the operator-->  WAITING
    any      --retire-->   OFF      --recover-->  WAITING

What an end means, in the order in which it is asked:

    planned         we ended it on purpose (cancel, recycle, drain, a job over its deadline or memory limit):
                    started again at once, not counted
    exit 4          configuration: benched at once, unless it came in the middle of a job: then it is a crash
    exit 0, 5, 8    drained, recycled, orphaned: at once, not counted. Only believed of one that finished
                    a job: an engine that calls exit(0) while loading has crashed
    running a job   the job is charged, the slot waits its backoff, and the job counts to the sick-slot rule,
                    not to the start limit: a poison job ends as a dead letter, it must not bench all it meets
    anything else   a failed start (exit 3, a crash while booting, loading, warming or idle): backoff, and one
                    of `start_limit`

Start limit: `start_limit` failed starts within `window_s` bench the slot. Those that never became ready count
however long they took, so a model that fails to load after ten minutes cannot go on for ever.

Backoff: 1 s doubling to 60 s, ±20 %; back to its beginning after a finished job, or when the process had been
ready for `window_s`.

Sick slot: three different jobs in a row failed here (an input error says nothing about the slot and is passed
over), and another slot of the engine has finished a job since the first of them. A job that failed on another
slot too, before or after, does not count: then it is the job. `suspects` are the jobs that need not be charged.

Bench: for `bench_s`, then on probation: the next failed start benches at once, a finished job ends it.
"""

from __future__ import annotations

import enum
import random
from dataclasses import dataclass

from pool.backoff import Backoff
from pool.constants import EXIT_CONFIG, EXIT_DRAINED, EXIT_MEANING, EXIT_ORPHAN, EXIT_RECYCLE

SICK_AFTER = 3  # different jobs in a row
NOT_THE_SLOT = frozenset({"input", "cancelled"})
_REMEMBERED = 1000  # jobs that failed on other slots


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
    Seat.OFF: frozenset({Seat.WAITING}),
}


class End(enum.Enum):
    """What the end of a process means for its slot."""

    PLANNED = "planned"
    CONFIG = "config"
    CRASHED_JOB = "crashed-job"
    FAILED_START = "failed-start"


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
        self.benched: str | None = None  # why, for people
        self.starts = 0
        self._backoff = Backoff(limits.backoff_s, limits.backoff_max_s, rng)
        self._failed_starts: list[tuple[float, bool]] = []  # when, and whether it had become ready
        self._streak: dict[str, float] = {}  # jobs that failed here in a row, and when
        self._elsewhere: dict[str, None] = {}  # jobs that failed on another slot, the latest last
        self._peer_finished_at: float | None = None
        self._probation = False
        self._sick = False
        self._ready_at: float | None = None  # of this process
        self._finished = 0  # jobs of this process

    # -- questions

    def due(self, now: float) -> bool:
        """Whether a process should be started now (the one before must be dead)."""
        return self.seat in STARTABLE and now >= self.next_start_at

    @property
    def must_end(self) -> bool:
        """The slot was found sick while its process lives: end it, then call `exited`."""
        return self.seat is Seat.ENDING

    @property
    def suspects(self) -> tuple[str, ...]:
        """The jobs that failed in a row here: if the slot is sick, it was not their fault."""
        return tuple(self._streak)

    def acquit(self) -> tuple[str, ...]:
        """Of a slot that was found sick and whose process is dead: the jobs that failed here and need not be charged;
        each is told once."""
        if not (self._sick and self.seat is Seat.BENCHED):
            return ()
        acquitted = self.suspects
        self._streak.clear()
        return acquitted

    # -- what happens to it

    def started(self, now: float) -> None:
        """A process was started."""
        if self.seat is Seat.BENCHED:
            self._probation = True
            self._streak.clear()
        self._move(Seat.RUNNING)
        self.benched = None
        self._sick = False
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
        how = f"killed by {signal}" if signal else _exit_words(code)
        if end is End.PLANNED:
            self._wait_until(now)
        elif end is End.CONFIG:
            self._bench(now, f"{how}: see the slot's log, correct config.json")
        elif end is End.CRASHED_JOB:
            self._wait_until(now + self._backoff.next())
            self.failed_job(now, job_id or "", "infrastructure")
        else:
            self._failed_start(now, how)
        return end

    def finished_job(self, now: float) -> None:
        """A job completed here: whatever was wrong is over."""
        self._backoff.reset()
        self._failed_starts.clear()
        self._streak.clear()
        self._probation = False
        self._finished += 1

    def failed_job(self, now: float, job_id: str, kind: str) -> None:
        """A job failed here. `exited` says so by itself for the job that a process died of."""
        if kind in NOT_THE_SLOT or job_id in self._elsewhere:
            return
        self._streak.setdefault(job_id, now)
        self._judge(now)

    def peer_finished(self, now: float) -> None:
        """Another slot of the same engine completed a job."""
        self._peer_finished_at = now
        self._judge(now)

    def peer_failed(self, job_id: str) -> None:
        """A job failed on another slot of the same engine: it says nothing about this one."""
        self._streak.pop(job_id, None)
        self._elsewhere[job_id] = None
        if len(self._elsewhere) > _REMEMBERED:
            del self._elsewhere[next(iter(self._elsewhere))]

    def recover(self, now: float) -> None:
        """The operator wants it back: a clean slate, started at once."""
        if self.seat in (Seat.BENCHED, Seat.OFF):
            self._move(Seat.WAITING)
        elif self.seat is Seat.ENDING:
            self._move(Seat.RUNNING)
        self.benched = None
        self._probation = self._sick = False
        self._backoff.reset()
        self._failed_starts.clear()
        self._streak.clear()
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
        if code == EXIT_CONFIG and job_id is None:
            return End.CONFIG
        if code in (EXIT_DRAINED, EXIT_RECYCLE, EXIT_ORPHAN) and job_id is None and self._finished:
            return End.PLANNED
        return End.FAILED_START if job_id is None else End.CRASHED_JOB

    def _failed_start(self, now: float, how: str) -> None:
        kept = [
            (at, ready) for at, ready in self._failed_starts if not ready or now - at < self.limits.window_s
        ]
        self._failed_starts = [*kept, (now, self._ready_at is not None)]
        count = len(self._failed_starts)
        if self._probation:
            self._bench(now, f"failed again after it was benched: {how}")
        elif count >= self.limits.start_limit:
            span = now - self._failed_starts[0][0]
            self._bench(now, f"{count} starts failed within {span:.0f} s, the last one with: {how}")
        else:
            self._wait_until(now + self._backoff.next())

    def _judge(self, now: float) -> None:
        """The sick-slot rule."""
        if len(self._streak) < SICK_AFTER or self.seat not in (Seat.RUNNING, Seat.WAITING):
            return
        first = min(self._streak.values())
        if self._peer_finished_at is None or self._peer_finished_at < first:
            return
        self._sick = True
        reason = f"{len(self._streak)} different jobs in a row failed here while other slots finished theirs"
        if self.seat is Seat.RUNNING:
            self.benched, self.next_start_at = reason, now + self.limits.bench_s
            self._move(Seat.ENDING)
        else:
            self._bench(now, reason)

    def _bench(self, now: float, reason: str) -> None:
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

    def reason(self, jobs: int, *, warm_rss: int = 0, rss: int = 0, gpu_bytes: int = 0) -> str | None:
        """Why this process should be replaced between two jobs; None while it may stay."""
        if self.max_jobs is not None and jobs >= self.max_jobs:
            return f"{jobs} jobs done"
        if self._growth_bytes is not None and rss - warm_rss > self._growth_bytes:
            return f"memory grew by {_mb(rss - warm_rss)} (limit {_mb(self._growth_bytes)})"
        if self._gpu_bytes is not None and gpu_bytes > self._gpu_bytes:
            return f"{_mb(gpu_bytes)} of GPU memory (limit {_mb(self._gpu_bytes)})"
        return None


def _exit_words(code: int | None) -> str:
    meaning = f" ({EXIT_MEANING[code]})" if code in EXIT_MEANING else ""
    return "an unknown end" if code is None else f"exit code {code}{meaning}"


def _mb(count: int) -> str:
    return f"{count / 2**20:.0f} MiB"
