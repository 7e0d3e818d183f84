"""FilePool: submit jobs, wait for them, follow them, cancel them, from any process that can see the spool."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from pool.client import branch, results
from pool.client.admission import Admission
from pool.client.asking import answered
from pool.client.attendant import Attendant
from pool.client.calls import chunked, params_of, seconds_to_wait
from pool.client.clear import clear
from pool.client.future import JobFuture, sleep_until
from pool.client.mapping import Chunk, Mapped
from pool.client.patience import Patience
from pool.client.selection import chosen_jobs
from pool.config.settings import Config
from pool.constants import PATIENCE_S
from pool.errors import PoolClosed, SpoolError
from pool.format.names import check_id
from pool.job import Job, JobState, Progress
from pool.job.moments import Given
from pool.job.references import Referable
from pool.job.terms import Terms, truth, whole
from pool.policy.prospects import Prospect
from pool.spool import fsops, layout, lookup
from pool.spool.attempts import cancel_path
from pool.spool.store import Spool

if TYPE_CHECKING:
    from pool.client.browse import JobPage
    from pool.client.rerun import Origin
    from pool.client.session import Params, Session
    from pool.client.status import PoolStatus

T = TypeVar("T")
_SIZE = whole(1, 1_000_000)  # of a chunk


class FilePool:
    """A pool of workers behind a spool.

    Args:
        config: Path of config.json, a Config, the address of a cluster ("nats://host:4222", see docs/CLUSTER.md), or
            None for ./config.json.
        start: When no supervisor serves the spool, start one as a process of its own; it ends after the last FilePool
            that asked for it is gone. False only submits and reads; the jobs wait for a supervisor.
        patience: Seconds that a wait goes on while no worker can run until an operator must act; then the future ends
            with EngineUnavailable. 0 at once, None for ever (see JobFuture).

    Safe to use from several threads, and in a forked child, which is a client of its own from its first call on.
    As a context manager it waits for its jobs at the end of the block.
    Raises ConfigError, SpoolError, SupervisorFailed.
    """

    @clear
    def __init__(
        self,
        config: Config | Path | str | None = None,
        *,
        start: bool = True,
        patience: float | None = PATIENCE_S,
    ) -> None:
        self.patience = seconds_to_wait(patience, "patience")
        self._config = branch.configured(config)
        root = self._config.spool
        layout.prepare(root)
        self.spool = Spool(root, durable=self._config.durable)
        self._attendant = Attendant(self._config, self.spool) if start else None
        self._admission = Admission(self._config, self.spool, self._attendant)
        self._closed = False
        if self._attendant is not None:
            try:
                self._attendant.attend()
            except BaseException:
                self._attendant.leave()
                raise
        self._results = results.join(self.spool)
        self._patience = Patience(self.spool, lambda: self.starter, self._results.give_up)

    @property
    def config(self) -> Config:
        """The configuration as this process read it. In a branch of a cluster its engines are those that the nodes
        offer, with all their slots as workers."""
        return self._admission.offers.config()

    # ---- submit

    @clear
    def submit(
        self,
        engine: str,
        /,
        *,
        priority: int = 0,
        id: str | None = None,
        timeout_s: float | None = None,
        retry_times: int | None = None,
        retry_on: Sequence[str] | None = None,
        durable: bool | None = None,
        not_before: Given | None = None,
        expires: Given | None = None,
        depends_on: Iterable[str | Referable] = (),
        consume: bool = False,
        tags: Iterable[str] = (),
        note: str = "",
        labels: Iterable[str] = (),
        log_context: Mapping[str, Any] | None = None,
        traceparent: str = "",
        tracestate: str = "",
        params: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> JobFuture:
        """Accept one job and return its future; when this returns, the job survives every crash.

        Args:
            engine: Name of an engine of the configuration.
            priority: -100 … 100, higher runs first.
            id: Your own name for the job; submitting the same again gives the same job, other content raises
                JobConflict.
            timeout_s: Seconds that one attempt may take, instead of the engine's configuration.
            retry_times: Further attempts after a failure, instead of the engine's configuration.
            retry_on: After which kinds of failure: "infrastructure", "resource", "engine", "timeout".
            durable: False skips fsync: the job survives killed processes, not power loss.
            not_before: It waits until then: seconds from now, "2h", a timedelta, or a datetime with a time zone.
            expires: Not worth beginning after that, it fails as "expired"; given like not_before.
            depends_on: Ids or futures of jobs that must complete before; when one does not, this job fails as
                "dependency". A future, or future["key"], among the parameters stands for its result and is waited for
                as well.
            consume: Remove the record once this future has read it, and no other job needs it.
            tags: To find it by, in `jobs` and in its record.
            note: The same, as free text.
            labels: That the machine must have which runs it.
            log_context: Names and values that stand in each line which the engine logs meanwhile.
            traceparent: W3C trace context; by default that of the active OpenTelemetry span.
            tracestate: The same.
            params: Parameters of the engine whose names collide with the ones above.
            more: Parameters of the engine.

        Raises JobRefused (with the key's path), UnknownEngine, UnknownJob, JobConflict, SpoolFull.
        """
        terms = self._terms(
            priority=priority,
            timeout_s=timeout_s,
            retry_times=retry_times,
            retry_on=retry_on,
            durable=durable,
            tags=tags,
            note=note,
            not_before=not_before,
            expires=expires,
            depends_on=depends_on,
            labels=labels,
            log_context=log_context,
            traceparent=traceparent,
            tracestate=tracestate,
        )
        consume = truth(consume, "consume")
        self._open()
        self._admission.known(engine)
        fitting = self._admission.fit(engine, params_of(params, more))
        return self._accept(self._admission.job(engine, fitting, terms, job_id=id), consume)

    def _terms(self, **given: Any) -> Terms:
        """The terms of a call; `durable` as configured, unless the call says otherwise. Raises JobRefused."""
        if given["durable"] is None:
            given["durable"] = self._config.durable
        return Terms.of(given)

    def _accept(self, job: Job, consume: bool) -> JobFuture:
        self._admission.make_room(job.engine, [job])
        future = JobFuture(self, job.id, job.engine, consume=consume, labels=job.terms.labels)
        self._results.expect(future)
        try:
            self.spool.submit(job)
        except BaseException:
            self._results.forget(job.id, future)
            raise
        if job.digest:  # it may have been there, and done, before
            self._results.look(job.id)
        return future

    def submit_many(
        self,
        engine: str,
        calls: Iterable[Mapping[str, Any]],
        *,
        priority: int = 0,
        timeout_s: float | None = None,
        retry_times: int | None = None,
        retry_on: Sequence[str] | None = None,
        durable: bool | None = None,
        not_before: Given | None = None,
        expires: Given | None = None,
        depends_on: Iterable[str | Referable] = (),
        consume: bool = False,
        tags: Iterable[str] = (),
        note: str = "",
        labels: Iterable[str] = (),
        log_context: Mapping[str, Any] | None = None,
        traceparent: str = "",
        tracestate: str = "",
    ) -> list[JobFuture]:
        """Accept many jobs with one directory sync. What is wrong with one of them is found before any is accepted.

        Args:
            engine: Name of an engine of the configuration.
            calls: The parameters of each job; everything else as in `submit`.
        """
        terms = self._terms(
            priority=priority,
            timeout_s=timeout_s,
            retry_times=retry_times,
            retry_on=retry_on,
            durable=durable,
            tags=tags,
            note=note,
            not_before=not_before,
            expires=expires,
            depends_on=depends_on,
            labels=labels,
            log_context=log_context,
            traceparent=traceparent,
            tracestate=tracestate,
        )
        consume = truth(consume, "consume")
        self._open()
        self._admission.known(engine)
        jobs = [self._admission.job(engine, params, terms) for params in self._admission.each(engine, calls)]
        return self._accept_many(engine, jobs, consume)

    @clear
    def _accept_many(self, engine: str, jobs: Sequence[Job], consume: bool) -> list[JobFuture]:
        self._open()
        self._admission.make_room(engine, jobs)
        futures = [JobFuture(self, job.id, engine, consume=consume, labels=job.terms.labels) for job in jobs]
        for future in futures:
            self._results.expect(future)
        try:
            self.spool.submit_many(jobs)
        except BaseException:
            for future in futures:
                self._results.forget(future.id, future)
            raise
        return futures

    def map(
        self,
        engine: str,
        calls: Iterable[Mapping[str, Any]],
        *,
        chunksize: int = 1,
        timeout: float | None = None,
        priority: int = 0,
        timeout_s: float | None = None,
        retry_times: int | None = None,
        retry_on: Sequence[str] | None = None,
        durable: bool | None = None,
        tags: Iterable[str] = (),
        note: str = "",
        labels: Iterable[str] = (),
        log_context: Mapping[str, Any] | None = None,
        traceparent: str = "",
        tracestate: str = "",
        not_before: Given | None = None,
        expires: Given | None = None,
    ) -> Mapped:
        """Results of many calls in their order.

        The first windows are submitted at once, the rest as results are taken. A call that fails raises JobFailed
        when its turn comes.

        Args:
            engine: Name of an engine of the configuration.
            calls: The parameters of each call.
            chunksize: Calls that travel as one job: more for small ones.
            timeout: Seconds for the whole map.
            timeout_s: Seconds for one attempt at one chunk; this and what follows as in `submit`.
        """
        terms = self._terms(
            priority=priority,
            timeout_s=timeout_s,
            retry_times=retry_times,
            retry_on=retry_on,
            durable=durable,
            tags=tags,
            note=note,
            not_before=not_before,
            expires=expires,
            labels=labels,
            log_context=log_context,
            traceparent=traceparent,
            tracestate=tracestate,
        )
        size, limit = _SIZE(chunksize, "chunksize"), seconds_to_wait(timeout)
        self._open()
        self._admission.known(engine)

        def submit(chunks: list[Chunk]) -> list[JobFuture]:
            jobs = [self._admission.job(engine, {}, terms, items=chunk) for chunk in chunks]
            return self._accept_many(engine, jobs, True)

        return Mapped(chunked(self._admission.each(engine, calls), size), submit, limit)

    @clear
    def accept(self, job: Job) -> JobFuture:
        """Accept a job that was made elsewhere: by a client on another machine. It gets an id of this spool from its
        maker, and its age from here; engine and parameters are checked as those of any job.

        Raises what `submit` does.
        """
        self._open()
        self._admission.known(job.engine)
        made = self._admission.job(
            job.engine,
            job.params if job.items is not None else self._admission.fit(job.engine, job.params),
            job.terms,
            job_id=job.id,
            items=None if job.items is None else tuple(self._admission.fit(job.engine, item) for item in job.items),
        )
        return self._accept(made, False)

    # ---- follow

    @clear
    def attach(self, job_id: str, *, consume: bool = False) -> JobFuture:
        """Future of a job that was submitted by anyone, before or after a restart. Raises UnknownJob; ClusterAway when
        only the servers of the cluster can know it, and do not answer."""
        consume = truth(consume, "consume")
        self._open()
        place = self._find(job_id)
        future = JobFuture(self, job_id, place.engine, consume=consume)
        self._results.expect(future)
        self._results.look(job_id)
        return future

    @clear
    def prospect(self, engine: str) -> Prospect:
        """Whether a worker of this engine can run, may come, or cannot come until an operator acts, and why."""
        return self._patience.prospect(engine)

    @clear
    def prospect_of(self, job_id: str, engine: str) -> Prospect:
        """The same for a job of this engine that is not over: it may wait for jobs of others."""
        return self._patience.prospect_of(job_id, engine)

    def attend(self) -> str:
        """See that a supervisor serves, also when the last one has ended since; "" or why none can be started. Returns
        at once; a waiting future does the same once a second."""
        if self._attendant is None or self._closed:
            return ""
        self._attendant.attend_again()
        return self._attendant.problem

    @property
    def starter(self) -> str | None:
        """Of the supervisor that this pool starts when there is none: "" while one may come, else why none comes; None:
        this pool starts none."""
        return None if self._attendant is None else self._attendant.problem

    @clear
    def progress_of(self, job_id: str) -> Progress:
        """Status, percent and message of a job now. Raises UnknownJob."""
        return lookup.progress_now(self.spool, check_id(job_id))

    @clear
    def state(self, job_id: str) -> JobState:
        """Where a job stands. Raises UnknownJob."""
        return self._find(job_id).state

    @clear
    def cancel(self, job_id: str) -> bool:
        """Ask to stop a job: a waiting one never starts, a running one is ended with all its children.

        True when the request stands (the record will say cancelled, unless the job finishes first).
        """
        state = self.state(job_id)
        if state.terminal:
            return state is JobState.CANCELLED
        self._ask_to_stop(job_id)
        return True

    def _ask_to_stop(self, job_id: str) -> None:
        fsops.put(self.spool.temp(), cancel_path(self.spool, job_id), [b""], sync=self.spool.durable)

    @clear
    def cancel_many(
        self,
        jobs: Iterable[str | Referable] | None = None,
        *,
        engine: str | None = None,
        state: str | None = None,
        tag: str | None = None,
    ) -> list[str]:
        """Ask many jobs to stop; the ids of those that were asked. What is over is left out.

        Args:
            jobs: Ids or futures; None for all.
            engine: Of these only those of this engine.
            state: Of these only those that are held, deferred, queued or running.
            tag: Of these only those with this tag.

        Raises UnknownJob; JobRefused when nothing chooses among all jobs, or no job can be in that state.
        """
        chosen = chosen_jobs(self.spool, jobs, engine=engine, state=state, tag=tag, find=self._find)
        for job_id in chosen:
            self._ask_to_stop(job_id)
        return chosen

    def session(self, *, cancel_on_error: bool = False, params: Params | None = None, **terms: Any) -> Session:
        """Defaults for many submits.

        Args:
            cancel_on_error: An exception out of its `with` block cancels what is pending.
            params: Parameters by engine: {engine: parameters}.
            terms: As `submit` takes them: priority=, expires= …

        Raises JobRefused, UnknownEngine.
        """
        from pool.client.session import Session

        if params and self._admission.offers.branch:
            self._admission.offers.await_word(params)
        return Session(self, terms, params or {}, cancel_on_error=cancel_on_error)

    @clear
    def retry(self, job_id: str) -> JobFuture:
        """Run a failed job again, with all its attempts. Raises UnknownJob when it did not fail."""
        self._open()
        self.spool.requeue(*lookup.await_dead(self.spool, check_id(job_id)))
        return self.attach(job_id)

    @clear
    def status(self) -> PoolStatus:
        """Queues, workers, failures at this moment."""
        from pool.client.inspection import read_status

        if reason := self.spool.lost():
            raise SpoolError(reason)
        return read_status(self.spool, self._config)

    def read_for(self, future: JobFuture, timeout: float | None) -> float | None:
        """Wait for a job on the caller's thread; what is left of `timeout`, None for no limit."""
        return self._results.read_for(future, seconds_to_wait(timeout))

    def read_elsewhere(self) -> None:
        """Somebody waits who does not read: a thread of this pool does."""
        self._results.arm()

    def wait_over(self) -> None:
        """A blocking wait has ended."""
        self._patience.wait_over()

    def wait_for(self, future: Future[Any], seconds: float) -> None:
        """Sleep up to `seconds`, less when the job ends."""
        sleep_until(future, seconds)

    def pending(self) -> list[JobFuture]:
        """Futures of this pool that are not done."""
        return self._results.pending(self)

    # ---- look through jobs

    @clear
    def jobs(
        self,
        *,
        engine: str | Iterable[str] = (),
        state: str | JobState | Iterable[str | JobState] = (),
        tag: str | Iterable[str] = (),
        since: float | str | timedelta | None = None,
        text: str = "",
        limit: int = 50,
        after: str = "",
    ) -> JobPage:
        """A page of jobs, newest first: those that wait, that run, and that ended and are kept. Of a cluster those of
        this branch: what it has submitted, and what was attached here; `python -m pool.cluster jobs` lists all.

        Args:
            engine: One, or any of several.
            state: One, or any of several.
            tag: One, or all of several.
            since: Submitted within so many seconds, or "2h".
            text: In the id, a tag, the note or the reason; Latin letters in any case.
            limit: 1 … 1000.
            after: `next` of the page before; a walk lists a job that exists throughout exactly once.

        Raises JobRefused.
        """
        from pool.client import browse

        self._open()
        chosen = browse.Filter(engine, state, tag, since, text)
        return browse.page(self.spool, chosen, limit=limit, after=after)

    def origin(self, job_id: str) -> Origin:
        """Parameters, terms, tags and note of a job, secrets excepted. Raises UnknownJob, JobRefused."""
        from pool.client import rerun

        self._open()
        return self._answered(lambda: rerun.origin(self.spool, check_id(job_id)))

    @clear
    def rerun(
        self,
        job_id: str,
        /,
        *,
        id: str | None = None,
        consume: bool = False,
        without: Iterable[str] = (),
        params: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> JobFuture:
        """Submit a new job like an old one, in whatever state that is, with changes.

        The record of the new job names the old one in `rerun_of`.

        Args:
            job_id: The old one.
            without: Parameters that the new job shall not have.
            params: Parameters whose names collide with terms.
            id: As in `submit`.
            consume: As in `submit`.
            changes: Terms (priority, timeout_s, retry_times, durable, tags, note …); every other name is a parameter.
                None leaves a term as it was.

        Raises UnknownJob, JobRefused (also for a parameter that must be given again, because it is secret or was too
        large to be kept), and what submit raises.
        """
        from pool.client import rerun

        consume = truth(consume, "consume")
        old = self.origin(job_id)
        how, what = rerun.split(changes)
        self._admission.known(old.engine)
        changed = self._admission.fit(old.engine, old.changed(params_of(params, what), without))
        job = self._admission.job(old.engine, changed, rerun.renewed(old.terms, how), job_id=id, items=old.items)
        return self._accept(replace(job, rerun_of=old.id), consume)

    # ---- end

    def close(self, *, wait: bool = False, timeout: float | None = None) -> None:
        """Let go of the pool. Jobs that are pending go on in the spool.

        Args:
            wait: Wait for this pool's pending jobs first.
            timeout: Seconds for that.

        Raises EngineUnavailable, once the pool is closed, when one of them could not be waited for.
        """
        limit = seconds_to_wait(timeout)
        if self._closed:
            return
        pending = self._results.pending(self) if wait else []
        if wait:
            from concurrent.futures import wait as wait_all

            wait_all(pending, limit)
        errors = [error for future in pending if (error := future.unavailable) is not None]
        self._closed = True
        self._results.leave(self, PoolClosed("the pool was closed; the job goes on, attach(id) finds it again"))
        if self._attendant is not None:
            self._attendant.leave()
        if errors:
            raise errors[0]

    def __enter__(self) -> FilePool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(wait=kind is None)

    def _open(self) -> None:
        if self._closed:
            raise PoolClosed("this pool was closed")
        if self._attendant is not None and not self._attendant.present:  # in a forked child
            self._attendant.attend()

    def _find(self, job_id: str) -> lookup.Location:
        return self._answered(lambda: lookup.find(self.spool, check_id(job_id)))

    def _answered(self, look: Callable[[], T]) -> T:
        return answered(look, self.spool, self._attendant)

    def on_look(self, futures: Sequence[JobFuture]) -> None:
        """Once a second while results are awaited: start a supervisor that died again, end waits without hope."""
        try:
            if self._attendant is not None and not self._closed:
                self._attendant.attend_again()
        finally:
            self._patience.look(futures)
