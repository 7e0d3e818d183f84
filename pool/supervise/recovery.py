"""Taking jobs back: from a worker that is proven dead, and from a spool without a supervisor for a while.

Only the supervisor recovers, and only after the death of the process that held the claim is proven and all that it
started is gone. Nothing here is decided by age.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from pool import tracing
from pool.config.settings import Config, EngineConfig
from pool.constants import Phase
from pool.errors import ProtocolError
from pool.format.names import WorkerName, parse_aside, parse_dead, parse_worker
from pool.job import Failure, FailureKind, Job, JobState
from pool.policy.backoff import retry_delay
from pool.policy.blame import joins_the_row, second_opinion
from pool.policy.death import DIED, Death
from pool.policy.retries import Retries
from pool.spool import fsops, lookup, owner, quarantine, settlement
from pool.spool.attempts import cancel_path, sweep_attempt
from pool.spool.placement import put_back
from pool.spool.seizure import SEIZER
from pool.spool.store import Claim, Spool
from pool.stages import NO_STAGES, Stages
from pool.supervise.judge import INNOCENT, KIND, WELL, Cause, Verdict
from pool.supervise.remains import last_beat, last_words, stage_of
from pool.system.clock import boot_ns


@dataclass(frozen=True)
class End:
    """How a worker ended, as far as its jobs are concerned. stage: what it was doing. seen: whether a supervisor ran;
    where none did the whole machine may have ended, which says nothing about the job."""

    death: Death
    verdict: Verdict = WELL
    stage: str = ""
    log_tail: str = ""
    seen: bool = True

    @property
    def cause(self) -> Cause | None:
        """Why the supervisor ended the process, None when it died by itself."""
        return self.verdict.cause


@dataclass(frozen=True)
class Recovered:
    """charged: ids of the jobs whose attempt failed by it. row: of the slot afterwards."""

    charged: tuple[str, ...]
    row: int


UNSEEN = Death(None, None, "its worker was gone when the supervisor came back; exit status unknown: nobody saw it end")


class Recovery:
    """Takes claims back."""

    def __init__(self, spool: Spool, config: Config, rng: random.Random) -> None:
        self._spool, self.config, self._rng = spool, config, rng

    def recover(
        self,
        worker: WorkerName,
        end: End,
        *,
        row: int = 0,
        siblings: bool = False,
        engine: EngineConfig | None = None,
    ) -> Recovered:
        """Settle every claim of a dead worker, then remove its directory.

        row: jobs in a row whose first failure was in its slot; siblings: whether other slots serve its engine;
        engine: its own, where that is not in the configuration any more.
        OSError (a full disk) leaves the rest for another try: call it again.
        """
        charged = []
        claims = self._spool.claims(worker)
        for claim in claims:
            sweep_attempt(self._spool, claim.name.id, claim.name.attempts)
            told = lookup.progress(self._spool, claim.name.id)
            stages = told.stages if told is not None and told.attempt == claim.name.attempts else NO_STAGES
            fsops.unlink(f"{self._spool.root}/progress/{claim.name.id}", missing_ok=True)
            earlier = self._spool.notes(claim.name.id, claim.name.attempts - 1)
            first = joins_the_row(earlier, FailureKind.INFRASTRUCTURE.value)
            # Which job of a batch did it is unknown: each runs again alone, even one that has no retries.
            peer = second_opinion(worker.slot, row + first, _kind(end).value, earlier, siblings=siblings)
            alone = len(claims) > 1 or peer
            if self._recover_claim(claim, end, engine, earlier, stages, spare_attempts=int(alone)):
                charged.append(claim.name.id)
                row += first
        directory = self._spool.work_dir(worker)
        if os.path.isdir(directory):
            for name in os.listdir(directory):  # not one of our files
                reason = f"{ascii(name)[1:-1]} was found in {directory} and is no job.\n"
                quarantine.keep(self._spool, f"{directory}/{name}", f"{worker}.{name}", reason)
            fsops.remove_dir(directory)
        root = f"{self._spool.root}/run"
        for leftover in (
            f"{root}/heartbeats/{worker}",
            f"{root}/slots/{worker}.json",
            f"{root}/slots/{worker}.error",
            f"{root}/slots/{worker}.watch",
        ):
            fsops.unlink(leftover, missing_ok=True)
        return Recovered(tuple(charged), row)

    def _recover_claim(
        self,
        claim: Claim,
        end: End,
        engine: EngineConfig | None,
        earlier: Sequence[Failure],
        stages: Stages,
        *,
        spare_attempts: int,
    ) -> bool:
        spool, job_id = self._spool, claim.name.id
        if spool.decided(job_id):
            spool.tidy(claim, attempts=claim.name.attempts)
            return False
        job: Job | None
        try:
            job = spool.read_claim(claim, arrays=False)
        except (ProtocolError, OSError):
            job = None
        if claim.worker.index == SEIZER:  # no worker had it: a supervisor was about to end it, and the next one will
            if job is not None:
                put_back(spool, claim, job)
            else:
                spool.release(claim)
            return False
        if os.path.lexists(cancel_path(spool, job_id)):
            failure = self._failure(claim, FailureKind.CANCELLED, "cancelled by request", end)
            begun = self._begun(claim, failure.at, stages)
            failure = replace(failure, started=begun, stages=stages)
            settlement.end(spool, claim, job, JobState.CANCELLED, failure, started=begun)
            self._trace(claim, job, earlier, failure, begun)
            return False
        if end.cause in INNOCENT:
            spool.release(claim)
            return False
        verdict_says = end.verdict.sentence
        what = f"{verdict_says}; {end.death.sentence}" if verdict_says else _sentence(end.death)
        failure = self._failure(claim, _kind(end), what, end)
        begun = self._begun(claim, failure.at, stages)
        failure = replace(failure, started=begun, stages=stages)
        delay = retry_delay(claim.name.attempts, failure.kind, self._rng) or 0.0
        engine = self.config.engines.get(claim.worker.engine, engine)
        retries = engine.retries if engine else Retries(0)
        again = settlement.Again(retries, delay, spare_attempts, behind=end.seen)
        settlement.settle(spool, claim, job, failure, again, started=begun)
        self._trace(claim, job, earlier, failure, begun)
        return True

    def _begun(self, claim: Claim, failed_at: int, stages: Stages) -> int:
        """When the attempt of a worker that is gone began, by its last heartbeat, µs of the spool clock."""
        beat = last_beat(self._spool, claim.worker)
        busy = beat is not None and beat.phase is Phase.BUSY
        age_us = (boot_ns() - beat.phase_ns) // 1000 if beat is not None and busy else 0
        return min(failed_at, self._spool.now() - age_us, *(stage.at for stage in stages.changes))

    def _trace(self, claim: Claim, job: Job | None, earlier: Sequence[Failure], failure: Failure, begun: int) -> None:
        """The span of an attempt whose worker cannot make it any more."""
        if not tracing.on():
            return
        attempt = tracing.Attempt(str(claim.worker), claim.name.attempts, begun, failure.at)
        tracing.attempt_ended(self._spool.id, job, attempt, before=earlier, failure=failure)

    def _failure(self, claim: Claim, kind: FailureKind, message: str, end: End) -> Failure:
        return Failure(
            kind=kind.value,
            message=message,
            stage=end.stage,
            attempt=claim.name.attempts,
            cause=end.cause.value if end.cause else DIED,
            limit=asdict(end.verdict.limit) if end.verdict.limit else None,
            exit_code=end.death.exit_code,
            signal=end.death.signal or "",
            stderr_tail=end.log_tail,
            hint=_HINTS.get(end.cause, "") if end.cause else _hint(end.death),
            worker=str(claim.worker),
            at=self._spool.now(),
        )

    def recover_abandoned(self, living: set[WorkerName]) -> list[WorkerName]:
        """At the start: directories of workers that do not live any more. Whom it recovered."""
        gone = []
        for entry in os.listdir(f"{self._spool.root}/work"):
            worker = parse_worker(entry)
            if worker is not None and worker not in living:
                stage, words = stage_of(last_beat(self._spool, worker)), last_words(self._spool, worker)
                self.recover(worker, End(UNSEEN, stage=stage, log_tail=words, seen=False))
                gone.append(worker)
        return gone

    def repair_requeues(self) -> None:
        """A process was killed while it ran a job again: put the record back, or remove what is left of it."""
        dead = f"{self._spool.root}/dead"
        entries = os.listdir(dead)
        failed = {parsed[1].id for parsed in map(parse_dead, entries) if parsed is not None}
        for entry in entries:
            aside = parse_aside(entry)
            if aside is None or owner.alive(aside[1]):
                continue
            job_id = aside[0]
            if job_id in failed and not self._spool.decided(job_id):
                fsops.rename(f"{dead}/{entry}", self._spool.record_path(job_id))
            else:
                fsops.unlink(f"{dead}/{entry}", missing_ok=True)


def _kind(end: End) -> FailureKind:
    """As what the attempt fails that was running when a worker ended so."""
    if end.death.out_of_memory:
        return FailureKind.RESOURCE
    return KIND.get(end.cause, FailureKind.INFRASTRUCTURE) if end.cause else FailureKind.INFRASTRUCTURE


_HINTS = {
    Cause.STALLED: "the stack at that moment is in stderr_tail; raise stall_timeout_s if the work is just slow",
    Cause.OVERDUE: "give the job more time (timeout_s, task_timeout_minutes) or less work",
    Cause.MEMORY: "raise memory_limit_mb, or give the job less at once",
    Cause.STOPPED: "the process was stopped by a signal; continue it within 3 s, or drain the pool instead",
}


def _sentence(death: Death) -> str:
    if death.exit_code is not None:
        return f"the worker exited with code {death.exit_code} in the middle of the job"
    return f"the worker was {death.sentence}" if death.signal else death.sentence


def _hint(death: Death) -> str:
    if death.out_of_memory or "probably out of memory" in death.sentence:
        return "fewer workers, a smaller model, or more memory"
    if death.signal in ("SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE"):
        return "a crash in native code; the Python stack is in stderr_tail"
    return ""
