"""One attempt at a claimed job, from its file to its terminal record or its next attempt.

    read -> check -> cache? -> run -> outputs -> record -> claim gone

Whatever goes wrong on the way becomes a Failure with kind, stage, traceback and the end of stderr. A full disk at
the end of a long job does not throw the result away: publishing is repeated until there is room.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from pool import tracing
from pool.constants import WAITING_FOR_SPACE, Phase
from pool.format import codec
from pool.format.trace_context import TraceContext, carried
from pool.job import Failure, FailureKind, Job, JobState, Record, earlier
from pool.policy.backoff import retry_delay
from pool.policy.blame import joins_the_row, second_opinion
from pool.runfiles.heartbeat import Heartbeat
from pool.runfiles.launch import Launch
from pool.spool import checkpoints, fsops, settlement
from pool.spool.attempts import cancel_path
from pool.spool.redaction import Redactor
from pool.spool.store import NO_SPACE, Claim, Spool
from pool.system.logs import tail
from pool.work import joblog, log_fields
from pool.work.cache import ResultCache, swap_paths
from pool.work.context import JobContext, RefusedInput, check_path
from pool.work.engine import Engine, Files, as_map
from pool.work.keeper import Keeper
from pool.work.opening import open_claim
from pool.work.reason import failure_of, members_of, name_of

_SPACE_POLL_S = 0.5
_OK, _ERROR = 0, 1  # outcome of one item of a map job


class Draining(Exception):
    """The worker is asked to end while a result waits for disk space; the claim stays for the supervisor."""


class _Done(NamedTuple):
    """What the engine returned. files, key: for the result cache; with key "" nothing is cached."""

    value: Any
    files: Files | None = None
    key: str = ""
    cached: bool = False


class _Waiting(NamedTuple):
    """A job of a batch that is ready to run."""

    claim: Claim
    job: Job
    context: JobContext
    params: Any
    files: Files | None


class Executor:
    """Runs claims on one loaded engine. Raises what its fingerprint() raises."""

    def __init__(
        self,
        spool: Spool,
        launch: Launch,
        engine: Engine,
        beat: Heartbeat,
        *,
        keeper: Keeper,
        cancelled_type: type[BaseException],
        draining: Callable[[], bool],
        siblings: Callable[[], bool],
    ) -> None:
        self._spool, self._launch, self._engine, self._beat = spool, launch, engine, beat
        self._keeper = keeper
        self._cancelled_type = cancelled_type
        self._draining, self._siblings = draining, siblings
        self._log_at = keeper.log_end
        self._cache: ResultCache | None = None
        fingerprint = engine.fingerprint() if launch.cache_enabled else None
        if fingerprint is not None:
            self._cache = ResultCache(spool, launch.spec, fingerprint)
        self._redactor = Redactor.of_engine(engine.factory)
        self._rng = random.Random()
        self._identity: list[Any] = []  # of the engine as it is loaded; looked up for the first checkpoint

    # ---- one claim

    def run(self, claim: Claim) -> bool:
        """Run one attempt; True when it succeeded, was cancelled, or failed by a mistake of the caller."""
        started = self._spool.now()
        self._log_at = self._keeper.log_end
        job, context = self._open(claim)
        if job is None or context is None:
            return True
        with _telling([context]):
            try:
                try:
                    with _traced([context]):
                        done = self._work(job, context)
                finally:
                    self._keeper.tidy(job.id)
                return self._complete(claim, job, context, done, started)
            except BaseException as error:
                return self._end(claim, job, context, error, started)
            finally:
                context.close()

    def run_batch(self, claims: Sequence[Claim]) -> bool:
        """One attempt at several claims in one call of the engine. When that call fails, each runs alone."""
        started = self._spool.now()
        self._log_at = self._keeper.log_end
        waiting, well = self._gather(claims, started)
        if not waiting:
            return well
        for one in waiting:
            one.context.stage = "run"
        self._beat.advance("run")
        contexts = [one.context for one in waiting]
        try:
            with _telling(contexts):
                try:
                    with _traced(contexts):
                        values = self._engine.run_batch([one.params for one in waiting], contexts)
                finally:
                    self._keeper.tidy(waiting[0].job.id)
        except BaseException:
            for context in contexts:
                context.close()
            outcomes = [self.run(one.claim) for one in waiting]
            return all(outcomes) and well
        outcomes = [self._settle(one, value, started) for one, value in zip(waiting, values)]  # noqa: B905 - old interpreters
        return all(outcomes) and well

    def _gather(self, claims: Sequence[Claim], started: int) -> tuple[list[_Waiting], bool]:
        """The jobs of a batch that can run in one call. The others are settled here; whether all of those succeeded."""
        waiting: list[_Waiting] = []
        well = True
        for claim in claims:
            job, context = self._open(claim)
            if job is None or context is None:
                continue
            if job.items is not None:
                context.close()
                well &= self.run(claim)
                continue
            try:
                checked = self._check(job.params, handed=bool(job.depends_on))
                self._save_under(job, context, checked[1])
                waiting.append(_Waiting(claim, job, context, *checked))
            except BaseException as error:
                well &= self._end(claim, job, context, error, started)
                context.close()
        return waiting, well

    def _settle(self, one: _Waiting, value: Any, started: int) -> bool:
        """End one job of a batch with what the engine returned for it, a value or an exception."""
        claim, job, context = one.claim, one.job, one.context
        try:
            if isinstance(value, BaseException):
                return self._end(claim, job, context, value, started)
            return self._complete(claim, job, context, _Done(as_map(value), one.files), started)
        except BaseException as error:
            return self._end(claim, job, context, error, started)
        finally:
            context.close()

    def _open(self, claim: Claim) -> tuple[Job | None, JobContext | None]:
        self._beat.phase(Phase.BUSY, claim.name.id, "check")
        job = open_claim(self._spool, claim, self._insist)
        if job is None:
            return None, None
        trace = tracing.of_attempt(self._spool.id, job, claim.name.attempts)
        return job, JobContext(
            self._spool, job, claim.name, self._beat, cancelled_type=self._cancelled_type, trace=trace
        )

    def _check(self, params: Mapping[str, Any], *, handed: bool = False) -> tuple[Any, Files | None]:
        """Check parameters. handed: they hold results of other jobs, which may name files that the pool keeps."""
        checked = self._engine.check(params)
        files = self._engine.files(checked)
        if files is not None:
            roots = self._launch.media_roots
            kept = (os.path.realpath(self._spool.root / "out"),) if handed and roots else ()
            for path, allowed in (*((p, (*roots, *kept)) for p in files.inputs), *((p, roots) for p in files.outputs)):
                check_path(path)
                _inside(path, allowed)
        return checked, files

    def _work(self, job: Job, context: JobContext) -> _Done:
        """The engine's part: check, the result cache, run."""
        if job.items is not None:
            self._beat.advance("run")
            return _Done([self._item(item, context) for item in job.items])
        params, files = self._check(job.params, handed=bool(job.depends_on))
        self._save_under(job, context, files)
        key = ""
        if self._cache is not None and files is not None:
            key = self._cache.key(job.params, files.inputs, files.outputs)
            hit = self._cache.load(key)
            if hit is not None and len(hit[1]) == len(files.outputs):
                value = self._restore(hit, files.outputs, context)
                if value is not None:
                    return _Done(value, files, cached=True)
        context.stage = "run"
        self._beat.advance("run")
        return _Done(self._engine.run(params, context), files, key)

    def _save_under(self, job: Job, context: JobContext, files: Files | None) -> None:
        """Let the engine save how far it is; what it has saved is of these parameters, inputs and this engine."""
        inputs = [_stamp(path) for path in files.inputs] if files is not None else []
        context.key = functools.partial(self._key, job, inputs)

    def _key(self, job: Job, inputs: Sequence[Any]) -> bytes:
        if not self._identity:
            launch = self._launch
            self._identity = [launch.device, launch.options, *self._engine.identity()]
        body = codec.encode([job.engine, job.created, job.params, inputs, self._identity])
        return hashlib.sha256(body).digest()

    def _item(self, item: Mapping[str, Any], context: JobContext) -> list[Any]:
        """One of many small calls: its map, or why there is none."""
        try:
            context.stage = "check"
            context.check()
            params, _ = self._check(item)
            context.stage = "run"
            return [_OK, self._engine.run(params, context)]
        except BaseException as error:
            if self._is_cancel(error):
                raise
            return [
                _ERROR,
                failure_of(
                    error,
                    stage=context.stage,
                    attempt=context.attempt,
                    stderr_tail=self._stderr_tail(),
                    at=self._spool.now(),
                ).to_map(),
            ]

    @staticmethod
    def _restore(hit: tuple[Any, list[tuple[str, Path]]], outputs: Sequence[Path], context: JobContext) -> Any:
        import shutil

        value, files = hit
        swaps = {}
        parts = [context.output(wanted, wanted.name) for wanted in outputs]
        try:
            for (original, copy), wanted, part in zip(files, outputs, parts):  # noqa: B905 - old interpreters
                shutil.copyfile(copy, part)
                swaps[original] = os.path.abspath(wanted)
        except OSError:  # the entry was just removed, or the disk is full: run the job
            for part in parts:
                fsops.unlink(str(part), missing_ok=True)
            return None
        return swap_paths(value, swaps)

    # ---- ends

    def _complete(self, claim: Claim, job: Job, context: JobContext, done: _Done, started: int) -> bool:
        spool, attempt = self._spool, claim.name.attempts
        context.ran = spool.now() if tracing.on() else 0
        files = self._insist(lambda: context.publish_outputs(sync=spool.durable and job.durable))
        before = earlier(spool.notes(job.id, attempt - 1), attempt) if attempt > 1 else ()
        record = Record(
            job.id,
            job.engine,
            JobState.COMPLETED,
            attempt,
            job.created,
            started,
            spool.now(),
            str(claim.worker),
            done.value,
            None,
            before,
            files,
            done.cached,
            job.source,
            self._redactor.keep(job),
            context.stages,
        )
        context.stage = "publish"
        published = self._insist(lambda: spool.finish(claim, record, reply=job.reply, durable=job.durable))
        if tracing.on():
            self._trace(claim, job, context, (started, spool.now()), before=before)
            if published:
                tracing.job_ended(spool.id, job, record)
        self._beat.succeeded(record.finished)
        self._forget_progress(context)
        if context.saved:
            with contextlib.suppress(OSError):
                checkpoints.forget(spool, job.id)
        if done.files is not None:
            if done.key:
                self._remember(job, done, {str(file["path"]) for file in files})
            if self._launch.delete_inputs:
                for path in done.files.inputs:
                    with contextlib.suppress(OSError):
                        fsops.unlink(str(path), missing_ok=True)
        return True

    def _remember(self, job: Job, done: _Done, written: set[str]) -> None:
        """Cache the result, unless an input changed meanwhile or the job wrote other files than it announced."""
        assert self._cache is not None
        assert done.files is not None
        outputs = [Path(os.path.abspath(path)) for path in done.files.outputs]
        with contextlib.suppress(OSError):
            same = self._cache.key(job.params, done.files.inputs, done.files.outputs) == done.key
            if same and written == set(map(str, outputs)):
                self._cache.store(done.key, done.value, outputs)

    def _end(self, claim: Claim, job: Job, context: JobContext, error: BaseException, started: int) -> bool:
        """Settle an attempt that raised. Whatever was raised, this process and its loaded model stay in use."""
        if isinstance(error, Draining):
            raise error
        self._keeper.tidy(job.id)  # RACE: a timer of the job may have fired after the first tidy()
        if self._is_cancel(error):
            if os.path.lexists(cancel_path(self._spool, job.id)):
                return self._cancel(claim, job, context, started)
            error = RuntimeError(f"the engine raised {name_of(error)}, but the job was not cancelled")
        return self._fail(claim, job, context, error, started)

    def _is_cancel(self, error: BaseException) -> bool:
        """Whether context.check() stopped the engine; a task group wraps that exception in an exception group."""
        return any(issubclass(type(one), self._cancelled_type) for one in members_of(error))

    def _cancel(self, claim: Claim, job: Job, context: JobContext, started: int) -> bool:
        failure = Failure(
            "cancelled",
            "cancelled by request",
            context.stage,
            claim.name.attempts,
            worker=str(claim.worker),
            at=self._spool.now(),
            started=started,
            stages=context.stages,
        )
        before = self._spool.notes(job.id, claim.name.attempts - 1) if tracing.on() else ()
        self._insist(lambda: settlement.end(self._spool, claim, job, JobState.CANCELLED, failure, started=started))
        self._trace(claim, job, context, (started, failure.at), before=before, failure=failure)
        return True

    def _fail(self, claim: Claim, job: Job, context: JobContext, error: BaseException, started: int) -> bool:
        failure = failure_of(
            error,
            stage=context.stage,
            attempt=claim.name.attempts,
            worker=str(claim.worker),
            stderr_tail=self._stderr_tail(),
            at=self._spool.now(),
        )
        failure = replace(failure, started=started, stages=context.stages)
        delay = retry_delay(claim.name.attempts, failure.kind, self._rng) or 0.0
        before = self._spool.notes(job.id, claim.name.attempts - 1)
        self._beat.row += joins_the_row(before, failure.kind)
        opinion = second_opinion(claim.worker.slot, self._beat.row, failure.kind, before, siblings=self._siblings())
        again = settlement.Again(self._launch.retries, delay, int(opinion))
        self._insist(lambda: settlement.settle(self._spool, claim, job, failure, again, started=started))
        self._trace(claim, job, context, (started, failure.at), before=before, failure=failure)
        self._forget_progress(context)
        return failure.kind == FailureKind.INPUT.value

    def _trace(
        self,
        claim: Claim,
        job: Job,
        context: JobContext,
        span: tuple[int, int],
        *,
        before: Sequence[Failure],
        failure: Failure | None = None,
    ) -> None:
        """The span of an attempt that is over. span: when it began and ended, µs of the spool clock."""
        attempt = tracing.Attempt(str(claim.worker), claim.name.attempts, *span, ran=context.ran)
        tracing.attempt_ended(self._spool.id, job, attempt, before=before, failure=failure)

    def _forget_progress(self, context: JobContext) -> None:
        if context.told:
            with contextlib.suppress(OSError):
                fsops.unlink(f"{self._spool.root}/progress/{context.job_id}", missing_ok=True)

    def _insist(self, action: Callable[[], Any]) -> Any:
        """Repeat an action until the disk has room for it: the job is done, only its result waits."""
        while True:
            try:
                return action()
            except OSError as error:
                if error.errno not in NO_SPACE:
                    raise
                if self._draining():
                    raise Draining() from error
                self._beat.advance(WAITING_FOR_SPACE)
                time.sleep(_SPACE_POLL_S)

    # ---- stderr

    def _stderr_tail(self) -> str:
        joblog.flush()
        if not self._launch.log:
            return ""
        return tail(Path(self._launch.log), since=self._log_at)


def _stamp(path: Path) -> list[Any]:
    """What changes with a file."""
    real = os.path.realpath(path)
    try:
        info = os.stat(real)
    except OSError:
        return [real]
    return [real, info.st_size, info.st_mtime_ns, info.st_ino]


_PLAIN = contextlib.nullcontext()


def _telling(contexts: Sequence[JobContext]) -> contextlib.AbstractContextManager[None]:
    """Add the log fields of these jobs to each line that is logged meanwhile; of several jobs, the shared ones."""
    if all(not context.log_fields for context in contexts):
        return _PLAIN
    return log_fields.bound(log_fields.shared([context.log_fields for context in contexts]))


@contextlib.contextmanager
def _within(trace: TraceContext) -> Iterator[None]:
    with carried(trace), tracing.entered(trace):
        yield


def _traced(contexts: Sequence[JobContext]) -> contextlib.AbstractContextManager[None]:
    """Put what the engine starts or calls into the trace of the job; of several jobs, into none."""
    trace = contexts[0].trace
    return _PLAIN if trace is None or len(contexts) > 1 else _within(trace)


def _inside(path: Path, roots: Sequence[str]) -> None:
    """roots: none allow everything."""
    if not roots:
        return
    real = os.path.realpath(path)
    if not any(real == root or real.startswith(root.rstrip("/") + "/") for root in roots):
        raise RefusedInput(f"{path} is outside the allowed media folders", f"allowed: {', '.join(roots)}")
