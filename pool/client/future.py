"""The caller's end of a job: a concurrent.futures.Future that also knows progress, partial results and the record."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import replace
from typing import Any, Protocol

from pool.client.looks import PartialLook, ProgressLook
from pool.errors import EngineUnavailable
from pool.job import Failure, Progress, Record
from pool.job.references import Referable
from pool.policy.prospects import Prospect
from pool.spool.store import Spool
from pool.system.forked import renew_in_children

_POLL_S = 0.1
_POLLED_S = 2.5  # a caller of done() counts as waiting for this long; the pool looks once a second

#: Raised when a wait is over. Before Python 3.11 the one of concurrent.futures and the built-in one are two classes:
#: callers catch either.
_TIMEOUT: type[Exception] = type("TimeoutError", tuple({FutureTimeout: 0, TimeoutError: 0}), {})


class Home(Protocol):
    """What a future needs of the pool that made it."""

    spool: Spool
    patience: float | None

    def read_for(self, future: JobFuture, timeout: float | None) -> float | None:
        """Wait on the caller's thread; the seconds left of `timeout`, None without a limit."""

    def read_elsewhere(self) -> None:
        """Have a thread of the pool wait for records."""

    def wait_over(self) -> None:
        """A blocking wait has ended."""

    def wait_for(self, future: Future[Any], seconds: float) -> None:
        """Sleep up to `seconds`, less when the job ends."""

    def on_look(self, futures: Sequence[JobFuture]) -> None:
        """Called about once a second with the futures that are not done."""

    def cancel(self, job_id: str) -> bool:
        """Ask to stop a job."""

    def progress_of(self, job_id: str) -> Progress:
        """Status, percent and message of a job now."""

    def prospect_of(self, job_id: str, engine: str) -> Prospect:
        """Whether a worker can run the job."""


class JobFuture(Future[Any], Referable):
    """Future of one job. `result()` is what the engine returned; `JobFailed` carries the Failure.

    Works with `concurrent.futures.wait`, `as_completed` and `asyncio.wrap_future`. It holds no job alive: the
    job goes on without it, and `FilePool.attach(id)` makes another one, in any process.

    Among the parameters of another job it stands for its result, `future["key"]` for a part of it; that job waits.

    A copy in a forked child resolves by itself. Callbacks run where they were added, and a record that is to be
    consumed is left to the parent; once that has done so, a copy that has not seen it raises UnknownJob.

    Attributes:
        patience: Seconds that a wait goes on while no worker of the engine can run (import error, every slot benched,
            no supervisor …); the default is that of the FilePool, None waits for ever. Then the future ends with
            EngineUnavailable, which says why, and stays so: no Future can change its mind. The job is not lost. It
            waits in the spool, and after a repair `FilePool.attach(id)` gives its result.
    """

    def __init__(
        self, home: Home, job_id: str, engine: str, *, consume: bool = False, labels: tuple[str, ...] | None = None
    ) -> None:
        super().__init__()
        self.id = job_id
        self.engine = engine
        self.home = home
        self.consumes = consume
        self.labels = labels  # that it wants; None: not known here
        self.lent = False  # its record may be removed by our parent
        self.patience = home.patience
        self._record: Record | None = None
        self._asking: set[int] = set()  # threads in result() and exception()
        self._polled_at = -math.inf
        self._has_callbacks = False
        self._waiters: _Waiters = _Waiters(self._arm)
        renew_in_children(self)

    def after_fork(self) -> None:
        """In a child: no lock is held by a thread that is not there, and no callback runs a second time."""
        self._condition = threading.Condition()
        self._waiters.renew()
        self._done_callbacks: list[Any] = []
        self._asking.clear()
        self._has_callbacks = False
        self.consumes, self.lent = False, self.lent or self.consumes
        if self._state == "CANCELLED":  # RACE: the fork came before its waiters were notified
            self.set_running_or_notify_cancel()

    def __repr__(self) -> str:
        return f"<JobFuture {self.engine} {self.id} {'done' if self.decided else 'pending'}>"

    def result(self, timeout: float | None = None) -> Any:
        """What the engine returned; `timeout` in seconds.

        Raises JobFailed, CancelledError, TimeoutError, and EngineUnavailable when no worker can run the job.
        """
        me = self._ask()
        try:
            return super().result(self.home.read_for(self, timeout))
        except FutureTimeout:
            raise self._late(timeout) from None
        finally:
            self._answered(me)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """The JobFailed or EngineUnavailable, None when the job completed. Raises CancelledError, TimeoutError."""
        me = self._ask()
        try:
            return super().exception(self.home.read_for(self, timeout))
        except FutureTimeout:
            raise self._late(timeout) from None
        finally:
            self._answered(me)

    def done(self) -> bool:
        """Whether the record is in."""
        if not self.decided:
            self._polled_at = time.monotonic()
            self._arm()  # a caller that polls does not read records itself
        return self.decided

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        """Call `fn` with this future when it is done, on whichever thread finds the record."""
        self._has_callbacks = True
        super().add_done_callback(fn)
        self._arm()

    @property
    def decided(self) -> bool:
        """As done(), but a call does not count as waiting and starts no reader."""
        return super().done()

    @property
    def blocking(self) -> bool:
        """Whether a caller is blocked until the job is done: in result(), wait() and the like, or polling done()."""
        return bool(self._asking or self._waiters) or time.monotonic() - self._polled_at < _POLLED_S

    @property
    def wanted(self) -> bool:
        """Whether a caller waits for it; a callback counts."""
        return not self.decided and (self.blocking or self._has_callbacks)

    def _late(self, timeout: float | None) -> Exception:
        return _TIMEOUT(f"job {self.id} is not done after {timeout or 0.0:g} s; it goes on")

    def _ask(self) -> int:
        me = threading.get_ident()
        self._asking.add(me)
        return me

    def _answered(self, me: int) -> None:
        self._asking.discard(me)
        self.home.wait_over()

    def _arm(self) -> None:
        self.home.read_elsewhere()

    @property
    def record(self) -> Record | None:
        """The whole terminal record once the job is done: attempt, worker, times, files, failures on the way."""
        return self._record

    def cancel(self) -> bool:
        """Ask to stop the job, running or not. True: it will end as cancelled, or was; False: it is done."""
        if self.done():
            return self.cancelled()
        return self.home.cancel(self.id)

    def running(self) -> bool:
        """Whether a worker is at it now."""
        return not self.done() and self.status().status not in ("queued", "completed", "failed", "cancelled")

    def status(self) -> Progress:
        """Status, percent and message at this moment; while it waits for a worker that does not come, why not."""
        word = self.home.progress_of(self.id)
        why = self.home.prospect_of(self.id, self.engine).sentence() if word.status == "queued" else ""
        return replace(word, message=f"{word.message} · {why}".strip(" ·")) if why else word

    def progress(self, interval: float = _POLL_S) -> Iterator[Progress]:
        """Every change of status, percent or message until the job is done, the last one included.

        When no worker can run the job, the last one says queued and why; `result()` then raises EngineUnavailable.
        """
        return self._looked(ProgressLook(self), interval)

    def partials(self, interval: float = _POLL_S) -> Iterator[Any]:
        """Partial records as the engine sends them. After a failed attempt they begin anew with the next one.

        Raises EngineUnavailable when no worker can run the job.
        """
        return self._looked(self.partial_look(), interval)

    def partial_look(self) -> PartialLook:
        """For a loop of your own."""
        return PartialLook(self.home.spool, self)

    def _looked(self, look: ProgressLook | PartialLook, interval: float) -> Iterator[Any]:
        while not look.over:
            yield from look()
            if not look.over:
                self.home.wait_for(self, interval)

    @property
    def unavailable(self) -> EngineUnavailable | None:
        """Why the waiting ended although the job goes on, None when it did not."""
        if not self.decided:
            return None
        error = None if self.cancelled() else super().exception(0)
        return error if isinstance(error, EngineUnavailable) else None


class _Waiters(list[Any]):
    """Where wait() and as_completed() enter themselves."""

    def __init__(self, arm: Callable[[], None]) -> None:
        super().__init__()
        self._arm = arm

    def append(self, waiter: Any) -> None:
        super().append(waiter)
        self._arm()

    def renew(self) -> None:
        """In a child: keep the waiter of an as_completed() that goes on; other waiters are threads of the parent."""
        for waiter in self:
            waiter.lock, waiter.event = threading.Lock(), _Arming(self._arm)
            if waiter.finished_futures:
                waiter.event.set()


class _Arming(threading.Event):
    """What a waiter that came along through a fork sleeps on."""

    def __init__(self, arm: Callable[[], None]) -> None:
        super().__init__()
        self._arm = arm

    def wait(self, timeout: float | None = None) -> bool:
        self._arm()
        return super().wait(timeout)


def with_remote_trace(error: BaseException, failure: Failure) -> BaseException:
    """The error with the worker's traceback as a note, so that a plain print shows where it happened."""
    note = failure.traceback.rstrip() or failure.stderr_tail.rstrip()
    if note and hasattr(error, "add_note"):
        error.add_note(f"in worker {failure.worker}, attempt {failure.attempt}:\n{note}")
    return error


def sleep_until(done: Future[Any], seconds: float) -> None:
    """Sleep, but not past the end of the job."""
    deadline = time.monotonic() + seconds
    while not done.done() and (left := deadline - time.monotonic()) > 0:
        time.sleep(min(left, 0.02))
