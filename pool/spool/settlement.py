"""What becomes of a job whose attempt failed: another attempt, or the end with one reason per attempt.

The worker asks after an exception, the supervisor after a death; both answers must be the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pool import tracing
from pool.errors import ProtocolError
from pool.format.names import JobName
from pool.job import Failure, FailureKind, Job, JobState, Record, earlier
from pool.job.kept import NOTHING
from pool.policy.retries import Retries, why_not
from pool.spool import checkpoints, fsops
from pool.spool.redaction import Redactor
from pool.spool.store import Claim, Spool


def too_late(spool: Spool, job: Job, name: JobName) -> Failure | None:
    """Why a job may not begin any more, None when it may. name: as it waits; a job that was begun before may go on."""
    if not job.expires or name.attempts or spool.now() < job.expires:
        return None
    patience = (job.expires - job.created) / 1e6
    message = f"it expired before a worker began it, {patience:.0f} s after it was submitted"
    hint = "more workers, a higher priority, or a later `expires`"
    return Failure(FailureKind.EXPIRED.value, message, "queued", hint=hint, at=spool.now())


@dataclass(frozen=True)
class Again:
    """On which terms a job gets another attempt. retries: of the engine; the job may say otherwise. delay_s: until
    then. spare_attempts: beyond those, for a job that may not have been the one that failed. behind: it ended its
    worker."""

    retries: Retries
    delay_s: float
    spare_attempts: int = 0
    behind: bool = False


def settle(
    spool: Spool, claim: Claim, job: Job | None, failure: Failure, again: Again, *, started: int = 0
) -> JobState:
    """Give the job back, or publish its failure; the state it is in now.

    job: None when its file cannot be read, which ends it. started: when the attempt began, µs of the spool clock; 0: it
    never did.
    """
    attempt = claim.name.attempts
    if spool.decided(claim.name.id):  # published before something failed, such as the sync of its directory
        spool.tidy(claim, attempts=attempt)
        try:
            return spool.read_record(claim.name.id, arrays=False).state
        except (FileNotFoundError, ProtocolError):  # its caller has consumed it, or it is damaged
            return JobState.FAILED
    reason = "its file cannot be read"
    if job is not None:
        earlier_kinds = [note.kind for note in spool.notes(claim.name.id, attempt - 1)]
        terms = again.retries.under(job.terms.retry_times, job.terms.retry_on)
        reason = why_not(failure.kind, attempt, earlier_kinds, terms, again.spare_attempts)
    if not reason:
        spool.retry(claim, failure, delay_s=again.delay_s, behind=again.behind)
        return JobState.DEFERRED if again.delay_s > 0 else JobState.QUEUED
    end(spool, claim, job, JobState.FAILED, replace(failure, not_retried=reason), started=started)
    return JobState.FAILED


def end(
    spool: Spool,
    claim: Claim,
    job: Job | None,
    state: JobState,
    failure: Failure,
    *,
    started: int = 0,
    begun: bool = True,
) -> bool:
    """Publish a terminal record without a result: failed or cancelled. started: as in settle(). begun: whether the
    attempt in the name of the claim is the one that ends now; False for a job that waited, all of whose attempts had
    failed before."""
    attempt = claim.name.attempts
    failed = attempt - 1 if begun else attempt
    before = earlier(spool.notes(claim.name.id, failed), failed + 1)
    record = Record(
        id=claim.name.id,
        engine=claim.worker.engine,
        state=state,
        attempt=attempt,
        created=job.created if job else claim.name.born,
        started=started,
        finished=spool.now(),
        worker=str(claim.worker),
        failure=replace(failure, attempts=(*before, failure)),
        attempts=before,
        source=job.source if job else "",
        kept=Redactor.of_spool(spool.root, claim.worker.engine).keep(job) if job else NOTHING,
    )
    published = spool.finish(claim, record, reply=job.reply if job else "", durable=job.durable if job else True)
    fsops.unlink(f"{spool.root}/progress/{claim.name.id}", missing_ok=True)
    checkpoints.forget(spool, claim.name.id)
    if published:
        tracing.job_ended(spool.id, job, record)
    return published
