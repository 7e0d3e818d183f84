"""What a worker checks before it runs a claim: is it a job, may it begin, and with which parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pool.errors import ProtocolError
from pool.job import Failure, Job, JobState, references
from pool.spool import dependencies, settlement
from pool.spool.placement import hold
from pool.spool.store import Claim, Spool

if TYPE_CHECKING:  # old interpreters
    Insist = Callable[[Callable[[], Any]], Any]  # repeats an action while the disk is full


def open_claim(spool: Spool, claim: Claim, insist: Insist) -> Job | None:
    """The job of a claim, with the results of others that it asked for; None when there is nothing to run, and the
    claim is settled."""
    if spool.decided(claim.name.id):  # power was lost, and with it a claim that is not synced
        insist(lambda: spool.tidy(claim, attempts=claim.name.attempts))
        return None
    try:
        job = spool.read_claim(claim)
    except (ProtocolError, OSError) as error:
        failure = Failure(
            "infrastructure",
            f"the job file cannot be read: {error}",
            "read",
            claim.name.attempts,
            type(error).__name__,
            worker=str(claim.worker),
            at=spool.now(),
        )
        insist(lambda: settlement.end(spool, claim, None, JobState.FAILED, failure))
        return None
    waiting = claim._replace(name=claim.name.released())  # as it waited for us
    late = settlement.too_late(spool, job, waiting.name)
    if late is not None:
        _end(spool, waiting, job, late, insist)
        return None
    return _handed(spool, waiting, job, insist) if job.depends_on else job


def _handed(spool: Spool, waiting: Claim, job: Job, insist: Insist) -> Job | None:
    standing = dependencies.look(spool, job.depends_on)
    failure = standing.failure
    if failure is None and not standing.waits:
        try:
            return dependencies.hand_on(spool, job)
        except (references.MissingPart, ProtocolError, OSError) as error:
            failure = dependencies.missing(error)
    if failure is not None:
        _end(spool, waiting, job, failure, insist)
    else:
        hold(spool, waiting)  # power was lost, and with it a record; or an operator removed one
    return None


def _end(spool: Spool, waiting: Claim, job: Job, failure: Failure, insist: Insist) -> None:
    """End a job that was not begun."""
    reason = replace(failure, attempt=waiting.name.attempts, at=spool.now())
    insist(lambda: settlement.end(spool, waiting, job, JobState.FAILED, reason, begun=False))
