"""One attempt at a claimed job, from its file to its terminal record or its next attempt.

    read -> check -> cache? -> run -> outputs -> record -> claim gone

Whatever goes wrong on the way becomes a Failure with kind, stage, traceback and the end of stderr. A full disk at
the end of a long job does not throw the result away: publishing is repeated until there is room.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pool import fsops, verdict
from pool.backoff import retry_delay
from pool.blame import joins_the_row, second_opinion
from pool.cache import ResultCache, swap_paths
from pool.constants import WAITING_FOR_SPACE, Phase
from pool.context import JobContext, RefusedInput, check_path
from pool.errors import ProtocolError
from pool.heartbeat import Heartbeat
from pool.job import Failure, FailureKind, Job, JobState, Record, earlier
from pool.kept import Keeper
from pool.launch import Launch
from pool.logs import tail
from pool.spool import NO_SPACE, Claim, Spool

_TRACEBACK_CHARS = 16_000
_SPACE_POLL_S = 0.5
_OK, _ERROR = 0, 1  # outcome of one item of a map job


class Draining(Exception):
    """The worker is asked to end while a result waits for disk space; the claim stays for the supervisor."""


class Executor:
    """Runs claims on one loaded engine."""

    def __init__(
        self,
        spool: Spool,
        launch: Launch,
        engine: Any,
        beat: Heartbeat,
        cancelled_type: type[BaseException],
        draining: Callable[[], bool],
    ) -> None:
        self._spool, self._launch, self._engine, self._beat = spool, launch, engine, beat
        self._cancelled_type = cancelled_type
        self._draining = draining
        self._cache: ResultCache | None = None
        if launch.cache_enabled and hasattr(engine, "fingerprint"):
            self._cache = ResultCache(spool, launch.spec, str(engine.fingerprint()))
        self._keeper = Keeper.of_engine(engine)
        self._log_at = 0
        self._rng = random.Random()

    # ---- one claim

    def run(self, claim: Claim) -> bool:
        """One attempt; whether it ended well (a caller's mistake and a cancellation count as well)."""
        started = self._spool.now()
        self._mark_log()
        job, context = self._open(claim)
        if job is None or context is None:
            return True
        try:
            if job.items is not None:
                value: Any = [self._item(item, context) for item in job.items]
                return self._complete(claim, job, context, value, started)
            params = self._check(job.params)
            return self._run_one(claim, job, context, params, started)
        except self._cancelled_type:
            return self._cancel(claim, job, context, started)
        except (Exception, SystemExit) as error:
            return self._fail(claim, job, context, error)
        finally:
            context.close()

    def run_batch(self, claims: Sequence[Claim]) -> bool:
        """One attempt at several claims in one call of the engine. When that call fails, each runs alone."""
        started = self._spool.now()
        self._mark_log()
        waiting: list[tuple[Claim, Job, JobContext, Any]] = []
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
                waiting.append((claim, job, context, self._check(job.params)))
            except (Exception, SystemExit) as error:
                well &= self._fail(claim, job, context, error)
                context.close()
        if not waiting:
            return well
        try:
            values = self._engine.run_batch([w[3] for w in waiting], [w[2] for w in waiting])
            if len(values) != len(waiting):
                raise ValueError(f"run_batch() returned {len(values)} results for {len(waiting)} jobs")
        except (Exception, SystemExit, self._cancelled_type):
            for _, _, context, _ in waiting:
                context.close()
            outcomes = [self.run(claim) for claim, _, _, _ in waiting]
            return all(outcomes) and well
        for (claim, job, context, _), value in zip(waiting, values):  # noqa: B905 - old interpreters
            try:
                if isinstance(value, BaseException):
                    well &= self._fail(claim, job, context, value)
                else:
                    well &= self._complete(claim, job, context, _as_map(value), started)
            except (Exception, SystemExit) as error:
                well &= self._fail(claim, job, context, error)
            finally:
                context.close()
        return well

    def _open(self, claim: Claim) -> tuple[Job | None, JobContext | None]:
        self._beat.phase(Phase.BUSY, claim.name.id, "check")
        if self._spool.decided(claim.name.id):  # power was lost, and with it a claim that is not synced
            self._insist(lambda: self._spool.tidy(claim, attempts=claim.name.attempts))
            return None, None
        try:
            job = self._spool.read_claim(claim)
        except (ProtocolError, OSError) as error:
            failure = Failure("infrastructure", f"the job file cannot be read: {error}", "read", claim.name.attempts,
                              type(error).__name__, worker=str(claim.worker), at=self._spool.now())  # fmt: skip
            self._insist(lambda: verdict.end(self._spool, claim, None, JobState.FAILED, failure))
            return None, None
        return job, JobContext(self._spool, job, claim.name, self._beat, cancelled_type=self._cancelled_type)

    def _check(self, params: Mapping[str, Any]) -> Any:
        checked = self._engine.check(params)
        if hasattr(self._engine, "files"):
            files = self._engine.files(checked)
            for path in (*files.inputs, *files.outputs):
                check_path(path)
                _inside(path, self._launch.media_roots)
        return checked

    def _run_one(self, claim: Claim, job: Job, context: JobContext, params: Any, started: int) -> bool:
        key = ""
        if self._cache is not None and hasattr(self._engine, "files"):
            files = self._engine.files(params)
            key = self._cache.key(job.params, files.inputs, files.outputs)
            hit = self._cache.load(key)
            if hit is not None and len(hit[1]) == len(files.outputs):
                value = self._restore(hit, files.outputs, context)
                if value is not None:
                    return self._complete(claim, job, context, value, started, params=params, cached=True)
        context.stage = "run"
        self._beat.advance("run")
        value = _as_map(self._engine.run(params, context))
        return self._complete(claim, job, context, value, started, params=params, key=key)

    def _item(self, item: Mapping[str, Any], context: JobContext) -> list[Any]:
        try:
            context.check()
            return [_OK, _as_map(self._engine.run(self._check(item), context))]
        except (Exception, SystemExit) as error:
            return [_ERROR, self._failure(error, context.stage, context.attempt, "").to_map()]

    @staticmethod
    def _restore(
        hit: tuple[Any, list[tuple[str, Path]]], outputs: Sequence[Path], context: JobContext
    ) -> Any:
        import shutil

        value, files = hit
        swaps = {}
        parts = [context.output(wanted, wanted.name) for wanted in outputs]
        try:
            for (original, copy), wanted, part in zip(files, outputs, parts):  # noqa: B905 - old interpreters
                shutil.copyfile(copy, part)
                swaps[original] = os.path.abspath(wanted)
        except OSError:  # trimmed at this moment, or no room for it: then the work is done
            for part in parts:
                fsops.unlink(str(part), missing_ok=True)
            return None
        return swap_paths(value, swaps)

    # ---- ends

    def _complete(
        self,
        claim: Claim,
        job: Job,
        context: JobContext,
        value: Any,
        started: int,
        *,
        params: Any = None,
        key: str = "",
        cached: bool = False,
    ) -> bool:
        spool, attempt = self._spool, claim.name.attempts
        files = self._insist(lambda: context.publish_outputs(sync=spool.durable and job.durable))
        before = earlier(spool.notes(job.id, attempt - 1), attempt) if attempt > 1 else ()
        record = Record(job.id, job.engine, JobState.COMPLETED, attempt, job.created, started, spool.now(),
                        str(claim.worker), value, None, before, files, cached, job.source,
                        self._keeper.keep(job))  # fmt: skip
        context.stage = "publish"
        self._insist(lambda: spool.finish(claim, record, reply=job.reply, durable=job.durable))
        self._beat.succeeded(record.finished)
        self._forget_progress(context)
        if key:
            self._remember(key, job, params, value, {str(file["path"]) for file in files})
        if params is not None and self._launch.delete_inputs and hasattr(self._engine, "files"):
            for path in self._engine.files(params).inputs:
                with contextlib.suppress(OSError):
                    fsops.unlink(str(path), missing_ok=True)
        return True

    def _remember(self, key: str, job: Job, params: Any, value: Any, written: set[str]) -> None:
        """Into the cache, unless an input has changed meanwhile, or other files were written than were announced."""
        assert self._cache is not None
        files = self._engine.files(params)
        outputs = [Path(os.path.abspath(path)) for path in files.outputs]
        with contextlib.suppress(OSError):
            same = self._cache.key(job.params, files.inputs, files.outputs) == key
            if same and written == set(map(str, outputs)):
                self._cache.store(key, value, outputs)

    def _cancel(self, claim: Claim, job: Job, context: JobContext, started: int) -> bool:
        failure = Failure("cancelled", "cancelled by request", context.stage, claim.name.attempts,
                          worker=str(claim.worker), at=self._spool.now())  # fmt: skip
        self._insist(
            lambda: verdict.end(self._spool, claim, job, JobState.CANCELLED, failure, started=started)
        )
        return True

    def _fail(self, claim: Claim, job: Job, context: JobContext, error: BaseException) -> bool:
        if isinstance(error, Draining):
            raise error
        failure = self._failure(error, context.stage, claim.name.attempts, str(claim.worker))
        delay = retry_delay(claim.name.attempts, failure.kind, self._rng) or 0.0
        before = self._spool.notes(job.id, claim.name.attempts - 1)
        self._beat.row += joins_the_row(before, failure.kind)
        opinion = second_opinion(claim.worker.slot, self._beat.row, before, siblings=self._launch.siblings)
        self._insist(
            lambda: verdict.settle(
                self._spool, claim, job, failure, retries=self._launch.retries, delay_s=delay,
                spare_attempts=int(opinion),
            )
        )  # fmt: skip
        self._forget_progress(context)
        return failure.kind == FailureKind.INPUT.value

    def _failure(self, error: BaseException, stage: str, attempt: int, worker: str) -> Failure:
        kind, hint = _kind_of(error)
        message = str(error).strip() or type(error).__name__
        if isinstance(error, SystemExit):
            message = f"the engine called sys.exit({error.code!r}) in the middle of a job"
        elif type(error).__name__ == "ValidationError" and hasattr(error, "errors"):
            message = "; ".join(_pydantic_sentence(item) for item in error.errors())
        trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        return Failure(
            kind=kind,
            message=message,
            stage=stage,
            attempt=attempt,
            exception=f"{type(error).__module__}.{type(error).__qualname__}".replace("builtins.", ""),
            traceback=trace[-_TRACEBACK_CHARS:] if kind != "input" else "",
            stderr_tail=self._stderr_tail(),
            hint=hint,
            worker=worker,
            at=self._spool.now(),
        )

    def _forget_progress(self, context: JobContext) -> None:
        if context.told:
            with contextlib.suppress(OSError):
                fsops.unlink(f"{self._spool.root}/progress/{context.job_id}", missing_ok=True)

    def _insist(self, action: Callable[[], Any]) -> Any:
        """Repeat what a full disk stopped; the work is done, only its result waits."""
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

    def _mark_log(self) -> None:
        sys.stderr.flush()
        try:
            self._log_at = os.fstat(2).st_size
        except OSError:
            pass

    def _stderr_tail(self) -> str:
        sys.stderr.flush()
        if not self._launch.log:
            return ""
        return tail(Path(self._launch.log), since=self._log_at)


def _as_map(value: Any) -> Any:
    if isinstance(value, Mapping):
        return value
    raise TypeError(f"run() returned a {type(value).__name__}, not a map")


def _kind_of(error: BaseException) -> tuple[str, str]:
    kind, hint = getattr(error, "kind", None), str(getattr(error, "hint", "") or "")
    if isinstance(kind, str):
        return FailureKind.of(kind).value, hint
    if type(error).__name__ == "ValidationError" and hasattr(error, "errors"):
        return "input", hint
    if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__:
        return "resource", hint or "less work at once, or a device with more memory"
    if isinstance(error, OSError) and error.errno in {*NO_SPACE, errno.EFBIG, errno.ENOMEM, errno.EMFILE}:
        return "resource", hint
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return "input", hint or "give a shorter path"
    if isinstance(error, ProtocolError):
        return "engine", hint or "return plain values, lists, maps and arrays"
    return "engine", hint


def _pydantic_sentence(item: Mapping[str, Any]) -> str:
    path = ".".join(str(part) for part in item.get("loc", ()))
    return f"params.{path}: {item.get('msg', 'is wrong')}" if path else str(item.get("msg", "is wrong"))


def _inside(path: Path, roots: Sequence[str]) -> None:
    """roots: none allow everything."""
    if not roots:
        return
    real = os.path.realpath(path)
    if not any(real == root or real.startswith(root.rstrip("/") + "/") for root in roots):
        raise RefusedInput(f"{path} lies outside the allowed media folders", f"allowed: {', '.join(roots)}")
